"""Metrics as sums and counts: added over rows, devices, hosts and batches, divided once.

The mean of per-device means is not the mean when devices hold different numbers of real rows, so
nothing is divided before `finalize`.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float, Num, Shaped


class Ratio(NamedTuple):
    """A quotient that is not divided yet; a pytree with two scalar leaves."""

    total: ArrayLike
    count: ArrayLike


class Term(NamedTuple):
    """One part of a loss: a sum over this device's real rows, what it counts, and its weight.

    The loss is the sum over its terms of weight * total / count, totals and counts being those of
    all devices. `count` follows from the batch alone, `weight` from the settings and the step.
    """

    total: ArrayLike
    count: ArrayLike
    weight: ArrayLike = 1.0


Metrics = Mapping[str, Ratio]


def ratio(values: Shaped[ArrayLike, "..."], mask: Shaped[ArrayLike, "..."] | None = None) -> Ratio:
    """The sum of `values` where `mask` (same shape, bool or 0/1 weights) and how many there are.

    Values outside the mask may be anything, NaN included. Both leaves are float32 scalars.
    """
    values = jnp.asarray(values, jnp.float32)
    if mask is None:
        return Ratio(jnp.sum(values), jnp.float32(values.size))
    weights = jnp.asarray(mask, jnp.float32)
    return Ratio(jnp.sum(jnp.where(weights > 0, values, 0) * weights), jnp.sum(weights))


def gauge(value: ArrayLike) -> Ratio:
    """A value that is to be averaged over devices and batches, for example a learning rate."""
    return Ratio(jnp.asarray(value, jnp.float32), jnp.float32(1))


def at_least_one(count: ArrayLike) -> ArrayLike:
    """What to divide by: 1 where nothing was counted, for there the total is 0."""
    return jnp.where(jnp.asarray(count) > 0, count, 1.0)


def of_terms(terms: Mapping[str, Term]) -> dict[str, Ratio]:
    """Each term of a loss by its name, and their weighted sum as `loss`.

    Added over batches and devices, `loss` weighs each by the largest of its counts: exact where all
    terms count the same.
    """
    value = sum(term.weight * term.total / at_least_one(term.count) for term in terms.values())
    return {"loss": weighed(value, terms), **{n: Ratio(t.total, t.count) for n, t in terms.items()}}


def weighed(loss: ArrayLike, terms: Mapping[str, Term | Ratio]) -> Ratio:
    """The value of a loss as a quotient that counts as much as the largest of its terms."""
    most = functools.reduce(jnp.maximum, [jnp.float32(term.count) for term in terms.values()])
    return Ratio(loss * most, most)


def add(a: Metrics, b: Metrics) -> dict[str, Ratio]:
    """Sum name by name; a name that only one side has is kept as it is.

    In float32 on the device this is exact to 2**24 counts; over whole sets use `merge`.
    """
    both = {
        name: Ratio(a[name].total + b[name].total, a[name].count + b[name].count)
        for name in a
        if name in b
    }
    return {**a, **b, **both}


def psum(tree: Metrics, axis: str) -> dict[str, Ratio]:
    """Sum over the mapped axis `axis`: every device gets the metrics of the global batch."""
    return dict(jax.lax.psum(dict(tree), axis))


def merge(parts: Iterable[Metrics]) -> dict[str, Ratio]:
    """Sum of many on the host in float64, in the order given (so with the same bits each time)."""
    merged: dict[str, Ratio] = {}
    for part in parts:
        host = jax.device_get(dict(part))
        merged = add(
            merged, {k: Ratio(np.float64(v.total), np.float64(v.count)) for k, v in host.items()}
        )
    return merged


def finalize(tree: Metrics) -> dict[str, float]:
    """Divide: name -> total / count as Python floats, NaN where nothing was counted.

    NaN and not 0: a mean over no rows is unknown, and 0 would read as a perfect loss.
    """
    host = jax.device_get(dict(tree))
    return {
        name: float(r.total) / float(r.count) if float(r.count) != 0 else float("nan")
        for name, r in host.items()
    }


def resampled_rates(
    totals: Num[np.ndarray, "n"], counts: Num[np.ndarray, "n"], *, num_resamples: int = 1000
) -> Float[np.ndarray, "r"]:
    """sum(totals) / sum(counts) of items drawn anew, with replacement, again and again.

    For a word error rate the items are utterances, `totals` errors and `counts` reference words
    (Bisani and Ney, ICASSP 2004, section 3). For two systems on the same items pass the difference
    of their errors as `totals` (section 4): every draw takes the same items of both.

    Always the same draws. None with fewer than two items, which say nothing about spread; those
    without any count are left out.
    """
    totals, counts = np.asarray(totals, np.float64), np.asarray(counts, np.float64)
    n = len(totals)
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(num_resamples if n > 1 else 0):
        drawn = rng.integers(n, size=n)
        count = counts[drawn].sum()
        if count > 0:
            rates.append(totals[drawn].sum() / count)
    return np.asarray(rates, np.float64)


def percentile_interval(
    rates: Float[np.ndarray, "r"], confidence: float = 0.95
) -> tuple[float, float]:
    """The (low, high) between which that share of resampled rates lies; (NaN, NaN) of none.

    The items of one speaker err together, so an interval over utterances is too narrow for other
    speakers. Of a difference between two systems: an interval without 0 tells them apart.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    if not len(rates):
        return float("nan"), float("nan")
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(rates, [tail, 100 - tail])
    return float(low), float(high)


def group_interval(
    values: Num[np.ndarray, "n"],
    groups: Shaped[np.ndarray, "n"],
    statistic: Callable[[Num[np.ndarray, "m"]], Any],
    *,
    num_resamples: int = 1000,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of a statistic (`np.median`) when the groups are drawn anew.

    Groups are speakers, whose items resemble each other. Returns (low, high), always the same;
    (NaN, NaN) with fewer than two groups.
    """
    members = [values[groups == name] for name in np.unique(groups)]
    if len(members) < 2:
        return float("nan"), float("nan")
    rng = np.random.default_rng(0)
    found = []
    for _ in range(num_resamples):
        drawn = rng.integers(len(members), size=len(members))
        found.append(float(statistic(np.concatenate([members[k] for k in drawn]))))
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(found, [tail, 100 - tail])
    return float(low), float(high)
