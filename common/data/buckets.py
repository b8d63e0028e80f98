"""Length buckets: a few static batch shapes that waste little on padding.

A compiled step has one shape, so every batch is padded to the shape of its bucket. Records are
sorted by length, cut into few ranges, and a bucket takes as many rows as fit a fixed total.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from common.data import records

# Cuts are sought among so many quantiles of the lengths; more would gain less than 1 % of padding.
_MAX_CUTS = 256
_LABEL_MULTIPLE = 8
_DEVICES = 8  # as in one host; their divisors get the same batches where that costs little,
_MORE_BATCHES = 1.02  # that is to say so many more batches in an epoch


@dataclasses.dataclass(frozen=True)
class Bucket:
    """The static shape of a batch: `rows` rows, each sequence padded to `lengths[name]`."""

    rows: int
    lengths: Mapping[str, int]


def choose_buckets(
    sizes: Mapping[str, Int[np.ndarray, "n"]],
    *,
    primary: str,
    num_buckets: int,
    max_total: int,
    rows_multiple_of: int,
    versions: int = 1,
) -> tuple[Bucket, ...]:
    """The at most `num_buckets` shapes with the least padding, the shortest first.

    Args:
      sizes: for each sequence its length in every record, for instance samples and labels.
      primary: the sequence that buckets are cut by.
      num_buckets: shapes at most; each is compiled once.
      max_total: limit of rows * length of the primary sequence, padding included.
      rows_multiple_of: devices x accumulation steps, which divide the rows between them.
      versions: of the records there are so many, and an epoch has one (`pipeline.train_batches`).

    What is minimised is the padded total of one epoch: padding inside rows and empty rows in the
    last batch of a bucket, exactly, over cuts at quantiles of the lengths (dynamic programming).
    A bucket holds at least one full batch if the data suffice, so that no step is taken on a few
    outliers. Other sequences are as long as their longest in the bucket, up to a multiple of 8.
    Raises records.DataError when the longest record does not fit `max_total`.
    """
    lengths = np.sort(sizes[primary])
    if not len(lengths):
        raise records.DataError("There are no records to choose buckets for.")
    if lengths[-1] * rows_multiple_of > max_total:
        raise records.DataError(
            f"The longest record ({lengths[-1]} in {primary!r}) times {rows_multiple_of} rows "
            f"(devices x accumulation) is more than a batch may hold ({max_total}). Raise the "
            "batch limit, lower max_seconds or use fewer accumulation steps."
        )
    # Candidate cut c: the bucket takes the records before ends[c], whose longest is tops[c].
    places = np.linspace(0, len(lengths) - 1, min(_MAX_CUTS, len(lengths))).round().astype(int)
    tops = np.unique(lengths[places])
    ends = _divide_up(np.searchsorted(lengths, tops, side="right"), versions)
    for full_batches in (True, False):
        cuts = _cheapest_cuts(tops, ends, num_buckets, max_total, rows_multiple_of, full_batches)
        if cuts:
            break
    begins = [0, *(int(ends[c]) for c in cuts[:-1])]
    chosen, below = [], -1
    for begin, cut in zip(begins, cuts, strict=True):
        rows, _ = _rows_and_batches(ends[cut] - begin, tops[cut], max_total, rows_multiple_of)
        inside = (sizes[primary] > below) & (sizes[primary] <= tops[cut])
        shape = {
            name: int(tops[cut])
            if name == primary
            else _LABEL_MULTIPLE * max(1, _divide_up(int(size[inside].max()), _LABEL_MULTIPLE))
            for name, size in sizes.items()
        }
        chosen.append(Bucket(int(rows), shape))
        below = tops[cut]
    return tuple(chosen)


def choose_for_devices(
    sizes: Mapping[str, Int[np.ndarray, "n"]],
    *,
    devices: int,
    accumulate: int,
    **options: Any,
) -> tuple[Bucket, ...]:
    """`choose_buckets` with rows that devices x accumulation steps can share.

    They are the same for 1, 2, 4 and 8 devices if rows in multiples of 8 make an epoch hardly
    longer, as they do where a batch has many rows. Otherwise each number has its own.
    """
    few = choose_buckets(sizes, rows_multiple_of=accumulate, **options)
    try:
        same = choose_buckets(sizes, rows_multiple_of=_DEVICES * accumulate, **options)
    except records.DataError:
        same = ()
    if not _DEVICES % devices and same:
        epochs = [_batches_per_epoch(shapes, sizes) for shapes in (same, few)]
        if epochs[0] <= _MORE_BATCHES * epochs[1]:
            return same
    return choose_buckets(sizes, rows_multiple_of=devices * accumulate, **options)


def _batches_per_epoch(buckets: Sequence[Bucket], sizes: Mapping[str, Int[np.ndarray, "n"]]) -> int:
    count = len(next(iter(sizes.values())))
    counts = np.bincount(assign(buckets, sizes, count), minlength=len(buckets))
    return sum(_divide_up(int(n), bucket.rows) for n, bucket in zip(counts, buckets))


def assign(
    buckets: Sequence[Bucket], sizes: Mapping[str, Int[np.ndarray, "n"]], count: int
) -> Int[np.ndarray, "n"]:
    """The bucket of each of `count` records: the first in which all of its sequences fit.

    One without lengths takes every record. Raises records.DataError naming the first record that
    fits none.
    """
    chosen = np.full(count, -1)
    for b in reversed(range(len(buckets))):
        fits = np.ones(count, bool)
        for name, most in buckets[b].lengths.items():
            fits &= sizes[name] <= most
        chosen[fits] = b
    if (chosen < 0).any():
        i = int(np.argmin(chosen))
        size = {name: int(sizes[name][i]) for name in buckets[-1].lengths}
        largest = {n: max(b.lengths[n] for b in buckets) for n in buckets[-1].lengths}
        raise records.DataError(
            f"{(chosen < 0).sum()} of {count} records fit no bucket; the first is number {i} with "
            f"{size}, the buckets go up to {largest}. Choose buckets from these records' sizes."
        )
    return chosen


def padding_share(
    buckets: Sequence[Bucket], sizes: Mapping[str, Int[np.ndarray, "n"]], primary: str
) -> float:
    """The share of an epoch's `primary` samples that is padding, empty rows included."""
    counts = np.bincount(assign(buckets, sizes, len(sizes[primary])), minlength=len(buckets))
    padded = sum(
        _divide_up(n, b.rows) * b.rows * b.lengths[primary] for n, b in zip(counts, buckets)
    )
    return 1.0 - float(sizes[primary].sum()) / float(padded)


