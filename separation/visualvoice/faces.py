"""ResNet-18 with a maximum over the picture: of faces, and of spectrograms as pictures.

He et al. (2016), arXiv:1512.03385, table 1. The published networks are PyTorch's in all but the
last layers: 11,242,176 parameters with three channels in, 11,239,040 with two.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from common.nn import masking, residual
from separation.visualvoice import layers
from separation.visualvoice.config import VisualVoiceConfig


class ResNet18(nn.Module):
    """Pictures -> embeddings of `embedding_size`, of no particular length."""

    config: VisualVoiceConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "b l w c"], lengths: Int[Array, "b"], *, train: bool
    ) -> Float[Array, "b d"]:
        """Of pictures, of each of which the first `lengths` rows count.

        A length of 0 gives 0, and has no part in statistics. float32.
        """
        config, blocks = self.config, self.config.blocks
        x = masking.zero_padding(x, lengths).astype(config.compute_dtype)
        real = lengths > 0

        def halved(x: Array, lengths: Array) -> tuple[Array, Array]:
            """The lengths after a stride of 2 over x, and their mask."""
            lengths = masking.conv_lengths(lengths, 2)
            return lengths, masking.float_mask(lengths, -(-x.shape[1] // 2))[:, :, None]

        lengths, mask = halved(x, lengths)
        stem = residual.NormalizedConv(blocks, config.face_widths[0], 7, 2, name="stem")
        x = jax.nn.relu(stem(x, mask, train=train))
        # From here on nothing is below 0: beyond its end a row is 0, which no maximum sees.
        lengths, mask = halved(x, lengths)
        x = layers.max_pool(x)
        for stage, (width, count) in enumerate(
            zip(config.face_widths, config.face_blocks, strict=True)
        ):
            for i in range(count):
                stride, before = (2 if stage and not i else 1), mask
                if stride == 2:
                    lengths, mask = halved(x, lengths)
                name = f"stage{stage + 1}_block{i + 1}"
                block = residual.Block(blocks, width, stride, name=name)
                x = layers.applied(block, x, before, mask, train=train, remat=config.remat)
        x = largest(x).astype(jnp.float32)
        embedding = nn.Dense(config.embedding_size, name="embedding")(x)
        return jnp.where(real[:, None], embedding, 0.0)


def largest(x: Float[Array, "b h w c"]) -> Float[Array, "b c"]:
    """Of each channel; the gradient goes to the first place that has it.

    Found as a place, not as a value: the gradient of `jnp.max` goes where x equals its maximum, but
    XLA:CPU may compute x once more for it, with other last bits. Then it goes nowhere.
    """
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    place = jnp.argmax(x, axis=1)[:, None]
    here = jax.lax.broadcasted_iota(place.dtype, x.shape, 1) == place
    return jnp.sum(jnp.where(here, x, jnp.zeros((), x.dtype)), axis=1)


class FaceNet(nn.Module):
    """Pictures of one face -> the mean of their embeddings.

    Of embeddings as they come, not made of length 1 before: that of one picture is the published
    one. The mean of the pictures themselves, which others took, is not the same.
    """

    config: VisualVoiceConfig

    @nn.compact
    def __call__(
        self, faces: Float[Array, "b k h w 3"], present: Bool[Array, "b k"], *, train: bool
    ) -> Float[Array, "b d"]:
        """`present`: which pictures there are; a row without any gives 0."""
        b, k, height = faces.shape[:3]
        lengths = jnp.where(present, height, 0).reshape(b * k)
        pictures = faces.reshape(b * k, *faces.shape[2:])
        embeddings = ResNet18(self.config, name="resnet")(pictures, lengths, train=train)
        sums = jnp.sum(embeddings.reshape(b, k, -1), axis=1)
        count = jnp.sum(present, axis=1).astype(jnp.float32)
        return sums / jnp.maximum(count, 1.0)[:, None]
