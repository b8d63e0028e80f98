"""True lengths of padded sequences: masks, the lengths after a stride, means over true frames."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def length_mask(lengths: Int[Array, "b"], num_frames: int) -> Bool[Array, "b l"]:
    """True for the frames that belong to each row: `mask[b, l] = l < lengths[b]`.

    A length of 0 (a padded row) gives a row of False; a length beyond `num_frames` a row of True.
    """
    frames = jax.lax.broadcasted_iota(lengths.dtype, (lengths.shape[0], num_frames), 1)
    return frames < lengths[:, None]


def float_mask(lengths: Int[Array, "b"], num_frames: int) -> Float[Array, "b l"]:
    """`length_mask` as 0.0 and 1.0, in memory: for masks that many layers multiply with.

    XLA:CPU computes a cheap comparison anew inside every loop that reads it, barrier or not, which
    doubles the time that ContextNet takes to compile. The result of a dot product it keeps.
    """
    mask = length_mask(lengths, num_frames).astype(jnp.float32)
    both = jnp.stack([mask, mask], axis=-1)
    return jnp.matmul(both, jnp.array([0.5, 0.5], jnp.float32), precision="highest")


def conv_lengths(lengths: Int[Array, "b"], stride: int) -> Int[Array, "b"]:
    """Lengths after a SAME-padded convolution or pooling: `ceil(length / stride)`."""
    return -(-lengths // stride)


def zero_padding(x: Float[Array, "b l *d"], lengths: Int[Array, "b"]) -> Float[Array, "b l *d"]:
    """Sets the frames beyond each row's length to exactly 0, NaN and infinity included.

    A select, not a product, so that neither rubbish in the padding nor its gradient survives.
    """
    mask = length_mask(lengths, x.shape[1])
    return jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - 2)), x, jnp.zeros((), x.dtype))


def masked_sum(x: Float[Array, "b l d"], lengths: Int[Array, "b"]) -> Float[Array, "b d"]:
    """Sum over the true frames of each row, accumulated in float32; 0 for an empty row."""
    # A batched matrix-vector product: XLA:CPU reduces over the middle axis several times slower.
    mask = length_mask(lengths, x.shape[1]).astype(x.dtype)
    return jnp.einsum(
        "bl,bld->bd",
        mask,
        zero_padding(x, lengths),
        precision="highest",
        preferred_element_type=jnp.float32,
    )


def masked_mean(x: Float[Array, "b l d"], lengths: Int[Array, "b"]) -> Float[Array, "b d"]:
    """Mean over the true frames of each row in float32; 0 for an empty row."""
    count = jnp.clip(lengths, 0, x.shape[1]).astype(jnp.float32)
    return masked_sum(x, lengths) / jnp.maximum(count, 1.0)[:, None]


def fold_row_mask(lengths: Int[Array, "b"], mask: Bool[Array, "b"] | None) -> Int[Array, "b"]:
    """Lengths with padded rows (`mask` False) set to 0, so that one array carries both masks."""
    return lengths if mask is None else jnp.where(mask, lengths, 0)
