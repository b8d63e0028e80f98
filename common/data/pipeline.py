"""Batches for training and evaluation, on grain: independent of workers and hosts, resumable.

An element of the stream is one global batch, drawn from one length bucket. Which records it holds
follows from the seed and its number alone, so any process or worker can compute any batch, and the
whole state of the stream is the number of the next batch.
"""

import dataclasses
import functools
import hashlib
import logging
import os
import signal
import threading
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np
from absl import flags
from jaxtyping import Int

from common.audio import io
from common.data import buckets as buckets_lib
from common.data import records

log = logging.getLogger(__name__)

Batch = dict[str, np.ndarray]

_FOREVER = 1 << 48  # batches; grain wants a length
_THREADS = 2  # decoding and resampling release the GIL
_BUFFERED_BATCHES = 4
_GRACE_SECONDS = 120.0


@runtime_checkable
class Examples(Protocol):
    """Random access to examples: a dict of arrays, the first axis of sequences being their length.

    An `index` in the dict goes into the batch in place of the example's number.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Mapping[str, Any]: ...


@runtime_checkable
class Crops(Examples, Protocol):
    """Examples of which training takes a random stretch, of audio or features: they have one
    sequence. See `common.data.excerpts.SpeechCrops`, `FeatureCrops`."""

    def draw(self, i: int, rng: np.random.Generator, most: int, /) -> Mapping[str, Any]: ...


@runtime_checkable
class Clips(Protocol):
    """See `common.data.clips.Clips`."""

    def draw(self, rng: np.random.Generator, max_samples: int) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Companion:
    """What is drawn beside each row (noise, a room): at most `length` samples.

    A `length` of None is that of the sequence `like` in the row's bucket.
    """

    clips: Clips
    length: int | None = None
    like: str = "audio"


@dataclasses.dataclass(frozen=True)
class EpochPlan:
    """Which records make up which batch of which epoch.

    In every epoch each record comes exactly once: records are shuffled inside their bucket, cut
    into batches, and the batches shuffled. The last batch of a bucket is filled up with -1.
    Without `shuffle` every epoch is the same: bucket after bucket, in the order of the records.
    """

    rows: tuple[int, ...]
    bucket_of: Int[np.ndarray, "n"]
    seed: int
    shuffle: bool

    @functools.cached_property
    def batches_per_epoch(self) -> int:
        counts = np.bincount(self.bucket_of, minlength=len(self.rows))
        return sum(-(-int(n) // rows) for n, rows in zip(counts, self.rows))

    def batch(self, number: int) -> tuple[int, Int[np.ndarray, "rows"]]:
        """(bucket, records or -1 of every row) of a batch of the endless stream."""
        epoch, k = divmod(number, self.batches_per_epoch)
        return self._epoch(epoch)[k]

    def _epoch(self, epoch: int) -> list[tuple[int, Int[np.ndarray, "rows"]]]:
        recent = self.__dict__.get("_recent", {})
        if epoch not in recent:
            # Two are kept, because threads read ahead across the end of an epoch. The mapping is
            # replaced, never changed, so that no thread sees it half-written.
            kept = {e: recent[e] for e in sorted(recent)[-1:]}
            recent = self.__dict__["_recent"] = kept | {epoch: self._draw(epoch)}
        return recent[epoch]

    def _draw(self, epoch: int) -> list[tuple[int, Int[np.ndarray, "rows"]]]:
        batches = []
        for b, rows in enumerate(self.rows):
            members = np.flatnonzero(self.bucket_of == b)
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
    num_workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    max_failed_share: float | int = 1.0,
    companions: Mapping[str, "Companion"] | None = None,
) -> grain.IterDataset:
    """An endless stream of batches; every epoch holds each example once, newly shuffled.

    A batch has, for every name in the buckets' lengths, `name: [b, length]` and
    `<name>_lengths: int32[b]`; beside them `mask: bool[b]`, `index: int32[b]` (-1 in empty rows)
    and whatever else an example holds, stacked. Empty rows are zeros.

    The stream depends on `seed`, the buckets and the sizes, on neither `num_workers` (processes; 0
    decodes in threads of this one) nor the number of processes of the run: process p gets the p-th
    block of the rows of every batch. Its iterators have `get_state` and `set_state` (and so work in
    `grain.checkpoint.CheckpointSave`); the state is the number of the next batch, good for any
    number of workers and processes. Close an iterator with workers when done.

    An example that cannot be read (io.AudioError, OSError) or no longer fits its bucket is named in
    a warning, and its row is left empty. It stops the run when all of several rows of a batch fail,
    or more than `max_failed_share` of the examples (counted in each worker by itself).

    For every name in `companions` each real row also gets a recording drawn at random, as
    `name: f32[b, length]` and `<name>_lengths`; the draw follows from the seed, the batch's number
    and the row's. One that cannot be read is named in a warning and has length 0.

    Examples that are `Crops` are drawn with as many samples or frames as their one sequence has in
    their bucket; their `sizes` are those after cropping.

    Raises records.DataError for examples that fit no bucket, and for rows that the processes cannot
    share evenly.
    """
    source = _source(examples, buckets, sizes, seed, True, process_index, process_count)
    source = dataclasses.replace(
        source, max_failed_share=max_failed_share, companions=dict(companions or {})
    )
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
    source = _source(examples, buckets, sizes, 0, False, process_index, process_count)
    return _Stream(source, num_workers)


def _source(
    examples: Examples,
    buckets: Sequence[buckets_lib.Bucket],
    sizes: Mapping[str, Int[np.ndarray, "n"]],
    seed: int,
    shuffle: bool,
    process_index: int,
    process_count: int,
) -> "_BatchSource":
    for name, size in sizes.items():
        if len(size) != len(examples):
            raise ValueError(f"{len(size)} sizes {name!r} for {len(examples)} examples")
    for bucket in buckets:
        if bucket.rows % process_count:
            raise records.DataError(
                f"A bucket has {bucket.rows} rows, which {process_count} processes cannot share "
                "evenly. Choose buckets with rows_multiple_of a multiple of the devices."
            )
    plan = EpochPlan(
        tuple(bucket.rows for bucket in buckets), buckets_lib.assign(buckets, sizes), seed, shuffle
    )
    return _BatchSource(examples, tuple(buckets), plan, process_index, process_count)


@dataclasses.dataclass(frozen=True)
class _BatchSource:
    """Random access to this process's rows of the batches of a plan, from number `start` on."""

    examples: Examples
    buckets: tuple[buckets_lib.Bucket, ...]
    plan: EpochPlan
    process_index: int
    process_count: int
    max_failed_share: float | int = 1.0
    start: int = 0
    failed: dict[int, str] = dataclasses.field(default_factory=dict)
    companions: Mapping[str, Companion] = dataclasses.field(default_factory=dict)
    without: set[str] = dataclasses.field(default_factory=set)  # said already

    def __len__(self) -> int:
        return (_FOREVER if self.plan.shuffle else self.plan.batches_per_epoch) - self.start

    def __getitem__(self, k: int) -> Batch:
        b, rows = self.plan.batch(self.start + k)
        share = len(rows) // self.process_count
        mine = rows[self.process_index * share : (self.process_index + 1) * share]
        lengths = self.buckets[b].lengths
        first = self.process_index * share
        loaded = [
            self._load(int(i), lengths, (self.start + k, first + row)) if i >= 0 else None
            for row, i in enumerate(mine)
        ]
        wanted = int((mine >= 0).sum())
        if wanted > 1 and not any(loaded):
            i = int(mine[0])
            raise io.AudioError(
                f"batch {self.start + k}",
                f"none of its {wanted} recordings can be read any more; the first: "
                f"{self.failed.get(i, '')}. Is the disk still there?",
            )
        batch = _assemble(loaded, lengths, next(filter(None, loaded), None) or self._like(rows))
        for name, companion in self.companions.items():
            length = lengths[companion.like] if companion.length is None else companion.length
            drawn = [
                self._draw(name, companion, length, (self.start + k, first + row)) if real else None
                for row, real in enumerate(batch["mask"])
            ]
            batch |= _padded(name, drawn, length)
        return batch

    def _draw(
        self, name: str, companion: Companion, length: int, place: tuple[int, int]
    ) -> np.ndarray | None:
        try:
            return companion.clips.draw(self._rng(name, place), length)
        except (io.AudioError, OSError) as error:
            if str(error) not in self.without:
                self.without.add(str(error))
                log.warning("Batch %d: a row goes without %s: %s", place[0], name, error)
            return None

    def _rng(self, name: str, place: tuple[int, int]) -> np.random.Generator:
        """The stream `name` of a (batch number, row)."""
        return np.random.default_rng([self.plan.seed, zlib.crc32(name.encode()), *place])

    def _load(
        self, i: int, lengths: Mapping[str, int], place: tuple[int, int] | None = None
    ) -> Mapping[str, Any] | None:
        """The example, or None (and a warning) if it cannot be used."""
        try:
            if place and self.plan.shuffle and isinstance(self.examples, Crops):
                (most,) = lengths.values()
                example = self.examples.draw(i, self._rng("crop", place), most)
            else:
                example = self.examples[i]
            for name, most in lengths.items():
                if len(example[name]) > most:
                    raise io.AudioError(
                        f"example {i}",
                        f"{name!r} has length {len(example[name])}, but its bucket ends at {most}: "
                        "changed since it was indexed?",
                    )
        except (io.AudioError, OSError) as error:
            if i not in self.failed:
                self.failed[i] = str(error)
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
            return None
        return {"index": np.int32(i), **example}

    def _like(self, rows: Int[np.ndarray, "rows"]) -> Mapping[str, Any]:
        """Any readable example, for the types and names of a block that has none of its own."""
        others = (int(i) for i in rows if i >= 0)
        candidates = (*others, *range(len(self.examples)))
        for i in candidates:
            if i not in self.failed and (example := self._load(i, {})) is not None:
                return example
        raise io.AudioError(f"all {len(self.examples)} examples", "cannot be read any more")


