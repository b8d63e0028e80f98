"""The record contract, and the index that validates every recording once.

A source is a lazy sequence of records. A record is a mapping with
  id           str, unique in its source
  audio        path of an audio file, or the samples themselves (f32 in [-1, 1] or int16)
  sample_rate  int, only beside samples
  start, duration  the stretch of `audio` that is meant, in seconds; optional, None: to the end
  text, speaker  str, optional
  path         str, optional: what lists call the recording instead of its id
  problem      str, optional: why it cannot be used, known without looking; nothing else is sure
or, where features were computed elsewhere, instead of `audio`
  features     a `common.data.ark.Entry`, and beside it
  hop_ms       float
  num_frames   int, optional: how many it should have
  vad          optional: the `ark.Entry` that says which frames hold speech

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
from common.audio import io, vad
from common.data import ark

log = logging.getLogger(__name__)

Record = Mapping[str, Any]

_CACHE_VERSION = 1
_CUT_OFF_SECONDS = 0.1  # MP3 decoders drop some padding, so lengths agree only roughly
_OVERSHOOT_SECONDS = 0.5  # of a segment past the end of its recording, as Kaldi's extract-segments


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
    `without_pauses` reads the whole file, cuts out what `vad.keep_speech` does not keep, and crops
    what is left. Raises `io.AudioError` for a recording that can no longer be read, or then holds
    no speech.
    """

    source: Source
    index: Index
    labels: Int[np.ndarray, "n"]
    sample_rate_hz: int
    channel: str | int = "mean"
    max_samples: int | None = None  # of a whole recording; the rest of it is not read
    speeds: tuple[float, ...] = (1.0,)  # 1.1 is faster, shorter and higher; the first one is 1
    num_speakers: int = 0
    without_pauses: bool = False

    @property
    def fingerprint(self) -> str:
        """Changes with the ids, lengths or speakers of the recordings, and how they are read."""
        how = (self.sample_rate_hz, self.channel, self.speeds, self.without_pauses)
        return _fingerprint(self.source, self.index, self.labels, *how)

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
        example = self._example(i, float(place), seconds)
        audio = example["audio"]
        if speed != 1.0:
            audio = soxr.resample(audio, self.sample_rate_hz * speed, self.sample_rate_hz)
        label = example["label"] + np.int32(number * self.num_speakers)
        return example | {"audio": audio[:max_samples], "label": label}

    def _example(self, i: int, place: float, duration: float | None) -> dict[str, np.ndarray]:
        """`duration` seconds from between the start (`place` 0) and the end (1) of a recording."""
        position = int(self.index.positions[i])
        record, how = self.source[position], (self.sample_rate_hz, self.channel)
        if self.without_pauses:
            audio = vad.keep_speech(load_record(record, *how), self.sample_rate_hz)
            if not len(audio):
                raise io.AudioError(record["id"], "no speech in it, says config.data.vad=energy")
            most = None if duration is None else round(duration * self.sample_rate_hz)
            audio = audio[_start(place, len(audio), most) :][:most]
        else:
            spare = 0.0 if duration is None else float(self.index.seconds[i]) - duration
            audio = load_record(record, *how, start=place * max(0.0, spare), duration=duration)
        return {"audio": audio, "label": np.int32(self.labels[i]), "index": np.int32(position)}


@dataclasses.dataclass(frozen=True)
class FeatureCrops:
    """`SpeechCrops` of records that hold features: {"features": f32[l, f], "label", "index"}.

    Lengths are frames. Records with "vad" give the frames that hold speech, and for that are read
    whole. Raises `io.AudioError` also for one without any speech.
    """

    source: Source
    index: Index
    labels: Int[np.ndarray, "n"]
    max_frames: int | None = None  # of whole features; the rest is not read

    @property
    def fingerprint(self) -> str:
        """Changes with the number, the lengths or the speakers of the records, and with "vad"."""
        selected = len(self.index) and "vad" in self.source[int(self.index.positions[0])]
        return _fingerprint(self.source, self.index, self.labels, selected)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        return self._example(i, 0.0, self.max_frames)

    def draw(self, i: int, rng: np.random.Generator, max_frames: int) -> dict[str, np.ndarray]:
        """Example i, cropped; consumes one number of `rng`."""
        return self._example(i, float(rng.random()), max_frames)

    def _example(self, i: int, place: float, most: int | None) -> dict[str, np.ndarray]:
        """At most `most` frames, from the start (`place` 0) to the end (1) of the record."""
        position = int(self.index.positions[i])
        record = self.source[position]
        if "vad" in record:
            features = _speech_frames(record)
            start = _start(place, len(features), most)
            features = features[start:][:most]
        else:
            frames = round(float(self.index.seconds[i]) * 1000 / record["hop_ms"])
            features = ark.read_matrix(record["features"], _start(place, frames, most), most)
        return {
            "features": features,
            "label": np.int32(self.labels[i]),
            "index": np.int32(position),
        }


