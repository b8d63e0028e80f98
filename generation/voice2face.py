"""Wen, Raj and Singh (NeurIPS 2019): their generator, face network and its two heads, exactly.

64 x 64 pixels. The generator has 12,191,875 parameters, the face network 3,310,720; neither is
normalised, and the picture is not squashed: it is clipped when it is shown.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from common.nn import conv2d, conv_transpose2d
from generation import sides, voice

SIZE = 64
NOISE = 0.05  # times a normal vector beside the unit voice vector: the only chance there is
_SLOPE = 0.2


def _down(width: int, dtype: str, name: str) -> conv2d.Conv2D:
    """Of 4 taps, to half of the size: one zero before, one behind."""
    kind = {"dtype": jnp.dtype(dtype), "kernel_init": nn.initializers.lecun_normal()}
    return conv2d.Conv2D(width, (4, 4), 2, use_bias=True, name=name, **kind)


class Generator(nn.Module):
    """A voice's vector of length 1, moved by noise, to a picture.

    Transposed convolutions of 4 taps: from 1 x 1 to 4 x 4, then twice as large with each.
    """

    widths: tuple[int, ...] = (1024, 512, 256, 128, 64)
    channels: int = 3
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        condition: Float[Array, "b d"],
        noise: Float[Array, "b d"],
        training: sides.Training | None = None,
    ) -> Float[Array, "b h w c"]:
        del training
        dtype = jnp.dtype(self.dtype)
        x = voice.unit(condition + NOISE * noise)[:, None, None, :]
        for i, width in enumerate(self.widths):
            stride, padding = (1, "VALID") if i == 0 else (2, "SAME")
            sizes = width, 4, stride, padding, dtype
            x = nn.relu(conv_transpose2d.ConvTranspose2D(*sizes, name=f"up_{i}")(x))
        x = nn.Conv(self.channels, (1, 1), dtype=dtype, name="picture")(x)
        return x.astype(jnp.float32)


class FaceNet(nn.Module):
    """A picture of 64 x 64 to a vector, for both heads."""

    widths: tuple[int, ...] = (32, 64, 128, 256, 512)
    features: int = 64
    dtype: str = "float32"

    @nn.compact
    def __call__(self, pictures: Float[Array, "b h w c"]) -> Float[Array, "b d"]:
        dtype = jnp.dtype(self.dtype)
        x = nn.Conv(self.widths[0], (1, 1), dtype=dtype, name="picture")(pictures)
        for i, width in enumerate(self.widths[1:]):
            x = nn.leaky_relu(x, _SLOPE)
            x = _down(width, self.dtype, f"down_{i}")(x)
        last = nn.Conv(self.features, (4, 4), padding="VALID", dtype=dtype, name="last")
        return last(nn.leaky_relu(x, _SLOPE)).reshape(-1, self.features).astype(jnp.float32)


class Discriminator(nn.Module):
    """Logits of being real and of who it is, both linear and without bias on one face network.

    The voice enters by the second one alone.
    """

    num_classes: int
    widths: tuple[int, ...] = (32, 64, 128, 256, 512)
    features: int = 64
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        pictures: Float[Array, "b h w c"],
        condition: Float[Array, "b d"],
        training: sides.Training | None = None,
    ) -> sides.Judged:
        del condition, training
        x = FaceNet(self.widths, self.features, self.dtype, name="face")(pictures)
        real = nn.Dense(1, use_bias=False, name="real")(x)[:, 0]
        people = nn.Dense(self.num_classes, use_bias=False, name="people")(x)
        return sides.Judged(real, people)


def identity_loss(logits: Float[Array, "b n"], labels: Array) -> Float[Array, "b"]:
    """Cross-entropy of each row, for either side: real faces, and fakes with their speakers."""
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
    return -chosen[:, 0]
