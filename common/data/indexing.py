"""The index of a source: every record validated once, what is unusable named and counted."""

import collections
import concurrent.futures
import dataclasses
import functools
import logging
import os
import pathlib
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tqdm

from common import files
from common.audio import io
from common.data import ark, facts, records

log = logging.getLogger(__name__)

_CUT_OFF_SECONDS = 0.1  # MP3 decoders drop some padding, so lengths agree only roughly
_OVERSHOOT_SECONDS = 0.5  # of a segment past the end of its recording, as Kaldi's extract-segments
_BLOCK = 64  # records that a thread takes at a time
# What a record may name on the disk. Features come first: they stand in place of the audio.
_FILES = ("features", "audio", "vad", "video", "face")

# (record, channel, max_seconds) -> fact. Raises io.AudioError or OSError for one that is unusable.
Inspect = Callable[[records.Record, str | int, float], facts.Fact]


def build_index(
    source: records.Source,
    *,
    cache: pathlib.Path | None,
    rejected_tsv: pathlib.Path,
    sample_rate_hz: int,
    channel: str | int = "mean",
    min_seconds: float | int,
    max_seconds: float | int,
    require_text: bool,
    max_bad_share: float | int,
    num_workers: int,
    progress: bool,
    feature_size: int | None = None,
    inspect: Inspect | None = None,
) -> records.Index:
    """Decodes every recording once and keeps the positions of the usable ones.

    What a file holds is remembered in the folder `cache` (see facts.py), so a second start costs
    one `stat` a file, and other limits or another `sample_rate_hz` need no new decoding. Records
    that are missing, unreadable, empty, not finite, silent, too short, too long, without transcript
    or of an id that was there before go to `rejected_tsv` (id, path, reason, source), counted in
    the log; so do those that the source itself cannot give. The result depends on neither
    `num_workers` (threads: decoding releases the GIL) nor the cache.

    Lengths are those that decoding `channel` at `sample_rate_hz` gives. Features are read and
    checked the same way, their length being frames.
    `inspect` is `inspect_record`, or a task's own, which may look at pictures or video as well.

    Raises records.DataError: empty source, nothing usable, more than `max_bad_share` rejected,
    features of other dimensions than `feature_size`.
    """
    count = len(source)
    if not count:
        raise records.DataError(f"{source.name} holds no records. Check the folder and the filter.")
    known = facts.Known(cache)
    looks = (inspect or inspect_record, channel, float(max_seconds))
    check = functools.partial(_check, source, known, *looks)
    blocks = [range(i, min(i + _BLOCK, count)) for i in range(0, count, _BLOCK)]
    limits = _Limits(sample_rate_hz, min_seconds, max_seconds, require_text)
    found = _Found(source, limits, feature_size)
    with (
        concurrent.futures.ThreadPoolExecutor(max(1, num_workers)) as pool,
        tqdm.tqdm(total=count, desc="validating", unit="file", disable=not progress) as bar,
    ):
        for block in _in_order(pool, check, blocks):
            for seen in block:
                found.add(seen)
            bar.update(len(block))
    known.save()
    index = found.index()
    found.check_dimensions()
    _report(source.name, count, index.rejected, rejected_tsv, max_bad_share)
    return index


def inspect_record(record: records.Record, channel: str | int, max_seconds: float) -> facts.Fact:
    """Decodes one recording, or reads its features; one that is too long is not read.

    Raises io.AudioError, or OSError, for what cannot be read.
    """
    if "features" in record:
        return _inspect_features(record, max_seconds)
    audio = record["audio"]
    if isinstance(audio, np.ndarray):
        rate, whole = int(record["sample_rate"]), len(audio)
    else:
        info = io.probe(audio)
        rate, whole = info.sample_rate_hz, info.num_samples
    begin = round(record.get("start", 0.0) * rate)
    cut = record.get("duration") is not None
    end = round((record.get("start", 0.0) + record["duration"]) * rate) if cut else whole
    stated = end - begin
    if stated > max_seconds * rate:
        return facts.Fact(whole, rate, whole=False)
    samples = records.load_record(record, rate, channel) if stated else ()
    if not len(samples):
        return facts.Fact(problem="empty (no samples)")
    if not samples.any():
        return facts.Fact(problem=f"silent ({io.silence(channel)})")
    # Damage in the middle of a file ends its decoding early, often without an error.
    if len(samples) < stated - rate * (_OVERSHOOT_SECONDS if cut else _CUT_OFF_SECONDS):
        there, wanted = len(samples) / rate, stated / rate
        return facts.Fact(problem=f"cut off ({there:.2f} of {wanted:.2f} s decode)")
    if not cut or len(samples) < stated:
        whole = begin + len(samples)
    return facts.Fact(whole, rate)


