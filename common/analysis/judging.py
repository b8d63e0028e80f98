"""Whether attributions say what they seem to: deletion, insertion, randomised models.

Deletion and insertion: Petsiuk, Das and Saenko, BMVC 2018, arXiv:1806.07421. Randomisation:
Adebayo et al., NeurIPS 2018, arXiv:1810.03292.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import scipy.stats
from flax import traverse_util
from jaxtyping import Float, Int

from common import state

SHARES = np.linspace(0, 1, 21)  # every 5 %
ORDERS = ("attribution", "energy", "random")
FRACTIONS = (0.25, 0.5, 0.75, 1.0)  # of the layers, from the top, that are randomised

Curves = Mapping[str, Mapping[str, Float[np.ndarray, "p"]]]


def order(
    kind: str,
    values: Float[np.ndarray, "l *f"],
    recording: Float[np.ndarray, "l *f"],
    group: int = 1,
    seed: int = 0,
) -> Int[np.ndarray, "l *f"]:
    """The rank of every cell, 0 first: the highest attribution, the most energy, or any.

    `group` entries along time are one cell, those of a waveform: no single sample is heard.
    Energy is the level of features as they are, and of a waveform its square.
    """
    if kind == "random":
        cells = np.random.default_rng(seed).random(_cells(recording, group).shape)
    elif kind == "energy":
        cells = _cells(np.square(recording) if recording.ndim == 1 else recording, group)
    elif kind == "attribution":
        cells = _cells(values, group)
    else:
        raise ValueError(f"there is no order {kind!r}")
    ranks = np.empty(cells.size, int)
    ranks[np.argsort(-cells.ravel(), kind="stable")] = np.arange(cells.size)
    return np.repeat(ranks.reshape(cells.shape), group, axis=0)[: len(recording)]


def _cells(values: np.ndarray, group: int) -> np.ndarray:
    widths = [(0, -len(values) % group)] + [(0, 0)] * (values.ndim - 1)
    padded = np.pad(values, widths)
    return padded.reshape(-1, group, *values.shape[1:]).sum(axis=1)


def curves(
    score: Callable[[np.ndarray], Float[np.ndarray, "b"]],
    start: Float[np.ndarray, "b l *f"],
    end: Float[np.ndarray, "b l *f"],
    lengths: Int[np.ndarray, "b"],
    maps: Sequence[Float[np.ndarray, "_ *f"]],
    *,
    group: int = 1,
    seed: int = 0,
) -> list[Curves]:
    """Of every row: kind -> order -> scores while cells are replaced by the baseline (deletion), or
    put into it (insertion), `SHARES` of them. A good map falls fast and rises fast."""
    found: list[Any] = [{"deletion": {}, "insertion": {}} for _ in maps]
    for kind in ORDERS:
        ranks = np.zeros(end.shape)
        for row, values in enumerate(maps):
            own = end[row, : lengths[row]]
            rank = order(kind, values, own, group, seed)
            ranks[row, : len(own)] = rank / (rank.max() + 1)
        for name, first, then in (("deletion", end, start), ("insertion", start, end)):
            points = [
                np.asarray(score(np.where(ranks < share, then, first)), np.float64)
                for share in SHARES
            ]
            for row in range(len(maps)):
                found[row][name][kind] = np.array([point[row] for point in points])
    return found


def area(curve: Float[np.ndarray, "p"], low: float, high: float) -> float:
    """Below a curve, where `low` counts as 0 and `high` as 1; NaN where they are the same.

    Deletion: the less the better; insertion: the more.
    """
    if high == low:
        return math.nan
    return float(np.trapezoid((curve - low) / (high - low), SHARES))


def layers(init: Callable[[Any], state.Variables]) -> list[str]:
    """Paths of the modules with parameters, in the order in which the network creates them.

    Flax makes them as they are called: the front end first, what gives the output last.
    """
    found: dict[str, None] = {}

    def watch(key: Any) -> state.Variables:
        variables = init(key)
        # Inside, for jax sorts the names of what it returns.
        for path in traverse_util.flatten_dict(dict(variables["params"])):
            found["/".join(path[:-1])] = None
        return variables

    jax.eval_shape(watch, jax.random.key(0))
    return list(found)


def randomised(
    variables: state.Variables, fresh: state.Variables, order: Sequence[str], fraction: float
) -> state.Variables:
    """The last `fraction` of the layers of `order` as in `fresh`, their statistics too."""
    count = round(fraction * len(order))
    chosen = set(order[len(order) - count :])
    mixed = {}
    for name, tree in variables.items():
        flat = traverse_util.flatten_dict(dict(tree), sep="/")
        other = traverse_util.flatten_dict(dict(fresh[name]), sep="/")
        mixed[name] = traverse_util.unflatten_dict(
            {
                path: other[path] if path.rpartition("/")[0] in chosen else leaf
                for path, leaf in flat.items()
            },
            sep="/",
        )
    return mixed


def similarity(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Rank correlations of two maps: of the values, and of their sizes; NaN for an even map."""
    found = []
    for a, b in ((first, second), (np.abs(first), np.abs(second))):
        a, b = np.ravel(a), np.ravel(b)
        even = np.ptp(a) == 0 or np.ptp(b) == 0
        found.append(math.nan if even else float(scipy.stats.spearmanr(a, b).statistic))
    return found[0], found[1]
