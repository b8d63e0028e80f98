"""What extractors see of a spectrum, and how they mask it."""

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from common.audio import stft


def compressed(
    spectrum: stft.Spectrum, power: float
) -> tuple[Float[Array, "b l f"], Float[Array, "b l f"], Float[Array, "b l f"]]:
    """Real part, imaginary part and magnitude, of magnitudes to the power `power`."""
    squares = jnp.square(spectrum.real) + jnp.square(spectrum.imag) + 1e-8
    scale = squares ** ((power - 1) / 2)
    return spectrum.real * scale, spectrum.imag * scale, jnp.sqrt(squares) * scale


def masked(
    spectrum: stft.Spectrum, real: Float[Array, "b l f"], imag: Float[Array, "b l f"]
) -> stft.Spectrum:
    """Times a complex mask whose parts are kept between -2 and 2."""
    real, imag = 2 * jnp.tanh(real / 2), 2 * jnp.tanh(imag / 2)
    return stft.Spectrum(
        spectrum.real * real - spectrum.imag * imag, spectrum.real * imag + spectrum.imag * real
    )


def half_real(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """The bias of a mask [..., 2 f], real parts first: half of the mixture, to start with."""
    del key
    return jnp.zeros(shape, dtype).at[..., : shape[-1] // 2].set(0.5)