def _inspect_features(record: records.Record, max_seconds: float) -> facts.Fact:
    frames, dimensions = ark.matrix_shape(record["features"])
    rate = 1000 / record["hop_ms"]
    if frames > max_seconds * rate:
        return facts.Fact(frames, rate, dimensions=dimensions, whole=False)
    if "vad" in record:
        frames = len(records.speech_frames(record))
    else:
        ark.read_matrix(record["features"])
    return facts.Fact(frames, rate, dimensions=dimensions)


@dataclasses.dataclass(slots=True)
class _Seen:
    """A record as it is judged, without its samples."""

    position: int
    id: str
    path: str
    text: str = ""
    stretch: tuple[float, float | None] = (0.0, None)
    num_frames: int | None = None  # that it should have
    key: facts.Key | None = None
    fact: facts.Fact | None = None


def _in_order(
    pool: concurrent.futures.Executor, fn: Callable[[Any], Any], items: Sequence[Any]
) -> Iterator[Any]:
    """fn of every item in their order, with a bounded number of results waiting."""
    waiting = collections.deque()
    for item in items:
        waiting.append(pool.submit(fn, item))
        if len(waiting) >= 64:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _check(
    source: records.Source,
    known: facts.Known,
    inspect: Inspect,
    channel: str | int,
    max_seconds: float,
    positions: Sequence[int],
) -> list[_Seen]:
    """The records at some positions, with what is known of them or found in them now."""
    block = []
    for position in positions:
        try:
            record = source[position]
            block.append((record, _look(source, record, inspect, channel, position)))
        except Exception as error:  # Whatever its reason, it is one record that cannot be had.
            name = f"{source.name}[{position}]"
            problem = _problem(error)
            block.append((None, _Seen(position, name, name, fact=facts.Fact(problem=problem))))
    remembered = known.find([seen.key for _, seen in block])
    for (record, seen), fact in zip(block, remembered, strict=True):
        if seen.fact is not None:
            continue
        if fact is None or not (fact.whole or _seconds(fact, seen) > max_seconds):
            try:
                fact = inspect(record, record.get("channel", channel), max_seconds)
            except (io.AudioError, OSError) as error:
                fact = facts.Fact(problem=_problem(error))
            # What could not be read may be mended without a trace in the file.
            if seen.key and not fact.problem.startswith("unreadable"):
                known.add(seen.key, fact)
        seen.fact = fact
    return [seen for _, seen in block]


def _seconds(fact: facts.Fact, seen: _Seen) -> float:
    if fact.dimensions:
        return fact.length / fact.rate_hz
    rate = int(fact.rate_hz)
    return records.resampled_length(fact.length, rate, rate, *seen.stretch) / rate


