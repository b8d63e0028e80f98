"""ECAPA-TDNN (Desplanques, Thienpondt and Demuynck, 2020, arXiv 2005.07143, figure 2).

With 80 features and 192 dimensions: 6,190,720 parameters (512 channels), 14,657,088 (1,024).
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from common.nn import conv, masking, norm
from speaker import layers, pooling


@dataclasses.dataclass(frozen=True)
class ECAPAConfig:
    """The network; the defaults are the paper's, 512 channels wide.

    Attributes:
      channels: of the first layer and of the blocks: 512 or 1,024.
      kernel_size: of the dilated convolutions, odd.
      dilations: one block each.
      res2_scale: groups of channels that a block's convolutions connect (Res2Net); divides
        `channels`.
      se_bottleneck: channels of squeeze-and-excitation.
      aggregation_channels: of the map of all blocks' outputs: 1,536; SpeechBrain has 3,072.
      pooling: statistics over the frames, see `speaker.pooling`.
      deviation: of the pooling: "population" or "sample", see `speaker.pooling`.
      summed_inputs: each block sees the sum of all earlier outputs (section 3.3 of the paper), not
        the last alone; no parameters.
      embedding_norm: batch normalisation of the embedding.
      axis_name: mapped axis whose devices share the statistics of batch normalisation.
      dtype: of the frame layers; parameters, statistics and what follows the pooling are float32.
    """

    channels: int = 512
    kernel_size: int = 3
    dilations: tuple[int, ...] = (2, 3, 4)
    res2_scale: int = 8
    se_bottleneck: int = 128
    aggregation_channels: int = 1536
    pooling: str = "attentive"
    attention_bottleneck: int = 128
    deviation: str = "population"
    summed_inputs: bool = False
    embedding_size: int = 192
    embedding_norm: bool = False
    axis_name: str | None = None
    dtype: Any = jnp.float32

    def __post_init__(self):
        if self.res2_scale < 1 or self.channels % self.res2_scale:
            raise ValueError(
                f"ECAPAConfig.res2_scale is {self.res2_scale}: it has to divide the "
                f"{self.channels} channels"
            )
        if not self.dilations:
            raise ValueError("ECAPAConfig.dilations is empty: give one dilation per block")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"ECAPAConfig.kernel_size is {self.kernel_size}: it has to be odd")
        pooling.check(self.pooling, self.deviation)


def _frame_layer(
    config: ECAPAConfig, features: int, kernel_size: int, dilation: int, name: str
) -> layers.FrameLayer:
    return layers.FrameLayer(
        features, kernel_size, dilation, axis_name=config.axis_name, dtype=config.dtype, name=name
    )


class Res2Conv(nn.Module):
    """Groups of channels that see each other in a chain (Gao et al., 2019, Res2Net, cf. eq. 1).

    y_1 = x_1, y_2 = f_2(x_2), y_i = f_i(x_i + y_(i-1)): from the third on, each group's context is
    wider than the last one's by one convolution.
    """

    config: ECAPAConfig
    dilation: int

    @nn.compact
    def __call__(self, x: Array, lengths: Array, frames: Array, *, train: bool) -> Array:
        config = self.config
        groups = jnp.split(x, config.res2_scale, axis=-1)
        outputs = groups[:1]
        for i, group in enumerate(groups[1:], start=2):
            if i > 2:
                group = group + outputs[-1]
            layer = _frame_layer(
                config, group.shape[-1], config.kernel_size, self.dilation, f"group{i}"
            )
            outputs.append(layer(group, lengths, frames, train=train))
        return jnp.concatenate(outputs, axis=-1)


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate that sees the mean over true frames (section 3.2)."""

    config: ECAPAConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"], lengths: Int[Array, "b"]) -> Float[Array, "b l d"]:
        config = self.config
        gate = masking.masked_mean(x, lengths)
        gate = nn.relu(nn.Dense(config.se_bottleneck, dtype=config.dtype, name="squeeze")(gate))
        gate = nn.sigmoid(nn.Dense(x.shape[-1], dtype=config.dtype, name="excite")(gate))
        return x * gate[:, None]


class SERes2Block(nn.Module):
    """x + SE(g(Res2(f(x)))), f and g of one frame each (figure 1 of the paper)."""

    config: ECAPAConfig
    dilation: int

    @nn.compact
    def __call__(self, x: Array, lengths: Array, frames: Array, *, train: bool) -> Array:
        config, channels = self.config, x.shape[-1]
        y = _frame_layer(config, channels, 1, 1, "expand")(x, lengths, frames, train=train)
        y = Res2Conv(config, self.dilation, name="res2")(y, lengths, frames, train=train)
        y = _frame_layer(config, channels, 1, 1, "merge")(y, lengths, frames, train=train)
        return x + SqueezeExcite(config, name="se")(y, lengths)


class ECAPA(nn.Module):
    """Features in, one embedding per utterance out."""

    config: ECAPAConfig

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
        frames = masking.float_mask(lengths, features.shape[1])
        real = lengths > 0
        x = masking.zero_padding(features.astype(config.dtype), lengths)
        x = _frame_layer(config, config.channels, 5, 1, "stem")(x, lengths, frames, train=train)
        outputs, seen = [], x
        for i, dilation in enumerate(config.dilations):
            block = SERes2Block(config, dilation, name=f"block{i + 1}")
            x = block(seen, lengths, frames, train=train)
            outputs.append(x)
            seen = seen + x if config.summed_inputs else x
        aggregate = conv.Pointwise(
            config.aggregation_channels, dtype=config.dtype, use_bias=True, name="aggregate"
        )
        x = nn.relu(aggregate(jnp.concatenate(outputs, axis=-1)))
        pool = pooling.Pooling(
            config.pooling,
            config.attention_bottleneck,
            config.dtype,
            config.deviation,
            name="pooling",
        )
        x = pool(x, lengths)
        batch_norm = norm.MaskedBatchNorm(
            layers.MOMENTUM, axis_name=config.axis_name, name="pooling_norm"
        )
        x = batch_norm(x, real, train=train)
        embedding = layers.EmbeddingLayer(
            config.embedding_size, config.embedding_norm, config.axis_name, name="embedding"
        )
        return embedding(x, real, train=train)
