"""Transducer (RNN-T) loss that never holds a b x l x u x v tensor.

Two layers, each with a closed-form gradient:

* `lattice_logprob`: log-probability of the labels, summed over all alignments, from the
  log-probabilities of blank and of the next label at every (frame, label) node;
* `rnnt_loss`: the same from the projected encoder and prediction outputs and the output layer of
  the joint network. The joint is evaluated in chunks of frames, in the forward pass and again in
  the backward pass, so that memory is O(b l u + b chunk u v).

Blank has index 0. Notation: Graves, "Sequence transduction with recurrent neural networks",
arXiv:1211.3711, sections 2.4 and 2.5.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from common import flops

BLANK = 0

# log(0). Finite, so that no inf - inf can give NaN; a path adds it at most l + u times, which
# stays inside float32 (and bfloat16) range.
_LOG_ZERO = -1e30

# Nodes of the lattice are evaluated in square tiles of this side: large enough that moving a tile
# is cheap beside its products, small enough to follow the band of likely alignments.
_TILE = 8

# Size of one chunk of logits and hidden layer together when `chunk_nodes` is not given. On a CPU
# the chunk should stay in the cache between the product, the softmax and the two products of the
# gradient; an accelerator wants few large kernels.
_CPU_CHUNK_BYTES = 4 << 20
_ACCELERATOR_CHUNK_BYTES = 64 << 20


def _skew(x: Array) -> Array:
    """[b, l, n] -> [l + n - 1, b, n] with out[i, b, u] = x[b, i - u, u], log(0) outside."""
    b, length, n = x.shape
    # Rows of length l + n re-read with length l + n - 1: row u moves right by u places.
    x = jnp.pad(x.transpose(0, 2, 1), ((0, 0), (0, 0), (0, n)), constant_values=_LOG_ZERO)
    x = x.reshape(b, -1)[:, : n * (length + n - 1)].reshape(b, n, length + n - 1)
    return x.transpose(2, 0, 1)


def _unskew(x: Array, length: int) -> Array:
    """Inverse of `_skew` on the l frames: [l + n - 1, b, n] -> [b, l, n]."""
    diagonals, b, n = x.shape
    x = x.transpose(1, 2, 0).reshape(b, n * diagonals)
    x = jnp.pad(x, ((0, 0), (0, n))).reshape(b, n, diagonals + 1)
    return x[:, :, :length].transpose(0, 2, 1)


class _Lattice(NamedTuple):
    """Skewed log-probabilities [l + u, b, u + 1] of the two arcs that leave every node."""

    blank: Array
    label: Array
    frame_lengths: Array
    label_lengths: Array


def _build_lattice(log_blank, log_label, frame_lengths, label_lengths) -> _Lattice:
    """Closes all arcs outside each row's own lattice, then skews to anti-diagonals."""
    _, length, n = log_blank.shape
    dtype = jnp.promote_types(log_blank.dtype, jnp.float32)
    inside = (jnp.arange(length)[None] < frame_lengths[:, None])[:, :, None]
    u = jnp.arange(n)[None]
    blank_open = inside & (u <= label_lengths[:, None])[:, None, :]
    label_open = inside & (u < label_lengths[:, None])[:, None, :]
    log_label = jnp.pad(log_label, ((0, 0), (0, 0), (0, 1)))  # no label leaves the last column
    blank = jnp.where(blank_open, log_blank.astype(dtype), _LOG_ZERO)
    label = jnp.where(label_open, log_label.astype(dtype), _LOG_ZERO)
    return _Lattice(_skew(blank), _skew(label), frame_lengths, label_lengths)


def _enter(alpha: Array, blank: Array, label: Array) -> tuple[Array, Array]:
    """Score with which each node of the next diagonal is reached, by blank and by label."""
    by_label = jnp.pad((alpha + label)[:, :-1], ((0, 0), (1, 0)), constant_values=_LOG_ZERO)
    return alpha + blank, by_label


def _end_nodes(lattice: _Lattice) -> tuple[Array, Array]:
    """Diagonal [b] and column [b, n] of the node (frame_lengths, label_lengths), where rows end.

    It is a virtual node, reached by the last blank. A row without frames has none (-1).
    """
    n = lattice.blank.shape[2]
    diagonal = lattice.frame_lengths + lattice.label_lengths
    column = jnp.arange(n)[None] == lattice.label_lengths[:, None]
    return jnp.where(lattice.frame_lengths > 0, diagonal, -1), column


