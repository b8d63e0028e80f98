"""Augmentation inside the jitted step: SpecAugment, gain, noise, rooms.

Every function takes one key per row, so a row's draw depends neither on its neighbours nor on the
number of devices. Shapes are static; rows stay zero beyond their lengths.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from common.nn import masking

ADDED = ("noise", "music", "babble", "hiss")  # to the waveform, in this order


@dataclasses.dataclass(frozen=True)
class SpecAugmentConfig:
    """Masks of SpecAugment (Park et al. 2019) with the adaptive time masks of Park et al. 2020.

    A frequency mask covers 0 to `freq_width` bins; a time mask 0 to `time_ratio` of the row's true
    frames and at most `time_width` frames (None: no such limit).
    """

    freq_masks: int = 2
    freq_width: int = 27
    time_masks: int = 10
    time_ratio: float = 0.05
    time_width: int | None = None


def spec_augment(
    features: Float[Array, "b l f"],
    lengths: Int[Array, "b"],
    keys: Key[Array, "b"],
    config: SpecAugmentConfig,
) -> Float[Array, "b l f"]:
    """Features with random bands and stretches of time set to zero, within the true frames.

    There is no time warping, which the authors found to matter least.
    """
    _, num_frames, num_bins = features.shape
    draws = jax.vmap(
        lambda key: jax.random.uniform(key, (2, config.freq_masks + config.time_masks))
    )(keys)
    (freq_width, freq_start), (time_width, time_start) = (
        (part[:, 0], part[:, 1]) for part in jnp.split(draws, [config.freq_masks], axis=2)
    )
    bins = jnp.full_like(lengths, num_bins)
    max_bins = jnp.full_like(lengths, min(config.freq_width, num_bins))
    # The small addition keeps 0.05 * 100 = 5 from being rounded down to 4.
    max_frames = (config.time_ratio * lengths.astype(jnp.float32) + 1e-3).astype(lengths.dtype)
    if config.time_width is not None:
        max_frames = jnp.minimum(max_frames, config.time_width)
    masked = (
        _spans(freq_width, freq_start, bins, max_bins, num_bins)[:, None, :]
        | _spans(time_width, time_start, lengths, max_frames, num_frames)[:, :, None]
    )
    return masking.zero_padding(jnp.where(masked, 0, features), lengths)


def _spans(
    width_draw, start_draw, sizes: Int[Array, "b"], max_widths: Int[Array, "b"], length: int
):
    """Union of the spans that uniform draws `[b, n]` choose inside `sizes`: `bool[b, length]`."""
    widths = jnp.floor(width_draw * (max_widths[:, None] + 1)).astype(jnp.int32)
    starts = jnp.floor(start_draw * (sizes[:, None] - widths + 1)).astype(jnp.int32)
    position = jnp.arange(length)[None, None, :]
    inside = (position >= starts[:, :, None]) & (position < (starts + widths)[:, :, None])
    return inside.any(axis=1)


def warp_frequency(
    features: Float[Array, "b l m"],
    keys: Key[Array, "b"],
    centres_hz: Float[np.ndarray, "m"],
    factors: tuple[float, float],
) -> Float[Array, "b l m"]:
    """Log-mel spectra as if the vocal tract were shorter or longer by a factor drawn for the row.

    Vocal tract length perturbation (Jaitly and Hinton, 2013, equation 1): band m takes what stands
    at `factor` times its centre frequency; above 4.8 kHz the map bends so that the highest band
    stays in place. Values between two bands are interpolated linearly in the order of the bands.
    `centres_hz` ascends; the factor is uniform in its logarithm within `factors`.
    """
    low, high = np.log(factors)
    draw = jax.vmap(lambda key: jax.random.uniform(key))(keys)
    factor = jnp.exp(low + draw * (high - low)).astype(jnp.float32)[:, None]
    centres, top = jnp.asarray(centres_hz, jnp.float32)[None, :], float(centres_hz[-1])
    bend = min(4800.0, 0.6 * top)
    knee = bend * jnp.minimum(factor, 1.0)
    above = top - (top - knee) / (top - knee / factor) * (top - centres)
    wanted = jnp.where(centres <= knee / factor, centres * factor, above)
    bands = jnp.arange(len(centres_hz), dtype=jnp.float32)
    place = jax.vmap(lambda hz: jnp.interp(hz, centres[0], bands))(wanted)
    weights = jnp.maximum(0.0, 1.0 - jnp.abs(place[:, None, :] - bands[None, :, None]))
    weights = weights.astype(features.dtype)
    return jnp.einsum("blm,bmn->bln", features, weights, precision="highest")


def change_gain(
    audio: Float[Array, "b t"], keys: Key[Array, "b"], gain_db: tuple[float, float]
) -> Float[Array, "b t"]:
    """Each row louder or softer by a gain drawn uniformly, in dB; nothing is clipped."""
    low, high = gain_db
    draw = jax.vmap(lambda key: jax.random.uniform(key))(keys)
    return audio * (10 ** ((low + draw * (high - low)) / 20)).astype(audio.dtype)[:, None]


def add_noise(
    audio: Float[Array, "b t"],
    lengths: Int[Array, "b"],
    noise: Float[Array, "b n"],
    noise_lengths: Int[Array, "b"],
    keys: Key[Array, "b"],
    *,
    snr_db: tuple[float, float],
) -> Float[Array, "b t"]:
    """Audio plus each row's noise at a signal-to-noise ratio drawn uniformly from `snr_db`.

    Longer noise is cropped at a random place, shorter noise repeated from a random start. Both
    powers are taken over the row's true samples, so the ratio is exact there. Rows with silent or
    no noise (length 0) stay as they are; nothing is clipped.
    """
    offset_draw, snr_draw = jax.vmap(lambda key: jax.random.uniform(key, (2,)), out_axes=1)(keys)
    spare = noise_lengths - lengths
    starts = jnp.where(spare >= 0, spare + 1, noise_lengths)
    offset = jnp.floor(offset_draw * starts).astype(jnp.int32)
    position = offset[:, None] + jnp.arange(audio.shape[1])[None, :]
    position = position % jnp.maximum(noise_lengths, 1)[:, None]
    noise = _true_samples(jnp.take_along_axis(noise, position, axis=1), lengths)
    energy, noise_energy = _energy(_true_samples(audio, lengths)), _energy(noise)
    snr = snr_db[0] + snr_draw * (snr_db[1] - snr_db[0])
    gain = jnp.sqrt(energy / jnp.maximum(noise_energy, 1e-20) * 10 ** (-snr / 10))
    used = (noise_energy > 1e-20) & (noise_lengths > 0)
    return audio + (jnp.where(used, gain, 0)[:, None] * noise).astype(audio.dtype)


def reverberate(
    audio: Float[Array, "b t"],
    lengths: Int[Array, "b"],
    rir: Float[Array, "b r"],
    rir_lengths: Int[Array, "b"],
) -> Float[Array, "b t"]:
    """Audio convolved with each row's room impulse response, the same length and energy as before.

    The direct path (the largest absolute sample of the response) falls on time 0, so labels and
    alignments stay valid; the reverberant tail past the end is cut. Rows without a response
    (length 0, or silent) stay as they are.
    """
    dry, rir = _true_samples(audio, lengths), _true_samples(rir, rir_lengths)
    # Long enough that what wraps round (the tail, and what precedes the direct path) stays apart.
    size = 1 << (audio.shape[1] + rir.shape[1] - 1).bit_length()
    direct = jnp.argmax(jnp.abs(rir), axis=1)
    rir_spectrum = jnp.fft.rfft(rir, size)
    # A product beyond 32 bits wraps by a multiple of `size`, a power of two: no harm done.
    turn = jnp.arange(size // 2 + 1)[None, :] * direct[:, None] % size
    advance = jnp.exp(2j * jnp.pi / size * turn.astype(jnp.float32))
    wet = jnp.fft.irfft(jnp.fft.rfft(dry, size) * rir_spectrum * advance, size)
    wet = _true_samples(wet[:, : audio.shape[1]], lengths)
    gain = jnp.sqrt(_energy(dry) / jnp.maximum(_energy(wet), 1e-20))[:, None]
    used = (_energy(rir) > 1e-20) & (rir_lengths > 0)
    return jnp.where(used[:, None], (gain * wet).astype(audio.dtype), audio)


def add_rooms_and_noise(
    audio: Float[Array, "b t"],
    lengths: Int[Array, "b"],
    batch: Mapping[str, Array],
    keys: Mapping[str, Key[Array, "b"]],
    settings: Any,
) -> Float[Array, "b t"]:
    """`reverberate`, then `add_noise`, with what the batch holds of `rir` and of `ADDED`.

    Whether a row has any was decided when it was read: a length of 0 is none. `settings` is
    `config.augment` (`common.data.splits.default_augment`), `keys` has all of `ADDED`. A batch
    without any of them is returned as it is.
    """
    if "rir" in batch:
        audio = reverberate(audio, lengths, batch["rir"], batch["rir_lengths"])
    for name in ADDED:
        if name in batch:
            audio = add_noise(
                audio,
                lengths,
                batch[name],
                batch[f"{name}_lengths"],
                keys[name],
                snr_db=tuple(settings[name].snr_db),
            )
    return audio


def _true_samples(audio: Float[Array, "b t"], lengths: Int[Array, "b"]) -> Float[Array, "b t"]:
    return masking.zero_padding(audio.astype(jnp.float32)[:, :, None], lengths)[:, :, 0]


def _energy(audio: Float[Array, "b t"]) -> Float[Array, "b"]:
    """Energy of each row; with equal lengths, a ratio of energies is a ratio of powers."""
    return jnp.sum(jnp.square(audio), axis=1)
