"""x-vector: a time-delay network over frames (Snyder et al., 2018, "X-vectors", cf. table 1).

The table is that of Kaldi's `run_xvector_1a.sh`. 4,610,524 parameters with 80 features and 512
channels: the weights and biases of tdnn1 to tdnn7; batch normalisation has none, as in Kaldi.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from common import errors
from common.nn import masking, norm
from speaker import layers, pooling

EMBEDDING_LAYERS = ("tdnn6", "tdnn7")


@dataclasses.dataclass(frozen=True)
class XVectorConfig:
    """The network; the defaults are the paper's.

    Attributes:
      frame_layers: (channels, kernel_size, dilation) of tdnn1 to tdnn5; kernels are odd.
      pooling: statistics over the frames, see `speaker.pooling`.
      deviation: of the pooling: "population" or "sample", see `speaker.pooling`.
      padding: "same": convolutions see zeros beyond the ends, no frame is lost. "valid": they see
        true frames only, and 14 frames of the defaults are lost, as in wespeaker's XVEC.
      embedding_size: channels of tdnn6 and tdnn7.
      embedding_layer: which affine map the embedding comes from. "tdnn7", the last: train with it
        (the classifier's layer). "tdnn6": Kaldi's x-vector, before ReLU; the variables of a network
        trained with "tdnn7" serve it too.
      axis_name: mapped axis whose devices share the statistics of batch normalisation.
      dtype: of the frame layers; parameters, statistics and what follows the pooling are float32.
    """

    frame_layers: tuple[tuple[int, int, int], ...] = (
        (512, 5, 1),
        (512, 3, 2),
        (512, 3, 3),
        (512, 1, 1),
        (1500, 1, 1),
    )
    pooling: str = "mean+std"
    deviation: str = "population"
    padding: str = "same"
    embedding_size: int = 512
    embedding_layer: str = "tdnn7"
    axis_name: str | None = None
    dtype: Any = jnp.float32

    def __post_init__(self):
        if self.embedding_layer not in EMBEDDING_LAYERS:
            raise ValueError(
                f"XVectorConfig.embedding_layer is {self.embedding_layer!r}: "
                f"choose one of {EMBEDDING_LAYERS}"
            )
        if self.padding not in ("same", "valid"):
            raise ValueError(f"padding={self.padding!r}: choose same or valid (x-vector)")
        if not self.frame_layers:
            raise ValueError(
                "XVectorConfig.frame_layers is empty: give (channels, kernel, dilation)"
            )
        for layer in self.frame_layers:
            if len(layer) != 3 or min(layer) < 1 or layer[1] % 2 == 0:
                raise ValueError(
                    f"XVectorConfig.frame_layers has {layer}: give (channels, odd kernel_size, "
                    "dilation), all positive"
                )
        pooling.check(self.pooling, self.deviation)

    @property
    def lost_frames(self) -> int:
        """By how much the frames at the pooling are fewer than those that go in."""
        if self.padding == "same":
            return 0
        return sum((kernel - 1) * dilation for _, kernel, dilation in self.frame_layers)


class XVector(nn.Module):
    """Features in, one embedding per utterance out."""

    config: XVectorConfig

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
          Embeddings in float32, of no particular length; 0 in rows that are not real, empty, or
          shorter than what "valid" convolutions see.
        """
        config = self.config
        if features.shape[1] <= config.lost_frames:
            raise errors.UserError(
                f"The x-vector's convolutions without padding see {config.lost_frames + 1} frames, "
                f"the recordings have {features.shape[1]}: raise config.data.crop_seconds and "
                "min_seconds, or set config.model.padding=same."
            )
        lengths = masking.fold_row_mask(lengths, mask)
        frames = masking.float_mask(lengths, features.shape[1])
        x = masking.zero_padding(features.astype(config.dtype), lengths)
        for i, (channels, kernel_size, dilation) in enumerate(config.frame_layers):
            trim = dilation * (kernel_size // 2) if config.padding == "valid" else 0
            if trim:
                lengths = jnp.maximum(lengths - 2 * trim, 0)
                frames = masking.float_mask(lengths, x.shape[1] - 2 * trim)
            layer = layers.FrameLayer(
                channels,
                kernel_size,
                dilation,
                affine=False,
                axis_name=config.axis_name,
                dtype=config.dtype,
                trim=trim,
                name=f"tdnn{i + 1}",
            )
            x = layer(x, lengths, frames, train=train)
        real = lengths > 0
        pool = pooling.Pooling(
            config.pooling, dtype=config.dtype, deviation=config.deviation, name="pooling"
        )
        tdnn6 = layers.EmbeddingLayer(config.embedding_size, name="tdnn6")
        x = tdnn6(pool(x, lengths), real, train=train)
        if config.embedding_layer == "tdnn6":
            return x
        batch_norm = norm.MaskedBatchNorm(
            layers.MOMENTUM, axis_name=config.axis_name, affine=False, name="norm6"
        )
        x = batch_norm(nn.relu(x), real, train=train)
        tdnn7 = layers.EmbeddingLayer(config.embedding_size, name="tdnn7")
        return tdnn7(x, real, train=train)
