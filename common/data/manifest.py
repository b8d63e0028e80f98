"""Manifests: one recording, or one stretch of a recording, a row.

Forms, by suffix:
  .tsv           fields between tabs, with a header line. A quotation mark is a letter, unless every
                 field that holds one is quoted as csv writes it ("SAY ""GO"" TWICE").
  .csv           as Python's csv reads it, with a header line (SpeechBrain; Hugging Face's
                 metadata.csv; pandas).
  .jsonl, .json  an object a line (NeMo; Hugging Face's metadata.jsonl), a list of objects, or one
                 object id -> object (SpeechBrain).

Columns, in capitals or not, of the first name that is there:
  id        id, utt, utterance, utt_id; without one the audio path less its suffix, and for NeMo's
            offsets above 0 ":" and the offset behind it
  audio     audio, path, audio_filepath (NeMo), wav (SpeechBrain), file, file_name (Hugging Face);
            SpeechBrain's {data_root} is the root
  text      text, transcript, sentence (Common Voice), transcription (Hugging Face), words, wrd
            (SpeechBrain); a list of words is joined by blanks
  speaker   speaker, speaker_id, spk, client_id (Common Voice), spk_id (SpeechBrain)
  gender    gender, sex; f or m, of which the first letter counts
  offset    NeMo's: where the stretch that is meant starts, in seconds
  duration  beside an offset, or audio_filepath: how long the stretch is, in seconds. Elsewhere it
            only says how long the recording is, and is not looked at, like SpeechBrain's length.
  channel   the number of the channel that is meant, from 0
Others that name a stretch or a channel (start, stop, begin, end, end_time, offset_ms, ...) are not
read, for few say in which unit: a row with one is rejected by name. Any other column means nothing
here. Blanks round names, ids and paths are dropped.
"""

import csv
import difflib
import io
import json
import math
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from common.data import records, tables

# Field of the record -> the column names under which well-known manifests keep it.
_USUAL_COLUMNS = {
    "id": ("id", "utt", "utterance", "utt_id"),
    "audio": ("audio", "path", "audio_filepath", "wav", "file", "file_name"),
    "text": ("text", "transcript", "sentence", "transcription", "words", "wrd"),
    "speaker": ("speaker", "speaker_id", "spk", "client_id", "spk_id"),
    "gender": ("gender", "sex"),
}
_UNCLEAR = re.compile(
    r"channel_selector|(segment_)?(start|stop|begin|end|offset(?=_))"
    r"(_?(time|s|secs?|seconds|ms|samples?|frames?))*"
)
_LIST = re.compile(r"""\[\s*(['"]).*\1\s*\]""", re.DOTALL)  # as Python or JSON writes one of words
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_ROOT = re.compile(r"^(\{data_root\}|\$data_root|\{data_folder\})/?")

_Row = Mapping[str, Any]


_NO_SPLITS = (
    " Where each split is a file, config.data.root is their folder, and config.data.train and "
    "config.data.eval name the files."
)


class NoRows(records.DataError):
    """A manifest without any row of the wanted values."""


def read_manifest(
    path: str | os.PathLike,
    *,
    root: str | os.PathLike | None = None,
    where: Mapping[str, str | Sequence[str]] | None = None,
    keep: Sequence[str] = (),
    keep_if_there: Sequence[str] = (),
) -> records.RecordList:
    """The records of a manifest, in its order.

    Args:
      path: a file of one of the forms above, in UTF-8 (or UTF-16 with a byte-order mark).
      root: folder that relative audio paths start from; the manifest's own folder by default.
      where: keeps the rows whose column has the given value, or one of the given values.
      keep: further columns, which have to be there, as text in the records under their names.
      keep_if_there: those too, "" where the manifest has none of that name.

    A row that cannot be used as it stands becomes a record with a "problem": indexing rejects and
    names it.
    Raises records.DataError: missing file, folder or column, damaged line, no row left.
    """
    path = pathlib.Path(path).expanduser()
    root = path.parent if root is None else pathlib.Path(root).expanduser()
    if path.is_file() and not root.is_dir():
        raise records.DataError(f"There is no folder {root} (root of the audio paths in {path}).")
    where = where or {}
    rows = read_rows(path)
    present = dict.fromkeys(name for _, row in rows for name in row)
    names = _column_names(path, present)
    for column in (*where, *keep):
        _require_column(path, present, column)
    chosen = ", ".join(f"{column}={value}" for column, value in where.items())
    kept = ((number, row) for number, row in rows if _matches(row, where))
    found = records.RecordList(
        f"{path} ({chosen})" if chosen else str(path),
        (
            {name: _plain(row.get(name)) for name in (*keep, *keep_if_there)}
            | _record(f"{path}, {number}", root, row, names)
            for number, row in kept
        ),
    )
    if not len(found):
        values = {c: sorted({_plain(r.get(c)) for _, r in rows})[:10] for c in where}
        raise NoRows(f"{path}: none of {len(rows)} rows has {dict(where)}; present are {values}.")
    return found


