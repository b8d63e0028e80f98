"""Batches for training and evaluation, on grain: independent of workers and hosts, resumable.

An element of the stream is one global batch, drawn from one length bucket. Which records it holds
follows from the seed and its number alone, so any process or worker can compute any batch, and the
whole state of the stream is the number of the next batch.
"""

import bisect
import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import logging
import os
import signal
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags
from grain._src.python.ipc import shared_memory_array
from jaxtyping import Int

from common.audio import io
from common.data import buckets as buckets_lib
from common.data import records
from common.data.examples import Example, Examples

log = logging.getLogger(__name__)

Batch = dict[str, np.ndarray]

_FOREVER = 1 << 48  # batches; grain wants a length
_AHEAD = 2  # batches begun at a time, so that the readers need not wait for the last row of one
_MOST_READERS = 16
_BUFFERED_BATCHES = 4
_GRACE_SECONDS = 120.0
_DIFFERENCES = {
    "buckets": "batch shapes (they follow from the lengths, the batch settings and the number of "
    "devices)",
    "lengths": "lengths of the recordings",
    "settings": "settings of how they are read",
}


@dataclasses.dataclass(frozen=True)
class EpochPlan:
    """Which records make up which batch of which epoch.

    In every epoch each record comes exactly once: records are shuffled inside their bucket, cut
    into batches, and the batches shuffled. The last batch of a bucket is filled up with -1.
    Without `shuffle` every epoch is the same: bucket after bucket, in the order of the records.

    Of several `versions` of the records, which follow one another, epochs take one each, in turn.
    """

    rows: tuple[int, ...]
    bucket_of: Int[np.ndarray, "n"]
    seed: int
    shuffle: bool
    versions: int = 1

    @functools.cached_property
    def _starts(self) -> list[int]:
        """The first batch of every version's epoch, and the number of batches of them all."""
        rows = np.array(self.rows)
        counts = [np.bincount(buckets, minlength=len(rows)) for buckets in self._buckets_of]
        return np.cumsum([0, *(int(np.sum(-(-count // rows))) for count in counts)]).tolist()

    @property
    def _buckets_of(self) -> Int[np.ndarray, "v n"]:
        return self.bucket_of.reshape(self.versions, -1)

    @property
    def num_batches(self) -> int:
        """Batches of an epoch of each version."""
        return self._starts[-1]

    def batch(self, number: int) -> tuple[int, Int[np.ndarray, "rows"]]:
        """(bucket, records or -1 of every row) of a batch of the endless stream."""
        turn, k = divmod(number, self.num_batches)
        version = bisect.bisect_right(self._starts, k) - 1
        return self._epoch(turn * self.versions + version)[k - self._starts[version]]

    def _epoch(self, epoch: int) -> list[tuple[int, Int[np.ndarray, "rows"]]]:
        recent = self.__dict__.get("_recent", {})
        if epoch not in recent:
            # Two are kept, because threads read ahead across the end of an epoch. The mapping is
            # replaced, never changed, so that no thread sees it half-written.
            kept = {e: recent[e] for e in sorted(recent)[-1:]}
            recent = self.__dict__["_recent"] = kept | {epoch: self._draw(epoch)}
        return recent[epoch]

    def _draw(self, epoch: int) -> list[tuple[int, Int[np.ndarray, "rows"]]]:
        batches, version = [], epoch % self.versions
        bucket_of = self._buckets_of[version]
        for b, rows in enumerate(self.rows):
            members = version * len(bucket_of) + np.flatnonzero(bucket_of == b)
            if self.shuffle:
                # PCG64 seeded by these numbers: the same on every platform.
                np.random.default_rng([self.seed, epoch, b]).shuffle(members)
            filled = np.full(-(-len(members) // rows) * rows, -1)
            filled[: len(members)] = members
            batches += [(b, row) for row in filled.reshape(-1, rows)]
        if not self.shuffle:
            return batches
        order = np.random.default_rng([self.seed, epoch, len(self.rows)]).permutation(len(batches))
        return [batches[k] for k in order]


def train_batches(
    examples: Examples,
    buckets: Sequence[buckets_lib.Bucket],
    sizes: Mapping[str, Int[np.ndarray, "n"]],
    *,
    seed: int,
    versions: int = 1,
    num_workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    max_failed_share: float | int = 1.0,
) -> grain.IterDataset:
    """An endless stream of batches; every epoch holds each example once, newly shuffled.

    A batch has, for every name in the buckets' lengths, `name: [b, length, ...]` and
    `<name>_lengths: int32[b]`; beside them `mask: bool[b]`, `index: int32[b]` (-1 in empty rows)
    and whatever else an example holds, stacked. Empty rows are zeros. Types are kept. Examples
    without any sequence take one bucket without lengths, and no sizes.

    Rows are drawn with room for as much as their bucket has (`Examples.draw`), and random numbers
    that follow from the seed, the batch's number and the row's; `sizes` are those of what is drawn.
    What changes these is drawn beforehand: of several `versions` of the examples, one after another
    and equally many, each epoch has one, in turn.

    The stream depends on `seed`, the buckets and the sizes, on neither `num_workers` (processes; 0
    decodes in threads of this one) nor the number of processes of the run: process p gets the p-th
    block of the rows of every batch. Its iterators have `get_state` and `set_state` (and so work in
    `grain.checkpoint.CheckpointSave`); the state is the number of the next batch, good for any
    number of workers and processes, and what tells this stream from others. Close an iterator with
    workers when done (`opened`): at the end of the process it is too late.

    An example that cannot be read (io.AudioError, OSError) or no longer fits its bucket is named in
    a warning, and its row is left empty. It stops the run when all of several rows of a batch fail,
    or more than `max_failed_share` of the examples (counted in each worker by itself).

    Raises records.DataError for examples that fit no bucket, for rows that the processes cannot
    share evenly, and, from the iterator, for arrays of several shapes or types.
    """
    source = _source(examples, buckets, sizes, num_workers, process_index, process_count)
    plan = dataclasses.replace(source.plan, seed=seed, shuffle=True, versions=versions)
    source = dataclasses.replace(source, plan=plan, max_failed_share=max_failed_share)
    return _Stream(source, num_workers)


def eval_batches(
    examples: Examples,
    buckets: Sequence[buckets_lib.Bucket],
    sizes: Mapping[str, Int[np.ndarray, "n"]],
    *,
    num_workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.IterDataset:
    """The batches of one pass in fixed order: each example once. Otherwise as `train_batches`."""
    source = _source(examples, buckets, sizes, num_workers, process_index, process_count)
    return _Stream(source, num_workers)


def _source(
    examples: Examples,
    buckets: Sequence[buckets_lib.Bucket],
    sizes: Mapping[str, Int[np.ndarray, "n"]],
    num_workers: int,
    process_index: int,
    process_count: int,
) -> "_BatchSource":
    """That of an evaluation, in fixed order."""
    for name, size in sizes.items():
        if len(size) != len(examples):
            raise ValueError(f"{len(size)} sizes {name!r} for {len(examples)} examples")
    for bucket in buckets:
        if bucket.rows % process_count:
            raise records.DataError(
                f"A bucket has {bucket.rows} rows, which {process_count} processes cannot share "
                "evenly. Choose buckets with rows_multiple_of a multiple of the devices."
            )
    assigned = buckets_lib.assign(buckets, sizes, len(examples))
    plan = EpochPlan(tuple(bucket.rows for bucket in buckets), assigned, seed=0, shuffle=False)
    # Reading from a far disk waits more than it computes, but every worker has its own readers.
    cores = (os.cpu_count() or 1) // max(1, num_workers)
    return _BatchSource(
        examples,
        tuple(buckets),
        plan,
        process_index,
        process_count,
        lengths=_digest(
            *(part for n, s in sorted(sizes.items()) for part in (n, s.astype(np.int64).tobytes()))
        ),
        readers=_Readers(min(max(2, cores), _MOST_READERS)),
    )


class _Readers(concurrent.futures.ThreadPoolExecutor):
    """The threads that load the rows of a stream; in another process they are others."""

    def __reduce__(self):
        return _Readers, (self._max_workers,)


@dataclasses.dataclass(frozen=True)
class _BatchSource:
    """Random access to this process's rows of the batches of a plan, from number `start` on."""

    examples: Examples
    buckets: tuple[buckets_lib.Bucket, ...]
    plan: EpochPlan
    process_index: int
    process_count: int
    lengths: str  # a digest
    readers: _Readers
    max_failed_share: float | int = 1.0
    start: int = 0
    failed: dict[str, str] = dataclasses.field(default_factory=dict)  # by the recording's name

    def __len__(self) -> int:
        return (_FOREVER if self.plan.shuffle else self.plan.num_batches) - self.start

    def __getitem__(self, k: int) -> Batch:
        number = self.start + k
        b, rows = self.plan.batch(number)
        lengths = self.buckets[b].lengths
        share = len(rows) // self.process_count
        first = self.process_index * share
        mine = rows[first : first + share]

        def load(row: int) -> Example | Exception | None:
            i = int(mine[row])
            return self._load(i, lengths, (number, first + row)) if i >= 0 else None

        found = list(self.readers.map(load, range(share)))
        loaded = []
        for i, example in zip(mine, found, strict=True):
            failed = isinstance(example, Exception)
            if failed:
                self._report(int(i), example)
            loaded.append(None if failed else example)
        wanted = int((mine >= 0).sum())
        if wanted > 1 and not any(loaded):
            error = next(e for e in found if e is not None)
            raise io.AudioError(
                f"batch {number}",
                f"none of its {wanted} recordings can be read any more; the first: {error}. Is the "
                "disk still there?",
            )
        like = next(filter(None, loaded), None) or self._like(rows, lengths, number)
        return _assemble(loaded, lengths, like)

    def _rng(self, place: tuple[int, int]) -> np.random.Generator | None:
        """The random numbers of a (batch, row)."""
        if not self.plan.shuffle:
            return None
        # The name tells them from those of the plan.
        return np.random.default_rng([self.plan.seed, zlib.crc32(b"rows"), *place])

    def _load(
        self, i: int, lengths: Mapping[str, int], place: tuple[int, int]
    ) -> Example | Exception:
        """The example, or why it cannot be used."""
        try:
            example = self.examples.draw(i, self._rng(place), lengths)
        except (io.AudioError, OSError) as error:
            return error
        for name, most in lengths.items():
            if len(example[name]) > most:
                return io.AudioError(
                    example.get("id", f"example {i}"),
                    f"{name!r} has length {len(example[name])}, but its bucket ends at {most}: "
                    "changed since it was indexed?",
                )
        return {"index": np.int32(i), **example}

    def _report(self, i: int, error: Exception) -> None:
        """Names an example that cannot be used, once; raises if there are too many of them."""
        which = error.name if isinstance(error, io.AudioError) else f"example {i}"
        if which not in self.failed:
            self.failed[which] = str(error)
            log.warning(
                "Example %d cannot be used, its row stays empty (%d of %d examples so far): %s",
                *(i, len(self.failed), len(self.examples), error),
            )
        if len(self.failed) > self.max_failed_share * len(self.examples):
            raise io.AudioError(
                f"{len(self.failed)} of {len(self.examples)} examples",
                f"cannot be read any more, above the limit of {self.max_failed_share:.1%}; "
                f"the last: {error}",
            ) from error

    def _like(
        self, rows: Int[np.ndarray, "rows"], lengths: Mapping[str, int], number: int
    ) -> Example:
        """Any readable example, for the types and names of a block that has none of its own."""
        others = (int(i) for i in rows if i >= 0)
        for i in (*others, *range(len(self.examples))):
            try:
                example = self.examples.draw(i, self._rng((number, len(rows))), lengths)
            except (io.AudioError, OSError):  # Named where it has a row.
                continue
            return {"index": np.int32(i), **example}
        raise io.AudioError(f"all {len(self.examples)} examples", "cannot be read any more")


def _assemble(rows: Sequence[Example | None], lengths: Mapping[str, int], like: Example) -> Batch:
    """Stacks examples, padding the sequences in `lengths`; None gives an empty row."""
    batch = {"mask": np.array([row is not None for row in rows])}
    for name, template in like.items():
        template = np.asarray(template)
        if template.dtype.kind == "U":
            continue
        free = 1 if name in lengths else 0  # axes in which the rows differ
        form = template.shape[free:]
        shape = (lengths[name], *form) if free else form
        stacked = np.zeros((len(rows), *shape), template.dtype)
        counts = np.zeros(len(rows), np.int32)
        if name == "index":
            stacked -= 1
        for place in np.flatnonzero(batch["mask"]):
            value = np.asarray(rows[place][name])
            if (value.shape[free:], value.dtype) != (form, template.dtype):
                which = rows[place].get("id", f"example {rows[place]['index']}")
                raise records.DataError(
                    f"{which}: {name!r} is {value.dtype}{list(value.shape)}, in other examples "
                    f"{template.dtype}{list(template.shape)}. Bring all to one shape and type; a "
                    "sequence has to be among the lengths of the buckets."
                )
            if free:
                counts[place] = len(value)
                stacked[place, : len(value)] = value
            else:
                stacked[place] = value
        batch[name] = stacked
        if free:
            batch[f"{name}_lengths"] = counts
    return batch


@contextlib.contextmanager
def opened(batches: Iterable[Any]) -> Iterator[Iterator[Any]]:
    """Their iterator, whose workers are stopped at the end of the block, however that comes."""
    iterator = iter(batches)
    try:
        yield iterator
    finally:
        if hasattr(iterator, "close"):  # those of lists have none
            iterator.close()
            _free_shared_memory()  # not in `close`: the collector may call that in grain's thread


class _Stream(grain.IterDataset):
    """Batches of a source, computed ahead by threads or worker processes."""

    def __init__(self, source: _BatchSource, num_workers: int):
        super().__init__()
        self._source = source
        self._num_workers = num_workers

    def __iter__(self) -> grain.DatasetIterator:
        return _StreamIterator(self._source, self._num_workers)

    def one_of_each_shape(self) -> Iterator[Batch]:
        """The first batch of every bucket that has one, read when asked for."""
        plan, first = self._source.plan, {}
        for k in range(plan.num_batches):
            first.setdefault(plan.batch(k)[0], k)
        for _, k in sorted(first.items()):
            yield self._source[k]

    def __str__(self) -> str:
        return f"Batches({len(self._source.examples)} examples, {self._source.buckets})"


class _StreamIterator(grain.DatasetIterator):
    """Its state is a number and what it counts in, whatever computes the batches.

    grain's own states hold one position per worker, so they would not fit another number of them.
    """

    def __init__(self, source: _BatchSource, num_workers: int):
        super().__init__()
        self._source = source
        self._num_workers = num_workers
        self._next_batch = 0
        self._ahead: grain.DatasetIterator | None = None

    def __next__(self) -> Batch:
        self.start_prefetch()
        batch = next(self._ahead)
        if self._num_workers:
            _unlink(batch)
        self._next_batch += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """The number of the next batch, and what it counts in: one word, and its parts."""
        parts = self._parts
        stream = _digest(*(f"{name} {part} " for name, part in sorted(parts.items())))
        return {"next_batch": self._next_batch, "stream": stream, "parts": dict(parts)}

    def set_state(self, state: dict[str, Any]) -> None:
        then, now = state.get("parts", {}), self._parts
        if other := [name for name in {**now, **then} if now.get(name) != then.get(name)]:
            names = ", ".join(_DIFFERENCES.get(name, name) for name in other)
            differs = f"This is not the checkpoint's stream of batches. What differs: {names}."
            if not then:
                differs = "The checkpoint is of an earlier version, whose batches were others."
            log.warning("%s Continuing at batch %d of this one.", differs, state["next_batch"])
        self._stop()
        self._next_batch = int(state["next_batch"])

    def start_prefetch(self) -> None:
        if self._ahead is None:
            source = dataclasses.replace(self._source, start=self._next_batch)
            self._ahead = iter(_read_ahead(source, self._num_workers))
            self._ahead.start_prefetch()

    def close(self) -> None:
        self._closed = True
        self._stop()

    def _stop(self) -> None:
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    @functools.cached_property
    def _parts(self) -> Mapping[str, str]:
        """What the stream hangs on, by name."""
        source = self._source
        shapes = [(b.rows, sorted(b.lengths.items())) for b in source.buckets]
        own = getattr(source.examples, "identity", {})
        return {
            "seed": str(source.plan.seed),
            "lengths": source.lengths,
            "buckets": _digest(repr(shapes)),
            **{name: _digest(part) for name, part in own.items()},
        }


def _digest(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()[:16]


def _read_ahead(source: _BatchSource, num_workers: int) -> grain.IterDataset:
    batches = grain.MapDataset.source(source)
    if not num_workers:
        return batches.to_iter_dataset(grain.ReadOptions(_AHEAD, _BUFFERED_BATCHES))
    if not flags.FLAGS.is_parsed():
        # grain's workers read absl flags; in notebooks and scripts nobody has parsed any.
        flags.FLAGS.mark_as_parsed()
    return batches.to_iter_dataset(grain.ReadOptions(1, 1)).mp_prefetch(
        grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=2),
        worker_init_fn=functools.partial(_follow, os.getpid()),
    )


def _unlink(batch: Batch) -> None:
    """Its shared memory loses its name now, and goes with the last who holds an array of it.

    grain would unlink it then, which does not happen to what is alive at the end of the process.
    """
    for value in batch.values():
        if isinstance(value, shared_memory_array.SharedMemoryArray):
            value.shm.unlink()
            value._unlink_on_del = False


def _free_shared_memory() -> None:
    """Waits until that of batches which were read ahead and not taken is given back.

    grain does so in a thread that the end of the process would stop before it is done.
    """
    if pool := shared_memory_array.SharedMemoryArray._del_thread_pool:
        pool.apply(int)  # it has one thread


def _follow(parent: int, worker_index: int, worker_count: int) -> None:
    """In a worker: leave signals to the parent, and end when it is gone, even killed.

    grain calls this after its own imports: a SIGTERM in those first seconds still ends the worker.
    """
    del worker_index, worker_count
    # Ctrl-C and a scheduler's SIGTERM go to the whole group, but the parent may want another batch
    # before it saves and closes its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: _end_after(_GRACE_SECONDS))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _end_after(seconds: float) -> None:
    timer = threading.Timer(seconds, os._exit, (1,))
    timer.daemon = True
    timer.start()
