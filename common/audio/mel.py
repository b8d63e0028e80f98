"""The mel scale: filter banks, cepstra, and the way back from mel to linear frequency."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

MelScale = Literal["htk", "slaney"]
_SLANEY_BREAK_HZ, _SLANEY_HZ_PER_MEL, _SLANEY_LOG_STEP = 1000.0, 200 / 3, np.log(6.4) / 27


def hz_to_mel(hz, scale: MelScale = "htk"):
    """Mel of a frequency: `1127 ln(1 + f/700)` (htk), or linear below 1 kHz and log above."""
    hz = np.asarray(hz, np.float64)
    if scale == "htk":
        return 1127.0 * np.log1p(hz / 700.0)
    above = np.log(np.maximum(hz, _SLANEY_BREAK_HZ) / _SLANEY_BREAK_HZ) / _SLANEY_LOG_STEP
    return np.minimum(hz, _SLANEY_BREAK_HZ) / _SLANEY_HZ_PER_MEL + above


def mel_to_hz(mel, scale: MelScale = "htk"):
    """The inverse of `hz_to_mel`."""
    mel = np.asarray(mel, np.float64)
    if scale == "htk":
        return 700.0 * np.expm1(mel / 1127.0)
    break_mel = _SLANEY_BREAK_HZ / _SLANEY_HZ_PER_MEL
    above = np.exp(_SLANEY_LOG_STEP * np.maximum(mel - break_mel, 0))
    return np.minimum(mel, break_mel) * _SLANEY_HZ_PER_MEL * above


def mel_filter_bank(
    *,
    num_mels: int,
    num_fft: int,
    sample_rate_hz: int,
    min_hz: float = 0.0,
    max_hz: float | None = None,
    scale: MelScale = "htk",
    norm: Literal["none", "slaney"] = "none",
) -> Float[np.ndarray, "f m"]:
    """Triangular filters over the `num_fft // 2 + 1` bins of a power spectrum, one per column.

    The triangles are straight in Hz, as in librosa and torchaudio (Kaldi's are straight in mel, see
    `kaldi.mel_filter_bank`). Norm "none": peak 1; "slaney": area 1 in Hz.
    Raises ValueError when a filter is so narrow that it holds no bin.
    """
    max_hz = sample_rate_hz / 2 if max_hz is None else max_hz
    if not 0 <= min_hz < max_hz <= sample_rate_hz / 2:
        raise ValueError(f"need 0 <= {min_hz=} < {max_hz=} <= half of {sample_rate_hz=}")
    edges = np.linspace(hz_to_mel(min_hz, scale), hz_to_mel(max_hz, scale), num_mels + 2)
    edges = mel_to_hz(edges, scale)
    bins = np.arange(num_fft // 2 + 1)[:, None] * sample_rate_hz / num_fft
    rising = (bins - edges[:-2]) / np.diff(edges[:-1])
    falling = (edges[2:] - bins) / np.diff(edges[1:])
    bank = np.maximum(0, np.minimum(rising, falling))
    if not bank.any(axis=0).all():
        raise ValueError(
            f"{np.sum(~bank.any(axis=0))} of {num_mels} mel filters hold no FFT bin: take fewer "
            f"bands, a longer num_fft (now {num_fft}) or a higher min_hz (now {min_hz})"
        )
    if norm == "slaney":
        bank = bank * (2 / (edges[2:] - edges[:-2]))
    return bank.astype(np.float32)


def dct_matrix(num_mels: int, num_ceps: int) -> Float[np.ndarray, "m c"]:
    """The orthonormal DCT-II that turns `num_mels` log energies into `num_ceps` cepstra."""
    angles = np.pi / num_mels * np.outer(np.arange(num_mels) + 0.5, np.arange(num_ceps))
    matrix = np.sqrt(2 / num_mels) * np.cos(angles)
    matrix[:, 0] = np.sqrt(1 / num_mels)
    return matrix.astype(np.float32)


def lifter(num_ceps: int, coefficient: float) -> Float[np.ndarray, "c"]:
    """Weights `1 + L/2 sin(pi n / L)` that even out the variances of cepstra; 0 gives ones.

    n counts from 0, so the energy-like c0 keeps its scale (HTK book, eq. 5.14; Kaldi alike).
    """
    if coefficient == 0:
        return np.ones(num_ceps, np.float32)
    weights = 1 + coefficient / 2 * np.sin(np.pi * np.arange(num_ceps) / coefficient)
    return weights.astype(np.float32)


def mel_to_power(
    mel: Float[Array, "b l m"], bank: Float[np.ndarray, "f m"], *, num_iterations: int = 64
) -> Float[Array, "b l f"]:
    """A non-negative power spectrum whose mel spectrum is close to `mel` (linear, not log).

    Multiplicative updates of non-negative least squares (Lee and Seung 2001, eq. 4) from a flat
    spectrum: bins that no filter covers stay as small as their neighbours allow.
    """
    target = jnp.matmul(mel, bank.T, precision="highest")
    gram = bank @ bank.T
    covered = bank.any(axis=1).astype(np.float32)[None, None, :]
    start = jnp.maximum(mel.mean(axis=-1, keepdims=True), 1e-12) * covered

    def step(_, power):
        again = jnp.matmul(power, gram, precision="highest")
        return power * target / jnp.maximum(again, 1e-20)

    return jax.lax.fori_loop(0, num_iterations, step, start)
