"""The index of a source: every record validated once, what is unusable named and counted."""

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
from typing import Any

import numpy as np
import tqdm

from common import files
from common.audio import io
from common.data import ark, records

log = logging.getLogger(__name__)

_CACHE_VERSION = 2
_CUT_OFF_SECONDS = 0.1  # MP3 decoders drop some padding, so lengths agree only roughly
_OVERSHOOT_SECONDS = 0.5  # of a segment past the end of its recording, as Kaldi's extract-segments


def build_index(
    source: records.Source,
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
) -> records.Index:
    """Decodes every recording once and keeps the positions of the usable ones.

    What a file holds is remembered in `cache` under its path, size and time of change, so a second
    start costs one `stat` a file, and other limits need no new decoding. Several sources may share
    a cache file. Records that are missing, unreadable, empty, not finite, silent, too short, too
    long or without transcript go to `rejected_tsv` (id, path, reason, source), counted in the log.
    The result depends on neither `num_workers` (threads: decoding releases the GIL) nor the cache.

    Features are read and checked the same way, their length being frames times `hop_ms`.

    Raises records.DataError: empty source, repeated id, nothing usable, more than `max_bad_share`
    rejected, features of other dimensions than `feature_size`.
    """
    count = len(source)
    if not count:
        raise records.DataError(f"{source.name} holds no records. Check the folder and the filter.")
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
            raise records.DataError(
                f"{source.name} holds the id {name.id!r} more than once (again at {name.path}). "
                "Ids must be unique: results are reported under them. Rename or remove one."
            )
        seen.add(name.id)
        reason = fact.problem or _refuse(
            fact.seconds, name.has_text, min_seconds, max_seconds, require_text
        )
        if reason:
            rejected.append(records.Rejected(name.id, name.path, reason))
        else:
            positions.append(position)
            seconds.append(fact.seconds)
    _check_sizes(source.name, checked, feature_size)
    _report(source.name, count, rejected, rejected_tsv, max_bad_share)
    return records.Index(
        np.asarray(positions, np.int64), np.asarray(seconds, np.float32), tuple(rejected)
    )


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
    source: records.Source, known: Mapping[str, _Fact], max_seconds: float, position: int
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
    record: records.Record, has_text: bool, known: Mapping[str, _Fact], max_seconds: float
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


def _inspect(
    record: records.Record, size: int, mtime_ns: int, max_seconds: float
) -> tuple[_Fact, bool]:
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
        samples = records.load_record(record, rate) if stated else ()
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


def _stretch(record: records.Record, rate: int, stated: int) -> int:
    """The samples that a record means of a file that states so many."""
    if record.get("duration") is not None:
        return round(record["duration"] * rate)
    return stated - round(record.get("start", 0.0) * rate)


def _inspect_features(
    record: records.Record, size: int, mtime_ns: int, max_seconds: float
) -> tuple[_Fact, bool]:
    """Reads one matrix; False: only its header was read, because it is too long anyway."""
    try:
        frames, dimensions = ark.matrix_shape(record["features"])
        seconds = round(frames * record["hop_ms"] / 1000, 6)
        fact = _Fact(size, mtime_ns, seconds, "", dimensions)
        if seconds > max_seconds:
            return fact, False
        if "vad" in record:
            seconds = round(len(records.speech_frames(record)) * record["hop_ms"] / 1000, 6)
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
        raise records.DataError(
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


def write_rejected(tsv: pathlib.Path, name: str, rejected: Sequence[records.Rejected]) -> None:
    """Writes the table of what a source holds and cannot be used; rows of other sources stay."""
    others = tsv.read_text(encoding="utf-8").splitlines()[1:] if tsv.exists() else []
    rows = [row for row in others if row.rsplit("\t", 1)[-1] != _one_line(name)]
    rows += ["\t".join(map(_one_line, (r.id, r.path, r.reason, name))) for r in rejected]
    files.write_text(tsv, "\n".join(["id\tpath\treason\tsource", *rows]) + "\n")


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
    if len(rejected) == count:
        raise records.DataError(
            f"{name}: none of {count} records is usable ({counts}), the first is "
            f"{rejected[0].id!r}. See {tsv}."
        )
    if share > max_bad_share:
        raise records.DataError(
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
    files.write_text(path, hashlib.sha256(body.encode()).hexdigest() + "\n" + body)