def read_rows(path: pathlib.Path) -> list[tuple[str, Mapping[str, Any]]]:
    """All rows of a manifest as they stand, each with its place ("line 3").

    Raises records.DataError: missing file, another form, damaged line, no rows.
    """
    if not path.is_file():
        raise records.DataError(f"There is no manifest {path}. Check the path in the config.")
    if path.suffix.lower() not in _READERS:
        raise records.DataError(
            f"{path}: the suffix of a manifest says its form, one of {', '.join(_READERS)}."
        )
    rows = list(_READERS[path.suffix.lower()](path))
    if not rows:
        raise records.DataError(f"{path} holds no rows.")
    return rows


def find(folder: pathlib.Path, name: str) -> pathlib.Path:
    """The manifest of a folder that `name` means: a file, or a folder that holds Hugging Face's
    metadata.jsonl or metadata.csv. Raises records.DataError."""
    wanted = (folder / name, folder / name / "metadata.jsonl", folder / name / "metadata.csv")
    found = next((path for path in wanted if path.is_file()), None)
    if found is None:
        raise records.DataError(
            f"There is no manifest {folder / name}: config.data.root is a folder, so "
            "config.data.train and config.data.eval name manifests in it, or folders in it with "
            "metadata.jsonl or metadata.csv. Or let config.data.root name one manifest."
        )
    return found


def _read_tsv(path: pathlib.Path) -> Iterator[tuple[str, _Row]]:
    lines = tables.read_lines(path)
    fields = (field for line in lines if '"' in line for field in line.split("\t") if '"' in field)
    quoted = all(_QUOTED.fullmatch(field) for field in fields)
    rows = ((number, line.split("\t")) for number, line in enumerate(lines, start=1) if line)
    if quoted:
        rows = ((number, [_unquoted(field) for field in row]) for number, row in rows)
    yield from _with_header(path, rows, "one tab")


def _unquoted(field: str) -> str:
    return field[1:-1].replace('""', '"') if '"' in field else field


def _read_csv(path: pathlib.Path) -> Iterator[tuple[str, _Row]]:
    reader = csv.reader(io.StringIO(tables.read_text(path), newline=""), strict=True)

    def rows() -> Iterator[tuple[int, list[str]]]:
        first = 1  # a field in quotes may have several lines
        try:
            for row in reader:
                if row:
                    yield first, row
                first = reader.line_num + 1
        except csv.Error as error:
            raise records.DataError(f"{path}, line {first}: not CSV ({error}).") from None

    yield from _with_header(path, rows(), "a comma")


def _with_header(
    path: pathlib.Path, rows: Iterator[tuple[int, list[str]]], separator: str
) -> Iterator[tuple[str, _Row]]:
    header = [name.strip() for name in next(rows, (1, []))[1]]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise records.DataError(
            f"{path} has two columns {', '.join(map(repr, twice))}. Rename or remove one."
        )
    for number, fields in rows:
        if len(fields) != len(header):
            raise records.DataError(
                f"{path}, line {number}: {len(fields)} fields, but the header has {len(header)} "
                f"({', '.join(header)}). Repair the line; fields are separated by {separator}."
            )
        yield f"line {number}", dict(zip(header, fields, strict=True))


def _read_json(path: pathlib.Path) -> Iterator[tuple[str, _Row]]:
    text = tables.read_text(path)
    try:
        whole = json.loads(text, object_pairs_hook=_Pairs)
    except json.JSONDecodeError:
        yield from _read_json_lines(path, text)
        return
    if isinstance(whole, _Pairs) and whole and all(isinstance(v, _Pairs) for _, v in whole):
        for key, value in whole:  # as SpeechBrain; the key is the id, whatever else is called so
            row = {name: item for name, item in value if name.lower() != "id"}
            yield f"id {key!r}", {"id": key, **_clean(row)}
    elif isinstance(whole, list) and not isinstance(whole, _Pairs):
        for number, value in enumerate(whole, start=1):
            if not isinstance(value, _Pairs):
                raise records.DataError(f"{path}, entry {number}: not a JSON object.")
            yield f"entry {number}", _clean(dict(value))
    else:
        yield from _read_json_lines(path, text)


class _Pairs(list):
    """An object of JSON, of which no key was lost."""


