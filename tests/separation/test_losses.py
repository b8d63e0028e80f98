"""Losses against NumPy, of rows of any length, and gradients where there is nothing to hear."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import errors
from separation import losses, metrics

CONFIG = losses.LossConfig(magnitude=0.5, complex=2.0, si_sdr=0.1)


def compressed(audio: np.ndarray) -> np.ndarray:
    """Spectrum of 400-sample windows every 160, centred, with magnitudes to the power 0.3.

    And below it: magnitudes alone, of which those of silence are those of rounding.
    """
    window = np.pad(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400), 56)
    padded = np.pad(np.float64(audio), 256)
    starts = range(0, len(audio) + 1, 160)
    spectra = np.array([np.fft.rfft(window * padded[i : i + 512]) for i in starts])
    magnitude = np.sqrt(np.abs(spectra) ** 2 + 1e-8)
    return np.stack([spectra / magnitude * magnitude**0.3, magnitude**0.3])


def test_terms_are_sums_over_true_frames_and_present_rows():
    rng = np.random.default_rng(0)
    lengths = np.array([1600, 1000, 0, 1300])
    keep = np.arange(1600) < lengths[:, None]
    target, estimate = (np.where(keep, 0.3 * rng.normal(size=(4, 1600)), 0) for _ in range(2))
    target[1] = 0.0  # absent
    present = jnp.array([True, False, True, True])

    @jax.jit
    def loss(estimate):
        found = losses.terms(estimate, jnp.float32(target), jnp.array(lengths), present, CONFIG)
        return sum(term.total for term in found.values()), found

    (_, found), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.float32(estimate))
    magnitude = complex_part = frames = 0.0
    for row in (0, 1, 3):
        one, other = (compressed(x[row, : lengths[row]]) for x in (estimate, target))
        complex_part += np.sum(np.abs(one - other)[0] ** 2)
        magnitude += np.sum(np.abs(one - other)[1] ** 2)
        frames += one.shape[1]
    np.testing.assert_allclose(found["magnitude_loss"].total, magnitude, rtol=1e-4)
    np.testing.assert_allclose(found["complex_loss"].total, complex_part, rtol=1e-4)
    assert found["complex_loss"].count == found["magnitude_loss"].count == frames * 257
    ratios = [metrics.si_sdr(estimate[r, : lengths[r]], target[r, : lengths[r]]) for r in (0, 3)]
    np.testing.assert_allclose(found["si_sdr_loss"].total, -np.sum(ratios), rtol=1e-4)
    assert found["si_sdr_loss"].count == 2
    weights = {name: round(float(term.weight), 6) for name, term in found.items()}
    assert weights == {"magnitude_loss": 0.5, "complex_loss": 2.0, "si_sdr_loss": 0.1}
    assert np.isfinite(gradient).all()
    assert np.isfinite(jax.grad(lambda x: loss(x)[0])(jnp.zeros((4, 1600)))).all()


def test_some_weight_is_needed_and_none_below_zero():
    assert losses.LossConfig(magnitude=0, complex=0).si_sdr > 0
    for weights in ({"si_sdr": -0.1}, {"magnitude": 0, "complex": 0, "si_sdr": 0}):
        with pytest.raises(errors.UserError, match=r"config\.loss: magnitude"):
            losses.LossConfig(**weights)
