"""What folders hold: in order, without hidden names, through links."""

import os
from collections.abc import Iterable, Iterator

from common.audio import io
from common.data import records


def visible(folder: str | os.PathLike) -> list[os.DirEntry]:
    """The entries of a folder, sorted, but those whose names begin with a dot: `._a.wav` is what
    a Mac leaves beside a.wav. Raises OSError."""
    with os.scandir(folder) as entries:
        return sorted((e for e in entries if e.name[0] != "."), key=lambda entry: entry.name)


def unreadable(folder: str | os.PathLike, error: OSError) -> records.Record:
    """The record that stands for all that a folder may hold."""
    return {"id": str(folder), "problem": f"unreadable folder ({error.strerror})"}


def recordings(entries: Iterable[os.DirEntry]) -> dict[str, str]:
    """Name without suffix -> path; of several formats beside each other, what is read best."""
    found: dict[str, tuple[int, str]] = {}
    for entry in entries:
        stem, suffix = os.path.splitext(entry.name)  # noqa: PTH122 - a million of them
        if (suffix := suffix.lower()) in io.SUFFIXES:
            place = (io.SUFFIXES.index(suffix), entry.path)
            found[stem] = min(place, found.get(stem, place))
    return {stem: path for stem, (_, path) in found.items()}


def walk(
    folder: str | os.PathLike, above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[os.DirEntry | records.Record]:
    """All files below a folder, and a record for every folder that cannot be read.

    Links to folders are followed, but not back into a folder `above`.
    """
    try:
        status = os.stat(folder)  # noqa: PTH116
        entries = visible(folder)
    except OSError as error:
        yield unreadable(folder, error)
        return
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for entry in entries:
        if entry.is_dir():
            yield from walk(entry.path, above | {here})
        else:
            yield entry


def below(folder: str | os.PathLike, depth: int) -> Iterator[os.DirEntry | records.Record]:
    """The folders so many levels below one, and a record for every folder on the way that cannot
    be read."""
    try:
        inside = [entry for entry in visible(folder) if entry.is_dir()]
    except OSError as error:
        yield unreadable(folder, error)
        return
    for entry in inside:
        if depth == 1:
            yield entry
        else:
            yield from below(entry.path, depth - 1)
