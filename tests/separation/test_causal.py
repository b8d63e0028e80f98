"""The streaming extractor: a stream of any chunks is the whole, late by less than its window."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import workdir
from separation import causal, model, settings

SMALL = causal.CausalConfig(features=24, num_layers=3, cycle=2)
CUE_SIZE = 8


@pytest.fixture(scope="module", params=[0.0, 12.0], ids=["symmetric", "asymmetric"])
def net(request):
    """(module, variables, signals of two rows, cues)"""
    sizes = SMALL
    if request.param:
        sizes = dataclasses.replace(SMALL, window_ms=30.0, synthesis_ms=request.param, hop_ms=6.0)
    module = causal.CausalExtractor(sizes)
    rng = np.random.default_rng(0)
    audio = jnp.float32(0.1 * rng.normal(size=(2, 12 * module.hop_size + 77)))
    cue = jnp.float32(rng.normal(size=(2, CUE_SIZE)))
    lengths = jnp.full(2, audio.shape[1])
    start = jax.jit(lambda key: module.init(key, audio, lengths, cue, train=False))
    variables = start(jax.random.key(0))
    return module, variables, audio, cue


def whole(net, audio):
    module, variables, _, cue = net
    lengths = jnp.full(audio.shape[0], audio.shape[1])
    extract = jax.jit(lambda x: module.apply(variables, x, lengths, cue, train=False))
    return extract(audio)


@pytest.mark.parametrize("hops", [(1,) * 13, (5, 1, 7), (13,)])
def test_a_stream_is_the_whole(net, hops):
    """1e-5 of a signal of 0.1: chunks of other sizes add in another order, over 13 frames."""
    module, variables, audio, cue = net
    expected = np.asarray(whole(net, audio))
    step = jax.jit(lambda s, x: module.apply(variables, s, x, method="step"))
    state = module.apply(variables, module.initial_state(2), cue, method="with_cue")
    parts, first = [], 0
    for count in hops:
        end = first + count * module.hop_size
        chunk = jnp.pad(audio[:, first:end], ((0, 0), (0, max(0, end - audio.shape[1]))))
        shapes = jax.tree.map(jnp.shape, state)
        state, out = step(state, chunk)
        assert jax.tree.map(jnp.shape, state) == shapes  # the same memory for ever
        parts.append(out)
        first = end
    streamed = np.concatenate(parts, axis=1)[:, module.delay_samples :]
    count = streamed.shape[1]
    assert count + module.delay_samples == 13 * module.hop_size
    np.testing.assert_allclose(streamed, expected[:, :count], atol=1e-5)


def test_nothing_is_seen_before_it_sounds(net):
    """Output up to n hangs on input up to n + latency, and on all of that."""
    module, _, audio, _ = net
    latency = module.delay_samples + module.hop_size
    config = module.config
    assert latency / config.sample_rate_hz * 1000 == (config.synthesis_ms or config.window_ms)
    change = 5 * module.hop_size
    other = audio.at[:, change:].multiply(-1.0)
    moved = np.flatnonzero(np.any(np.asarray(whole(net, audio) != whole(net, other)), axis=0))
    # The first frame that sees the change begins with a hop, a window's end before it.
    assert change - latency < moved[0] < change


def test_a_row_beyond_its_length_is_worth_what_it_is_alone(net):
    module, variables, audio, cue = net
    padded = audio.at[1, 1500:].set(0.0)
    found = whole(net, padded)[1, :1500]
    alone = module.apply(variables, audio[1:, :1500], jnp.array([1500]), cue[1:], train=False)
    np.testing.assert_allclose(found, alone[0], atol=1e-5)


def test_a_mask_of_one_gives_the_mixture_back(net):
    module, variables, audio, cue = net
    params = dict(variables["params"])
    bins = module.config.stft.num_bins
    bias = jnp.zeros(2 * bins).at[:bins].set(2 * np.arctanh(0.5))
    params["mask"] = {"kernel": jnp.zeros((SMALL.features, 2 * bins)), "bias": bias}
    found = module.apply({"params": params}, audio, jnp.full(2, 0), cue, train=False)
    np.testing.assert_allclose(found, audio, atol=1e-6)


def test_the_default_size_and_what_cannot_be():
    config = workdir.freeze(settings.default_config())
    net = model.make_model(config)
    shapes = jax.eval_shape(lambda: model.init(net, jax.random.key(0)))
    assert 3e6 < sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) <= 5e6
    for options in (
        {"window_ms": 40.0},
        {"hop_ms": 20.0},
        {"hop_ms": 0.0},
        {"synthesis_ms": 40.0},
        {"synthesis_ms": 24.0},  # shorter than two hops
        {"synthesis_ms": 20.0, "hop_ms": 10.0},  # of 32
    ):
        with pytest.raises(ValueError, match="window_ms"):
            dataclasses.replace(SMALL, **options)
