"""Where the way of integrated gradients starts: inputs without what is to be explained."""

import numpy as np
import scipy.ndimage
from jaxtyping import Float

NOISES = 4  # over which --baseline=noise averages
BLUR_SECONDS = 0.2  # standard deviation of the Gaussian in time
BLUR_BINS = 4.0  # in frequency


def baselines(
    kind: str,
    values: Float[np.ndarray, "l *f"],
    silence: Float[np.ndarray, "l *f"],
    seconds: float,
    seed: int = 0,
) -> list[Float[np.ndarray, "l *f"]]:
    """The baselines of one recording, without its padding; several are averaged over.

    silence: what digital silence gives. On log-mel with normalised bands that is 0 but for
        rounding, the mean of each band (of a band that does not move 0 is left); else the floor.
    mean: of each band over time; of a waveform over time.
    noise: Gaussian with the deviation of each band around its mean; for a waveform with that of the
        recording. Depends on the seed, not on the padding or the place in a batch.
    blurred: a Gaussian over `BLUR_SECONDS` and `BLUR_BINS`.
    """
    mean = np.broadcast_to(values.mean(axis=0, keepdims=True), values.shape)
    if kind == "silence":
        found = [silence]
    elif kind == "mean":
        found = [mean]
    elif kind == "noise":
        deviation = values.std(axis=0, keepdims=True)
        draws = (np.random.default_rng([seed, i]) for i in range(NOISES))
        found = [mean + deviation * rng.standard_normal(values.shape) for rng in draws]
    elif kind == "blurred":
        sigma = (BLUR_SECONDS / seconds, *[BLUR_BINS] * (values.ndim - 1))
        found = [scipy.ndimage.gaussian_filter(values, sigma, mode="nearest")]
    else:
        raise ValueError(f"there is no baseline {kind!r}")
    return [np.asarray(one, np.float32) for one in found]