def _forward(lattice: _Lattice) -> tuple[Array, Array]:
    """Alphas of all diagonals [l + u, b, u + 1] and the log-probability of the labels [b].

    Each diagonal of alphas is normalised to a maximum of 0, so that their rounding error does not
    grow with the length of the row.
    """
    steps, b, n = lattice.blank.shape
    end_diagonal, end_column = _end_nodes(lattice)
    start = jnp.where(jnp.arange(n) == 0, 0.0, _LOG_ZERO).astype(lattice.blank.dtype)

    def step(carry, arcs):
        alpha, offset, logprob = carry
        diagonal, blank, label = arcs
        following = jnp.logaddexp(*_enter(alpha, blank, label))
        # Nodes that nothing reaches hang on nothing. For the rounded sum of two such scores the
        # derivative is twice as large, and so on with every diagonal behind the end, to infinity.
        following = jnp.where(following > 0.5 * _LOG_ZERO, following, _LOG_ZERO)
        at_end = end_column & (diagonal + 1 == end_diagonal)[:, None]
        ending = jnp.where(at_end, following + offset[:, None], 0.0)
        largest = lax.stop_gradient(jnp.max(following, axis=1))
        carry = following - largest[:, None], offset + largest, logprob + jnp.sum(ending, axis=1)
        return carry, alpha

    zeros = jnp.zeros(b, start.dtype)
    (_, _, logprob), alphas = lax.scan(
        step,
        (jnp.broadcast_to(start, (b, n)), zeros, zeros),
        (jnp.arange(steps), lattice.blank, lattice.label),
    )
    return alphas, logprob


def _occupancies(lattice: _Lattice, alphas: Array, length: int) -> tuple[Array, Array]:
    """Posterior probabilities [b, l, u + 1] that an alignment takes the blank or the label arc.

    The posterior of a node goes back to the arcs that enter it in proportion to the scores with
    which they do. That is alpha * arc * beta / total (eq. 20) without beta and total, whose
    rounding errors at log-probabilities near -1000 would reach 1e-3.
    """
    end_diagonal, end_column = _end_nodes(lattice)

    def step(posterior, arcs):
        diagonal, alpha, blank, label = arcs
        at_end = end_column & (diagonal + 1 == end_diagonal)[:, None]
        posterior = jnp.where(at_end, 1.0, posterior)
        by_blank, by_label = _enter(alpha, blank, label)
        blank = posterior * jax.nn.sigmoid(by_blank - by_label)
        label = posterior * jax.nn.sigmoid(by_label - by_blank)
        label = jnp.pad(label[:, 1:], ((0, 0), (0, 1)))  # to the column that it leaves
        return blank + label, (blank, label)

    arcs = (jnp.arange(alphas.shape[0]), alphas, lattice.blank, lattice.label)
    _, (blank, label) = lax.scan(step, jnp.zeros_like(alphas[0]), arcs, reverse=True)
    return _unskew(blank, length), _unskew(label, length)


@jax.custom_vjp
def lattice_logprob(
    log_blank: Float[Array, "b l n"],
    log_label: Float[Array, "b l n-1"],
    frame_lengths: Int[Array, "b"],
    label_lengths: Int[Array, "b"],
) -> Float[Array, "b"]:
    """Log-probability of the label sequences, summed over all alignments.

    `log_blank[b, l, u]` is the log-probability of blank (go to the next frame) after u labels,
    `log_label[b, l, u]` that of label u + 1 (stay on the frame); n = u + 1. The last arc of every
    path is the blank on the last frame. One scan over l + u anti-diagonals; the gradient is the
    arc occupancy, by a second scan. Values beyond the lengths are not read and get zero
    gradient. A row with `frame_lengths == 0` gives 0 with zero gradient (a masked row). The result
    is float32 (float64 for float64 input). Source: arXiv:1211.3711, eq. 16, 17 and 20.
    """
    lattice = _build_lattice(log_blank, log_label, frame_lengths, label_lengths)
    return _forward(lattice)[1]


def _lattice_fwd(log_blank, log_label, frame_lengths, label_lengths):
    lattice = _build_lattice(log_blank, log_label, frame_lengths, label_lengths)
    alphas, logprob = _forward(lattice)
    blank, label = _occupancies(lattice, alphas, log_blank.shape[1])
    occupancies = blank.astype(log_blank.dtype), label[:, :, :-1].astype(log_label.dtype)
    return logprob, occupancies


def _lattice_bwd(occupancies, g):
    blank, label = occupancies
    g = g[:, None, None]
    return (blank * g).astype(blank.dtype), (label * g).astype(label.dtype), None, None


