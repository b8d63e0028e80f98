"""The three GANs of asariri (github.com/dhiraa/asariri, 2018): vanilla_gan, cgan and began.

Its layers and widths, at 28, 32, 64 and 128 pixels. Other than there: as many doublings as the size
needs, discriminators of any size, running statistics in evaluations, dropout in training, BEGAN's
pictures in the range of the data; and the discriminator of cgan hears the voice without the noise,
which real pictures know nothing of: judging by it teaches the generator to leave it out.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from common.nn import conv2d, conv_transpose2d, dropout
from generation import blocks, sides

SIZES = (28, 32, 64, 128)
_DROPPED = 0.5
_START = nn.initializers.glorot_uniform()


def _first(size: int) -> int:
    """Pixels a side where the generator begins."""
    return 7 if size == 28 else 8


def _conv(features: int, taps: int, dtype: str, name: str) -> conv2d.Conv2D:
    """To half of the height and width, rounded up."""
    return conv2d.Conv2D(
        features,
        (taps, taps),
        2,
        use_bias=True,
        dtype=jnp.dtype(dtype),
        kernel_init=_START,
        name=name,
    )


def _deconv(
    features: int, taps: int, stride: int, dtype: str, name: str
) -> conv_transpose2d.ConvTranspose2D:
    return conv_transpose2d.ConvTranspose2D(
        features,
        taps,
        stride,
        dtype=jnp.dtype(dtype),
        kernel_init=_START,
        name=name,
    )


class Generator(nn.Module):
    """A voice and noise, normalised together, to a picture in [-1, 1].

    `most` channels at the first resolution, half of it behind the first layer, an eighth behind the
    first doubling, and half as many behind each next one. `normalize_last`: batch normalisation
    behind the activations (cgan), not before them.
    """

    size: int
    channels: int = 1
    most: int = 512
    normalize_last: bool = False
    axis_name: str | None = None
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        condition: Float[Array, "b d"],
        noise: Float[Array, "b z"],
        training: sides.Training | None = None,
    ) -> Float[Array, "b h w c"]:
        batch_norm = functools.partial(blocks.BatchNorm, self.axis_name)
        leaky = functools.partial(nn.leaky_relu, negative_slope=0.15)
        first = _first(self.size)
        z = jnp.concatenate([condition, noise], axis=1)
        z = batch_norm(name="norm_z")(z, training)
        x = nn.Dense(first * first * self.most, kernel_init=_START, name="first")(z)
        x = leaky(x.reshape(-1, first, first, self.most))
        widths = [self.most // 2]
        size = first
        while size < self.size:
            widths.append(max(1, self.most >> (len(widths) + 2)))
            size *= 2
        for i, width in enumerate(widths):
            x = _deconv(width, 5, 2 if i else 1, self.dtype, f"up_{i}")(x)
            norm = batch_norm(name=f"norm_{i}")
            x = norm(leaky(x), training) if self.normalize_last else leaky(norm(x, training))
        x = _deconv(self.channels, 5, 1, self.dtype, "picture")(x)
        return jnp.tanh(x.astype(jnp.float32))


class Discriminator(nn.Module):
    """A picture, and with `conditional` (cgan) a voice, to a logit.

    Three convolutions of stride 2 with `width`, 2 and 4 times as many channels. Without
    `conditional` (vanilla_gan) half of what each gives is dropped in training, and the first one is
    not normalised.
    """

    width: int = 64
    conditional: bool = False
    axis_name: str | None = None
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        pictures: Float[Array, "b h w c"],
        condition: Float[Array, "b d"],
        training: sides.Training | None = None,
    ) -> sides.Judged:
        x = pictures
        for i in range(3):
            x = _conv(self.width << i, 5, self.dtype, f"conv_{i}")(x)
            if i or self.conditional:
                x = blocks.BatchNorm(self.axis_name, name=f"norm_{i}")(x, training)
            x = nn.leaky_relu(x, 0.02)
            if training is not None and not self.conditional:
                x = dropout.drop(x, training.keys_of(i), _DROPPED)
        x = x.reshape(x.shape[0], -1).astype(jnp.float32)
        if self.conditional:
            x = jnp.concatenate([x, condition], axis=1)
            x = nn.Dense(8 * self.width, kernel_init=_START, name="last")(x)
            x = nn.leaky_relu(x, 0.02)
        return sides.Judged(nn.Dense(1, kernel_init=_START, name="real")(x)[:, 0])


class Autoencoder(nn.Module):
    """BEGAN's discriminator: how far each picture is from what a narrow code keeps of it.

    Its `real` is the mean absolute error of the pixels (Berthelot et al. 2017, equation 1).
    """

    width: int = 64
    axis_name: str | None = None
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        pictures: Float[Array, "b h w c"],
        condition: Float[Array, "b d"],
        training: sides.Training | None = None,
    ) -> sides.Judged:
        del condition
        x = nn.relu(_conv(self.width, 4, self.dtype, "conv")(pictures))
        shape = x.shape
        x = x.reshape(shape[0], -1).astype(jnp.float32)
        inside = x.shape[1]
        for name, features in (("code", self.width // 2), ("decoded", inside)):
            x = nn.Dense(features, kernel_init=_START, name=name)(x)
            x = nn.relu(blocks.BatchNorm(self.axis_name, name=f"norm_{name}")(x, training))
        x = _deconv(pictures.shape[-1], 4, 2, self.dtype, "picture")(x.reshape(shape))
        error = jnp.abs(pictures - jnp.tanh(x.astype(jnp.float32)))
        return sides.Judged(jnp.mean(error, axis=(1, 2, 3)))
