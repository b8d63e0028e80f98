"""The offline network: its size, its bands, padding, what it sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from separation import quality, spectra

SMALL = quality.QualityConfig(
    sample_rate_hz=8000, window_ms=8.0, hop_ms=4.0, channels=6, num_blocks=2, bands=5, hidden=7
)
CUE_SIZE = 16


@pytest.mark.parametrize("rate", [8000, 16000])
def test_the_network_is_small_whatever_the_rate(rate):
    module = quality.QualityExtractor(quality.QualityConfig(sample_rate_hz=rate))
    arguments = jnp.zeros((1, 4000)), jnp.array([4000]), jnp.zeros((1, 128))
    params = jax.eval_shape(lambda: module.init(jax.random.key(0), *arguments, train=False))
    assert sum(x.size for x in jax.tree.leaves(params)) <= 1_500_000


def test_bands_are_all_bins_once_and_no_narrower_above():
    for bands in (8, 24, 40):
        config = quality.QualityConfig(bands=bands)
        widths = np.diff(config.edges)
        assert (config.edges[0], config.edges[-1]) == (0, 257)
        assert len(widths) == bands
        assert min(widths) >= 2
        assert np.all(np.diff(widths[:-1]) >= 0)
    for settings, message in (
        ({"bands": 200}, "bands=200 do not fit into 257 bins"),
        ({"hop_ms": 20.0}, "hop_ms=20 may be up to half of window_ms=32"),
        ({"dtype": "int8"}, "dtype='int8': choose float32 or bfloat16"),
    ):
        with pytest.raises(ValueError, match=message):
            quality.QualityConfig(**settings)


@pytest.fixture(scope="module")
def net():
    """(extract, variables, audio, cues)"""
    module = quality.QualityExtractor(SMALL)
    rng = np.random.default_rng(0)
    audio = jnp.float32(0.1 * rng.normal(size=(3, 700)))
    cue = jnp.float32(rng.normal(size=(3, CUE_SIZE)))
    start = jax.jit(lambda key: module.init(key, audio, jnp.full(3, 700), cue, train=False))
    return jax.jit(lambda *x: module.apply(*x, train=False)), start(jax.random.key(0)), audio, cue


def test_padding_is_without_effect_and_the_cue_is_not(net):
    extract, variables, audio, cue = net
    lengths = jnp.array([700, 450, 333])
    keep = jnp.arange(700)[None, :] < lengths[:, None]
    found = extract(variables, jnp.where(keep, audio, 0.0), lengths, cue)
    assert found.shape == audio.shape
    for row, length in ((1, 450), (2, 333)):
        one = slice(row, row + 1)
        alone = extract(variables, audio[one, :length], lengths[one], cue[one])
        np.testing.assert_allclose(found[row, :length], alone[0], atol=1e-6)
    # A row that is not real.
    assert np.isfinite(extract(variables, 0 * audio, 0 * lengths, cue)).all()
    other = extract(variables, audio, jnp.full(3, 700), cue[::-1])
    assert np.max(np.abs(other - extract(variables, audio, jnp.full(3, 700), cue))[0]) > 1e-3


def test_it_sees_bands_and_frames_on_both_sides(net):
    extract, variables, audio, cue = net
    lengths = jnp.full(3, 700)
    change = jax.jit(
        jax.grad(lambda x: extract(variables, x, lengths, cue)[0, 350]),
    )(audio)
    hop, window, reach = 32, 64, 1 + 2  # frames on each side: 2 ** block
    seen = np.flatnonzero(change[0])
    assert not np.any(change[1:])
    assert seen.min() >= 350 - (reach + 1) * hop - window
    assert seen.max() <= 350 + (reach + 1) * hop + window
    assert seen.min() < 350 - reach * hop
    assert seen.max() > 350 + reach * hop


def test_a_mask_of_ones_gives_the_mixture_back():
    """Where every part of the mask is 1 + 0i before it is kept between -2 and 2."""
    rng = np.random.default_rng(1)
    spectrum = spectra.stft.Spectrum(*(jnp.float32(rng.normal(size=(1, 4, 5))) for _ in range(2)))
    one = 2 * np.arctanh(0.5)
    found = spectra.masked(spectrum, jnp.full((1, 4, 5), one), jnp.zeros((1, 4, 5)))
    for part, same in zip(found, spectrum, strict=True):
        np.testing.assert_allclose(part, same, rtol=1e-6)
