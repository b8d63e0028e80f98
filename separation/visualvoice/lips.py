"""The lip-motion network: from a film of a mouth to one vector a frame.

A 3-D convolution, ShuffleNetV2 on every frame, and convolutions over time (Martinez et al. 2020,
arXiv:2001.08702; Ma et al. 2021, arXiv:2007.06504). 8,879,980 parameters, without the head of 500
words that the original carries along unused.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from common.nn import conv, dropout, masking
from separation.visualvoice import layers, shuffle
from separation.visualvoice.config import VisualVoiceConfig

FRAMES = 5  # that the 3-D convolution sees at once


class LipNet(nn.Module):
    """Pictures of a mouth -> `tcn_channels` a frame."""

    config: VisualVoiceConfig

    @nn.compact
    def __call__(
        self,
        mouth: Float[Array, "b v h w"],
        present: Bool[Array, "b v"],
        frames: Float[Array, "b v"],
        *,
        train: bool,
        dropout_keys: Key[Array, "b"] | None = None,
    ) -> Float[Array, "b v d"]:
        """What the lips do.

        Args:
          mouth: grey pictures with mean 0 and deviation 1; anything where they are not present.
          present: which there are. Those that are missing are seen as 0 by their neighbours, which
            speak for them; of a row without any comes 0.
          frames: 1.0 in the row's own frames, 0.0 beyond its end.
          train: batch statistics, of the pictures that are present, or running averages.
          dropout_keys: one a row; without them nothing is dropped.

        Returns:
          float32; 0 beyond the end.
        """
        config = self.config
        dtype = config.compute_dtype
        b, v = mouth.shape[:2]
        mouth = jnp.where(present[:, :, None, None], mouth, 0.0).astype(dtype)
        # A 3-D convolution is one in the plane of as many channels as it has taps in time.
        around = FRAMES // 2
        padded = jnp.pad(mouth, ((0, 0), (around, around), (0, 0), (0, 0)))
        x = jnp.stack([padded[:, i : i + v] for i in range(FRAMES)], axis=-1)
        x = x.reshape(b * v, *x.shape[2:])
        seen = masking.float_mask(present.reshape(b * v).astype(jnp.int32), 1)[:, :, None]
        front = layers.Normalized(config, config.lip_front, (7, 7), 2, name="front")
        x = layers.PReLU(name="front_prelu")(front(x, seen, train=train))
        x = shuffle.ShuffleNet(config, name="shuffle")(layers.max_pool(x), seen, train=train)
        x = x.reshape(b, v, -1)
        known = jnp.any(present, axis=1).astype(jnp.float32)
        mask = frames * known[:, None]
        for i, dilation in enumerate(config.tcn_dilations):
            keys = None
            if dropout_keys is not None:
                keys = jax.vmap(jax.random.fold_in, (0, None))(dropout_keys, i)
            block = TemporalBlock(config, dilation, name=f"tcn{i + 1}")
            x = layers.applied(block, x, mask, keys, train=train, remat=config.remat)
        return x.astype(jnp.float32)


class TemporalBlock(nn.Module):
    """PReLU(x + two convolutions of 3 taps), the shortcut linear where widths differ."""

    config: VisualVoiceConfig
    dilation: int

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b v c"],
        mask: Float[Array, "b v"],
        keys: Key[Array, "b"] | None,
        *,
        train: bool,
    ) -> Float[Array, "b v d"]:
        config = self.config
        features, dtype = config.tcn_channels, config.compute_dtype
        lengths = jnp.full(x.shape[:1], x.shape[1], jnp.int32)  # x is 0 beyond the ends
        y = x
        for i in (1, 2):
            y, _ = conv.Conv(
                features,
                3,
                dilation=self.dilation,
                use_bias=True,
                dtype=dtype,
                zero_padded=True,
                name=f"conv{i}",
            )(y, lengths)
            y = layers.batch_norm(config, f"norm{i}")(y, mask, train=train)
            y = layers.PReLU(name=f"prelu{i}")(y)
            if train and keys is not None and config.dropout:
                own = jax.vmap(jax.random.fold_in, (0, None))(keys, i)
                y = dropout.drop(y, own, config.dropout)
        if x.shape[-1] != features:
            x = conv.Pointwise(features, dtype=dtype, use_bias=True, name="shortcut")(x)
            x = x * mask[:, :, None].astype(x.dtype)
        return layers.PReLU(name="prelu")(x + y)
