"""CTC loss with our conventions: lengths instead of paddings, impossible rows named.

Graves et al., "Connectionist temporal classification", ICML 2006; the recursion is optax's.
"""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from common.nn import masking

BLANK = 0


class CTCLoss(NamedTuple):
    """Negative log-probabilities (nats) and the rows whose labels do not fit their frames."""

    loss: Float[Array, "b"]
    impossible: Bool[Array, "b"]


def min_frames(labels: Int[Array, "b u"], label_lengths: Int[Array, "b"]) -> Int[Array, "b"]:
    """Frames that the shortest alignment takes: one per label, one blank between equal labels."""
    inside = masking.length_mask(label_lengths, labels.shape[1])
    repeats = (labels[:, 1:] == labels[:, :-1]) & inside[:, 1:]
    return label_lengths + jnp.sum(repeats, axis=1, dtype=label_lengths.dtype)


def ctc_loss(
    logits: Float[Array, "b l v"],
    frame_lengths: Int[Array, "b"],
    labels: Int[Array, "b u"],
    label_lengths: Int[Array, "b"],
) -> CTCLoss:
    """CTC loss of every row, in float32, blank = 0.

    A row whose labels cannot be aligned with its frames (fewer frames than `min_frames`) gets
    loss 0, zero gradient and `impossible = True`: count these rows and report them. A row without
    frames and labels (a masked row) gets 0 and is not impossible.
    """
    impossible = frame_lengths < min_frames(labels, label_lengths)
    # A column of padding more, because optax needs at least one.
    labels = jnp.pad(labels, ((0, 0), (0, 1)))
    frames_inside = masking.length_mask(frame_lengths, logits.shape[1])
    labels_inside = masking.length_mask(label_lengths, labels.shape[1])
    # optax multiplies by its paddings: rubbish in them must be finite.
    logits = masking.zero_padding(logits.astype(jnp.float32), frame_lengths)
    loss = optax.ctc_loss(
        logits,
        1.0 - frames_inside.astype(jnp.float32),
        labels,
        1.0 - labels_inside.astype(jnp.float32),
        blank_id=BLANK,
    )
    return CTCLoss(jnp.where(impossible, 0.0, loss), impossible)