def _rows_and_batches(count: Any, length: Any, max_total: int, multiple: int) -> tuple[Any, Any]:
    """Rows of a batch and batches of an epoch: as few batches as possible, evenly filled."""
    most = np.maximum(max_total // np.maximum(length, 1) // multiple, 1) * multiple
    batches = np.maximum(_divide_up(count, most), 1)
    return _divide_up(_divide_up(count, batches), multiple) * multiple, batches


def _cheapest_cuts(
    tops: Int[np.ndarray, "c"],
    ends: Int[np.ndarray, "c"],
    num_buckets: int,
    max_total: int,
    multiple: int,
    full_batches: bool,
) -> list[int]:
    """Indices of the last candidate of each bucket; none if full batches are impossible."""
    begins = np.concatenate([[0], ends[:-1]])
    counts = ends[None, :] - begins[:, None]  # records if a bucket spans candidates i..j
    rows, batches = _rows_and_batches(counts, tops[None, :], max_total, multiple)
    cost = (rows * batches * tops[None, :]).astype(np.float64)
    allowed = counts > 0
    if full_batches:
        allowed &= counts >= np.maximum(max_total // np.maximum(tops, 1) // multiple, 1) * multiple
    cost[~allowed] = np.inf

    # best[j]: the least cost of candidates 0..j in k buckets; choice[k][j]: where the last starts.
    best, choice = cost[0], [np.zeros(len(tops), int)]
    totals = [best[-1]]
    for _ in range(num_buckets - 1):
        split = _shift(best)[:, None] + cost
        choice.append(np.argmin(split, axis=0))
        best = np.min(split, axis=0)
        totals.append(best[-1])
    if not np.isfinite(totals).any():
        return []
    cuts, last = [], len(tops) - 1
    for k in reversed(range(int(np.argmin(totals)) + 1)):
        cuts.append(last)
        last = int(choice[k][last]) - 1
    return cuts[::-1]


def _shift(best: Float[np.ndarray, "c"]) -> Float[np.ndarray, "c"]:
    return np.concatenate([[np.inf], best[:-1]])


def _divide_up(n: Any, by: Any) -> Any:
    return -(-n // by)
