"""A small conditional GAN: upsampling convolutions against a projection discriminator.

Pictures of any height and width, a voice's frames by bands among them. No layer sees other rows, so
that a row is worth the same in any batch on any number of devices.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from common.nn import conv2d
from generation import blocks, sides, voice


class Generator(nn.Module):
    """A condition (a voice, or a face) and noise to a picture in [-1, 1].

    `size`: height and width. `width` channels at the last resolution, twice as many at each one
    before, at most `most`. The noise is joined with a dense layer of the condition.
    """

    size: tuple[int, int]
    channels: int = 3
    width: int = 16
    most: int = 64
    conditional: bool = True
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        condition: Float[Array, "b d"],
        noise: Float[Array, "b z"],
        training: sides.Training | None = None,
    ) -> Float[Array, "b h w c"]:
        del training
        dtype, (first, steps) = jnp.dtype(self.dtype), blocks.first_of(self.size)
        z = blocks.pixel_norm(noise)
        if self.conditional:
            heard = blocks.pixel_norm(nn.Dense(noise.shape[1], name="voice")(condition))
            z = jnp.concatenate([heard, z], axis=1)
        z = blocks.leaky(nn.Dense(2 * noise.shape[1], name="mixed")(z))
        width = min(self.most, self.width << steps)
        x = nn.Dense(first[0] * first[1] * width, name="first", dtype=dtype)(z)
        x = blocks.pixel_norm(blocks.leaky(x.reshape(-1, *first, width)))
        for i in reversed(range(steps)):
            width = min(self.most, self.width << i)
            x = conv2d.Conv2D(width, use_bias=True, dtype=dtype, name=f"conv_{i}")(
                blocks.doubled(x)
            )
            x = blocks.pixel_norm(blocks.leaky(x))
        x = conv2d.Conv2D(self.channels, (1, 1), use_bias=True, name="picture")(x)
        return jnp.tanh(blocks.cut(x, self.size).astype(jnp.float32))


class Discriminator(nn.Module):
    """A picture, and the condition that it is said to be of, to a logit.

    Projection (Miyato and Koyama 2018, equation 4): the logit is w^T h + e(condition)^T h; without
    `conditional` its first part. With `num_classes` people, also logits of who it is; with
    `embedding`, unit vectors of so many dimensions of the picture and of the condition.
    """

    size: tuple[int, int]
    width: int = 16
    most: int = 64
    conditional: bool = True
    num_classes: int = 0
    embedding: int = 0
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        pictures: Float[Array, "b h w c"],
        condition: Float[Array, "b d"],
        training: sides.Training | None = None,
    ) -> sides.Judged:
        del training
        dtype, (first, steps) = jnp.dtype(self.dtype), blocks.first_of(self.size)
        x = blocks.padded(pictures, (first[0] << steps, first[1] << steps))
        x = conv2d.Conv2D(self.width, (1, 1), use_bias=True, dtype=dtype, name="picture")(x)
        for i in range(steps):
            width = min(self.most, self.width << (i + 1))
            x = conv2d.Conv2D(width, use_bias=True, dtype=dtype, name=f"conv_{i}")(blocks.leaky(x))
            x = blocks.halved(x)
        x = blocks.leaky(x).reshape(x.shape[0], -1).astype(jnp.float32)
        features = blocks.leaky(nn.Dense(2 * self.most, name="last")(x))
        logit = nn.Dense(1, name="real")(features)[:, 0]
        if self.conditional:
            heard = blocks.leaky(nn.Dense(2 * self.most, name="voice")(condition))
            side = nn.Dense(2 * self.most, use_bias=False, name="projection")(heard)
            logit = logit + jnp.sum(side * features, axis=1) / (2 * self.most) ** 0.5
        classes = nn.Dense(self.num_classes, name="people")(features) if self.num_classes else None
        if not self.embedding:
            return sides.Judged(logit, classes)
        face = voice.unit(nn.Dense(self.embedding, name="face")(features))
        known = blocks.leaky(nn.Dense(self.most, name="known")(condition))
        said = voice.unit(nn.Dense(self.embedding, name="said")(known))
        return sides.Judged(logit, classes, face=face, voice=said)
