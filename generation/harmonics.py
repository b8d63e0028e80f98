"""The height of a voice as networks are told it: where its harmonics lie in log-mel bands."""

import functools
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from common.audio import frontend, pitch, stft
from common.nn import masking

LOW_HZ, HIGH_HZ = 60.0, 500.0  # of voices
MIDDLE = math.log2(150.0)  # octaves above 1 Hz
_STEPS = 96  # of the table, an octave: a tenth harmonic moves by 0.7 %
_FINE = 16  # places in a bin of the transform
_LEAST = 0.01  # of the mean power: between harmonics
_CLEAR = 0.5  # periodicity of frames that say how high a voice is


def heights(
    audio: Float[Array, "b t"], lengths: Int[Array, "b"], config: frontend.LogMelConfig
) -> tuple[Float[Array, "b l"], Float[Array, "b l"]]:
    """Frequency in Hz and periodicity (`pitch.yin`) of every frame of `frontend.log_mel`."""
    found = pitch.PitchConfig(
        sample_rate_hz=config.sample_rate_hz,
        hop_size=config.hop_size,
        middle=config.window_size // 2,
        window_size=round(0.025 * config.sample_rate_hz),
        low_hz=LOW_HZ,
        high_hz=HIGH_HZ,
    )
    return pitch.yin(audio, lengths, found)


def mean(
    hertz: Float[Array, "b l"], periodicity: Float[Array, "b l"]
) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
    """The mean of a voice in octaves above 1 Hz, and how many frames it is of, in all; where there
    are none it is `MIDDLE`."""
    weights = jnp.maximum(periodicity - _CLEAR, 0.0) / (1.0 - _CLEAR)
    total = jnp.sum(weights, axis=1)
    octaves = jnp.where(hertz > 0, jnp.log2(jnp.maximum(hertz, 1.0)), 0.0)
    found = jnp.sum(weights * octaves, axis=1) / jnp.maximum(total, 1e-6)
    return jnp.where(total > 0, found, MIDDLE), total


def moved(hertz: Float[Array, "b l"], octaves: Float[Array, "b"]) -> Float[Array, "b l"]:
    """Higher by so many octaves, within `LOW_HZ` to `HIGH_HZ`; 0 Hz stay 0."""
    higher = jnp.clip(hertz * jnp.exp2(octaves)[:, None], LOW_HZ, HIGH_HZ)
    return jnp.where(hertz > 0, higher, 0.0)


def combs(
    hertz: Float[Array, "b l"], lengths: Int[Array, "b"], config: frontend.LogMelConfig
) -> Float[Array, "b l m"]:
    """Log power of harmonics of one strength in each band, less that of a noise of that density.

    Up to 2 or so where one lies in the middle of a band, `log(_LEAST)` between two, about 0 where a
    band holds several; 0 beyond a row's length.
    """
    rows = jnp.asarray(_table(config))
    place = _STEPS * jnp.log2(jnp.maximum(hertz, LOW_HZ) / LOW_HZ)
    place = jnp.clip(place, 0.0, len(rows) - 1.001)
    first = jnp.floor(place).astype(jnp.int32)
    share = (place - first)[:, :, None]
    found = (1.0 - share) * rows[first] + share * rows[first + 1]
    return masking.zero_padding(found, lengths)


@functools.lru_cache(maxsize=8)
def _table(config: frontend.LogMelConfig) -> Float[np.ndarray, "n m"]:
    """`combs` of `LOW_HZ * 2^(i / _STEPS)`, up to `HIGH_HZ`."""
    size, bank = config.fft_size, config.filter_bank()
    window = stft.window_function(config.window or "hann", config.window_size)
    response = np.square(np.abs(np.fft.fft(window, _FINE * size)))
    bins, width = np.arange(len(bank)), config.sample_rate_hz / size
    # Of a noise with one harmonic a hertz; both sums are of squares of one window.
    noise = np.maximum(bank.sum(0) * response.sum() / _FINE * width, 1e-12)
    rows = []
    for step in range(math.ceil(_STEPS * math.log2(HIGH_HZ / LOW_HZ)) + 1):
        lowest = LOW_HZ * 2 ** (step / _STEPS)
        harmonics = lowest * np.arange(1, math.floor(config.sample_rate_hz / 2 / lowest) + 1)
        away = np.round(_FINE * (bins[None, :] - harmonics[:, None] / width)).astype(int)
        power = response[away % len(response)].sum(0) @ bank
        rows.append(np.log(np.maximum(power * lowest / noise, _LEAST)))
    # A band narrower than a bin of the transform may hold none: nothing is known of it.
    return np.where(bank.sum(0) > 0, np.stack(rows), 0.0).astype(np.float32)