def _look(
    source: records.Source,
    record: records.Record,
    inspect: Inspect,
    channel: str | int,
    position: int,
) -> _Seen:
    """What can be said of a record without reading its files: the key of the rest, or a problem."""
    seen = _Seen(position, record["id"], source.name, record.get("text") or "")
    if "problem" in record:
        seen.fact = facts.Fact(problem=record["problem"])
        return seen
    seen.stretch = (record.get("start", 0.0), record.get("duration"))
    seen.num_frames = None if "vad" in record else record.get("num_frames")
    how = (inspect.__qualname__, record.get("channel", channel), *seen.stretch)
    identity: list[Any] = [*how, record.get("hop_ms")]
    place = ""
    for value in (record[name] for name in _FILES if name in record):
        if isinstance(value, np.ndarray):
            fingerprint, name = getattr(source, "fingerprint", ""), f"{source.name}[{position}]"
            identity.append(f"{fingerprint}[{position}]")
            if not place:
                seen.path, place = name, fingerprint
            if not fingerprint:
                return seen
            continue
        path = value.path if isinstance(value, ark.Entry) else os.fspath(value)
        path = path if path[:1] == "/" else os.path.abspath(path)  # noqa: PTH100 - a million times
        name = str(value) if isinstance(value, ark.Entry) else path
        if not place:
            seen.path, place = name, path
        status, problem = _status(path)
        if problem:
            seen.path, seen.fact = name, facts.Fact(problem=problem)
            return seen
        identity.append((str(value), status.st_size, status.st_mtime_ns))
    seen.key = facts.key(place, *identity)
    return seen


