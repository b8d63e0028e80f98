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

_CACHE_VERSION = 3
_CUT_OFF_SECONDS = 0.1  # MP3 decoders drop some padding, so lengths agree only roughly
_OVERSHOOT_SECONDS = 0.5  # of a segment past the end of its recording, as Kaldi's extract-segments


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
) -> records.Index:
    """Decodes every recording once and keeps the positions of the usable ones.

    What a file holds is remembered in `cache` under its path, size and time of change, so a second
    start costs one `stat` a file, and other limits need no new decoding. Several sources may share
    a cache file. Records that are missing, unreadable, empty, not finite, silent, too short, too
    long or without transcript go to `rejected_tsv` (id, path, reason, source), counted in the log.
    Lengths are those that decoding at `sample_rate_hz` gives; what was validated is `channel`.
    The result depends on neither `num_workers` (threads: decoding releases the GIL) nor the cache.

    Features are read and checked the same way, their length being frames.

    Raises records.DataError: empty source, repeated id, nothing usable, more than `max_bad_share`
    rejected, features of other dimensions than `feature_size`.
    """
    count = len(source)
    if not count:
        raise records.DataError(f"{source.name} holds no records. Check the folder and the filter.")
    known = {} if cache is None else _read_cache(cache)
    check = functools.partial(_check, source, known, channel, float(max_seconds))
    with concurrent.futures.ThreadPoolExecutor(max(1, num_workers)) as pool:
        results = _in_order(pool, check, count)
        bar = tqdm.tqdm(
            results, total=count, desc="validating audio", unit="file", disable=not progress
        )
        checked = list(bar)
    fresh = {key: fact for _, key, fact in checked if key and known.get(key) != fact}
    if cache is not None and fresh:
        _write_cache(cache, known | fresh)

    positions, lengths, rejected, seen = [], [], [], set()
    rate_hz = sample_rate_hz
    for position, (name, _, fact) in enumerate(checked):
        if name.id in seen:
            raise records.DataError(
                f"{source.name} holds the id {name.id!r} more than once (again at {name.path}). "
                "Ids must be unique: results are reported under them. Rename or remove one."
            )
        seen.add(name.id)
        if fact.dimensions:
            length, rate_hz = fact.length, fact.rate_hz
        elif fact.rate_hz:
            length = records.resampled_length(
                fact.length, fact.rate_hz, sample_rate_hz, *name.stretch
            )
        else:
            length = 0
        reason = fact.problem or _refuse(
            length / rate_hz, name.has_text, min_seconds, max_seconds, require_text
        )
        if reason:
            rejected.append(records.Rejected(name.id, name.path, reason))
        else:
            positions.append(position)
            lengths.append(length)
    _check_sizes(source.name, checked, feature_size)
    _report(source.name, count, rejected, rejected_tsv, max_bad_share)
    return records.Index(
        np.asarray(positions, np.int64), np.asarray(lengths, np.int64), rate_hz, tuple(rejected)
    )


@dataclasses.dataclass(frozen=True)
class _Name:
    id: str
    path: str
    has_text: bool
    stretch: tuple[float, float | None] = (0.0, None)


@dataclasses.dataclass(frozen=True)
class _Fact:
    """What was found at one place: independent of the limits of a particular run."""

    size: int
    mtime_ns: int
    length: int  # samples of the file, as far as they are known, or frames
    rate_hz: float | int  # of them
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
    source: records.Source,
    known: Mapping[str, _Fact],
    channel: str | int,
    max_seconds: float,
    position: int,
) -> tuple[_Name, str, _Fact]:
    """(name, cache key or "", fact) of one record."""
    record = source[position]
    text = record.get("text")
    has_text = bool(text and text.strip())
    if "problem" in record:
        fact = _Fact(0, 0, 0, 0, record["problem"])
        return _Name(record["id"], source.name, has_text), "", fact
    if "features" in record:
        return _check_features(record, has_text, known, max_seconds)
    audio = record["audio"]
    stretch = (record.get("start", 0.0), record.get("duration"))
    suffix = "" if channel == "mean" else f" channel {channel}"
    if not isinstance(audio, (str, os.PathLike)):
        name = _Name(record["id"], f"{source.name}[{position}]", has_text, stretch)
        fingerprint = getattr(source, "fingerprint", "")
        key = f"{fingerprint}[{position}]{suffix}" if fingerprint else ""
        return name, key, known.get(key) or _inspect(record, channel, 0, 0, max_seconds)[0]
    path = os.path.abspath(audio)  # noqa: PTH100 - resolve() would stat every parent
    name = _Name(record["id"], path, has_text, stretch)
    key = path if stretch == (0.0, None) else f"{path} {json.dumps(stretch)}"
    key += suffix
    inspect = functools.partial(_inspect, record, channel)
    fact, complete = _look(path, known.get(key), inspect, max_seconds)
    return name, key if complete else "", fact


