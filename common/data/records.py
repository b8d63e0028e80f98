"""The record contract, and the index that validates every recording once.

A source is a lazy sequence of records. A record is a mapping with
  id           str, unique in its source
  audio        path of an audio file, or the samples themselves (f32 in [-1, 1] or int16)
  sample_rate  int, only beside samples
  text, speaker  str, optional
  path         str, optional: what lists call the recording instead of its id

Sources are random access and picklable, because data workers are other processes. Nothing in
`common.data` imports JAX itself (grain does, in its workers too, where JAX is installed).
"""

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import logging
import os
import pathlib
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import soxr
import tqdm
from jaxtyping import Float, Int

from common import errors
from common.audio import io

log = logging.getLogger(__name__)

Record = Mapping[str, Any]

_CACHE_VERSION = 1
_CUT_OFF_SECONDS = 0.1  # MP3 decoders drop some padding, so lengths agree only roughly


class DataError(errors.UserError, ValueError):
    """The data cannot be used as asked; the message says what is wrong, where, and what to do."""


@runtime_checkable
class Source(Protocol):
    """Random access to records. `name` says in messages where they come from.

    A source whose records hold samples instead of paths should have a `fingerprint` attribute, a
    string that changes when the stored data do; without it such records are validated every time.
    """

    name: str

    def __len__(self) -> int: ...

    def __getitem__(self, position: int) -> Record: ...


@dataclasses.dataclass(frozen=True)
class RecordList:
    """A source that keeps its (small) records in memory; the audio stays in its files."""

    name: str
    records: tuple[Record, ...]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, position: int) -> Record:
        return self.records[position]


@dataclasses.dataclass(frozen=True)
class Rejected:
    """A record left out of an index. `reason` starts with one of a few fixed phrases."""

    id: str
    path: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Index:
    """The usable records of a source: their positions in it, in its order, and their durations."""

    positions: Int[np.ndarray, "n"]
    seconds: Float[np.ndarray, "n"]
    rejected: tuple[Rejected, ...]

    def __len__(self) -> int:
        return len(self.positions)


@dataclasses.dataclass(frozen=True)
class SpeechExamples:
    """Random access to model-ready examples: records at `positions`, decoded and encoded.

    Element i is {"audio": f32[t] at `sample_rate_hz`, "index": i32 position in the source} and,
    with `encode`, "labels": i32[u] = encode(text). `encode` must be picklable.
    Raises `io.AudioError` for a recording that can no longer be read.
    """

    source: Source
    positions: Int[np.ndarray, "n"]
    sample_rate_hz: int
    channel: str | int = "mean"
    encode: Callable[[str], Any] | None = None

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        position = int(self.positions[i])
        record = self.source[position]
        example = {
            "audio": load_record(record, self.sample_rate_hz, self.channel),
            "index": np.int32(position),
        }
        if self.encode is not None:
            example["labels"] = np.asarray(self.encode(record["text"]), np.int32)
        return example


