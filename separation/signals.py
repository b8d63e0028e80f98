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


def at_ratio(
    audio: Float[np.ndarray, "n"], reference: Float[np.ndarray, "t"], ratio_db: float
) -> Float[np.ndarray, "n"]:
    """`audio` at such a level that the power of `reference` is `ratio_db` above its own."""
    scale = (power(reference) / power(audio) * 10 ** (-ratio_db / 10)) ** 0.5
    return audio * np.float32(scale)
