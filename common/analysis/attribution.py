"""Attributions: what of an input a scalar output hangs on. Pure functions.

Integrated gradients (Sundararajan, Taly and Yan, ICML 2017, arXiv:1703.01365, equation 1): the
difference to a baseline, times the mean gradient on the straight way from there. They add up to
F(x) - F(baseline), if the mean is exact; how far it is not, the gap, comes with every result.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

BLOCK = 16  # nodes of one stretch of the way, and of one compiled program
# Errors of stretches have either sign: each may have this share of what the whole may have.
_SHARE = 1 / 16

Score = Callable[[Array], Float[Array, "b n"]]


def gauss_legendre(count: int) -> tuple[Float[np.ndarray, "k"], Float[np.ndarray, "k"]]:
    """Nodes in [0, 1] and weights, whose sum is 1; exact for polynomials of degree 2 count - 1.

    Two well-known libraries (captum, alibi) halve the ends of a Riemann sum 1/n over n nodes for
    their "trapezoid". Its nodes have n - 1 intervals between them, so these weights add up to
    (n - 1) / n, and a linear function loses 1/n of its attribution.
    """
    nodes, weights = np.polynomial.legendre.leggauss(count)
    nodes, weights = (nodes + 1) / 2, weights / 2
    assert abs(weights.sum() - 1) < 1e-12
    return nodes, weights


def gradients(
    score: Score, point: Float[Array, "b *s"], at_once: int = BLOCK
) -> Float[Array, "b n *s"]:
    """The gradient of every scalar of each row at `point`, in one forward pass.

    Rows depend on themselves alone, so one cotangent e_k serves all of them; those of all k are
    vmapped, `at_once` of them.
    """
    values, pull = jax.vjp(score, point)
    n = values.shape[1]
    if n == 1:
        return pull(jnp.ones_like(values))[0][:, None]
    each = jnp.broadcast_to(jnp.eye(n, dtype=values.dtype)[:, None, :], (n, *values.shape))
    found = jax.lax.map(lambda one: pull(one)[0], each, batch_size=min(n, at_once))
    return jnp.moveaxis(found, 0, 1)


def path_gradients(
    score: Score,
    start: Float[Array, "b *s"],
    end: Float[Array, "b *s"],
    nodes: Float[Array, "b k"],
    weights: Float[Array, "b k"],
    at_once: int = BLOCK,
) -> Float[Array, "b n *s"]:
    """Weighted sum of the gradients at start + node (end - start); memory does not grow with k.

    Summed with Kahan's compensation: the gap is to be that of the quadrature, not of rounding.
    """

    def add(carry: tuple[Array, Array], node: tuple[Array, Array]) -> tuple[tuple, None]:
        total, lost = carry
        place = node[0].reshape((-1,) + (1,) * (end.ndim - 1))
        weight = node[1].reshape((-1,) + (1,) * end.ndim)
        # A convex combination, so that the point of node 1 is `end` to the bit.
        point = (1 - place) * start + place * end
        term = weight * gradients(score, point, at_once) - lost
        new = total + term
        return (new, (new - total) - term), None

    shape = jax.eval_shape(lambda x: gradients(score, x, at_once), end)
    zeros = jnp.zeros(shape.shape, shape.dtype)
    (total, _), _ = jax.lax.scan(add, (zeros, zeros), (nodes.T, weights.T))
    return total


@dataclasses.dataclass(frozen=True)
class Attribution:
    """Maps [n, l, ...] of one recording's scalars, and how far they can be trusted.

    `score` and `baseline_score` are [n], F(x) and F(baseline); `gap_percent` is |sum of the map -
    (F(x) - F(baseline))| in per cent of that difference, with several scalars both added up over
    them. NaN where a method does not add up to the difference.
    """

    values: Float[np.ndarray, "n *s"]
    score: Float[np.ndarray, "n"]
    baseline_score: Float[np.ndarray, "n"]
    gap_percent: float
    nodes: int
    converged: bool


def gap_percent(
    values: Float[np.ndarray, "n *s"],
    score: Float[np.ndarray, "n"],
    baseline_score: Float[np.ndarray, "n"],
) -> float:
    """How far attributions are from adding up; 0 where there is nothing to add, inf for a sum of
    nothing."""
    wanted = np.asarray(score, np.float64) - np.asarray(baseline_score, np.float64)
    error, size = _errors(values, wanted).sum(), np.abs(wanted).sum()
    if size == 0:
        return 0.0 if error == 0 else math.inf
    return float(100 * error / size)


def _errors(values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Of every scalar, by how much its map misses the difference."""
    found = np.asarray(values, np.float64).reshape(len(wanted), -1).sum(axis=1)
    return np.abs(found - wanted)


Path = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class _Stretch(NamedTuple):
    """A part of the way of one row, and F at its ends."""

    first: float
    last: float
    scores: tuple[np.ndarray, np.ndarray]


