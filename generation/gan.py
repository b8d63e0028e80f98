"""A small conditional GAN: upsampling convolutions against a projection discriminator.

No layer sees other rows, so that a row is worth the same in any batch on any number of devices.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from common.nn import conv2d

FIRST = 4  # pixels a side, where the generator begins and the discriminator ends
_SLOPE = 0.2


def steps_between(size: int) -> int:
    """Doublings from `FIRST` to at least `size` pixels: 28 is cut out of 32."""
    return max(0, (size - 1).bit_length() - (FIRST - 1).bit_length())


def _leaky(x: Array) -> Array:
    return nn.leaky_relu(x, _SLOPE)


def _pixel_norm(x: Array) -> Array:
    """Each pixel's channels at a mean square of 1 (Karras et al. 2018, section 4.2)."""
    square = jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
    return (x * jax.lax.rsqrt(square + 1e-8)).astype(x.dtype)


def _doubled(x: Float[Array, "b h w c"]) -> Float[Array, "b hh ww c"]:
    return x.repeat(2, axis=1).repeat(2, axis=2)


def _halved(x: Float[Array, "b h w c"]) -> Float[Array, "b hh ww c"]:
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


class Generator(nn.Module):
    """A voice and noise to a picture in [-1, 1].

    `width` channels at the last resolution, twice as many at each one before, at most `most`. The
    noise is joined with a dense layer of the condition: without `conditional` it is all there is.
    """

    size: int
    channels: int = 3
    width: int = 16
    most: int = 64
    conditional: bool = True
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, condition: Float[Array, "b d"], noise: Float[Array, "b z"]
    ) -> Float[Array, "b h w c"]:
        dtype, steps = jnp.dtype(self.dtype), steps_between(self.size)
        z = _pixel_norm(noise)
        if self.conditional:
            heard = _pixel_norm(nn.Dense(noise.shape[1], name="voice")(condition))
            z = jnp.concatenate([heard, z], axis=1)
        z = _leaky(nn.Dense(2 * noise.shape[1], name="mixed")(z))
        width = min(self.most, self.width << steps)
        x = nn.Dense(FIRST * FIRST * width, name="first", dtype=dtype)(z)
        x = _pixel_norm(_leaky(x.reshape(-1, FIRST, FIRST, width)))
        for i in reversed(range(steps)):
            width = min(self.most, self.width << i)
            x = conv2d.Conv2D(width, use_bias=True, dtype=dtype, name=f"conv_{i}")(_doubled(x))
            x = _pixel_norm(_leaky(x))
        x = conv2d.Conv2D(self.channels, (1, 1), use_bias=True, name="picture")(x)
        cut = (x.shape[1] - self.size) // 2
        return jnp.tanh(x[:, cut : cut + self.size, cut : cut + self.size].astype(jnp.float32))


class Discriminator(nn.Module):
    """A picture, and the voice that it is said to be of, to a logit.

    Projection (Miyato and Koyama 2018, equation 4): the logit is w^T h + e(condition)^T h; without
    `conditional` its first part. With `num_classes` people, also logits of who it is.
    """

    size: int
    width: int = 16
    most: int = 64
    conditional: bool = True
    num_classes: int = 0
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, pictures: Float[Array, "b h w c"], condition: Float[Array, "b d"]
    ) -> tuple[Float[Array, "b"], Float[Array, "b n"] | None]:
        dtype, steps = jnp.dtype(self.dtype), steps_between(self.size)
        missing = (FIRST << steps) - self.size
        around = (missing // 2, missing - missing // 2)
        x = jnp.pad(pictures, ((0, 0), around, around, (0, 0)))
        x = conv2d.Conv2D(self.width, (1, 1), use_bias=True, dtype=dtype, name="picture")(x)
        for i in range(steps):
            width = min(self.most, self.width << (i + 1))
            x = conv2d.Conv2D(width, use_bias=True, dtype=dtype, name=f"conv_{i}")(_leaky(x))
            x = _halved(x)
        x = _leaky(x).reshape(x.shape[0], -1).astype(jnp.float32)
        features = _leaky(nn.Dense(2 * self.most, name="last")(x))
        logit = nn.Dense(1, name="real")(features)[:, 0]
        if self.conditional:
            heard = _leaky(nn.Dense(2 * self.most, name="voice")(condition))
            side = nn.Dense(2 * self.most, use_bias=False, name="projection")(heard)
            logit = logit + jnp.sum(side * features, axis=1) / (2 * self.most) ** 0.5
        classes = nn.Dense(self.num_classes, name="people")(features) if self.num_classes else None
        return logit, classes
