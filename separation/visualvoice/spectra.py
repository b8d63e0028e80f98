"""Sound to what the networks see, and masks back to sound."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Int

from common.audio import framing, stft
from common.nn import masking
from separation.visualvoice.config import VisualVoiceConfig

LEVEL = 0.1  # RMS of each voice in training


def num_frames(lengths: Int[Array, "b"], config: VisualVoiceConfig) -> Int[Array, "b"]:
    """STFT frames of so many samples; none of none."""
    return jnp.where(lengths > 0, config.stft.num_frames(lengths), 0)


def at_level(
    audio: Float[Array, "b t"], lengths: Int[Array, "b"], level: float = LEVEL
) -> Float[Array, "b t"]:
    """Each row with an RMS of `level` over its own samples; what is silent stays so. 0 beyond."""
    audio = masking.zero_padding(audio[:, :, None], lengths)[:, :, 0]
    power = jnp.sum(jnp.square(audio), axis=1) / jnp.maximum(lengths, 1).astype(jnp.float32)
    return audio * (level / jnp.sqrt(jnp.maximum(power, 1e-10)))[:, None]


def analysed(
    audio: Float[Array, "b t"], frames: Int[Array, "b"], config: VisualVoiceConfig
) -> Complex[Array, "b l f"]:
    """The spectrum with all bins; 0 beyond the row's frames. The audio is 0 beyond its length."""
    spectrum = stft.stft(audio, config.stft)
    own = masking.length_mask(frames, spectrum.shape[1])
    return jnp.where(own[:, :, None], spectrum, 0.0)


def parts(spectrum: Complex[Array, "*b g"]) -> Float[Array, "*b f 2"]:
    """What the networks see: real and imaginary parts of all bins but the top one."""
    return jnp.stack([spectrum.real, spectrum.imag], axis=-1)[..., :-1, :]


def product(one: Float[Array, "*b 2"], other: Float[Array, "*c 2"]) -> Float[Array, "*d 2"]:
    """Of complex numbers as their parts; axes of one number stand for all."""
    a, b, c, d = one[..., 0], one[..., 1], other[..., 0], other[..., 1]
    return jnp.stack([a * c - b * d, a * d + b * c], axis=-1)


def masked(
    masks: Float[Array, "b l f 2"], spectrum: Complex[Array, "b l g"]
) -> Complex[Array, "b l g"]:
    """The mixture's spectrum under masks, which have no top bin.

    The mask of the bin below is that of the top one. The original puts the mixture's own top bin
    into every voice, so that what is silenced hisses.
    """
    mask = jnp.concatenate([masks, masks[:, :, -1:]], axis=2)
    return spectrum * (mask[..., 0] + 1j * mask[..., 1])


def synthesised(
    spectrum: Complex[Array, "b l g"],
    frames: Int[Array, "b"],
    lengths: Int[Array, "b"],
    config: VisualVoiceConfig,
    num_samples: int,
) -> Float[Array, "b t"]:
    """The sound of each row's own frames, as of the row alone; 0 beyond its length."""
    sizes, count = config.stft, spectrum.shape[1]
    own = masking.length_mask(frames, count)
    audio = stft.istft(jnp.where(own[:, :, None], spectrum, 0.0), sizes, num_samples=num_samples)
    # `istft` divides by the windows of all frames, of which those beyond the end are not heard.
    square = np.square(sizes.window_samples()).astype(np.float32)

    def windows(frames: Array) -> Array:
        found = framing.overlap_add(
            frames[:, :, None] * square[None, None, :], hop_size=sizes.hop_size
        )
        found = found[:, sizes.lead : sizes.lead + num_samples]
        return jnp.pad(found, ((0, 0), (0, num_samples - found.shape[1])))

    heard, all_of = windows(own.astype(jnp.float32)), windows(jnp.ones((1, count)))
    audio = audio * jnp.where(heard > 1e-6, all_of / jnp.maximum(heard, 1e-6), 0.0)
    return masking.zero_padding(audio[:, :, None], lengths)[:, :, 0]