def _assemble(
    rows: Sequence[Mapping[str, Any] | None], lengths: Mapping[str, int], like: Mapping[str, Any]
) -> Batch:
    """Stacks examples, padding the sequences in `lengths`; None gives an empty row."""
    batch = {"mask": np.array([row is not None for row in rows])}
    for name, template in like.items():
        template = np.asarray(template)
        shape = (lengths[name], *template.shape[1:]) if name in lengths else template.shape
        stacked = np.zeros((len(rows), *shape), template.dtype)
        if name == "index":
            stacked -= 1
        for place, row in zip(stacked, rows) if shape else ():
            if row is not None:
                place[: len(row[name])] = row[name]
        if not shape:
            stacked[batch["mask"]] = [row[name] for row in rows if row is not None]
        batch[name] = stacked
        if name in lengths:
            counts = [0 if row is None else len(row[name]) for row in rows]
            batch[f"{name}_lengths"] = np.array(counts, np.int32)
    return batch


def _padded(name: str, rows: Sequence[np.ndarray | None], length: int) -> dict[str, np.ndarray]:
    """Sequences under their name, padded with zeros to `length`, and their lengths; None is 0."""
    stacked = np.zeros((len(rows), length), np.float32)
    counts = np.zeros(len(rows), np.int32)
    for i, row in enumerate(rows):
        if row is not None:
            stacked[i, : len(row)] = row
            counts[i] = len(row)
    return {name: stacked, f"{name}_lengths": counts}


