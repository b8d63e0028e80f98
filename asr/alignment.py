"""Prefix probabilities of transducer and CTC, and which frames a label stands on.

Lattices are those of `asr.transducer` and `asr.ctc`, blank = 0. Batched functions run in JAX and
have gradients; alignments are NumPy, of one row.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from asr import prediction

BLANK = 0
_LOG_ZERO = -1e30  # finite, so that no difference of two gives NaN


def transducer_arcs(
    joint: prediction.JointInputs, labels: Int[Array, "b u"]
) -> tuple[Float[Array, "b l n"], Float[Array, "b l u"]]:
    """Log-probabilities of blank and of the next label at every node, n = u + 1.

    Frame after frame, and anew in the backward pass: no array of all nodes and tokens is held.
    """
    encoder, outputs, kernel, bias = joint

    @jax.checkpoint
    def frame(projected: Float[Array, "b h"]) -> tuple[Array, Array]:
        hidden = jnp.tanh(projected[:, None, :] + outputs).astype(jnp.float32)
        logits = jnp.matmul(hidden, kernel, precision="highest") + bias[None, None, :]
        scores = jax.nn.log_softmax(logits)
        chosen = jnp.take_along_axis(scores[:, :-1], labels[:, :, None], axis=2)[:, :, 0]
        return scores[:, :, BLANK], chosen

    blank, label = lax.map(frame, jnp.swapaxes(encoder, 0, 1))
    return jnp.swapaxes(blank, 0, 1), jnp.swapaxes(label, 0, 1)


def transducer_prefixes(
    log_blank: Float[Array, "b l n"],
    log_label: Float[Array, "b l u"],
    frame_lengths: Int[Array, "b"],
    label_lengths: Int[Array, "b"],
) -> tuple[Float[Array, "b u"], Float[Array, "b"]]:
    """log P(the output begins with y_1..u) for every u, and log P(it is y_1..U and no more).

    An alignment enters column u once, at the frame on which label u comes out: the prefix's
    probability is the sum over these frames (arXiv:1211.3711, equation 16 and what follows).
    """
    inside = jnp.arange(log_blank.shape[1])[None] < frame_lengths[:, None]

    def along(entered: Array, blank: Array) -> Array:
        """Forward scores of a column, from those with which its nodes are entered by a label."""
        stays = jnp.pad(blank[:, :-1], ((0, 0), (1, 0)))

        def join(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
            return first[0] + second[0], jnp.logaddexp(first[1] + second[0], second[1])

        return lax.associative_scan(join, (stays, entered), axis=1)[1]

    def at_end(column: Array, blank: Array) -> Array:
        last = jnp.maximum(frame_lengths - 1, 0)[:, None]
        return jnp.take_along_axis(column + blank, last, axis=1)[:, 0]

    def step(column: Array, arcs: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        label, blank = arcs
        entered = column + label
        prefix = jax.nn.logsumexp(jnp.where(inside, entered, _LOG_ZERO), axis=1)
        column = along(entered, blank)
        return column, (prefix, at_end(column, blank))

    start = jnp.where(jnp.arange(log_blank.shape[1])[None] == 0, 0.0, _LOG_ZERO)
    first = along(jnp.broadcast_to(start, log_blank.shape[:2]), log_blank[:, :, 0])
    arcs = jnp.moveaxis(log_label, 2, 0), jnp.moveaxis(log_blank[:, :, 1:], 2, 0)
    _, (prefixes, ends) = lax.scan(step, first, arcs)
    ends = jnp.concatenate([at_end(first, log_blank[:, :, 0])[None], ends])
    total = jnp.take_along_axis(ends, label_lengths[None], axis=0)[0]
    return jnp.swapaxes(prefixes, 0, 1), jnp.where(frame_lengths > 0, total, 0.0)


def ctc_prefixes(
    log_probs: Float[Array, "b l v"],
    labels: Int[Array, "b u"],
    frame_lengths: Int[Array, "b"],
    label_lengths: Int[Array, "b"],
) -> tuple[Float[Array, "b u"], Float[Array, "b"]]:
    """As `transducer_prefixes`: a path begins label u once (Graves et al. 2006, section 3.2)."""
    b, u = labels.shape
    other = jnp.pad(labels[:, 1:] != labels[:, :-1], ((0, 0), (1, 0)))  # label 1 follows a blank

    def step(carry: tuple, at: tuple[Array, Array]) -> tuple[tuple, None]:
        blank, label, prefix = carry
        scores, number = at
        own = jnp.take_along_axis(scores, labels, axis=1)
        before = jnp.where(other, jnp.pad(label[:, :-1], ((0, 0), (1, 0))), _LOG_ZERO)
        begun = jnp.logaddexp(blank[:, :-1], before) + own
        ended = jnp.pad(label, ((0, 0), (1, 0)), constant_values=_LOG_ZERO)
        new = (
            jnp.logaddexp(blank, ended) + scores[:, BLANK : BLANK + 1],
            jnp.logaddexp(label + own, begun),
            jnp.logaddexp(prefix, begun),
        )
        live = (number < frame_lengths)[:, None]
        return tuple(jnp.where(live, n, o) for n, o in zip(new, carry)), None

    nothing = jnp.full((b, u), _LOG_ZERO)
    start = jnp.where(jnp.arange(u + 1)[None] == 0, jnp.zeros((b, 1)), _LOG_ZERO)
    times = jnp.swapaxes(log_probs, 0, 1), jnp.arange(log_probs.shape[1])
    (blank, label, prefix), _ = lax.scan(step, (start, nothing, nothing), times)
    ends = jnp.logaddexp(blank, jnp.pad(label, ((0, 0), (1, 0)), constant_values=_LOG_ZERO))
    return prefix, jnp.take_along_axis(ends, label_lengths[:, None], axis=1)[:, 0]


def differences(
    prefixes: Float[Array, "b u"], total: Float[Array, "b"], label_lengths: Int[Array, "b"]
) -> Float[Array, "b n"]:
    """log P(y_u | y_1..u-1) of every label, then that of the end; 0 beyond. They sum to `total`."""
    before = jnp.pad(prefixes, ((0, 0), (1, 0)))  # nothing begins every output
    after = jnp.pad(prefixes, ((0, 0), (0, 1)))
    place = jnp.arange(before.shape[1])[None]
    after = jnp.where(place == label_lengths[:, None], total[:, None], after)
    # A select of what goes in: a score beyond the length must have no gradient at all.
    beyond = place > label_lengths[:, None]
    return jnp.where(beyond, 0.0, after) - jnp.where(beyond, 0.0, before)


def transducer_path(
    log_blank: Float[np.ndarray, "l n"], log_label: Float[np.ndarray, "l u"]
) -> Int[np.ndarray, "u"]:
    """The frame on which each label comes out in the most probable alignment of one row."""
    length, n = log_blank.shape
    best, by_label = np.full((length, n), -np.inf), np.zeros((length, n), bool)
    best[0, 0] = 0
    for frame in range(length):
        for u in range(n):
            stay = best[frame - 1, u] + log_blank[frame - 1, u] if frame else -np.inf
            enter = best[frame, u - 1] + log_label[frame, u - 1] if u else -np.inf
            if frame or u:
                best[frame, u], by_label[frame, u] = max(stay, enter), enter > stay
    frames, frame, u = np.zeros(n - 1, int), length - 1, n - 1
    while u:
        if by_label[frame, u]:
            u -= 1
            frames[u] = frame
        else:
            frame -= 1
    return frames


def ctc_path(
    log_probs: Float[np.ndarray, "l v"], labels: Int[np.ndarray, "u"]
) -> Int[np.ndarray, "u 2"]:
    """The first frame of each label and the one after its last, in the best alignment of one row.

    Raises ValueError where the labels do not fit the frames.
    """
    states = np.zeros(2 * len(labels) + 1, int)
    states[1::2] = labels
    skips = np.zeros(len(states), bool)
    skips[3::2] = states[3::2] != states[1:-2:2]
    score = np.full(len(states), -np.inf)
    score[:2] = log_probs[0, states[:2]]
    back = np.zeros((len(log_probs), len(states)), int)
    for frame in range(1, len(log_probs)):
        moves = np.full((3, len(states)), -np.inf)
        moves[0] = score
        moves[1, 1:] = score[:-1]
        moves[2, 2:] = np.where(skips[2:], score[:-2], -np.inf)
        back[frame] = moves.argmax(axis=0)
        score = moves.max(axis=0) + log_probs[frame, states]
    last = len(states) - 1
    if len(labels) and score[last - 1] > score[last]:
        last -= 1
    if not np.isfinite(score[last]):
        raise ValueError(f"{len(labels)} labels do not fit {len(log_probs)} frames")
    spans, state = np.zeros((len(labels), 2), int), last
    for frame in range(len(log_probs) - 1, -1, -1):
        if state % 2:
            label = state // 2
            spans[label, 0] = frame
            spans[label, 1] = max(spans[label, 1], frame + 1)
        state -= back[frame, state]
    return spans