@dataclasses.dataclass(frozen=True)
class SpeechCrops:
    """Random access to recordings with the class of their speaker, whole or cropped at random.

    Element i is {"audio": f32[t], "label": i32 place of its speaker in `speakers`, "index": i32};
    `draw` gives the same with at most `max_samples` samples from a random place, played at a speed
    drawn from `speeds`, and reads no more of the file than that. Speed k of a speaker counts as
    another speaker: label + k * `num_speakers` (Yamamoto et al., Speaker augmentation and bandwidth
    extension for deep speaker embedding, Interspeech 2019).
    Raises `io.AudioError` for a recording that can no longer be read.
    """

    source: Source
    index: Index
    labels: Int[np.ndarray, "n"]
    sample_rate_hz: int
    channel: str | int = "mean"
    max_samples: int | None = None  # of a whole recording; the rest of it is not read
    speeds: tuple[float, ...] = (1.0,)  # 1.1 is faster, shorter and higher; the first one is 1
    num_speakers: int = 0

    @property
    def fingerprint(self) -> str:
        """Changes with the number, the lengths or the speakers of the recordings."""
        text = repr((self.index.seconds.tolist(), self.labels.tolist(), self.speeds))
        return hashlib.sha256(text.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        if self.max_samples is None:
            return self._example(i, 0.0, None)
        example = self._example(i, 0.0, self.max_samples / self.sample_rate_hz)
        return example | {"audio": example["audio"][: self.max_samples]}

    def draw(self, i: int, rng: np.random.Generator, max_samples: int) -> dict[str, np.ndarray]:
        """Example i, cropped; consumes two numbers of `rng`."""
        place, choice = rng.random(2)
        number = int(choice * len(self.speeds))
        speed = self.speeds[number]
        seconds = max_samples / self.sample_rate_hz * speed
        spare = max(0.0, float(self.index.seconds[i]) - seconds)
        example = self._example(i, float(place) * spare, seconds)
        audio = example["audio"]
        if speed != 1.0:
            audio = soxr.resample(audio, self.sample_rate_hz * speed, self.sample_rate_hz)
        label = example["label"] + np.int32(number * self.num_speakers)
        return example | {"audio": audio[:max_samples], "label": label}

    def _example(self, i: int, start: float, duration: float | None) -> dict[str, np.ndarray]:
        position = int(self.index.positions[i])
        record = self.source[position]
        audio = io.load_audio(
            record["audio"],
            sample_rate_hz=self.sample_rate_hz,
            channel=self.channel,
            source_rate_hz=record.get("sample_rate"),
            start=start,
            duration=duration,
        )
        return {"audio": audio, "label": np.int32(self.labels[i]), "index": np.int32(position)}


def load_record(
    record: Record, sample_rate_hz: int, channel: str | int = "mean"
) -> Float[np.ndarray, "t"]:
    """The samples of one record in [-1, 1] at `sample_rate_hz`; raises `io.AudioError`."""
    return io.load_audio(
        record["audio"],
        sample_rate_hz=sample_rate_hz,
        channel=channel,
        source_rate_hz=record.get("sample_rate"),
    )


def build_index(
    source: Source,
    *,
    cache: pathlib.Path | None,
    rejected_tsv: pathlib.Path,
    min_seconds: float | int,
    max_seconds: float | int,
    require_text: bool,
    max_bad_share: float | int,
    num_workers: int,
    progress: bool,
) -> Index:
    """Decodes every recording once and keeps the positions of the usable ones.

    What a file holds is remembered in `cache` under its path, size and time of change, so a second
    start costs one `stat` a file, and other limits need no new decoding. Several sources may share
    a cache file. Records that are missing, unreadable, empty, not finite, silent, too short, too
    long or without transcript go to `rejected_tsv` (id, path, reason, source), counted in the log.
    The result depends on neither `num_workers` (threads: decoding releases the GIL) nor the cache.

    Raises DataError: empty source, repeated id, nothing usable, more than `max_bad_share` rejected.
    """
    count = len(source)
    if not count:
        raise DataError(f"{source.name} holds no records. Check the folder and the filter.")
    known = {} if cache is None else _read_cache(cache)
    check = functools.partial(_check, source, known, float(max_seconds))
    with concurrent.futures.ThreadPoolExecutor(max(1, num_workers)) as pool:
        results = _in_order(pool, check, count)
        bar = tqdm.tqdm(
            results, total=count, desc="validating audio", unit="file", disable=not progress
        )
        checked = list(bar)
    fresh = {key: fact for _, key, fact in checked if key and known.get(key) != fact}
    if cache is not None and fresh:
        _write_cache(cache, known | fresh)

    positions, seconds, rejected, seen = [], [], [], set()
    for position, (name, _, fact) in enumerate(checked):
        if name.id in seen:
            raise DataError(
                f"{source.name} holds the id {name.id!r} more than once (again at {name.path}). "
                "Ids must be unique: results are reported under them. Rename or remove one."
            )
        seen.add(name.id)
        reason = fact.problem or _refuse(
            fact.seconds, name.has_text, min_seconds, max_seconds, require_text
        )
        if reason:
            rejected.append(Rejected(name.id, name.path, reason))
        else:
            positions.append(position)
            seconds.append(fact.seconds)
    _report(source.name, count, rejected, rejected_tsv, max_bad_share)
    return Index(np.asarray(positions, np.int64), np.asarray(seconds, np.float32), tuple(rejected))


@dataclasses.dataclass(frozen=True)
class _Name:
    id: str
    path: str
    has_text: bool


@dataclasses.dataclass(frozen=True)
class _Fact:
    """What was found at one place: independent of the limits of a particular run."""

    size: int
    mtime_ns: int
    seconds: float
    problem: str


def _in_order(
    pool: concurrent.futures.Executor, fn: Callable[[int], Any], count: int
) -> Iterator[Any]:
    """fn(0), fn(1), ... with a bounded number of results waiting."""
    waiting = collections.deque()
    for i in range(count):
        waiting.append(pool.submit(fn, i))
        if len(waiting) >= 256:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _check(
    source: Source, known: Mapping[str, _Fact], max_seconds: float, position: int
) -> tuple[_Name, str, _Fact]:
    """(name, cache key or "", fact) of one record."""
    record = source[position]
    audio, text = record["audio"], record.get("text")
    has_text = bool(text and text.strip())
    if not isinstance(audio, (str, os.PathLike)):
        name = _Name(record["id"], f"{source.name}[{position}]", has_text)
        fingerprint = getattr(source, "fingerprint", "")
        key = f"{fingerprint}[{position}]" if fingerprint else ""
        return name, key, known.get(key) or _inspect(record, 0, 0, max_seconds)[0]
    path = os.path.abspath(audio)  # noqa: PTH100 - resolve() would stat every parent
    name = _Name(record["id"], path, has_text)
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError as error:
        return name, "", _Fact(0, 0, 0.0, f"missing file ({error.strerror})")
    if not stat.S_ISREG(status.st_mode):
        return name, "", _Fact(0, 0, 0.0, "unreadable (not a file)")
    fact = known.get(path)
    if fact and (fact.size, fact.mtime_ns) == (status.st_size, status.st_mtime_ns):
        return name, path, fact
    fact, complete = _inspect(record, status.st_size, status.st_mtime_ns, max_seconds)
    return name, path if complete else "", fact


def _inspect(record: Record, size: int, mtime_ns: int, max_seconds: float) -> tuple[_Fact, bool]:
    """Decodes one recording; False: only its header was read, because it is too long anyway."""

    def fact(seconds: float, problem: str) -> _Fact:
        return _Fact(size, mtime_ns, round(seconds, 6), problem)

    audio = record["audio"]
    try:
        if isinstance(audio, np.ndarray):
            rate, stated = int(record["sample_rate"]), len(audio)
        else:
            info = io.probe(audio)
            rate, stated = info.sample_rate_hz, info.num_samples
        if stated > max_seconds * rate:
            return fact(stated / rate, ""), False
        samples = load_record(record, rate) if stated else ()
    except io.AudioError as error:
        return fact(0.0, _problem(error, size)), True
    if not len(samples):
        return fact(0.0, "empty (no samples)"), True
    seconds = len(samples) / rate
    if not samples.any():
        return fact(seconds, "silent (every sample is zero)"), True
    # Damage in the middle of a file ends its decoding early, often without an error.
    if len(samples) < stated - _CUT_OFF_SECONDS * rate:
        return fact(seconds, f"cut off ({seconds:.2f} of {stated / rate:.2f} s decode)"), True
    return fact(seconds, ""), True


def _problem(error: io.AudioError, size: int) -> str:
    if "NaN" in error.reason:
        return f"not finite ({error.reason})"
    if error.reason.startswith("empty") or not size:
        return f"empty ({error.reason})"
    return f"unreadable ({error.reason})"


def _refuse(
    seconds: float,
    has_text: bool,
    min_seconds: float | int,
    max_seconds: float | int,
    require_text: bool,
) -> str:
    if seconds < min_seconds:
        return f"too short ({seconds:.3f} s, limit {min_seconds:g} s)"
    if seconds > max_seconds:
        return f"too long ({seconds:.3f} s, limit {max_seconds:g} s)"
    return "missing transcript" if require_text and not has_text else ""


def _report(
    name: str,
    count: int,
    rejected: Sequence[Rejected],
    tsv: pathlib.Path,
    max_bad_share: float | int,
) -> None:
    """Writes the table of rejected records, logs the counts, and raises if they are too many."""
    # One table for all sources of a run: the rows of the others stay.
    others = tsv.read_text(encoding="utf-8").splitlines()[1:] if tsv.exists() else []
    rows = [row for row in others if row.rsplit("\t", 1)[-1] != _one_line(name)]
    rows += ["\t".join(map(_one_line, (r.id, r.path, r.reason, name))) for r in rejected]
    write_atomic(tsv, "\n".join(["id\tpath\treason\tsource", *rows]) + "\n")
    if not rejected:
        log.info("%s: %d records, all usable", name, count)
        return
    reasons = collections.Counter(r.reason.split(" (")[0] for r in rejected)
    counts = ", ".join(f"{n} {reason}" for reason, n in sorted(reasons.items()))
    share = len(rejected) / count
    log.warning(
        "%s: %d of %d records rejected (%s), listed in %s", name, len(rejected), count, counts, tsv
    )
    if len(rejected) == count:
        raise DataError(f"{name}: none of {count} records is usable ({counts}). See {tsv}.")
    if share > max_bad_share:
        raise DataError(
            f"{name}: {len(rejected)} of {count} records ({share:.1%}) are unusable ({counts}), "
            f"more than the allowed {max_bad_share:.1%}. See {tsv}; repair the data or raise "
            "max_bad_share."
        )


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _read_cache(path: pathlib.Path) -> dict[str, _Fact]:
    """The facts in a cache file; none if it is missing, damaged or of another version."""
    if not path.exists():
        return {}
    try:
        digest, _, body = path.read_text("utf-8").partition("\n")
        if digest != hashlib.sha256(body.encode()).hexdigest():
            raise ValueError("checksum differs")
        stored = json.loads(body)
        if stored["version"] != _CACHE_VERSION:
            raise ValueError(f"version {stored['version']}")
        return {key: _Fact(*fact) for key, fact in stored["facts"].items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("The index cache %s is unusable (%s) and is rebuilt", path, error)
        return {}


def _write_cache(path: pathlib.Path, facts: Mapping[str, _Fact]) -> None:
    rows = {key: dataclasses.astuple(fact) for key, fact in facts.items()}
    body = json.dumps({"version": _CACHE_VERSION, "facts": rows}, ensure_ascii=True)
    write_atomic(path, hashlib.sha256(body.encode()).hexdigest() + "\n" + body)


def write_atomic(path: pathlib.Path, text: str) -> None:
    """Writes a text file whole or not at all: to a temporary name beside it, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, "utf-8")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