class _Stream(grain.IterDataset):
    """Batches of a source, computed ahead by threads or worker processes."""

    def __init__(self, source: _BatchSource, num_workers: int):
        super().__init__()
        self._source = source
        self._num_workers = num_workers

    def __iter__(self) -> grain.DatasetIterator:
        return _StreamIterator(self._source, self._num_workers)

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
        self._next_batch += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        return {"next_batch": self._next_batch, "stream": self._identity}

    def set_state(self, state: dict[str, Any]) -> None:
        if state["stream"] != self._identity:
            log.warning(
                "The data, their lengths, the buckets or the seed are not those of the checkpoint: "
                "continuing at batch %d of a different stream",
                state["next_batch"],
            )
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
    def _identity(self) -> str:
        plan = self._source.plan
        shapes = [(b.rows, sorted(b.lengths.items())) for b in self._source.buckets]
        digest = hashlib.sha256(repr((plan.seed, plan.shuffle, shapes)).encode())
        digest.update(np.ascontiguousarray(plan.bucket_of, np.int64).tobytes())
        # Cropped, all records look alike; and what is drawn beside them hangs on the whole folder.
        digest.update(getattr(self._source.examples, "fingerprint", "").encode())
        for name, companion in sorted(self._source.companions.items()):
            drawn = getattr(companion.clips, "fingerprint", "")
            digest.update(f"{name} {companion.length} {drawn}".encode())
        return digest.hexdigest()[:16]


def _read_ahead(source: _BatchSource, num_workers: int) -> grain.IterDataset:
    batches = grain.MapDataset.source(source)
    if not num_workers:
        return batches.to_iter_dataset(grain.ReadOptions(_THREADS, _BUFFERED_BATCHES))
    if not flags.FLAGS.is_parsed():
        # grain's workers read absl flags; in notebooks and scripts nobody has parsed any.
        flags.FLAGS.mark_as_parsed()
    return batches.to_iter_dataset(grain.ReadOptions(1, 1)).mp_prefetch(
        grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=2),
        worker_init_fn=functools.partial(_follow, os.getpid()),
    )


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
