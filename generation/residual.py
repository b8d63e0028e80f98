"""Residual networks of pictures: SNGAN with a projection discriminator, and voice2face_plus.

Miyato et al. 2018 (arXiv:1802.05957), table 4, with the projection of Miyato and Koyama 2018
(arXiv:1802.05637), equation 4. Pictures begin at 4 x 4 and are doubled by repeating pixels.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from generation import blocks, sides, voice


class _Up(nn.Module):
    """A block that doubles the picture."""

    features: int
    norm: str
    axis_name: str | None
    dtype: str

    @nn.compact
    def __call__(self, x: Array, condition: Array, training: sides.Training | None) -> Array:
        train, dtype = training is not None, jnp.dtype(self.dtype)

        def normed(x: Array, name: str) -> Array:
            layer = blocks.ConditionalNorm(self.norm, self.axis_name, name=name)
            return nn.relu(layer(x, condition, training))

        def conv(x: Array, taps: int, name: str) -> Array:
            return blocks.Conv(self.features, taps, dtype=dtype, name=name)(x, train=train)

        y = conv(blocks.doubled(normed(x, "norm_0")), 3, "conv_0")
        y = conv(normed(y, "norm_1"), 3, "conv_1")
        # A convolution of one tap and the doubling give the same in either order.
        return y + blocks.doubled(conv(x, 1, "shortcut"))


class Generator(nn.Module):
    """A condition and noise to a picture in [-1, 1].

    `width` channels at the last resolution, twice as many at each one before, at most `most`. The
    condition enters by the norms alone: batch, as in SNGAN, or pixel, where a row sees no other.
    """

    size: int
    channels: int = 3
    width: int = 256
    most: int = 256
    norm: str = "batch"
    axis_name: str | None = None
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        condition: Float[Array, "b d"],
        noise: Float[Array, "b z"],
        training: sides.Training | None = None,
    ) -> Float[Array, "b h w c"]:
        train, dtype = training is not None, jnp.dtype(self.dtype)
        steps, first = blocks.steps_between(self.size), blocks.FIRST
        width = min(self.most, self.width << steps)
        x = blocks.Dense(first * first * width, name="first")(noise, train=train)
        x = x.reshape(-1, first, first, width).astype(dtype)
        for i in reversed(range(steps)):
            width = min(self.most, self.width << i)
            block = _Up(width, self.norm, self.axis_name, self.dtype, name=f"block_{i}")
            x = block(x, condition, training)
        if self.norm == "batch":
            x = blocks.BatchNorm(self.axis_name, name="norm")(x, training)
        else:
            x = blocks.pixel_norm(x)
        x = blocks.Conv(self.channels, dtype=dtype, name="picture")(nn.relu(x), train=train)
        return jnp.tanh(blocks.cut(x, (self.size, self.size)).astype(jnp.float32))


class _Down(nn.Module):
    """A block of the discriminator. The first one sees the picture itself, before any ReLU."""

    features: int
    halve: bool
    first: bool
    spectral: bool
    dtype: str

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        def conv(x: Array, taps: int, name: str) -> Array:
            layer = blocks.Conv(
                self.features, taps, self.spectral, jnp.dtype(self.dtype), name=name
            )
            return layer(x, train=train)

        y = conv(x if self.first else nn.relu(x), 3, "conv_0")
        y = conv(nn.relu(y), 3, "conv_1")
        if self.halve:
            y, x = blocks.halved(y), blocks.halved(x)
        if self.halve or x.shape[-1] != self.features:
            x = conv(x, 1, "shortcut")
        return x + y


class Discriminator(nn.Module):
    """A picture, and the condition that it is said to be of: the projection's logit.

    Blocks that halve the picture to 8 x 8, two more, then with `spectral` the sum of all pixels, as
    published, without it a dense layer that knows where in 4 x 4 fields a pixel lies: what of a
    face follows a voice is where its parts are. `width` channels in the first block, twice as many
    in each next one, at most `most`. With `embedding`, also unit vectors of so many dimensions of
    the picture and of the condition, and the centres of `num_classes` people.
    """

    size: int
    width: int = 128
    most: int = 128
    conditional: bool = True
    spectral: bool = True
    embedding: int = 0
    num_classes: int = 0
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        pictures: Float[Array, "b h w c"],
        condition: Float[Array, "b d"],
        training: sides.Training | None = None,
    ) -> sides.Judged:
        train, steps = training is not None, blocks.steps_between(self.size)
        halvings = max(1, steps - 1)
        side = blocks.FIRST << steps
        x = blocks.padded(pictures, (side, side))
        for i in range(halvings + 2):
            width = min(self.most, self.width << min(i, halvings - 1))
            block = _Down(width, i < halvings, i == 0, self.spectral, self.dtype, name=f"block_{i}")
            x = block(x, train=train)
        h, scale = nn.relu(x.astype(jnp.float32)), 1.0
        if self.spectral:
            h = jnp.sum(h, axis=(1, 2))
        else:
            h = blocks.halved(h).reshape(x.shape[0], -1)
            h = nn.relu(nn.Dense(2 * self.most, name="places")(h))
            scale = h.shape[1] ** -0.5  # so the logits begin at order 1
        real = blocks.Dense(1, spectral=self.spectral, name="real")(h, train=train)[:, 0]
        if self.conditional:
            side = blocks.Dense(h.shape[1], False, self.spectral, name="projection")
            real = real + scale * jnp.sum(side(condition, train=train) * h, axis=1)
        if not self.embedding:
            return sides.Judged(real)
        heard = nn.relu(nn.Dense(2 * self.embedding, name="heard")(condition))
        centres = None
        if self.num_classes:
            shape = (self.num_classes, self.embedding)
            centres = self.param("people", nn.initializers.normal(1.0), shape, jnp.float32)
        return sides.Judged(
            real,
            face=voice.unit(nn.Dense(self.embedding, name="face")(h)),
            centres=centres,
            voice=voice.unit(nn.Dense(self.embedding, name="voice")(heard)),
        )
