"""Manifests: one recording a line, tab-separated with a header (.tsv) or JSON objects (.jsonl)."""

import difflib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from common.data import records

# Field of the record -> the column names under which well-known manifests keep it.
_USUAL_COLUMNS = {
    "id": ("id", "utt", "utterance", "utt_id"),
    "audio": ("audio", "path", "audio_filepath", "wav", "file"),
    "text": ("text", "transcript", "sentence"),
    "speaker": ("speaker", "speaker_id", "spk", "client_id"),
}


class NoRows(records.DataError):
    """A manifest without any row of the wanted values."""


def read_manifest(
    path: str | os.PathLike,
    *,
    root: str | os.PathLike | None = None,
    columns: Mapping[str, str] | None = None,
    where: Mapping[str, str | Sequence[str]] | None = None,
) -> records.RecordList:
    """The records of a manifest, in its order.

    Args:
      path: a .tsv file with a header line, or a .jsonl (or .json) file of one object a line; UTF-8.
      root: folder that relative audio paths start from; the manifest's own folder by default.
      columns: names of the columns that hold "id", "audio", "text" and "speaker", where they differ
        from the usual ones. Without an id column the audio path, less its suffix, is the id.
      where: keeps the rows whose column has the given value, or one of the given values.

    Raises records.DataError: missing file, folder or column, damaged line, no row left.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise records.DataError(f"There is no manifest {path}. Check the path in the config.")
    root = path.parent if root is None else pathlib.Path(root).expanduser()
    if not root.is_dir():
        raise records.DataError(f"There is no folder {root} (root of the audio paths in {path}).")
    if path.suffix not in _READERS:
        raise records.DataError(
            f"{path}: the suffix of a manifest says its form, one of {', '.join(_READERS)}."
        )
    rows = _READERS[path.suffix](path)
    if not rows:
        raise records.DataError(f"{path} holds no rows.")
    present = dict.fromkeys(key for row in rows for key in row)
    names = _column_names(path, present, columns or {})
    for column in where or {}:
        _require_column(path, present, column)
    kept = [row for row in rows if _matches(row, where or {})]
    if not kept:
        values = {c: sorted({str(r.get(c, "")) for r in rows})[:10] for c in where or {}}
        raise NoRows(
            f"{path}: none of {len(rows)} rows has {dict(where or {})}; present are {values}."
        )
    found = tuple(_record(path, root, row, names) for row in kept)
    chosen = ", ".join(f"{column}={value}" for column, value in (where or {}).items())
    return records.RecordList(f"{path} ({chosen})" if chosen else str(path), found)


def _read_tsv(path: pathlib.Path) -> list[dict[str, str]]:
    # No quoting: quotation marks belong to transcripts.
    lines = _read_text(path).split("\n")
    header = lines[0].rstrip("\r").split("\t")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        fields = line.rstrip("\r").split("\t")
        if fields == [""]:
            continue
        if len(fields) != len(header):
            raise records.DataError(
                f"{path}, line {number}: {len(fields)} fields, but the header has {len(header)} "
                f"({', '.join(header)}). Repair the line; fields are separated by one tab."
            )
        rows.append(dict(zip(header, fields, strict=True)))
    return rows


def _read_jsonl(path: pathlib.Path) -> list[dict[str, str]]:
    rows = []
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise records.DataError(f"{path}, line {number}: not JSON ({error}).") from None
        if not isinstance(row, dict):
            raise records.DataError(f"{path}, line {number}: not a JSON object.")
        rows.append(row)
    return rows


_READERS = {".tsv": _read_tsv, ".jsonl": _read_jsonl, ".json": _read_jsonl}


def _read_text(path: pathlib.Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise records.DataError(f"{path} is not UTF-8 text ({error}).") from None


def _column_names(
    path: pathlib.Path, present: Iterable[str], chosen: Mapping[str, str]
) -> dict[str, str]:
    """Record field -> column, for the fields that the manifest has."""
    unknown = sorted(set(chosen) - set(_USUAL_COLUMNS))
    if unknown:
        raise records.DataError(
            f"columns: {', '.join(unknown)} is no record field; there are {[*_USUAL_COLUMNS]}."
        )
    names = {}
    for field, usual in _USUAL_COLUMNS.items():
        if field in chosen:
            names[field] = _require_column(path, present, chosen[field])
        elif column := next((name for name in usual if name in present), None):
            names[field] = column
    if "audio" not in names:
        raise records.DataError(
            f"{path}: no column with the audio path among {', '.join(present)}; name it by "
            'columns={"audio": ...}.'
        )
    return names


def _require_column(path: pathlib.Path, present: Iterable[str], column: str) -> str:
    present = list(present)
    if column not in present:
        near = difflib.get_close_matches(column, present, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise records.DataError(
            f"{path} has no column {column!r}; it has {', '.join(present)}.{hint}"
        )
    return column


def _matches(row: Mapping[str, object], where: Mapping[str, str | Sequence[str]]) -> bool:
    return all(
        str(row.get(column, "")) in ([value] if isinstance(value, str) else [*value])
        for column, value in where.items()
    )


def _record(
    path: pathlib.Path, root: pathlib.Path, row: Mapping[str, object], names: Mapping[str, str]
) -> records.Record:
    audio = str(row.get(names["audio"]) or "")
    if not audio:
        raise records.DataError(f"{path}: the row {dict(row)} names no audio file.")
    stem = str(pathlib.PurePath(audio).with_suffix(""))
    name = str(row.get(names.get("id", ""), stem))
    record = {"id": name, "audio": str(root / audio), "path": audio}
    for field in ("text", "speaker"):
        value = row.get(names.get(field, ""))
        if value not in (None, ""):
            record[field] = str(value)
    return record