def _start(place: float, count: int, most: int | None) -> int:
    """The first of `most` out of `count`, each possible one for an equal part of [0, 1)."""
    return 0 if most is None else int(place * max(1, count - most + 1))


def _speech_frames(record: Record) -> Float[np.ndarray, "l f"]:
    """The frames of a record that its "vad" keeps."""
    features, speech = ark.read_matrix(record["features"]), ark.read_decisions(record["vad"])
    if len(speech) != len(features):
        raise io.AudioError(
            record["vad"], f"{len(speech)} decisions for {len(features)} frames of {record['id']}"
        )
    if not speech.any():
        raise io.AudioError(record["vad"], "no frame of it holds speech")
    return features[speech]


def _fingerprint(source: Source, index: Index, labels: Int[np.ndarray, "n"], *others: Any) -> str:
    # Reading samples only for their ids would take as long as an epoch.
    ids = [row["id"] for row in source.records] if isinstance(source, RecordList) else source.name
    text = repr((ids, index.positions.tolist(), index.seconds.tolist(), labels.tolist(), *others))
    return hashlib.sha256(text.encode()).hexdigest()


def load_record(
    record: Record,
    sample_rate_hz: int,
    channel: str | int = "mean",
    *,
    start: float = 0.0,
    duration: float | None = None,
) -> Float[np.ndarray, "t"]:
    """The samples of one record in [-1, 1] at `sample_rate_hz`, or a stretch of them in seconds.

    Raises `io.AudioError`.
    """
    if record.get("duration") is not None:
        left = record["duration"] - start
        duration = left if duration is None else min(duration, left)
    return io.load_audio(
        record["audio"],
        sample_rate_hz=sample_rate_hz,
        channel=channel,
        source_rate_hz=record.get("sample_rate"),
        start=record.get("start", 0.0) + start,
        duration=duration,
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
    feature_size: int | None = None,
) -> Index:
    """Decodes every recording once and keeps the positions of the usable ones.

    What a file holds is remembered in `cache` under its path, size and time of change, so a second
    start costs one `stat` a file, and other limits need no new decoding. Several sources may share
    a cache file. Records that are missing, unreadable, empty, not finite, silent, too short, too
    long or without transcript go to `rejected_tsv` (id, path, reason, source), counted in the log.
    The result depends on neither `num_workers` (threads: decoding releases the GIL) nor the cache.

    Features are read and checked the same way, their length being frames times `hop_ms`.

    Raises DataError: empty source, repeated id, nothing usable, more than `max_bad_share` rejected,
    features of other dimensions than `feature_size`.
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
    _check_sizes(source.name, checked, feature_size)
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
    dimensions: int = 0  # of features


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
    text = record.get("text")
    has_text = bool(text and text.strip())
    if "problem" in record:
        fact = _Fact(0, 0, 0.0, record["problem"])
        return _Name(record["id"], source.name, has_text), "", fact
    if "features" in record:
        return _check_features(record, has_text, known, max_seconds)
    audio = record["audio"]
    if not isinstance(audio, (str, os.PathLike)):
        name = _Name(record["id"], f"{source.name}[{position}]", has_text)
        fingerprint = getattr(source, "fingerprint", "")
        key = f"{fingerprint}[{position}]" if fingerprint else ""
        return name, key, known.get(key) or _inspect(record, 0, 0, max_seconds)[0]
    path = os.path.abspath(audio)  # noqa: PTH100 - resolve() would stat every parent
    name = _Name(record["id"], path, has_text)
    stretch = [record.get("start", 0.0), record.get("duration")]
    key = path if stretch == [0.0, None] else f"{path} {json.dumps(stretch)}"
    fact, complete = _look(path, known.get(key), functools.partial(_inspect, record), max_seconds)
    return name, key if complete else "", fact


def _check_features(
    record: Record, has_text: bool, known: Mapping[str, _Fact], max_seconds: float
) -> tuple[_Name, str, _Fact]:
    """(name, cache key or "", fact) of one record with features."""
    entry, hop = record["features"], record["hop_ms"] / 1000
    key, stated = f"{entry} {record['hop_ms']:g} ms", record.get("num_frames")
    if "vad" in record:  # Then the length is that of the kept frames.
        key, stated = f"{key} {record['vad']} {_changed(record['vad'].path)}", None
    inspect = functools.partial(_inspect_features, record)
    fact, complete = _look(entry.path, known.get(key), inspect, max_seconds)
    if not fact.problem and stated is not None and stated != round(fact.seconds / hop):
        reason = f"wrong length ({round(fact.seconds / hop)} frames, utt2num_frames has {stated})"
        # Not to the cache: the table may be mended.
        fact, complete = dataclasses.replace(fact, problem=reason), False
    return _Name(record["id"], str(entry), has_text), key if complete else "", fact


def _changed(path: str) -> int:
    """When a file changed last; 0 if it is not there."""
    try:
        return os.stat(path).st_mtime_ns  # noqa: PTH116
    except OSError:
        return 0


def _look(
    path: str,
    known: _Fact | None,
    inspect: Callable[[int, int, float], tuple[_Fact, bool]],
    max_seconds: float,
) -> tuple[_Fact, bool]:
    """What is known of a file, or else what `inspect` finds; and whether it may be remembered."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError as error:
        return _Fact(0, 0, 0.0, f"missing file ({error.strerror})"), False
    if not stat.S_ISREG(status.st_mode):
        return _Fact(0, 0, 0.0, "unreadable (not a file)"), False
    if known and (known.size, known.mtime_ns) == (status.st_size, status.st_mtime_ns):
        return known, True
    return inspect(status.st_size, status.st_mtime_ns, max_seconds)


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
        stated = _stretch(record, rate, stated)
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
    most = _CUT_OFF_SECONDS if record.get("duration") is None else _OVERSHOOT_SECONDS
    if len(samples) < stated - most * rate:
        return fact(seconds, f"cut off ({seconds:.2f} of {stated / rate:.2f} s decode)"), True
    return fact(seconds, ""), True


