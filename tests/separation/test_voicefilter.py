"""VoiceFilter: the published sizes, padding, masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from separation import voicefilter

SMALL = voicefilter.VoiceFilterConfig(
    num_fft=64, window_ms=4.0, hop_ms=1.0, channels=4, last_channels=2, lstm_size=5, hidden_size=6
)
CUE_SIZE = 256


@pytest.mark.parametrize(
    ("num_fft", "bidirectional", "published"),
    [
        # Of the PyTorch port, counted by layer: convolutions 543,000, then LSTM and linear layers.
        (1200, True, 18_876_001),
        (512, True, 9_862_857),
        (1200, False, 9_890_401),
        (512, False, 5_280_457),
    ],
)
def test_the_published_sizes(num_fft, bidirectional, published):
    config = voicefilter.VoiceFilterConfig(num_fft=num_fft, bidirectional=bidirectional)
    module = voicefilter.VoiceFilter(config)
    arguments = jnp.zeros((1, 4000)), jnp.array([4000]), jnp.zeros((1, CUE_SIZE))
    params = jax.eval_shape(
        lambda: module.init(jax.random.key(0), *arguments, train=False)["params"]
    )
    sizes = {name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in params.items()}
    second_bias = 4 * 400 * (1 + bidirectional)
    assert sum(sizes.values()) == published - second_bias
    convolutions = sum(n for name, n in sizes.items() if name.startswith(("conv", "norm")))
    assert convolutions == 543_000
    if num_fft == 1200 and bidirectional:
        assert sizes["forward"] + sizes["backward"] == 17_491_200 - second_bias
        assert sizes["fc1"] + sizes["fc2"] == 841_801


@pytest.fixture(scope="module")
def net():
    """(module, variables with statistics of their own, audio, cues)"""
    module = voicefilter.VoiceFilter(SMALL)
    rng = np.random.default_rng(0)
    audio = jnp.float32(0.1 * rng.normal(size=(3, 700)))
    cue = jnp.float32(rng.normal(size=(3, CUE_SIZE)))
    start = jax.jit(lambda key: module.init(key, audio, jnp.full(3, 700), cue, train=False))
    variables = start(jax.random.key(0))
    return module, variables, audio, cue


def extract(net, variables, *arguments):
    return jax.jit(lambda *x: net[0].apply(*x, train=False))(variables, *arguments)


def test_padding_is_without_effect_and_later_frames_are_seen(net):
    """float32, eight convolutions and two recurrences: 1e-5 of a signal of 0.1."""
    _, variables, audio, cue = net
    lengths = jnp.array([700, 450, 333])
    keep = jnp.arange(700)[None, :] < lengths[:, None]
    padded = jnp.where(keep, audio, 0.0)
    found = extract(net, variables, padded, lengths, cue)
    for row, length in ((1, 450), (2, 333)):
        one = slice(row, row + 1)
        alone = extract(net, variables, audio[one, :length], lengths[one], cue[one])
        np.testing.assert_allclose(found[row, :length], alone[0], atol=1e-6)
    other = extract(net, variables, padded.at[0, 600:].set(0.05), lengths, cue)
    assert np.abs(other - found)[0, :300].max() > 0  # the backward LSTM: it cannot stream
    swapped = extract(net, variables, padded, lengths, cue[::-1])
    assert np.abs(swapped - found)[0].max() > 0


def test_it_is_a_mask_of_the_mixture(net):
    """fc2 of a large bias: a mask of one, and the mixture comes back, to its very ends."""
    _, variables, audio, cue = net
    fc2 = jax.tree.map(lambda x: jnp.zeros_like(x), variables["params"]["fc2"])
    fc2["bias"] = fc2["bias"] + 30.0
    changed = {**variables, "params": {**variables["params"], "fc2": fc2}}
    found = extract(net, changed, audio, jnp.full(3, 700), cue)
    np.testing.assert_allclose(found, audio, atol=1e-6)
