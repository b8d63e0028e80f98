"""From a log-mel spectrum back to sound: what `frontend.log_mel` leaves out is made up."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from common.audio import frontend, mel, stft


def num_samples(num_frames: int, config: frontend.LogMelConfig) -> int:
    """Of a sound whose first `num_frames` frames are whole, as `sound` makes it."""
    return (num_frames - 1) * config.hop_size + config.window_size


def sound(
    log_mel: Float[Array, "b l m"],
    config: frontend.LogMelConfig,
    keys: Key[Array, "b"],
    *,
    num_iterations: int = 64,
) -> Float[Array, "b t"]:
    """Sounds whose first l frames are close to these, `num_samples(l, config)` long.

    Non-negative least squares from bands to frequencies (`mel.mel_to_power`), Griffin-Lim for the
    phases (`stft.griffin_lim`), which start at random by the row's key, and the pre-emphasis taken
    back. May lie outside of [-1, 1]. Raises ValueError for a front end whose level or shape is
    lost: `normalize` other than "none", Kaldi's.
    """
    if config.normalize != "none" or config.compat != "default":
        raise ValueError(
            f'normalize={config.normalize!r}, compat={config.compat!r}: only "none" and "default" '
            "lead back to sound"
        )
    # At the ends one window alone says what a sample is, and hardly: frames beyond them help.
    beyond = math.ceil(config.window_size / config.hop_size)
    whole = jnp.pad(log_mel, ((0, 0), (beyond, beyond), (0, 0)), mode="edge")
    power = mel.mel_to_power(jnp.exp(whole), config.filter_bank())
    transform = stft.StftConfig(
        num_fft=config.fft_size,
        window_size=config.window_size,
        hop_size=config.hop_size,
        window=config.window or "hann",
        center=False,
    )
    samples = (whole.shape[1] - 1) * config.hop_size + config.fft_size

    def row(magnitude: Array, key: Array) -> Array:
        return stft.griffin_lim(
            magnitude[None],
            transform,
            key,
            num_samples=samples,
            num_iterations=num_iterations,
        )[0]

    emphasised = jax.vmap(row)(jnp.sqrt(power), keys)
    audio = _summed(emphasised, config.preemphasis)
    # The window stands in the middle of the transform.
    start = beyond * config.hop_size + (config.fft_size - config.window_size) // 2
    return audio[:, start : start + num_samples(log_mel.shape[1], config)]


def _summed(emphasised: Float[Array, "b t"], coefficient: float) -> Float[Array, "b t"]:
    """`x[n] = y[n] + c x[n-1]`, what `frontend.emphasised` has taken away."""

    def then(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
        return first[0] * second[0], second[0] * first[1] + second[1]

    factors = jnp.full_like(emphasised, coefficient)
    return jax.lax.associative_scan(then, (factors, emphasised), axis=1)[1]
