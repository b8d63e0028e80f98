"""Residual blocks of two-dimensional convolutions (He et al., 2016, arXiv:1512.03385).

Inputs are `[b, l, f, c]`: time and frequency, or a picture. They have to be 0 where their mask is;
outputs are. So no convolution has to mask its input.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

from common.nn import conv2d, norm

EXPANSION = 4  # a bottleneck's output channels over its width


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """What all blocks of a network share.

    Attributes:
      bottleneck: blocks of 1x1, 3x3, 1x1 convolutions instead of two 3x3.
      zero_init_residual: every block starts as its shortcut (Goyal et al., 2017, arXiv:1706.02677).
      axis_name: mapped axis whose devices share the statistics of batch normalisation.
      dtype: of the convolutions; parameters and statistics are float32.
    """

    bottleneck: bool = False
    zero_init_residual: bool = True
    norm_momentum: float = 0.9
    norm_epsilon: float = 1e-5
    axis_name: str | None = None
    dtype: Any = jnp.float32


class NormalizedConv(nn.Module):
    """BN(conv(x)), the statistics over true frames and all frequencies."""

    config: BlockConfig
    features: int
    kernel_size: int = 3
    stride: int = 1
    last: bool = False  # of a block: starts at 0 if the configuration wants it

    @nn.compact
    def __call__(self, x: Array, frames: Array, *, train: bool) -> Array:
        """`frames` is the mask of the output, `[b, n, 1]`."""
        config = self.config
        taps = self.kernel_size, self.kernel_size
        x = conv2d.Conv2D(self.features, taps, self.stride, dtype=config.dtype, name="conv")(x)
        zero = self.last and config.zero_init_residual
        batch_norm = norm.MaskedBatchNorm(
            config.norm_momentum,
            config.norm_epsilon,
            config.axis_name,
            scale_init=nn.initializers.zeros if zero else nn.initializers.ones,
            name="norm",
        )
        return batch_norm(x, frames, train=train)


class Block(nn.Module):
    """relu(F(x) + shortcut(x)): two 3x3 convolutions, or 1x1, 3x3, 1x1 (figure 5 of the paper).

    The stride is that of the first 3x3 convolution. The shortcut is the identity where shapes
    agree, else a 1x1 convolution with that stride.
    """

    config: BlockConfig
    width: int
    stride: int

    @nn.compact
    def __call__(self, x: Array, before: Array, after: Array, *, train: bool) -> Array:
        """`before` and `after` are the masks of input and output frames."""
        config, features = self.config, self.width * (EXPANSION if self.config.bottleneck else 1)
        if config.bottleneck:
            rows = ((self.width, 1, 1), (self.width, 3, self.stride), (features, 1, 1))
        else:
            rows = ((features, 3, self.stride), (features, 3, 1))
        y, mask = x, before
        for i, (channels, kernel_size, stride) in enumerate(rows):
            last = i == len(rows) - 1
            mask = after if kernel_size == 3 else mask  # the first 3x3 has the stride
            layer = NormalizedConv(config, channels, kernel_size, stride, last, name=f"conv{i + 1}")
            y = layer(y, mask, train=train)
            y = y if last else nn.relu(y)
        if self.stride != 1 or x.shape[-1] != features:
            shortcut = NormalizedConv(config, features, 1, self.stride, name="shortcut")
            x = shortcut(x, after, train=train)
        return nn.relu(x + y)
