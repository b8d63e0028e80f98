"""LibriSpeech trees: subset/speaker/chapter/<id>.flac with <speaker>-<chapter>.trans.txt.

The layout of Panayotov et al., "LibriSpeech: an ASR corpus based on public domain audio books",
ICASSP 2015. Other corpora stored the same way (any audio format that `common.audio.io` reads) work.
"""

import os
import pathlib
from collections.abc import Iterator, Sequence

from common.data import folders, records, tables


def read_tree(root: str | os.PathLike, subsets: Sequence[str] | None = None) -> records.RecordList:
    """The records of some subsets (default: all of them), sorted by subset and id.

    `root` holds the subset folders, directly or in a folder `LibriSpeech` as the archives unpack.
    An audio file without a line in a transcript file becomes a record without "text", a line
    without audio file one whose path is missing, an id with two transcripts and a folder that may
    not be read one with a "problem": indexing rejects and names them all. An id ends at the first
    blank or tab; suffixes may be in capitals; hidden names are left out; links are followed.
    Raises records.DataError: missing folder or subset, transcripts that are not UTF-8.
    """
    root = pathlib.Path(root).expanduser()
    if not root.is_dir():
        raise records.DataError(
            f"There is no folder {root}. Unpack LibriSpeech there (https://www.openslr.org/12) or "
            "point the config to where it lies."
        )
    if (root / "LibriSpeech").is_dir():
        root = root / "LibriSpeech"
    present = [entry.name for entry in folders.visible(root) if _is_subset(entry)]
    if not present:
        raise records.DataError(
            f"{root} is not a LibriSpeech tree: no <subset>/<speaker>/<chapter>/*.trans.txt in it."
        )
    if isinstance(subsets, str):
        raise TypeError(f"subsets must be a sequence of names, not the string {subsets!r}")
    wanted = present if subsets is None else list(subsets)
    absent = sorted(set(wanted) - set(present))
    if absent:
        raise records.DataError(
            f"{root} has no subset {', '.join(absent)}; it has {', '.join(present)}."
        )
    known = genders(root)
    found = (
        {**record, "gender": known.get(record.get("speaker"))}
        for subset in wanted
        for record in _read_subset(root / subset)
    )
    return records.RecordList(f"{root} ({', '.join(wanted)})", found)


def genders(root: pathlib.Path) -> dict[str, str]:
    """ "f" or "m" of the speakers of a tree by SPEAKERS.TXT; empty where there is no such file."""
    path = root / "SPEAKERS.TXT"
    if not path.is_file():
        return {}
    # Names of readers may be in any encoding.
    lines = path.read_bytes().decode("utf-8", "replace").splitlines()
    rows = ([field.strip() for field in line.split("|")] for line in lines if line[:1] != ";")
    return {row[0]: row[1].lower() for row in rows if len(row) > 1 and row[1] in ("F", "M")}


def _is_subset(entry: os.DirEntry) -> bool:
    if not entry.is_dir():
        return False
    closed = not os.access(entry.path, os.R_OK | os.X_OK)
    return closed or any(pathlib.Path(entry.path).glob("*/*/*.trans.txt"))


def _read_subset(folder: pathlib.Path) -> Iterator[records.Record]:
    for found in folders.below(folder, 2):
        if not isinstance(found, os.DirEntry):
            yield found
            continue
        try:
            yield from _read_chapter(found.path)
        except OSError as error:
            yield folders.unreadable(found.path, error)


def _read_chapter(folder: str) -> list[records.Record]:
    """The utterances of a chapter, sorted. Raises OSError."""
    entries = folders.visible(folder)
    paths, lines, problems, unread = folders.recordings(entries), {}, {}, None
    for entry in entries:
        if entry.name.endswith(".trans.txt"):
            try:
                written = tables.read_lines(entry.path)
            except (OSError, records.DataError) as error:
                unread = f"unreadable transcript ({error})"
                continue
            for number, line in enumerate(written, start=1):
                utterance, *text = line.split(maxsplit=1) or ("",)
                text = text[0].strip() if text else ""
                place = f"{entry.path}, line {number}"
                if utterance and lines.setdefault(utterance, (text, place))[0] != text:
                    first = lines[utterance][1]
                    problems[utterance] = f"repeated id (with other words in {first} and {place})"
    found = []
    for utterance in sorted(lines.keys() | paths.keys()):
        found.append(
            {
                "id": utterance,
                "audio": paths.get(utterance, f"{folder}/{utterance}.flac"),
                "speaker": pathlib.PurePath(folder).parent.name,
                "text": lines.get(utterance, ("", ""))[0] or None,
                "problem": problems.get(utterance, None if utterance in lines else unread),
            }
        )
    return found
