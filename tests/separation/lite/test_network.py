"""VoiceFilter-Lite: shapes, padding, streams, the mask's domain, suppression, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import errors
from common.audio import frontend
from separation import cue
from separation.lite import network

SIZES = network.LiteConfig(
    sample_rate_hz=8000, num_mels=12, convs=((3, 4), (5, 3)), lstm_size=7, hidden_size=5
)
FRAMES = 30


@pytest.fixture(scope="module")
def net():
    """(enhance, variables, features, cues); its LSTMs have weights that make something of them."""
    cues = cue.CueEncoder(cue.CueConfig(sample_rate_hz=8000, num_mels=16, channels=4, size=6))
    module = network.LiteNet(cues, network.LiteExtractor(SIZES), 3)
    variables = jax.jit(lambda key: network.init(module, key))(jax.random.key(0))
    rng = np.random.default_rng(0)
    variables["batch_stats"]["extractor"]["norm"]["mean"] = jnp.float32(rng.normal(size=12))
    x = jnp.float32(3 * rng.normal(size=(3, FRAMES, 12)) - 2)
    known = jnp.float32(rng.normal(size=(3, 6)))
    enhance = jax.jit(lambda v, *inputs: module.apply(v, *inputs, method="enhance"))
    return enhance, variables, x, known


def test_padding_is_without_effect_and_the_cue_is_not(net):
    enhance, variables, x, known = net
    lengths = jnp.array([FRAMES, 17, 0])
    found = enhance(variables, x, lengths, known)
    assert found.features.shape == x.shape
    assert found.overlapped.shape == x.shape[:2]
    alone = enhance(variables, x[1:2, :17], lengths[1:2], known[1:2])
    np.testing.assert_allclose(found.features[1, :17], alone.features[0], atol=1e-5)
    np.testing.assert_allclose(found.overlapped[1, :17], alone.overlapped[0], atol=1e-5)
    for row, length in enumerate(lengths):
        assert not np.any(found.features[row, length:])
        assert not np.any(found.overlapped[row, length:])
    other = enhance(variables, x, lengths, known[::-1])
    assert np.max(np.abs(other.features - found.features)[0]) > 1e-3
    assert np.max(np.abs(other.overlapped - found.overlapped)[0]) > 1e-4


def test_frame_by_frame_is_as_the_whole(net):
    """Features, noise type and strength: nothing hangs on later frames, or on chunks."""
    enhance, variables, x, known = net
    config = network.SuppressionConfig(beta=0.8, a=0.9, b=0.05)
    whole = enhance(variables, x, jnp.full(3, FRAMES), known)
    strength = network.strengths(jax.nn.sigmoid(whole.overlapped), jnp.zeros(3), config)
    state, parts = network.initial_state(3, SIZES), []
    for frame in range(FRAMES):
        one = x[:, frame : frame + 1]
        found = enhance(variables, one, jnp.ones(3, int), known, state.lstms)
        now = network.strengths(jax.nn.sigmoid(found.overlapped), state.strength, config)
        state = network.State(found.after, now[:, -1])
        parts.append((found.features, found.overlapped, now))
    streamed = [jnp.concatenate(part, axis=1) for part in zip(*parts)]
    for one, same in zip(streamed, (whole.features, whole.overlapped, strength)):
        np.testing.assert_allclose(one, same, atol=1e-5)


def test_a_mask_lies_between_the_floor_and_what_there_was():
    rng = np.random.default_rng(1)
    x = jnp.float32(np.maximum(4 * rng.normal(size=(2, 5, 12)), np.log(SIZES.floor)))
    floor = SIZES.floor_energy
    np.testing.assert_allclose(network.masked(x, jnp.ones(x.shape), floor), x, atol=1e-5)
    nothing = network.masked(x, jnp.zeros(x.shape), floor)
    np.testing.assert_allclose(nothing, np.log(floor), rtol=1e-6)
    half = np.log(floor + 0.5 * (np.exp(np.float64(x)) - floor))
    np.testing.assert_allclose(network.masked(x, jnp.full(x.shape, 0.5), floor), half, atol=1e-5)


def test_no_energy_is_suppressed_by_more_than_the_least_gain(net):
    enhance, variables, x, known = net
    wide = jax.tree.map(lambda w: 100 * w, variables)
    found = enhance(wide, x, jnp.full(3, FRAMES), known).features
    least = 10 * np.log10(np.exp(np.min(found - x)))
    assert -30.1 < least < -29  # some mask is shut, and none further
    assert np.all(found <= x + 1e-5)


@pytest.mark.parametrize(("beta", "a", "b"), [(0.9, 1.0, 0.0), (0.0, 0.7, 0.5), (0.5, 0.0, 0.0)])
def test_strengths_are_those_of_a_loop(beta, a, b):
    rng = np.random.default_rng(2)
    given, before = rng.random((2, 20)), rng.random(2)
    config = network.SuppressionConfig(beta=beta, a=a, b=b)
    found = network.strengths(jnp.float32(given), jnp.float32(before), config)
    for row in range(2):
        last = before[row]
        for frame in range(20):
            last = beta * last + (1 - beta) * min(1.0, a * given[row, frame] + b)
            assert found[row, frame] == pytest.approx(last, abs=1e-6)


def test_suppression_leaves_what_was_given_at_0_and_takes_all_at_1():
    rng = np.random.default_rng(3)
    given, enhanced = (jnp.float32(rng.normal(size=(2, 4, 5))) for _ in range(2))
    found = network.suppressed(given, enhanced, jnp.zeros((2, 4)))
    np.testing.assert_array_equal(found, given)
    np.testing.assert_array_equal(network.suppressed(given, enhanced, jnp.ones((2, 4))), enhanced)
    half = network.suppressed(given, enhanced, jnp.full((2, 4), 0.5))
    np.testing.assert_allclose(half, (given + enhanced) / 2, rtol=1e-6)


def test_settings_that_cannot_be():
    for settings, message in (
        ({"least_gain_db": 0}, "least_gain_db=0 is no suppression"),
        ({"alone": 1.0}, r"alone=1\.0: a share"),
        ({"compat": "htk"}, "compat='htk'"),
    ):
        with pytest.raises(ValueError, match=message):
            network.LiteConfig(**settings)
    for settings in ({"beta": 1.0}, {"a": -1}, {"b": -0.1}):
        with pytest.raises(errors.UserError, match=r"config\.suppression"):
            network.SuppressionConfig(**settings)


def test_a_recogniser_has_to_have_the_same_features():
    """How it normalises them is its own affair."""
    theirs = frontend.LogMelConfig(sample_rate_hz=8000, num_mels=12, normalize="causal")
    network.check_same(SIZES, theirs, "x")
    theirs = frontend.LogMelConfig(sample_rate_hz=8000, num_mels=40, floor=1e-5)
    message = "x: .*num_mels is 40 there, 12 here, floor is 1e-05 there, 1e-06 here"
    with pytest.raises(errors.UserError, match=message):
        network.check_same(SIZES, theirs, "x")
    assert network.LiteConfig(compat="kaldi").floor_energy == pytest.approx(2**-23)