def _read_json_lines(path: pathlib.Path, text: str) -> Iterator[tuple[str, _Row]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise records.DataError(f"{path}, line {number}: not JSON ({error}).") from None
        if not isinstance(row, dict):
            raise records.DataError(f"{path}, line {number}: not a JSON object.")
        yield f"line {number}", _clean(row)


def _clean(row: _Row) -> _Row:
    return {name.strip(): value for name, value in row.items()}


_READERS = {".tsv": _read_tsv, ".csv": _read_csv, ".jsonl": _read_json, ".json": _read_json}


def _column_names(path: pathlib.Path, present: Iterable[str]) -> dict[str, str]:
    """Record field or other meaning -> column, for those that the manifest has."""
    there = {name.lower(): name for name in reversed([*present])}
    names = {}
    for field, usual in _USUAL_COLUMNS.items():
        if column := next((there[name] for name in usual if name in there), None):
            names[field] = column
    if "audio" not in names:
        raise records.DataError(
            f"{path}: no column with the audio path among {', '.join(present)}; call it one of "
            f"{', '.join(_USUAL_COLUMNS['audio'])}."
        )
    others = {name: there[name] for name in ("offset", "channel") if name in there}
    others |= {name: column for name, column in there.items() if _UNCLEAR.fullmatch(name)}
    if "duration" in there and ("offset" in there or names["audio"].lower() == "audio_filepath"):
        others["duration"] = there["duration"]
    used = set(names.values())
    return names | {name: column for name, column in others.items() if column not in used}


def _require_column(path: pathlib.Path, present: Iterable[str], column: str) -> None:
    present = list(present)
    if column not in present:
        near = difflib.get_close_matches(column, present, 1)
        hint = f" Did you mean {near[0]!r}?" if near else _NO_SPLITS
        raise records.DataError(
            f"{path} has no column {column!r}; it has {', '.join(present)}.{hint}"
        )


def _matches(row: _Row, where: Mapping[str, str | Sequence[str]]) -> bool:
    return all(
        _plain(row.get(column)) in ([value] if isinstance(value, str) else [*value])
        for column, value in where.items()
    )


def _plain(value: Any) -> str:
    # NaN is what pandas has for nothing.
    return "" if value is None or value != value else str(value).strip()


def _record(place: str, root: pathlib.Path, row: _Row, names: Mapping[str, str]) -> records.Record:
    """What a row means; `place` is where it stands."""
    value = {field: row.get(column) for field, column in names.items()}
    audio = _plain(value["audio"])
    stem = str(pathlib.PurePath(audio).with_suffix("")) if audio else place
    record = {"id": _plain(value.get("id")) or stem, "audio": "", "path": audio}
    try:
        if not isinstance(value["audio"], str) or not audio:
            raise _Refused(f"missing path ({names['audio']} names no audio file)")
        record["audio"] = str(root / _ROOT.sub("", audio))
        for field in ("text", "speaker"):
            if text := _text(field, names, value.get(field)):
                record[field] = text
        gender = _plain(value.get("gender"))[:1].lower()
        if gender in ("f", "m"):
            record["gender"] = gender
        for name in filter(_UNCLEAR.fullmatch, names):
            if _plain(value.get(name)):
                raise _Refused(
                    f"unclear column {names[name]} (is it seconds or samples? give offset and "
                    "duration in seconds, and channel)"
                )
        offset = _number(names, value, "offset") or 0.0
        duration = _number(names, value, "duration")
        channel = _number(names, value, "channel")
        if offset < 0 or (duration is not None and duration <= 0):
            raise _Refused(f"empty segment (offset {offset:g} s, duration {duration} s)")
        if offset and not _plain(value.get("id")):
            record["id"] = f"{stem}:{offset:.3f}"
        if offset or duration is not None:
            record |= {"start": offset, "duration": duration}
        if channel is not None:
            if channel < 0 or channel != int(channel):
                raise _Refused(f"missing channel ({names['channel']} {channel:g} is no channel)")
            record["channel"] = int(channel)
    except _Refused as refused:
        return {"id": record["id"], "problem": f"{refused}, {place}"}
    return record


class _Refused(Exception):
    """Why a row is not used."""


def _text(field: str, names: Mapping[str, str], value: Any) -> str:
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        value = " ".join(value)
    if isinstance(value, list | dict | bool):
        raise _Refused(f"unclear {field} ({names[field]} is {type(value).__name__}, not a text)")
    if isinstance(value, str) and _LIST.fullmatch(value.strip()):
        raise _Refused(f"unclear {field} ({names[field]} is a list, not a text: {value.strip()})")
    return _plain(value)


def _number(names: Mapping[str, str], value: Mapping[str, Any], name: str) -> float | None:
    """Seconds, or what else is a number; None where nothing is said."""
    if not _plain(value.get(name)):
        return None
    try:
        number = float(value[name])
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise _Refused(f"unclear {name} ({names[name]} {value[name]!r} is no number)")
    return number
