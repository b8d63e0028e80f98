"""How good separated speech is: SI-SDR, and the SDR, SIR and SAR of BSS Eval version 3.

Functions named `batched_` run in JAX, in float32, over padded rows; the others in NumPy, float64.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from common.nn import masking

TAPS = 512  # of the filters that BSS Eval forgives, by default those of version 3
_SMALL = 1e-10  # of the power: what ends the range of a ratio in float32
_SILENT = 1e-12  # energy: a single sample of a 16-bit recording has a thousand times as much
# In float32: added to the diagonal, which has 1, so that there is a Cholesky factor; the steps that
# then undo it, in the signals themselves.
_LOADING = 1e-5
_STEPS = 4


def si_sdr(estimate: Float[np.ndarray, "*b t"], target: Float[np.ndarray, "*b t"]):
    """Scale-invariant signal-to-distortion ratio in dB, without the means (Le Roux et al. 2019,
    arXiv:1811.02508, equation 5). -inf for a silent estimate, inf for a perfect one, NaN for a
    silent target."""
    estimate, target = (np.asarray(x, np.float64) for x in (estimate, target))
    estimate, target = (x - x.mean(-1, keepdims=True) for x in (estimate, target))
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.sum(estimate * target, -1) / np.sum(target**2, -1)
        projected = scale[..., None] * target
        signal, noise = np.sum(projected**2, -1), np.sum((estimate - projected) ** 2, -1)
        found = 10 * np.log10(signal / noise)
        # 0 / 0: nothing of the target, and nothing else.
        return np.where((signal == 0) & (noise == 0) & (np.abs(scale) >= 0), -np.inf, found)


def batched_si_sdr(
    estimate: Float[Array, "b t"], target: Float[Array, "b t"], lengths: Int[Array, "b"]
) -> Float[Array, "b"]:
    """`si_sdr` of each row's own samples, with gradients everywhere; within +-100 dB.

    A row with a silent target gets -100, with nothing at all 0.
    """
    found = []
    for x in (estimate, target):
        x = masking.zero_padding(x.astype(jnp.float32)[:, :, None], lengths)
        x = x - masking.masked_mean(x, lengths)[:, None, :]
        found.append(masking.zero_padding(x, lengths)[:, :, 0])
    estimate, target = found
    power = jnp.sum(jnp.square(target), axis=1)
    scale = jnp.sum(estimate * target, axis=1) / jnp.maximum(power, _SILENT)
    projected = scale[:, None] * target
    signal = jnp.sum(jnp.square(projected), axis=1)
    noise = jnp.sum(jnp.square(estimate - projected), axis=1)
    # Relative to the estimate, so that the scale stays without effect.
    floor = _SMALL * (signal + noise) + _SILENT
    return 10 * (jnp.log10(signal + floor) - jnp.log10(noise + floor))


class BssEval(NamedTuple):
    """Signal-to-distortion, -interference and -artifacts ratios in dB."""

    sdr: Array | np.ndarray | float
    sir: Array | np.ndarray | float
    sar: Array | np.ndarray | float


def bss_eval(
    estimate: Float[np.ndarray, "t"],
    sources: Float[np.ndarray, "s t"],
    target: int = 0,
    taps: int = TAPS,
) -> BssEval:
    """BSS Eval version 3 of an estimate of `sources[target]` (Vincent et al. 2006, IEEE TASLP
    14(4), section III.B, with time-invariant filters of `taps` taps).

    The estimate is what a filter makes of the target, and what filters make of the other sources
    (interference), and the rest (artifacts). Silent sources are left out. NaN for a silent target.
    """
    estimate, sources = np.asarray(estimate, np.float64), np.asarray(sources, np.float64)
    sounding = np.flatnonzero(np.any(sources != 0, axis=1))
    if target not in sounding:
        return BssEval(np.nan, np.nan, np.nan)
    sources = sources[sounding]
    own = _projected(estimate, sources[[int(np.searchsorted(sounding, target))]], taps)
    whole = _projected(estimate, sources, taps)
    rest = np.pad(estimate, (0, taps - 1))

    def ratio(signal: np.ndarray, noise: np.ndarray) -> float:
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(10 * np.log10(np.sum(signal**2) / np.sum(noise**2)))

    return BssEval(ratio(own, rest - own), ratio(own, whole - own), ratio(whole, rest - whole))


def _fft_size(length: int) -> int:
    return 1 << (length - 1).bit_length()


def _projected(
    estimate: Float[np.ndarray, "t"], sources: Float[np.ndarray, "s t"], taps: int
) -> Float[np.ndarray, "n"]:
    """What is nearest to the estimate among filtered sources, t + taps - 1 samples."""
    size = _fft_size(estimate.shape[0] + taps - 1)
    spectra, of_estimate = np.fft.rfft(sources, size), np.fft.rfft(estimate, size)
    between = np.fft.irfft(spectra.conj()[:, None] * spectra[None], size)  # [s, s, lag]
    lags = np.arange(taps)[:, None] - np.arange(taps)[None, :]
    count = len(sources)
    # Row (i, a), column (j, b): source i delayed by a times source j delayed by b.
    gram = between[:, :, lags].transpose(0, 2, 1, 3).reshape(count * taps, count * taps)
    heard = np.fft.irfft(spectra.conj() * of_estimate[None], size)[:, :taps].reshape(-1)
    try:
        filters = np.linalg.solve(gram, heard)
    except np.linalg.LinAlgError:  # two sources are one
        filters = np.linalg.lstsq(gram, heard)[0]
    filters = np.fft.rfft(filters.reshape(count, taps), size)
    filtered = np.fft.irfft(np.sum(filters * spectra, axis=0), size)
    return filtered[: len(estimate) + taps - 1]


def batched_bss_eval(
    estimate: Float[Array, "b t"],
    sources: Float[Array, "b t s"],
    lengths: Int[Array, "b"],
    target: Int[Array, "b"],
    taps: int = TAPS,
) -> BssEval:
    """`bss_eval` of each row's own samples, of an estimate of source `target`; each [b], within
    +-60 dB. Row after row: a row's matrix is large."""
    estimate = masking.zero_padding(estimate.astype(jnp.float32)[:, :, None], lengths)[:, :, 0]
    sources = masking.zero_padding(sources.astype(jnp.float32), lengths)
    row = functools.partial(_one_bss_eval, taps=taps)
    return jax.lax.map(lambda x: row(*x), (estimate, sources.swapaxes(1, 2), target))


