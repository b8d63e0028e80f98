"""What several of the networks are made of."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from common.nn import conv2d, norm
from separation.visualvoice.config import VisualVoiceConfig


class PReLU(nn.Module):
    """x, or where it is below 0 a share of it, one a channel (He et al. 2015, arXiv:1502.01852)."""

    @nn.compact
    def __call__(self, x: Float[Array, "b *n d"]) -> Float[Array, "b *n d"]:
        slope = self.param("slope", nn.initializers.constant(0.25), (x.shape[-1],), jnp.float32)
        slope = slope.reshape((1,) * (x.ndim - 1) + slope.shape).astype(x.dtype)
        return jnp.where(x > 0, x, slope * x)


def batch_norm(config: VisualVoiceConfig, name: str) -> norm.MaskedBatchNorm:
    """That of the config, as a part of the module that calls this."""
    return norm.MaskedBatchNorm(
        config.norm_momentum, config.norm_epsilon, config.axis_name, name=name
    )


class Normalized(nn.Module):
    """BN(conv(x)), 0 where the mask of the output is."""

    config: VisualVoiceConfig
    features: int
    taps: tuple[int, int] = (3, 3)
    stride: int = 1
    use_bias: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "b l f c"], mask: Float[Array, "..."], *, train: bool
    ) -> Float[Array, "b n g d"]:
        x = conv2d.Conv2D(
            self.features,
            self.taps,
            self.stride,
            use_bias=self.use_bias,
            dtype=self.config.compute_dtype,
            name="conv",
        )(x)
        return batch_norm(self.config, "norm")(x, mask, train=train)


def applied(block: nn.Module, *arguments: Any, train: bool, remat: bool) -> Any:
    """block(*arguments, train=train), of which with `remat` only the result is kept."""
    apply = functools.partial(type(block).__call__, train=train)
    if remat and train:
        apply = nn.remat(apply)
    return apply(block, *arguments)


def max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b n m c"]:
    """The largest of 3 x 3, for every second row and column, centred on it.

    As maxima of shifted slices, whose gradient XLA:CPU computes faster than that of a window.
    """
    low = jnp.full((), -jnp.inf, x.dtype)
    for axis in (1, 2):
        sides = [(0, 0, 0)] * 4
        sides[axis] = (1, 1, 0)
        size = -(-x.shape[axis] // 2)
        padded = jax.lax.pad(x, low, sides)
        last = [jax.lax.slice_in_dim(padded, i, i + 2 * size - 1, 2, axis) for i in range(3)]
        x = functools.reduce(jnp.maximum, last)
    return x