def _stretch(record: Record, rate: int, stated: int) -> int:
    """The samples that a record means of a file that states so many."""
    if record.get("duration") is not None:
        return round(record["duration"] * rate)
    return stated - round(record.get("start", 0.0) * rate)


def _inspect_features(
    record: Record, size: int, mtime_ns: int, max_seconds: float
) -> tuple[_Fact, bool]:
    """Reads one matrix; False: only its header was read, because it is too long anyway."""
    try:
        frames, dimensions = ark.matrix_shape(record["features"])
        seconds = round(frames * record["hop_ms"] / 1000, 6)
        fact = _Fact(size, mtime_ns, seconds, "", dimensions)
        if seconds > max_seconds:
            return fact, False
        if "vad" in record:
            seconds = round(len(_speech_frames(record)) * record["hop_ms"] / 1000, 6)
            return dataclasses.replace(fact, seconds=seconds), True
        ark.read_matrix(record["features"])
    except io.AudioError as error:
        return _Fact(size, mtime_ns, 0.0, _problem(error, size)), True
    return fact, True


def _check_sizes(
    name: str, checked: Sequence[tuple[_Name, str, _Fact]], wanted: int | None
) -> None:
    """DataError for features of another size than `wanted`, or than the first ones."""
    found = [(which.id, fact.dimensions) for which, _, fact in checked if fact.dimensions]
    wanted = wanted or (found[0][1] if found else None)
    other = [(key, dimensions) for key, dimensions in found if dimensions != wanted]
    if other:
        raise DataError(
            f"{name}: {len(other)} of {len(found)} features have another dimension than the "
            f"{wanted} expected; the first is {other[0][0]!r} with {other[0][1]}. Set "
            "config.features.num_mels to what the features have, or leave the others out."
        )


def _problem(error: io.AudioError, size: int) -> str:
    if error.reason.startswith("truncated"):
        return f"cut off ({error.reason})"
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


def write_rejected(tsv: pathlib.Path, name: str, rejected: Sequence[Rejected]) -> None:
    """Writes the table of what a source holds and cannot be used; rows of other sources stay."""
    others = tsv.read_text(encoding="utf-8").splitlines()[1:] if tsv.exists() else []
    rows = [row for row in others if row.rsplit("\t", 1)[-1] != _one_line(name)]
    rows += ["\t".join(map(_one_line, (r.id, r.path, r.reason, name))) for r in rejected]
    write_atomic(tsv, "\n".join(["id\tpath\treason\tsource", *rows]) + "\n")


def _report(
    name: str,
    count: int,
    rejected: Sequence[Rejected],
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


def check_output(path: pathlib.Path) -> None:
    """Raises UserError where no file `path` can be written; to be called before hours of work."""
    place = next(p for p in path.absolute().parents if p.exists())
    if path.is_dir():
        raise errors.UserError(f"{path} is a folder: name a file.")
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        reason = "may not be written to" if place.is_dir() else "is no folder"
        raise errors.UserError(f"{path} cannot be written: {place} {reason}. Name another place.")


def write_atomic(path: pathlib.Path, text: str) -> None:
    """Writes a text file whole or not at all: to a temporary name beside it, then renamed.

    Raises UserError where the system refuses.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(text, "utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise errors.UserError(
            f"{path} cannot be written ({error.strerror or error}). Free space or choose another "
            "place."
        ) from error