def _status(path: str) -> tuple[os.stat_result | None, str]:
    """(status, "") of a file that can be read, or why it cannot."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError as error:
        return None, f"missing file ({error.strerror})"
    if not stat.S_ISREG(status.st_mode):
        return None, "unreadable (not a file)"
    return status, "" if os.access(path, os.R_OK) else "unreadable (Permission denied)"


@dataclasses.dataclass(frozen=True)
class _Limits:
    sample_rate_hz: int
    min_seconds: float | int
    max_seconds: float | int
    require_text: bool

    def refuse(self, seconds: float, text: str) -> str:
        if seconds < self.min_seconds:
            return f"too short ({seconds:.3f} s, limit {self.min_seconds:g} s)"
        if seconds > self.max_seconds:
            return f"too long ({seconds:.3f} s, limit {self.max_seconds:g} s)"
        return "missing transcript" if self.require_text and not text.strip() else ""


class _Found:
    """Judges records in their order and gathers the usable ones."""

    def __init__(self, source: records.Source, limits: _Limits, feature_size: int | None):
        self._source, self._limits = source, limits
        self._rate_hz: float | int = limits.sample_rate_hz
        self._usable: dict[int, int] = {}  # position -> length
        self._rejected: dict[int, records.Rejected] = {}
        self._places: dict[str, int] = {}  # id -> position
        self._dimensions = feature_size
        self._num_features = 0
        self._other: list[tuple[str, int]] = []  # of other dimensions

    def add(self, seen: _Seen) -> None:
        """Takes the next record."""
        length, reason = self._judge(seen)
        if (first := self._places.setdefault(seen.id, seen.position)) != seen.position:
            reason = self._repeated(seen, first)
        if reason:
            self._rejected[seen.position] = records.Rejected(seen.id, seen.path, reason)
        else:
            self._usable[seen.position] = length

    def index(self) -> records.Index:
        """What was usable, in its order."""
        return records.Index(
            np.fromiter(self._usable.keys(), np.int64),
            np.fromiter(self._usable.values(), np.int64),
            self._rate_hz,
            tuple(self._rejected[position] for position in sorted(self._rejected)),
        )

    def check_dimensions(self) -> None:
        """DataError for features of another size than wanted, or than the first ones."""
        if self._other:
            name, dimensions = self._other[0]
            raise records.DataError(
                f"{self._source.name}: {len(self._other)} of {self._num_features} features have "
                f"another dimension than the {self._dimensions} expected; the first is {name!r} "
                f"with {dimensions}. Set config.features.num_mels to what the features have, or "
                "leave the others out."
            )

    def _judge(self, seen: _Seen) -> tuple[int, str]:
        """(length, reason to reject)"""
        fact = seen.fact
        if fact.dimensions:
            self._num_features += 1
            self._rate_hz = fact.rate_hz
            self._dimensions = self._dimensions or fact.dimensions
            if fact.dimensions != self._dimensions:
                self._other.append((seen.id, fact.dimensions))
        if fact.problem:
            return 0, fact.problem
        if seen.num_frames not in (None, fact.length):
            stated = seen.num_frames
            return 0, f"wrong length ({fact.length} frames, utt2num_frames has {stated})"
        length = fact.length
        if not fact.dimensions:
            rates = (int(fact.rate_hz), self._limits.sample_rate_hz)
            length = records.resampled_length(length, *rates, *seen.stretch)
        return length, self._limits.refuse(length / self._rate_hz, seen.text)

    def _repeated(self, seen: _Seen, position: int) -> str:
        """Why a record whose id was at `position` before is not used; that one neither, where they
        differ in the text alone: who knows which is right."""
        first = self._source[position]
        stretch = (first.get("start", 0.0), first.get("duration"))
        same = "audio" in first and str(first["audio"]) == seen.path and stretch == seen.stretch
        if same and (first.get("text") or "") != seen.text and self._usable.pop(position, None):
            reason = "repeated id (another transcript follows)"
            self._rejected[position] = records.Rejected(seen.id, seen.path, reason)
        return f"repeated id (records {position + 1} and {seen.position + 1} of the source)"


def _problem(error: Exception) -> str:
    """The reason to reject a record that cannot be read."""
    if not isinstance(error, io.AudioError):
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return f"unreadable ({type(error).__name__}: {reason})"
    reason = error.reason
    if reason.startswith("channel"):
        return f"missing channel ({reason})"
    if reason.startswith("truncated"):
        return f"cut off ({reason})"
    if "NaN" in reason:
        return f"not finite ({reason})"
    if "beyond any possible" in reason:
        return f"absurd value ({reason})"
    if reason.startswith("empty") or "0 bytes" in reason:
        return f"empty ({reason})"
    return f"unreadable ({reason})"


def write_rejected(tsv: pathlib.Path, name: str, rejected: Sequence[records.Rejected]) -> None:
    """Writes the table of what a source holds and cannot be used; rows of other sources stay."""
    with files.locked(tsv):
        others = tsv.read_bytes().decode("utf-8", "surrogateescape") if tsv.exists() else ""
        rows = [row for row in others.split("\n")[1:] if row]
        rows = [row for row in rows if row.rsplit("\t", 1)[-1] != _one_line(name)]
        rows += ["\t".join(map(_one_line, (r.id, r.path, r.reason, name))) for r in rejected]
        text = "\n".join(["id\tpath\treason\tsource", *rows]) + "\n"
        with files.replacing(tsv) as temporary:
            # Names of files may be no text: they stand there as they are.
            temporary.write_bytes(text.encode("utf-8", "surrogateescape"))


def _report(
    name: str,
    count: int,
    rejected: Sequence[records.Rejected],
    tsv: pathlib.Path,
    max_bad_share: float | int,
) -> None:
    """Writes the table of rejected records, logs the counts, and raises if they are too many."""
    write_rejected(tsv, name, rejected)
    if not rejected:
        log.info("%s: %d records, all usable", name, count)
        return
    reasons = collections.Counter(r.reason.split(" (")[0] for r in rejected)
    counts = ", ".join(f"{n} {reason}" for reason, n in sorted(reasons.items()))
    share = len(rejected) / count
    log.warning(
        "%s: %d of %d records rejected (%s), listed in %s", name, len(rejected), count, counts, tsv
    )
    first = f"the first is {rejected[0].id!r}: {rejected[0].reason}"
    if len(rejected) == count:
        raise records.DataError(
            f"{name}: none of {count} records is usable ({counts}), {first}. See {tsv}."
        )
    if share > max_bad_share:
        raise records.DataError(
            f"{name}: {len(rejected)} of {count} records ({share:.1%}) are unusable ({counts}), "
            f"more than the allowed {max_bad_share:.1%}, {first}. See {tsv}; repair the data or "
            "raise config.data.max_bad_share."
        )


def _one_line(text: str) -> str:
    return " ".join(text.split())