lattice_logprob.defvjp(_lattice_fwd, _lattice_bwd)


class _Options(NamedTuple):
    tile_frames: int
    tile_labels: int
    chunk_tiles: int
    dtype: jnp.dtype
    fastemit: float


def rnnt_loss(
    encoder: Float[Array, "b l h"],
    prediction: Float[Array, "b n h"],
    kernel: Float[Array, "h v"],
    bias: Float[Array, "v"],
    labels: Int[Array, "b n-1"],
    frame_lengths: Int[Array, "b"],
    label_lengths: Int[Array, "b"],
    *,
    chunk_nodes: int | None = None,
    dtype: DTypeLike = jnp.float32,
    fastemit: float = 0.0,
) -> Float[Array, "b"]:
    """Negative log-probability of the labels (nats, one value per row), blank = 0.

    The logits at frame l after u labels are `tanh(encoder[l] + prediction[u]) @ kernel + bias`
    (n = u + 1 prediction steps, the first one after the start token). The lattice is cut into tiles
    of 8 x 8 nodes; hidden layer and logits exist for about `chunk_nodes` nodes at a time (None: as
    many as make 4 MiB of both together on a CPU, 64 MiB elsewhere). Tiles of padding are not
    computed, and the backward pass skips tiles that no alignment of noticeable probability crosses
    (see `_negligible`), which in a trained model is most of them.

    `dtype` is that of the hidden layer and of the matrix products; normaliser, lattice and sums of
    gradients are float32 whatever it is. `fastemit` is lambda of FastEmit (arXiv:2010.11148,
    eq. 9): it scales the gradient of label arcs by 1 + lambda and leaves the value unchanged.
    A row with `frame_lengths == 0` gives 0 with zero gradient. On a GPU the order of additions
    in two gradients is only fixed under `--xla_gpu_deterministic_ops=true`.
    """
    length, n = encoder.shape[1], prediction.shape[1]
    tile_frames, tile_labels = min(_TILE, length), min(_TILE, n)
    if chunk_nodes is None:
        on_cpu = jax.default_backend() == "cpu"
        chunk_bytes = _CPU_CHUNK_BYTES if on_cpu else _ACCELERATOR_CHUNK_BYTES
        chunk_nodes = chunk_bytes // (4 * sum(kernel.shape))
    num_tiles = encoder.shape[0] * -(-length // tile_frames) * -(-n // tile_labels)
    chunk_tiles = min(max(1, chunk_nodes // (tile_frames * tile_labels)), num_tiles)
    options = _Options(tile_frames, tile_labels, chunk_tiles, jnp.dtype(dtype), float(fastemit))
    # One column more, so that labels line up with the nodes; its arc is closed in the lattice.
    labels = jnp.pad(labels, ((0, 0), (0, 1)))
    return _rnnt_loss(
        options, encoder, prediction, kernel, bias, labels, frame_lengths, label_lengths
    )


def _negligible(dtype: jnp.dtype) -> float:
    """Occupancy below which a node is left out of the gradient.

    A node's share of every gradient is proportional to its occupancy, and the occupancies of a row
    sum to l + u. A tenth of the machine epsilon keeps what is dropped below rounding error.
    """
    return 0.1 * float(jnp.finfo(dtype).eps)


def _tile_rows(x: Array, tile: int) -> Array:
    """[b, l, ...] -> [b * blocks, tile, ...], padded with zeros to whole blocks."""
    b, length = x.shape[:2]
    blocks = -(-length // tile)
    x = jnp.pad(x, ((0, 0), (0, blocks * tile - length)) + ((0, 0),) * (x.ndim - 2))
    return x.reshape(b * blocks, tile, *x.shape[2:])


def _tile_nodes(options: _Options, x: Array) -> Array:
    """[b, l, n] -> [tiles, tile_frames, tile_labels], padded with zeros to whole tiles."""
    b, length, n = x.shape
    tl, tn = options.tile_frames, options.tile_labels
    x = jnp.pad(x, ((0, 0), (0, -length % tl), (0, -n % tn)))
    x = x.reshape(b, x.shape[1] // tl, tl, x.shape[2] // tn, tn)
    return x.transpose(0, 1, 3, 2, 4).reshape(-1, tl, tn)


def _untile_nodes(options: _Options, x: Array, shape: tuple[int, int, int]) -> Array:
    """Inverse of `_tile_nodes`."""
    b, length, n = shape
    tl, tn = options.tile_frames, options.tile_labels
    x = x.reshape(b, -(-length // tl), -(-n // tn), tl, tn).transpose(0, 1, 3, 2, 4)
    return x.reshape(b, x.shape[1] * tl, -1)[:, :length, :n]


class _Joint(NamedTuple):
    """The joint network cut into tiles; `chunk(tiles)` evaluates the listed ones."""

    options: _Options
    frames: Array  # [b * frame blocks, tile_frames, h]
    steps: Array  # [b * label blocks, tile_labels, h]
    labels: Array  # [b * label blocks, tile_labels]
    kernel: Array
    bias: Array
    blocks: tuple[int, int]  # frame blocks, label blocks of one row

    @classmethod
    def build(cls, options, encoder, prediction, kernel, bias, labels):
        frames = _tile_rows(encoder.astype(options.dtype), options.tile_frames)
        steps = _tile_rows(prediction.astype(options.dtype), options.tile_labels)
        b = encoder.shape[0]
        blocks = frames.shape[0] // b, steps.shape[0] // b
        labels = _tile_rows(labels, options.tile_labels)
        return cls(options, frames, steps, labels, kernel.astype(options.dtype), bias, blocks)

    def places(self, tiles: Array) -> tuple[Array, Array]:
        """Index of each tile in `frames` and in `steps` (out of range for a tile to be dropped)."""
        frame_blocks, label_blocks = self.blocks
        return tiles // label_blocks, (
            tiles // (frame_blocks * label_blocks) * label_blocks + tiles % label_blocks
        )

    def chunk(self, tiles: Array) -> tuple[Array, Array, Array]:
        """Hidden layer [k, tl, tn, h]; logits [k tl tn, v] and next label [k tl tn, 1] by node."""
        at_frames, at_steps = self.places(tiles)
        frames = jnp.take(self.frames, at_frames, axis=0, mode="clip")[:, :, None, :]
        steps = jnp.take(self.steps, at_steps, axis=0, mode="clip")[:, None, :, :]
        hidden = jnp.tanh(frames + steps)
        accumulate = jnp.promote_types(self.options.dtype, jnp.float32)
        logits = jnp.matmul(
            hidden.reshape(-1, hidden.shape[-1]), self.kernel, preferred_element_type=accumulate
        )
        labels = jnp.take(self.labels, at_steps, axis=0, mode="clip")[:, None, :]
        labels = jnp.broadcast_to(labels, hidden.shape[:3]).reshape(-1, 1)
        return hidden, logits + self.bias.astype(accumulate)[None, :], labels


def _for_tiles(options: _Options, keep: Array, nodes: int, body, init):
    """Runs `body(tiles i32[chunk_tiles], carry)` over as many chunks as the kept tiles fill.

    `nodes` are those of the whole lattice, for counts of operations.
    """
    size = -(-keep.shape[0] // options.chunk_tiles) * options.chunk_tiles
    # The rest of the last chunk points beyond the end: gathers fill, scatters drop.
    (tiles,) = jnp.nonzero(keep, size=size, fill_value=keep.shape[0])

    def step(i, carry):
        start = i * options.chunk_tiles
        return body(lax.dynamic_slice_in_dim(tiles, start, options.chunk_tiles), carry)

    chunks = (jnp.sum(keep) + options.chunk_tiles - 1) // options.chunk_tiles
    with flops.pieces(nodes, options.chunk_tiles * options.tile_frames * options.tile_labels):
        return lax.fori_loop(0, chunks, step, init)


def _node_logprobs(options, joint: _Joint, shape, frame_lengths, label_lengths):
    """log p(blank), log p(next label) and the log-normaliser at every node inside the lengths.

    The first two as [b, l, n], the normaliser in tiles.
    """
    _, length, n = shape
    inside = (jnp.arange(length)[None] < frame_lengths[:, None])[:, :, None]
    inside &= (jnp.arange(n)[None] <= label_lengths[:, None])[:, None, :]
    keep = jnp.any(_tile_nodes(options, inside), axis=(1, 2))

    def body(tiles, out):
        _, logits, labels = joint.chunk(tiles)
        log_norm = jax.nn.logsumexp(logits, axis=1)
        label = jnp.take_along_axis(logits, labels, axis=1)[:, 0]
        values = jnp.stack([logits[:, BLANK] - log_norm, label - log_norm, log_norm])
        values = values.reshape(3, *tiles.shape, *out.shape[2:])
        return out.at[:, tiles].set(values, mode="drop", unique_indices=True)

    accumulate = jnp.promote_types(options.dtype, jnp.float32)
    out = jnp.zeros((3, keep.shape[0], options.tile_frames, options.tile_labels), accumulate)
    blank, label, log_norm = _for_tiles(options, keep, math.prod(shape), body, out)
    return _untile_nodes(options, blank, shape), _untile_nodes(options, label, shape), log_norm


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rnnt_loss(options, encoder, prediction, kernel, bias, labels, frame_lengths, label_lengths):
    joint = _Joint.build(options, encoder, prediction, kernel, bias, labels)
    shape = encoder.shape[0], encoder.shape[1], prediction.shape[1]
    blank, label, _ = _node_logprobs(options, joint, shape, frame_lengths, label_lengths)
    return -lattice_logprob(blank, label[:, :, :-1], frame_lengths, label_lengths)


def _rnnt_fwd(options, encoder, prediction, kernel, bias, labels, frame_lengths, label_lengths):
    joint = _Joint.build(options, encoder, prediction, kernel, bias, labels)
    shape = encoder.shape[0], encoder.shape[1], prediction.shape[1]
    blank, label, log_norm = _node_logprobs(options, joint, shape, frame_lengths, label_lengths)
    lattice = _build_lattice(blank, label[:, :, :-1], frame_lengths, label_lengths)
    alphas, logprob = _forward(lattice)
    blank, label = _occupancies(lattice, alphas, encoder.shape[1])
    label = label * (1.0 + options.fastemit)
    return -logprob, (encoder, prediction, kernel, bias, labels, log_norm, blank, label)


def _rnnt_bwd(options, residuals, g):
    encoder, prediction, kernel, bias, labels, log_norm, blank, label = residuals
    joint = _Joint.build(options, encoder, prediction, kernel, bias, labels)
    accumulate = log_norm.dtype
    occupied = (blank + label) * (g != 0)[:, None, None] > _negligible(accumulate)
    keep = jnp.any(_tile_nodes(options, occupied), axis=(1, 2))
    # d loss / d logits = p * (blank + label) - onehot(0) * blank - onehot(label) * label
    blank = _tile_nodes(options, blank * g[:, None, None])
    label = _tile_nodes(options, label * g[:, None, None])
    columns = jnp.arange(kernel.shape[1])[None, :]

    def body(tiles, sums):
        d_frames, d_steps, d_kernel, d_bias = sums

        def nodes(x, fill):
            return jnp.take(x, tiles, axis=0, mode="fill", fill_value=fill).reshape(-1, 1)

        hidden, logits, labels = joint.chunk(tiles)
        to_blank, to_label = nodes(blank, 0.0), nodes(label, 0.0)
        d_logits = jnp.exp(logits - nodes(log_norm, -_LOG_ZERO)) * (to_blank + to_label)
        # Compare-and-select joins the exponential in one pass; a scatter would be a second.
        d_logits = d_logits - jnp.where(columns == BLANK, to_blank, 0.0)
        d_logits = d_logits - jnp.where(columns == labels, to_label, 0.0)
        d_rows = d_logits.astype(options.dtype)
        d_kernel += lax.dot_general(
            hidden.reshape(-1, hidden.shape[-1]),
            d_rows,
            (((0,), (0,)), ((), ())),
            preferred_element_type=accumulate,
        )
        d_bias += jnp.sum(d_logits, axis=0)
        d_hidden = lax.dot_general(
            d_rows, joint.kernel, (((1,), (1,)), ((), ())), preferred_element_type=accumulate
        )
        d_hidden = d_hidden.reshape(hidden.shape) * (1.0 - jnp.square(hidden.astype(accumulate)))
        at_frames, at_steps = joint.places(tiles)
        d_frames = d_frames.at[at_frames].add(jnp.sum(d_hidden, axis=2), mode="drop")
        d_steps = d_steps.at[at_steps].add(jnp.sum(d_hidden, axis=1), mode="drop")
        return d_frames, d_steps, d_kernel, d_bias

    zeros = [jnp.zeros(x.shape, accumulate) for x in (joint.frames, joint.steps, kernel, bias)]
    d_frames, d_steps, d_kernel, d_bias = _for_tiles(
        options, keep, occupied.size, body, tuple(zeros)
    )

    def untile(d, like):
        return d.reshape(like.shape[0], -1, like.shape[2])[:, : like.shape[1]].astype(like.dtype)

    return (
        untile(d_frames, encoder),
        untile(d_steps, prediction),
        d_kernel.astype(kernel.dtype),
        d_bias.astype(bias.dtype),
        None,
        None,
        None,
    )


_rnnt_loss.defvjp(_rnnt_fwd, _rnnt_bwd)
