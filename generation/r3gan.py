"""R3GAN in small: residual blocks of grouped convolutions without any norm, [1, 2, 1] resampling.

Huang et al. 2024, "The GAN is dead; long live the GAN! A Modern GAN Baseline" (arXiv:2501.05441).
No layer sees other rows. Trained by the relativistic pairing loss with penalties on real and fake
pictures, with which it converges without the usual tricks.
"""

import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from generation import blocks, sides

_EXPANSION = 2  # of the channels inside a block
_GROUP = 16  # channels of a group
_GAIN = math.sqrt(2 / (1 + 0.2**2))  # keeps the variance through leaky units (He et al. 2015)
_BLOCKS = 2  # residual blocks a resolution


def _normal(gain: float) -> nn.initializers.Initializer:
    return nn.initializers.variance_scaling(gain**2, "fan_in", "normal")


def _pointwise(features: int, name: str, gain: float = 1.0, dtype: str = "float32") -> nn.Dense:
    start = _normal(gain) if gain else nn.initializers.zeros
    return nn.Dense(features, False, jnp.dtype(dtype), kernel_init=start, name=name)


def _shifted(x: Array, axis: int, by: int) -> Array:
    """Entry i is entry i + by, 0 beyond the ends."""
    around = [(0, 0)] * x.ndim
    around[axis] = (max(0, -by), max(0, by))
    start = [0] * x.ndim
    start[axis] = max(0, by)
    whole = jnp.pad(x, around)
    return whole[tuple(slice(s, s + n) for s, n in zip(start, x.shape))]


def upsampled(x: Float[Array, "b h w c"]) -> Float[Array, "b hh ww c"]:
    """Twice as high and wide: between two pixels their mean, zeros outside."""
    for axis in (1, 2):
        both = jnp.stack([(x + _shifted(x, axis, -1)) / 2, x], axis=axis + 1)
        shape = list(x.shape)
        shape[axis] *= 2
        x = both.reshape(shape)
    return x


def downsampled(x: Float[Array, "b h w c"]) -> Float[Array, "b hh ww c"]:
    """Every second pixel after the filter [1, 2, 1] / 4: a quarter of `upsampled`'s adjoint."""
    for axis in (1, 2):
        x = (_shifted(x, axis, -1) + 2 * x + _shifted(x, axis, 1)) / 4
        x = x[:, 1::2] if axis == 1 else x[:, :, 1::2]
    return x


class _Block(nn.Module):
    """x + f(x): one tap, grouped 3 x 3, one tap, the last of which begins at 0.

    The others begin smaller the more blocks there are (Zhang et al. 2019, Fixup).
    """

    blocks: int
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        wide = _EXPANSION * x.shape[-1]
        groups = math.gcd(wide, max(1, wide // _GROUP))
        gain = _GAIN * self.blocks**-0.25
        y = _pointwise(wide, "into", gain, self.dtype)(x)
        y = blocks.leaky(y + self._bias("bias_into", wide))
        y = nn.Conv(
            wide,
            (3, 3),
            feature_group_count=groups,
            use_bias=False,
            dtype=jnp.dtype(self.dtype),
            kernel_init=_normal(gain),
            name="grouped",
        )(y)
        y = blocks.leaky(y + self._bias("bias_grouped", wide))
        return x + _pointwise(x.shape[-1], "out", 0.0, self.dtype)(y)

    def _bias(self, name: str, size: int) -> Array:
        bias = self.param(name, nn.initializers.zeros, (size,), jnp.float32)
        return bias.astype(self.dtype)[None, None, None]


def _widths(size: int, width: int, most: int) -> list[int]:
    """Channels from `FIRST` x `FIRST` to the last resolution."""
    return [min(most, width << i) for i in reversed(range(blocks.steps_between(size) + 1))]


class Generator(nn.Module):
    """A condition and noise to a picture, which is not squashed.

    `width` channels at the last resolution, twice as many at each one before, at most `most`.
    """

    size: int
    channels: int = 3
    width: int = 64
    most: int = 64
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        condition: Float[Array, "b d"],
        noise: Float[Array, "b z"],
        training: sides.Training | None = None,
    ) -> Float[Array, "b h w c"]:
        del training
        widths = _widths(self.size, self.width, self.most)
        heard = _pointwise(noise.shape[1], "heard")(condition)
        z = _pointwise(widths[0], "mixed")(jnp.concatenate([noise, heard], axis=1))
        shape = (blocks.FIRST, blocks.FIRST, widths[0])
        basis = self.param("basis", nn.initializers.normal(1.0), shape, jnp.float32)
        x = (basis[None] * z[:, None, None, :]).astype(self.dtype)
        for i, width in enumerate(widths):
            if i:
                if width != x.shape[-1]:
                    x = _pointwise(width, f"widths_{i}", dtype=self.dtype)(x)
                x = upsampled(x)
            for j in range(_BLOCKS):
                x = _Block(_BLOCKS * len(widths), self.dtype, name=f"block_{i}_{j}")(x)
        x = _pointwise(self.channels, "picture", dtype=self.dtype)(x)
        return blocks.cut(x, (self.size, self.size)).astype(jnp.float32)


class Discriminator(nn.Module):
    """The generator turned round, to a logit; of a picture and the condition by projection."""

    size: int
    width: int = 64
    most: int = 64
    conditional: bool = True
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        pictures: Float[Array, "b h w c"],
        condition: Float[Array, "b d"],
        training: sides.Training | None = None,
    ) -> sides.Judged:
        del training
        widths = _widths(self.size, self.width, self.most)[::-1]
        side = blocks.FIRST << (len(widths) - 1)
        x = blocks.padded(pictures, (side, side))
        x = _pointwise(widths[0], "picture", dtype=self.dtype)(x)
        for i, width in enumerate(widths):
            if i:
                x = downsampled(x)
                if width != x.shape[-1]:
                    x = _pointwise(width, f"widths_{i}", dtype=self.dtype)(x)
            for j in range(_BLOCKS):
                x = _Block(_BLOCKS * len(widths), self.dtype, name=f"block_{i}_{j}")(x)
        shape = (blocks.FIRST, blocks.FIRST, widths[-1])
        start = nn.initializers.normal(1 / blocks.FIRST)
        basis = self.param("basis", start, shape, jnp.float32)
        features = jnp.sum(x.astype(jnp.float32) * basis[None], axis=(1, 2))
        if not self.conditional:
            return sides.Judged(_pointwise(1, "real")(features)[:, 0])
        features = _pointwise(widths[-1], "real")(features)
        heard = _pointwise(widths[-1], "heard")(condition)
        return sides.Judged(jnp.sum(features * heard, axis=1) / widths[-1] ** 0.5)