def integrated_gradients(
    path: Path,
    score: Callable[[np.ndarray], np.ndarray],
    start: Float[np.ndarray, "b *s"],
    end: Float[np.ndarray, "b *s"],
    *,
    tolerance_percent: float = 0.1,
    first_nodes: int = BLOCK,
    max_nodes: int = 256,
    times_difference: bool = True,
) -> list[Attribution]:
    """Integrated gradients of every row, with nodes doubled where the gap is above tolerance.

    `path` is `path_gradients` and `score` its function, compiled. The way gets `first_nodes` nodes.
    Where their sum misses the difference of F, it is halved, and each half gets as many, and so on:
    on every stretch the error is known, so nodes go where F bends. What the gap can be brought
    down to in `max_nodes` is returned, at worst not `converged`.

    Results of stretches are added in float64. A row does not depend on the others. Without
    `times_difference` the mean gradients themselves come back ("averaged gradients").
    """
    if not 1 <= first_nodes <= max_nodes:
        raise ValueError(f"max_nodes={max_nodes} is below the first {first_nodes}")
    rows = range(len(end))
    ends = [np.asarray(score(point), np.float64) for point in (start, end)]
    sizes = np.abs(ends[1] - ends[0]).sum(axis=1)
    difference = np.asarray(end, np.float64) - np.asarray(start, np.float64)
    rule = gauss_legendre(first_nodes)
    level = [[_Stretch(0.0, 1.0, (ends[0][row], ends[1][row]))] for row in rows]
    mean, nodes = [0.0 for _ in rows], [0 for _ in rows]
    limit = tolerance_percent
    while any(level):
        wrong: list[list[_Stretch]] = [[] for _ in rows]
        wrong_mean = [0.0 for _ in rows]
        for k in range(max(map(len, level))):
            now = [row for row in rows if k < len(level[row])]
            places, weights = np.zeros((2, len(end), first_nodes))
            for row in now:
                first, last, _ = level[row][k]
                places[row] = first + (last - first) * rule[0]
                weights[row] = (last - first) * rule[1]
            found = path(start, end, places.astype(np.float32), weights.astype(np.float32))
            for row in now:
                part = np.asarray(found[row], np.float64)
                before, after = level[row][k].scores
                error = _errors(part * difference[row][None], after - before).sum()
                if error * 100 <= limit * sizes[row]:
                    mean[row] = mean[row] + part
                    nodes[row] += first_nodes
                else:
                    wrong[row].append(level[row][k])
                    wrong_mean[row] = wrong_mean[row] + part
        for row in rows:
            if nodes[row] + 2 * first_nodes * len(wrong[row]) > max_nodes:
                mean[row] = mean[row] + wrong_mean[row]
                nodes[row] += first_nodes * len(wrong[row])
                wrong[row] = []
        level, limit = _halved(score, start, end, wrong), _SHARE * tolerance_percent
    result = []
    for row in rows:
        maps = mean[row] * difference[row][None]
        gap = gap_percent(maps, ends[1][row], ends[0][row])
        shown = maps if times_difference else mean[row]
        good = gap <= tolerance_percent
        result.append(Attribution(shown, ends[1][row], ends[0][row], gap, nodes[row], good))
    return result


def _halved(
    score: Callable[[np.ndarray], np.ndarray],
    start: np.ndarray,
    end: np.ndarray,
    stretches: Sequence[Sequence[_Stretch]],
) -> list[list[_Stretch]]:
    """Every stretch of every row as two, with F in between."""
    found: list[list[_Stretch]] = [[] for _ in stretches]
    for k in range(max(map(len, stretches))):
        middles = np.zeros(len(end))
        for row, own in enumerate(stretches):
            if k < len(own):
                middles[row] = (own[k].first + own[k].last) / 2
        places = middles.astype(np.float32).reshape((-1,) + (1,) * (end.ndim - 1))
        between = np.asarray(score((1 - places) * start + places * end), np.float64)
        for row, own in enumerate(stretches):
            if k < len(own):
                first, last, (low, high) = own[k]
                found[row] += [
                    _Stretch(first, middles[row], (low, between[row])),
                    _Stretch(middles[row], last, (between[row], high)),
                ]
    return found


def average(parts: Sequence[Attribution], tolerance_percent: float) -> Attribution:
    """The mean over several baselines: it adds up to F(x) less the mean F(baseline)."""
    if len(parts) == 1:
        return parts[0]
    values, starts = (
        np.mean([getattr(part, name) for part in parts], axis=0)
        for name in ("values", "baseline_score")
    )
    gap = max(part.gap_percent for part in parts)
    nodes = max(part.nodes for part in parts)
    converged = gap <= tolerance_percent
    return Attribution(values, parts[0].score, starts, gap, nodes, converged)


def trimmed(found: Attribution, count: int, length: int) -> Attribution:
    """The first `count` scalars and the recording's own `length` along time."""
    return dataclasses.replace(
        found,
        values=found.values[:count, :length],
        score=found.score[:count],
        baseline_score=found.baseline_score[:count],
    )


def share_inside(
    values: Float[np.ndarray, "l *f"], start: float, end: float, seconds: float, slack: float = 0.05
) -> tuple[float, float]:
    """How much of |map| lies from `start` - slack to `end` + slack (seconds), and what would if it
    were even; an entry lasts `seconds`."""
    size = np.abs(values).reshape(len(values), -1).sum(axis=1)
    middle = (np.arange(len(size)) + 0.5) * seconds
    inside = (middle >= start - slack) & (middle <= end + slack)
    total = size.sum()
    return float(size[inside].sum() / total) if total else math.nan, float(inside.mean())
