"""Greedy decoding of whole batches, for the transducer and for CTC; blank is 0.

Pure functions for the inside of `jax.jit`: shapes are static, every row decodes as it does alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from common.nn import masking

BLANK = 0


class Hypotheses(NamedTuple):
    """Best labels of every row; entries beyond `lengths` are 0."""

    tokens: Int[Array, "b u"]
    lengths: Int[Array, "b"]
    frames: Int[Array, "b u"]  # encoder frame on which each token came out
    token_log_probs: Float[Array, "b u"]  # of each token where it came out (nats)
    log_probs: Float[Array, "b"]  # of all choices of the row, blanks included (nats)
    truncated: Bool[Array, "b"]  # True: more labels than fit; the rest was not decoded


class _Search(NamedTuple):
    """Where each row stands between two labels."""

    frame: Array
    symbols: Array  # labels emitted on this frame
    log_prob: Array
    label: Array  # the label found, 0 while none is
    label_log_prob: Array
    searching: Array


def transducer_greedy(
    encoder: Float[Array, "b l d"],
    frame_lengths: Int[Array, "b"],
    predict: Callable[[Any, Array], tuple[Any, Array]],
    joint: Callable[[Array, Array], Array],
    initial_state: Any,
    *,
    max_labels: int,
    label_limits: Int[Array, "b"] | None = None,
    max_symbols_per_frame: int = 5,
    blank_penalty: float = 0.0,
) -> Hypotheses:
    """Greedy transducer search by label looping.

    `predict(state, tokens i32[b]) -> (state, output)` advances the prediction network (state: any
    tree of arrays with the batch axis first), `joint(frames [b, d], output) -> logits [b, v]`
    scores one node per row. Project the encoder once, outside; `predict` may include the projection
    of its output. Token 0 starts every row.

    The outer loop runs once per label (of the row with most labels), the inner one skips blanks:
    the prediction network, the slow part, does not run once per frame. After
    `max_symbols_per_frame` labels a row moves to the next frame without a blank; after `max_labels`
    (or its own of `label_limits`, which unlike the size of the output should not hang on how far
    the row is padded) it stops, marked `truncated` if frames are left. `blank_penalty` (nats) is
    taken off blank's score before the choice, against a model that leaves words out; log_probs are
    those of the model. Source: label looping, arXiv:2406.06220.
    """
    batch, length, _ = encoder.shape
    rows = jnp.arange(batch)
    limits = max_labels if label_limits is None else jnp.minimum(label_limits, max_labels)

    def find_label(output: Array, search: _Search) -> _Search:
        """Moves every row to its next label or to its end."""

        def step(search: _Search) -> _Search:
            at = jnp.minimum(search.frame, length - 1)
            logits = joint(encoder[rows, at], output).astype(jnp.float32)
            best = jnp.argmax(logits.at[:, BLANK].add(-blank_penalty), axis=1)
            chosen = jnp.take_along_axis(logits, best[:, None], axis=1)[:, 0]
            log_prob = chosen - jax.nn.logsumexp(logits, axis=1)
            blank = search.searching & (best == BLANK)
            frame = search.frame + blank
            return _Search(
                frame=frame,
                symbols=jnp.where(blank, 0, search.symbols),
                log_prob=search.log_prob + jnp.where(search.searching, log_prob, 0.0),
                label=jnp.where(search.searching, best, search.label),
                label_log_prob=jnp.where(search.searching, log_prob, search.label_log_prob),
                searching=blank & (frame < frame_lengths),
            )

        return lax.while_loop(lambda s: jnp.any(s.searching), step, search)

    def active(search: _Search, lengths: Array) -> Array:
        return (search.frame < frame_lengths) & (lengths < limits)

    def emit(carry):
        search, lengths, tokens, frames, log_probs, state, output = carry
        search = search._replace(
            searching=active(search, lengths), label=jnp.zeros(batch, jnp.int32)
        )
        search = find_label(output, search)
        found = search.label != BLANK
        place = jnp.where(found, lengths, max_labels)  # out of range: dropped
        tokens = tokens.at[rows, place].set(search.label, mode="drop")
        frames = frames.at[rows, place].set(search.frame, mode="drop")
        log_probs = log_probs.at[rows, place].set(search.label_log_prob, mode="drop")
        symbols = search.symbols + found
        full = symbols >= max_symbols_per_frame
        search = search._replace(frame=search.frame + full, symbols=jnp.where(full, 0, symbols))
        advanced = predict(state, search.label)

        def keep(new: Array, old: Array) -> Array:
            return jnp.where(found.reshape((-1,) + (1,) * (new.ndim - 1)), new, old)

        state, output = jax.tree.map(keep, advanced, (state, output))
        return search, lengths + found, tokens, frames, log_probs, state, output

    zeros = jnp.zeros(batch, jnp.int32)
    state, output = predict(initial_state, zeros)
    nothing = jnp.zeros(batch)
    search = _Search(zeros, zeros, nothing, zeros, nothing, zeros.astype(bool))
    table = jnp.zeros((batch, max_labels), jnp.int32)
    carry = lax.while_loop(
        lambda carry: jnp.any(active(carry[0], carry[1])),
        emit,
        (search, zeros, table, table, table.astype(jnp.float32), state, output),
    )
    search, lengths, tokens, frames, log_probs, _, _ = carry
    truncated = search.frame < frame_lengths
    return Hypotheses(tokens, lengths, frames, log_probs, search.log_prob, truncated)


def ctc_greedy(
    logits: Float[Array, "b l v"],
    frame_lengths: Int[Array, "b"],
    *,
    max_labels: int | None = None,
) -> Hypotheses:
    """Best path of CTC: the best token of each frame, repeats merged, blanks removed.

    `max_labels` (None: the number of frames, which always suffices) is the static size of the
    output. `frames` holds the first frame of each token's run.
    """
    _, length, _ = logits.shape
    max_labels = length if max_labels is None else max_labels
    logits = logits.astype(jnp.float32)
    inside = masking.length_mask(frame_lengths, length)
    best = jnp.argmax(logits, axis=2).astype(jnp.int32)
    log_prob = jnp.max(logits, axis=2) - jax.nn.logsumexp(logits, axis=2)
    before = jnp.pad(best, ((0, 0), (1, 0)), constant_values=BLANK)[:, :-1]
    starts = inside & (best != BLANK) & (best != before)
    found = jnp.sum(starts, axis=1, dtype=jnp.int32)
    place = jnp.where(starts, jnp.cumsum(starts, axis=1) - 1, max_labels)
    rows = jnp.arange(best.shape[0])[:, None]
    table = jnp.zeros((best.shape[0], max_labels), jnp.int32)
    frame_numbers = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None, :], best.shape)
    return Hypotheses(
        tokens=table.at[rows, place].set(best, mode="drop"),
        lengths=jnp.minimum(found, max_labels),
        frames=table.at[rows, place].set(frame_numbers, mode="drop"),
        token_log_probs=table.astype(jnp.float32).at[rows, place].set(log_prob, mode="drop"),
        log_probs=jnp.sum(jnp.where(inside, log_prob, 0.0), axis=1),
        truncated=found > max_labels,
    )
