"""LibriSpeech trees: subset/speaker/chapter/<id>.flac with <speaker>-<chapter>.trans.txt.

The layout of Panayotov et al., "LibriSpeech: an ASR corpus based on public domain audio books",
ICASSP 2015. Other corpora stored the same way (any audio format that `common.audio.io` reads) work.
"""

import os
import pathlib
from collections.abc import Sequence

from common.audio import io
from common.data import records


def read_tree(root: str | os.PathLike, subsets: Sequence[str] | None = None) -> records.RecordList:
    """The records of some subsets (default: all of them), sorted by subset and id.

    `root` holds the subset folders, directly or in a folder `LibriSpeech` as the archives unpack.
    An audio file without a line in a transcript file becomes a record without "text", a line
    without audio file one whose path is missing: indexing rejects and names both.
    Raises records.DataError for a missing folder or subset.
    """
    root = pathlib.Path(root).expanduser()
    if not root.is_dir():
        raise records.DataError(
            f"There is no folder {root}. Unpack LibriSpeech there (https://www.openslr.org/12) or "
            "point the config to where it lies."
        )
    if (root / "LibriSpeech").is_dir():
        root = root / "LibriSpeech"
    present = sorted(
        p.name for p in root.iterdir() if p.is_dir() and any(p.glob("*/*/*.trans.txt"))
    )
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
    found = [record for subset in wanted for record in _read_subset(root / subset)]
    return records.RecordList(f"{root} ({', '.join(wanted)})", tuple(found))


def _read_subset(folder: pathlib.Path) -> list[records.Record]:
    found = []
    for chapter in sorted(p for p in folder.glob("*/*") if p.is_dir()):
        texts = {}
        for transcript in sorted(chapter.glob("*.trans.txt")):
            for line in transcript.read_text("utf-8").splitlines():
                utterance, _, text = line.strip().partition(" ")
                if utterance:
                    texts[utterance] = text.strip()
        paths = {p.stem: p for p in sorted(chapter.iterdir()) if p.suffix in io.SUFFIXES}
        for utterance in sorted(texts.keys() | paths.keys()):
            record = {
                "id": utterance,
                "audio": str(paths.get(utterance, chapter / f"{utterance}.flac")),
                "speaker": chapter.parent.name,
            }
            if texts.get(utterance):
                record["text"] = texts[utterance]
            found.append(record)
    return found
