"""Films by name: files, folders of them, and lists that say more of them."""

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

from common import files
from common.data import folders, manifest, records

SUFFIXES = (".mp4", ".m4v", ".mov", ".3gp", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".flv", ".ts")
SUFFIXES += (".mts", ".m2ts", ".wmv", ".asf", ".ogv", ".vob")
_LISTS = (".tsv", ".csv", ".json", ".jsonl")
KNOWN = ("speaker", "gender", "text", "split")  # what a list says of a film


@dataclasses.dataclass(frozen=True)
class Film:
    """A film, what it is called in all files, and what a list says of it."""

    path: str
    name: str
    known: Mapping[str, str] = dataclasses.field(default_factory=dict)


def find_films(
    inputs: Sequence[str], root: str | None, speakers: str
) -> Iterator[Film | records.Rejected]:
    """The films that inputs name, in their order; what cannot be read is rejected by name."""
    for given in inputs:
        path = pathlib.Path(given).expanduser()
        if path.is_dir():
            for entry in folders.walk(path):
                if not isinstance(entry, os.DirEntry):
                    yield records.Rejected(entry["id"], entry["id"], entry["problem"])
                elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:  # noqa: PTH122
                    name = pathlib.PurePath(entry.path).relative_to(path).with_suffix("")
                    yield _film(entry.path, name.as_posix(), speakers)
        elif path.suffix.lower() in _LISTS:
            yield from _listed(path, root, speakers)
        elif path.exists():
            yield _film(str(path), path.stem, speakers)
        else:
            yield records.Rejected(given, given, "missing file")


def _film(path: str, name: str, speakers: str, known: Mapping[str, str] | None = None) -> Film:
    known = dict(known or {})
    if speakers == "folder" and not known.get("speaker"):
        known["speaker"] = pathlib.Path(path).absolute().parent.name
    parts = [files.safe_name(part) for part in name.split("/") if part not in ("", ".", "..")]
    return Film(path, "/".join(parts), known)


def _listed(path: pathlib.Path, root: str | None, speakers: str) -> Iterator[Film]:
    start = path.parent if root is None else pathlib.Path(root).expanduser()
    rows = manifest.read_rows(path)
    there = {name.lower(): name for _, row in rows for name in row}
    video = next((there[n] for n in ("video", "film", "path", "file") if n in there), None)
    if video is None:
        raise records.DataError(
            f"{path}: no column with the films' paths among {', '.join(there)}; call it video."
        )
    own = next((there[n] for n in ("id", "clip", "utt", "utterance") if n in there), None)
    for place, row in rows:
        name = str(row.get(video) or "").strip()
        if not name:
            raise records.DataError(f"{path}, {place}: {video} names no film.")
        known = {n: " ".join(str(row.get(there[n]) or "").split()) for n in KNOWN if n in there}
        called = str(row.get(own) or "").strip() if own else ""
        called = called or pathlib.PurePath(name).with_suffix("").as_posix()
        yield _film(str(start / name), called, speakers, known)


def distinct(
    found: Iterator[Film | records.Rejected], rejected: list[records.Rejected]
) -> list[Film]:
    """The films of which the names are not taken yet; others go to `rejected`."""
    films: dict[str, Film] = {}
    for one in found:
        if isinstance(one, records.Rejected):
            rejected.append(one)
        elif one.name not in films:
            films[one.name] = one
        elif films[one.name].path != one.path:
            reason = f"repeated name (as {films[one.name].path}; give a list with a column id)"
            rejected.append(records.Rejected(one.name, one.path, reason))
        elif films[one.name] != one:
            first = ", ".join(f"{n} {value}" for n, value in films[one.name].known.items() if value)
            reason = f"given twice; what counts is the first time ({first or 'nothing known'})"
            rejected.append(records.Rejected(one.name, one.path, reason))
    return list(films.values())
