"""Attributions: what of an input a scalar output hangs on. Pure functions.

Integrated gradients (Sundararajan, Taly and Yan, ICML 2017, arXiv:1703.01365, equation 1): the
difference to a baseline, times the mean gradient on the straight way from there. They add up to
F(x) - F(baseline), if the mean is exact; how far it is not, the gap, comes with every result.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

BLOCK = 16  # nodes of one compiled program; more are several calls of it
# Waveforms: the way is passed as s**POWER, slowly near the baseline. See `gauss_legendre`.
POWER = 4

Score = Callable[[Array], Float[Array, "b n"]]


def gauss_legendre(
    count: int, power: int = 1
) -> tuple[Float[np.ndarray, "k"], Float[np.ndarray, "k"]]:
    """Nodes in [0, 1] and weights, whose sum is 1; exact for polynomials of degree 2 count - 1.

    With `power` the way is passed as s**power, which leaves the integral what it is and puts nodes
    where the features of a waveform change most: logarithms, near silence.

    Two well-known libraries (captum, alibi) halve the ends of a Riemann sum 1/n over n nodes for
    their "trapezoid". Its nodes have n - 1 intervals between them, so these weights add up to
    (n - 1) / n, and a linear function loses 1/n of its attribution.
    """
    if count < 1 or power < 1:
        raise ValueError(f"count={count} and power={power} must be positive")
    if power > 2 * count:
        raise ValueError(f"{count} nodes cannot pass a way of power {power}")
    nodes, weights = np.polynomial.legendre.leggauss(count)
    nodes, weights = (nodes + 1) / 2, weights / 2
    weights = weights * power * nodes ** (power - 1)
    assert abs(weights.sum() - 1) < 1e-12
    return nodes**power, weights


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
    nodes: Float[Array, "k"],
    weights: Float[Array, "k"],
    at_once: int = BLOCK,
) -> Float[Array, "b n *s"]:
    """Weighted sum of the gradients at start + node (end - start); memory does not grow with k.

    Summed with Kahan's compensation: the gap is to be that of the quadrature, not of rounding.
    """

    def add(carry: tuple[Array, Array], node: tuple[Array, Array]) -> tuple[tuple, None]:
        total, lost = carry
        place, weight = node
        # A convex combination, so that the point of node 1 is `end` to the bit.
        point = (1 - place) * start + place * end
        term = weight * gradients(score, point, at_once) - lost
        new = total + term
        return (new, (new - total) - term), None

    shape = jax.eval_shape(lambda x: gradients(score, x, at_once), end)
    zeros = jnp.zeros(shape.shape, shape.dtype)
    (total, _), _ = jax.lax.scan(add, (zeros, zeros), (nodes, weights))
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
    found = np.asarray(values, np.float64).reshape(len(wanted), -1).sum(axis=1)
    error, size = np.abs(found - wanted).sum(), np.abs(wanted).sum()
    if size == 0:
        return 0.0 if error == 0 else math.inf
    return float(100 * error / size)


Path = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def integrated_gradients(
    path: Path,
    score: Callable[[np.ndarray], np.ndarray],
    start: Float[np.ndarray, "b *s"],
    end: Float[np.ndarray, "b *s"],
    *,
    tolerance_percent: float = 0.1,
    first_nodes: int = BLOCK,
    max_nodes: int = 256,
    power: int = 1,
    times_difference: bool = True,
) -> list[Attribution]:
    """Integrated gradients of every row; the nodes are doubled until its gap is in the tolerance.

    `path` is `path_gradients` and `score` its function, compiled; `path` gets blocks of
    `first_nodes` nodes, whose results are added in float64. A row keeps the first result that is
    good enough: it does not depend on the other rows. Without `times_difference` the mean gradients
    themselves are returned ("averaged gradients"), found with the same nodes.
    """
    if not 1 <= first_nodes <= max_nodes:
        raise ValueError(f"max_nodes={max_nodes} is below the first {first_nodes}")
    last = np.asarray(score(end), np.float64)
    first = np.asarray(score(start), np.float64)
    difference = np.asarray(end, np.float64) - np.asarray(start, np.float64)
    found: list[Attribution | None] = [None] * len(end)
    for count in itertools.takewhile(
        lambda count: count <= max_nodes, (first_nodes << k for k in itertools.count())
    ):
        nodes, weights = (x.astype(np.float32) for x in gauss_legendre(count, power))
        mean = 0.0
        for k in range(0, count, first_nodes):
            block = slice(k, k + first_nodes)
            mean = mean + np.asarray(path(start, end, nodes[block], weights[block]), np.float64)
        for row, before in enumerate(found):
            if before is not None and before.converged:
                continue
            maps = mean[row] * difference[row][None]
            gap = gap_percent(maps, last[row], first[row])
            shown = maps if times_difference else mean[row]
            found[row] = Attribution(
                shown, last[row], first[row], gap, count, gap <= tolerance_percent
            )
        if all(one.converged for one in found):
            break
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
