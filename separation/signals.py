"""Power of signals, and one scaled to a ratio to another (NumPy, host side)."""

import numpy as np
from jaxtyping import Float

QUIET = 1e-10  # power of -100 dB: what a pause is taken to have


def power(audio: Float[np.ndarray, "t"]) -> float:
    """The mean square, at least `QUIET`."""
    return max(float(np.mean(np.square(audio, dtype=np.float64))), QUIET)


def decibels(ratio: float) -> float:
    """Of a ratio of powers."""
    return float(10 * np.log10(ratio))


def spectrogram_db(audio: Float[np.ndarray, "t"], rate_hz: int) -> Float[np.ndarray, "l f"]:
    """Levels in dB of full scale, -120 at the least: frames of 32 ms every 8 ms."""
    size, hop = round(0.032 * rate_hz), round(0.008 * rate_hz)
    padded = np.pad(audio, (0, max(0, size - len(audio))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
    window = np.hanning(size)
    power = np.square(np.abs(np.fft.rfft(frames * window, axis=1)) * 2 / window.sum())
    return 10 * np.log10(np.maximum(power, 1e-12))


def scale(
    audio: Float[np.ndarray, "n"], reference: Float[np.ndarray, "t"], ratio_db: float
) -> np.float32:
    """What brings `audio` to such a level that the power of `reference` is `ratio_db` above it."""
    return np.float32((power(reference) / power(audio) * 10 ** (-ratio_db / 10)) ** 0.5)


def at_ratio(
    audio: Float[np.ndarray, "n"], reference: Float[np.ndarray, "t"], ratio_db: float
) -> Float[np.ndarray, "n"]:
    """`audio` at the level of `scale`."""
    return audio * scale(audio, reference, ratio_db)