def _one_bss_eval(estimate: Array, sources: Array, target: Array, *, taps: int) -> BssEval:
    # Filters undo any scale: all signals get a power of 1, silent ones stay silent.
    norms = jnp.sqrt(jnp.sum(jnp.square(sources), axis=1))
    sources = sources / jnp.where(norms > 0, norms, 1.0)[:, None]
    estimate = estimate * jax.lax.rsqrt(jnp.sum(jnp.square(estimate)) + 1e-20)
    size = _fft_size(estimate.shape[0] + taps - 1)
    spectra = jnp.fft.rfft(sources, size)
    between = jnp.fft.irfft(spectra.conj()[:, None] * spectra[None], size)
    lags = np.arange(taps)[:, None] - np.arange(taps)[None, :]
    goal = jnp.pad(estimate, (0, size - estimate.shape[0]))

    def project(spectra: Array, between: Array) -> Array:
        """Conjugate gradients for the least squares, with a Cholesky factor to start from."""
        count = spectra.shape[0]
        gram = between[:, :, lags].transpose(0, 2, 1, 3).reshape(count * taps, count * taps)
        loaded = gram + _LOADING * jnp.eye(count * taps)
        factor = jax.scipy.linalg.cho_factor(loaded, lower=True)

        def filtered(filters: Array) -> Array:
            filters = jnp.fft.rfft(filters.reshape(count, taps), size)
            return jnp.fft.irfft(jnp.sum(filters * spectra, axis=0), size)

        def heard(signal: Array) -> Array:
            spectrum = jnp.fft.rfft(signal, size)[None]
            return jnp.fft.irfft(spectra.conj() * spectrum, size)[:, :taps].reshape(-1)

        def step(_: Any, carry: tuple) -> tuple:
            found, rest, direction, size_before = carry
            moved = filtered(direction)
            rate = size_before / (jnp.sum(jnp.square(moved)) + 1e-30)
            found, rest = found + rate * moved, rest - rate * moved
            downhill = heard(rest)
            steps = jax.scipy.linalg.cho_solve(factor, downhill)
            size_now = jnp.sum(downhill * steps)
            direction = steps + size_now / (size_before + 1e-30) * direction
            return found, rest, direction, size_now

        downhill = heard(goal)
        steps = jax.scipy.linalg.cho_solve(factor, downhill)
        start = (jnp.zeros_like(goal), goal, steps, jnp.sum(downhill * steps))
        return jax.lax.fori_loop(0, _STEPS, step, start)[0]

    own = project(spectra[target][None], between[target, target][None, None])
    whole = project(spectra, between)

    def ratio(signal: Array, noise: Array) -> Array:
        signal, noise = jnp.sum(jnp.square(signal)), jnp.sum(jnp.square(noise))
        return 10 * (jnp.log10(signal + 1e-20) - jnp.log10(noise + 1e-20))

    found = (ratio(own, goal - own), ratio(own, whole - own), ratio(whole, goal - whole))
    return BssEval(*(jnp.where(norms[target] > 0, x, jnp.nan) for x in found))
