"""Thin ResNet over time and frequency (He et al., 2016; the widths and pooling are wespeaker's).

Features are a picture of one channel: a 3x3 stem without stride or pooling, four stages that halve
time and frequency at the entry of the last three, statistics over time of every channel and
frequency, one affine map. ResNet34 with 80 features and 256 dimensions: 6,634,336 parameters.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from common import sections
from common.nn import masking, residual
from speaker import layers, pooling

# Blocks of each stage, and whether they are bottlenecks.
DEPTHS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
    221: ((6, 16, 48, 3), True),
    293: ((10, 20, 64, 3), True),
}


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """The network; the defaults are ResNet34. `resnet(depth)` fills in the others.

    Attributes:
      num_blocks: of each stage; all but the first stage start with a stride of 2.
      widths: channels of each stage (a bottleneck's output has four times as many).
      bottleneck: blocks of 1x1, 3x3, 1x1 convolutions instead of two 3x3.
      pooling: statistics over time of `channels * frequencies`, see `speaker.pooling`.
      deviation: of the pooling: "population" or "sample", see `speaker.pooling`.
      embedding_norm: batch normalisation of the embedding.
      zero_init_residual: every block starts as its shortcut (Goyal et al., 2017, arXiv:1706.02677).
      axis_name: mapped axis whose devices share the statistics of batch normalisation.
      dtype: of the stages; parameters, statistics and what follows the pooling are float32.
    """

    num_blocks: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (32, 64, 128, 256)
    bottleneck: bool = False
    pooling: str = "mean+std"
    deviation: str = "population"
    embedding_size: int = 256
    embedding_norm: bool = False
    zero_init_residual: bool = True
    axis_name: str | None = None
    dtype: Any = jnp.float32

    def __post_init__(self):
        if not self.num_blocks or len(self.num_blocks) != len(self.widths):
            raise ValueError(
                f"ResNetConfig has {len(self.num_blocks)} num_blocks and {len(self.widths)} "
                "widths: give one of each per stage"
            )
        pooling.check(self.pooling, self.deviation)

    @property
    def blocks(self) -> residual.BlockConfig:
        return sections.build(residual.BlockConfig, dataclasses.asdict(self))


def resnet(depth: int, width: int = 32, **options: Any) -> ResNetConfig:
    """A ResNet of the usual names: 18, 34 (basic), 50, 101, 152, 221, 293 (bottleneck).

    Args:
      depth: a key of `DEPTHS`.
      width: channels of the first stage; each next stage doubles them.
      options: go to ResNetConfig.
    """
    if depth not in DEPTHS:
        raise ValueError(f"resnet depth is {depth}: choose one of {tuple(DEPTHS)}")
    num_blocks, bottleneck = DEPTHS[depth]
    widths = tuple(width * 2**stage for stage in range(len(num_blocks)))
    return ResNetConfig(num_blocks, widths, bottleneck, **options)


class ResNet(nn.Module):
    """Features in, one embedding per utterance out."""

    config: ResNetConfig

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "b l f"],
        lengths: Int[Array, "b"],
        *,
        train: bool,
        mask: Bool[Array, "b"] | None = None,
    ) -> Float[Array, "b d"]:
        """Embeds a padded batch.

        Args:
          features: frames, anything beyond `lengths`.
          train: batch statistics (True) or running averages in `batch_stats` (False).
          mask: real rows; others have no part in the statistics.

        Returns:
          Embeddings in float32, of no particular length; 0 in rows that are not real or empty.
        """
        config = self.config
        lengths = masking.fold_row_mask(lengths, mask)
        real = lengths > 0
        x = masking.zero_padding(features.astype(config.dtype), lengths)[..., None]
        # From here on x is 0 beyond its true ends: normalisation multiplies with the mask, ReLU and
        # sums map 0 to 0. So no convolution has to mask its input.
        frames = masking.float_mask(lengths, x.shape[1])[..., None]
        stem = residual.NormalizedConv(config.blocks, config.widths[0], name="stem")
        x = nn.relu(stem(x, frames, train=train))
        for stage, (num_blocks, width) in enumerate(zip(config.num_blocks, config.widths)):
            for i in range(num_blocks):
                stride, before = (2 if stage > 0 and i == 0 else 1), frames
                if stride > 1:
                    lengths = masking.conv_lengths(lengths, stride)
                    frames = masking.float_mask(lengths, -(-x.shape[1] // stride))[..., None]
                block = residual.Block(
                    config.blocks, width, stride, name=f"stage{stage + 1}_block{i + 1}"
                )
                x = block(x, before, frames, train=train)
        pool = pooling.Pooling(
            config.pooling, dtype=config.dtype, deviation=config.deviation, name="pooling"
        )
        x = pool(x.reshape(*x.shape[:2], -1), lengths)
        embedding = layers.EmbeddingLayer(
            config.embedding_size, config.embedding_norm, config.axis_name, name="embedding"
        )
        return embedding(x, real, train=train)