def _check_features(
    record: records.Record, has_text: bool, known: Mapping[str, _Fact], max_seconds: float
) -> tuple[_Name, str, _Fact]:
    """(name, cache key or "", fact) of one record with features."""
    entry = record["features"]
    key, stated = f"{entry} {record['hop_ms']:g} ms", record.get("num_frames")
    if "vad" in record:  # Then the length is that of the kept frames.
        key, stated = f"{key} {record['vad']} {_changed(record['vad'].path)}", None
    inspect = functools.partial(_inspect_features, record)
    fact, complete = _look(entry.path, known.get(key), inspect, max_seconds)
    if not fact.problem and stated is not None and stated != fact.length:
        reason = f"wrong length ({fact.length} frames, utt2num_frames has {stated})"
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
        return _Fact(0, 0, 0, 0, f"missing file ({error.strerror})"), False
    if not stat.S_ISREG(status.st_mode):
        return _Fact(0, 0, 0, 0, "unreadable (not a file)"), False
    if known and (known.size, known.mtime_ns) == (status.st_size, status.st_mtime_ns):
        return known, True
    return inspect(status.st_size, status.st_mtime_ns, max_seconds)


def _inspect(
    record: records.Record, channel: str | int, size: int, mtime_ns: int, max_seconds: float
) -> tuple[_Fact, bool]:
    """Decodes one recording; False: only its header was read, because it is too long anyway."""

    def fact(problem: str, length: int = 0, rate: int = 0) -> _Fact:
        return _Fact(size, mtime_ns, length, rate, problem)

    audio = record["audio"]
    try:
        if isinstance(audio, np.ndarray):
            rate, whole = int(record["sample_rate"]), len(audio)
        else:
            info = io.probe(audio)
            rate, whole = info.sample_rate_hz, info.num_samples
        stated = _stretch(record, rate, whole)
        if stated > max_seconds * rate:
            return fact("", whole, rate), False
        samples = records.load_record(record, rate, channel) if stated else ()
    except io.AudioError as error:
        return fact(_problem(error, size)), True
    if not len(samples):
        return fact("empty (no samples)"), True
    if not samples.any():
        return fact("silent (every sample is zero)"), True
    # Damage in the middle of a file ends its decoding early, often without an error.
    most = _CUT_OFF_SECONDS if record.get("duration") is None else _OVERSHOOT_SECONDS
    if len(samples) < stated - most * rate:
        seconds = len(samples) / rate
        return fact(f"cut off ({seconds:.2f} of {stated / rate:.2f} s decode)"), True
    if record.get("duration") is None or len(samples) < stated:
        whole = round(record.get("start", 0.0) * rate) + len(samples)
    return fact("", whole, rate), True


def _stretch(record: records.Record, rate: int, stated: int) -> int:
    """The samples that a record means of a file that states so many."""
    start = record.get("start", 0.0)
    if record.get("duration") is not None:
        stated = round((start + record["duration"]) * rate)
    return stated - round(start * rate)


def _inspect_features(
    record: records.Record, size: int, mtime_ns: int, max_seconds: float
) -> tuple[_Fact, bool]:
    """Reads one matrix; False: only its header was read, because it is too long anyway."""
    try:
        frames, dimensions = ark.matrix_shape(record["features"])
        rate = 1000 / record["hop_ms"]
        fact = _Fact(size, mtime_ns, frames, rate, "", dimensions)
        if frames > max_seconds * rate:
            return fact, False
        if "vad" in record:
            return dataclasses.replace(fact, length=len(records.speech_frames(record))), True
        ark.read_matrix(record["features"])
    except io.AudioError as error:
        return _Fact(size, mtime_ns, 0, 0, _problem(error, size)), True
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
    if error.reason.startswith("channel"):
        return f"missing channel ({error.reason})"
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
