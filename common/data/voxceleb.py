"""VoxCeleb trees: <subset>/<speaker idXXXXX>/<video>/<utterance>.{wav,flac,...}, and its lists.

Nagrani et al., "VoxCeleb: a large-scale speaker identification dataset", Interspeech 2017; Chung et
al., "VoxCeleb2: deep speaker recognition", Interspeech 2018. Ids are what the trial lists say,
idXXXXX/video/utterance.wav, whatever the format of the file.
"""

import itertools
import os
import pathlib
import re
from collections.abc import Iterator, Sequence

from common.audio import io
from common.data import folders, records, tables

_SPEAKER = re.compile(r"id\d{5}")
_PART = re.compile(r"(.+):(\d+)")
TABLES = ("vox1_meta.csv", "vox2_meta.csv")  # of the speakers, as they are published


def read_tree(
    root: str | os.PathLike, names: Sequence[str], *, audio_root: str = ""
) -> records.RecordList:
    """The recordings of several subsets or lists, as one source.

    Args:
      root: the folder that holds them.
      names: a folder below root whose children are speakers (`vox1/dev/wav`, or `vox1/dev` where
        it holds them in a folder wav or aac, as the archives unpack), sorted; or a list
        file, in its order: lines of `path`, of `speaker path`, or of `number path` as in
        iden_split.txt, of which `iden_split.txt:1` takes number 1 (1 train, 2 dev, 3 test).
      audio_root: the folders, below root and with commas between, where the paths of a list start;
        "" is root itself.

    Suffixes may be in capitals, hidden names are left out. A listed file may have another suffix
    than its line; one that is not there becomes a record, and so does a folder that may not be
    read: indexing rejects and names them. `gender` is that of the tables in root (`genders`).
    Raises records.DataError: missing folder or list, damaged line.
    """
    if isinstance(names, str):
        raise TypeError(f"names must be a sequence of subsets, not the string {names!r}")
    root = pathlib.Path(root).expanduser()
    if not root.is_dir():
        raise records.DataError(
            f"There is no folder {root}. config.data.root holds the subsets of VoxCeleb that "
            "config.data.train and config.data.eval name."
        )
    starts = [root / part.strip() for part in audio_root.split(",")]
    for start in starts:
        if not start.is_dir():
            raise records.DataError(f"There is no folder {start}. Mend config.data.audio_root.")
    found = []
    for name in names:
        path, part = root / name, None
        if not path.exists() and (numbered := _PART.fullmatch(name)):
            path, part = root / numbered[1], numbered[2]
        found.append(_read_list(path, part, starts) if path.is_file() else _read_subset(root, path))
    known = genders(root)
    rows = (
        {**record, "gender": known.get(record.get("speaker"))}
        for record in itertools.chain.from_iterable(found)
    )
    return records.RecordList(f"{root} ({', '.join(names)})", rows)


def genders(root: pathlib.Path) -> dict[str, str]:
    """ "f" or "m" of the speakers by those of the tables `TABLES` that are in a folder."""
    paths = [root / name for name in TABLES]
    return {k: v for path in paths if path.is_file() for k, v in read_genders(path).items()}


def read_genders(path: str | os.PathLike) -> dict[str, str]:
    """ "f" or "m" by the first column of a table, where it has a column Gender; else empty.

    Its first line names the columns, between tabs or commas. Raises records.DataError.
    """
    lines = tables.read_lines(path)
    separator = "\t" if "\t" in (lines or [""])[0] else ","
    rows = [[field.strip() for field in line.split(separator)] for line in lines]
    head = [name.lower() for name in rows[0]] if rows else []
    if "gender" not in head:
        return {}
    place = head.index("gender")
    found = {row[0]: row[place][:1].lower() for row in rows[1:] if len(row) > place}
    return {speaker: gender for speaker, gender in found.items() if gender in ("f", "m")}


def _record(path: str, speaker: str, video: str, name: str) -> records.Record:
    return {"id": f"{speaker}/{video}/{name}.wav", "audio": path, "speaker": speaker}


def _read_subset(root: pathlib.Path, folder: pathlib.Path) -> Iterator[records.Record]:
    speakers = []
    for inner in (folder, folder / "wav", folder / "aac"):
        if not speakers and inner.is_dir():
            try:
                inside = [entry for entry in folders.visible(inner) if entry.is_dir()]
            except OSError as error:
                raise records.DataError(f"{inner} cannot be read ({error.strerror}).") from error
            speakers = [entry for entry in inside if _SPEAKER.fullmatch(entry.name)]
    if not speakers:
        near = sorted(
            {p.parent for depth in ("*", "*/*", "*/*/*") for p in root.glob(f"{depth}/id[0-9]*")}
        )
        there = ", ".join(str(p.relative_to(root)) for p in near[:5]) or "none"
        raise records.DataError(
            f"{folder} is neither a list nor a folder of VoxCeleb speakers (id and five digits). "
            f"Folders of speakers below {root}: {there}."
        )
    for speaker in speakers:
        for video in folders.below(speaker.path, 1):
            if not isinstance(video, os.DirEntry):
                yield video
                continue
            try:
                entries = folders.visible(video.path)
            except OSError as error:
                yield folders.unreadable(video.path, error)
                continue
            for stem, path in folders.recordings(entries).items():
                yield _record(path, speaker.name, video.name, stem)


def _read_list(
    path: pathlib.Path, part: str | None, starts: Sequence[pathlib.Path]
) -> Iterator[records.Record]:
    count, parts = 0, set()
    for number, line in enumerate(tables.read_lines(path), start=1):
        fields = line.split()
        if not fields:
            continue
        pieces = pathlib.PurePosixPath(fields[-1]).parts
        if len(fields) > 2 or len(pieces) < 3:
            raise records.DataError(
                f"{path}, line {number}: {line!r} is not a path (idXXXXX/video/utterance.wav) or a "
                "speaker and a path. A list of trials belongs to config.data.trials."
            )
        speaker, video, name = pieces[-3:]
        if len(fields) == 2 and fields[0].isdecimal():
            parts.add(fields[0])
            if part is None:
                raise records.DataError(
                    f"{path}, line {number}: {line!r} begins with the number of a part. Say which "
                    f"one: {path.name}:{fields[0]} (1 train, 2 dev, 3 test)."
                )
            if fields[0] != part:
                continue
        elif part is not None:
            raise records.DataError(
                f"{path}, line {number}: {line!r} does not begin with the number of a part; name "
                f"the list {path.name}, without :{part}."
            )
        stem = pathlib.PurePosixPath(name).stem
        record = _record(_find(fields[-1], starts), speaker, video, stem)
        if len(fields) == 2 and part is None:
            record["speaker"] = fields[0]
        count += 1
        yield record
    if not count:
        there = f"; its parts are {', '.join(sorted(parts))}" if parts else ""
        raise records.DataError(
            f"{path} lists nothing{'' if part is None else f' as {part}'}{there}."
        )


def _find(path: str, starts: Sequence[pathlib.Path]) -> str:
    """The listed file, or the one of another format in its place."""
    stem, suffix = os.path.splitext(path)  # noqa: PTH122
    for ending in (suffix, *io.SUFFIXES):
        for start in starts:
            for found in (f"{start}/{stem}{ending}", f"{start}/{stem}{ending.upper()}"):
                if os.path.exists(found):  # noqa: PTH110
                    return found
    return f"{starts[0]}/{path}"
