"""A voice that is known by its own sound: what is taken of it, and when a stream changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import errors
from separation import self_enrolment
from tests.separation import test_enhancer

RATE_HZ = 16000


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """It leaves most of what it hears, by a mask that hangs on the cue."""
    made = test_enhancer.make(tmp_path_factory.mktemp("own"), **{"data.enrolment_seconds": 1.5})
    params = dict(made._variables["params"])
    extractor = dict(params["extractor"])
    bias = np.array(extractor["mask"]["bias"])
    bias[: len(bias) // 2] = 1.5
    extractor["mask"] = {**extractor["mask"], "bias": bias}
    made._variables = {**made._variables, "params": {**params, "extractor": extractor}}
    return made


def sounds() -> tuple[np.ndarray, np.ndarray]:
    """Six seconds: 1.5 s of both voices, 0.5 s alone, a pause, 2 s alone, both again."""
    rng = np.random.default_rng(0)
    voice, other = 0.1 * rng.normal(size=(2, 6 * RATE_HZ)).astype(np.float32)
    other[int(1.5 * RATE_HZ) : 2 * RATE_HZ] = 0
    other[int(2.5 * RATE_HZ) : int(4.5 * RATE_HZ)] = 0
    voice[2 * RATE_HZ : int(2.5 * RATE_HZ)] *= 1e-3
    return voice, voice + other


def test_an_enrolment_is_of_the_blocks_in_which_a_voice_is_alone():
    """As a plain loop over blocks says it; and on the host, from chunks, the same."""
    voice, mixture = sounds()
    size, count = 512, 2 * RATE_HZ // 512
    expected = []
    for first in range(0, len(voice) - size + 1, size):
        a, b = voice[first : first + size], mixture[first : first + size]
        alone = np.array_equal(a, b) or np.sum(a**2) > 2 * np.sum((b - a) ** 2)
        if alone and np.std(a) > 0.01 and len(expected) < count:
            expected.append(a)
    expected = np.concatenate(expected)
    assert len(expected) == size * count
    # Two rows more: one that ends too early, one in which both always talk.
    rows = jnp.stack([voice, voice, 0.5 * mixture]), jnp.stack([mixture] * 3)
    lengths = jnp.array([len(voice), 3 * RATE_HZ, len(voice)])
    found = jax.jit(lambda *x: self_enrolment.enrolments(*x, RATE_HZ, 3 * RATE_HZ))
    audio, sizes = found(*rows, lengths)
    assert sizes.tolist() == [len(expected), 0, 0]
    np.testing.assert_array_equal(audio[0], expected)
    assert not np.any(audio[1:])
    short, sizes = self_enrolment.enrolments(*rows, lengths, RATE_HZ, RATE_HZ)
    assert sizes[0] == RATE_HZ // size * size  # as much as a network takes
    np.testing.assert_array_equal(short[0], expected[: sizes[0]])
    collector = self_enrolment.Collector(RATE_HZ, 3 * RATE_HZ)
    cuts = np.sort(np.random.default_rng(1).integers(0, len(voice), 50))
    for heard, made in zip(np.split(mixture, cuts), np.split(voice, cuts), strict=True):
        assert collector.enrolment is None or len(collector.enrolment) >= RATE_HZ - size
        collector.put(heard, made)
    assert collector.is_full
    np.testing.assert_array_equal(collector.enrolment, expected)


def test_a_stream_goes_on_with_its_own_cue_at_one_hop_whatever_the_chunks(network):
    mixture = test_enhancer.noise(3.0)
    null = network(mixture, RATE_HZ)
    found = network.collector()
    found.put(mixture, null)
    own = network.extract(mixture, RATE_HZ, network.cue_of(found.enrolment))
    whole = network(mixture, RATE_HZ, self_enroll=True)
    np.testing.assert_allclose(whole, own, atol=1e-5)  # all of a recording
    assert np.max(np.abs(whole - null)) > 1e-3
    said, places = [], set()
    for seed in (0, 1):
        stream = network.stream(self_enroll=True)
        cuts = np.sort(np.random.default_rng(seed).integers(0, len(mixture), 20 * seed))
        parts = [stream(chunk) for chunk in np.split(mixture, cuts)]
        said.append(np.concatenate([*parts, stream.flush()]))
        places.add(stream.enrolled_at)
    np.testing.assert_allclose(*said, atol=1e-5)
    (place,) = places
    hop = network.extractor.hop_size
    assert len(found.enrolment) <= place < len(found.enrolment) + hop + 512
    late = place - network.extractor.delay_samples  # windows overlap
    np.testing.assert_allclose(said[0][:late], null[:late], atol=1e-5)
    # The state has nothing of the cue, but what the layers made of it, 33 hops back at most.
    rest = place + 64 * hop
    np.testing.assert_allclose(said[0][rest:], own[rest:], atol=1e-3)
    again = network.extract(mixture, RATE_HZ, network.cue(None), self_enroll=True, as_stream=True)
    np.testing.assert_allclose(again, said[0], atol=1e-5)


def test_without_a_voice_alone_the_loudest_it_is(network, caplog):
    mixture = np.zeros(2 * RATE_HZ, np.float32)
    mixture[:8000] = test_enhancer.noise(0.5)
    found = network(mixture, RATE_HZ, self_enroll=True)
    np.testing.assert_array_equal(found, network(mixture, RATE_HZ))
    assert "No voice is alone for long enough" in caplog.text
    stream = network.stream(self_enroll=True)
    np.testing.assert_allclose(np.concatenate([stream(mixture), stream.flush()]), found, atol=1e-6)
    assert stream.enrolled_at is None
    with pytest.raises(errors.UserError, match="leave one of both out"):
        network(mixture, RATE_HZ, test_enhancer.noise(1.5), self_enroll=True)
