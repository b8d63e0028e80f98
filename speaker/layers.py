"""Layers that the speaker encoders share: the TDNN's frame layer and the embedding layer."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from common.nn import conv, norm

MOMENTUM = 0.9  # of the running averages of batch normalisation


class FrameLayer(nn.Module):
    """BN(relu(conv(x))): one layer of a time-delay network (Snyder et al., 2018, cf. table 1).

    Taps are `dilation` frames apart and centred on the frame; beyond the ends of the utterance they
    see zeros, so that no frame is lost. Those of the `trim` first and last frames are left out.
    """

    features: int
    kernel_size: int = 1
    dilation: int = 1
    affine: bool = True
    axis_name: str | None = None
    dtype: Any = jnp.float32
    trim: int = 0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b l c"],
        lengths: Int[Array, "b"],
        mask: Float[Array, "b n"],
        *,
        train: bool,
    ) -> Float[Array, "b n d"]:
        """x is 0 beyond its true frames, and so is what it returns: `lengths` frames, on which
        `mask` is 1.0."""
        if self.kernel_size == 1:
            layer = conv.Pointwise(self.features, dtype=self.dtype, use_bias=True, name="conv")
            x = layer(x)
        else:
            layer = conv.Conv(
                self.features,
                self.kernel_size,
                dilation=self.dilation,
                dtype=self.dtype,
                zero_padded=True,
                use_bias=True,
                name="conv",
            )
            x, _ = layer(x, lengths)
            x = x[:, self.trim : x.shape[1] - self.trim]
        batch_norm = norm.MaskedBatchNorm(
            MOMENTUM, axis_name=self.axis_name, affine=self.affine, name="norm"
        )
        return batch_norm(nn.relu(x), mask, train=train)


class EmbeddingLayer(nn.Module):
    """An affine map of the pooled statistics in float32, optionally batch normalised.

    In float32 whatever the encoder computes in: it costs nothing beside the frames, and cosines of
    bfloat16 embeddings differ in the third digit.
    """

    features: int
    batch_norm: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, pooled: Float[Array, "b c"], real: Bool[Array, "b"], *, train: bool
    ) -> Float[Array, "b d"]:
        """The embedding, exactly 0 in rows that are not `real`."""
        x = nn.Dense(self.features, name="affine")(pooled.astype(jnp.float32))
        if self.batch_norm:
            batch_norm = norm.MaskedBatchNorm(MOMENTUM, axis_name=self.axis_name, name="norm")
            x = batch_norm(x, real, train=train)
        return jnp.where(real[:, None], x, 0.0)
