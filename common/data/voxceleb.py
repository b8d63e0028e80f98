"""VoxCeleb trees: <subset>/<speaker idXXXXX>/<video>/<utterance>.{wav,flac,...}, and its lists.

Nagrani et al., "VoxCeleb: a large-scale speaker identification dataset", Interspeech 2017; Chung et
al., "VoxCeleb2: deep speaker recognition", Interspeech 2018. Ids are what the trial lists say,
idXXXXX/video/utterance.wav, whatever the format of the file.
"""

import os
import pathlib
import re
from collections.abc import Iterator, Sequence

from common.audio import io
from common.data import records

_SPEAKER = re.compile(r"id\d{5}")
_PART = re.compile(r"(.+):(\d+)")


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

    A listed file may have another suffix than its line; one that is not there becomes a record:
    indexing rejects and names it.
    Raises records.DataError: missing folder or list, damaged line, recordings as .m4a only.
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
        found += _read_list(path, part, starts) if path.is_file() else _read_subset(root, path)
    # Not decoded by libsndfile, and in VoxCeleb2 all of them are: no case for the rejected ones.
    undecoded = [record["audio"] for record in found if record["audio"].endswith(".m4a")]
    if undecoded:
        raise records.DataError(
            f"{root} ({', '.join(names)}): {len(undecoded)} of {len(found)} recordings are .m4a "
            f"only, which cannot be decoded here; the first is {undecoded[0]}. Convert them, for "
            f"instance by: find {root} -name '*.m4a' -exec sh -c 'ffmpeg -nostdin -loglevel error "
            '-i "$1" -ac 1 -ar 16000 "${1%.m4a}.flac"\' sh {} \\;'
        )
    return records.RecordList(f"{root} ({', '.join(names)})", tuple(found))


def _record(path: str, speaker: str, video: str, name: str) -> records.Record:
    return {"id": f"{speaker}/{video}/{name}.wav", "audio": path, "speaker": speaker}


def _read_subset(root: pathlib.Path, folder: pathlib.Path) -> Iterator[records.Record]:
    speakers = []
    for inner in (folder, folder / "wav", folder / "aac"):
        if not speakers and inner.is_dir():
            speakers = [entry for entry in _folders(inner) if _SPEAKER.fullmatch(entry.name)]
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
        for video in _folders(speaker.path):
            paths = {}
            for entry in sorted(os.scandir(video.path), key=lambda entry: entry.name):
                stem, suffix = os.path.splitext(entry.name)  # noqa: PTH122 - a million of them
                # Beside what was made of it, the .m4a is not wanted.
                if suffix in io.SUFFIXES or (suffix == ".m4a" and stem not in paths):
                    paths[stem] = entry.path
            for stem, path in paths.items():
                yield _record(path, speaker.name, video.name, stem)


def _folders(path: str | os.PathLike) -> list[os.DirEntry]:
    return sorted((e for e in os.scandir(path) if e.is_dir()), key=lambda entry: entry.name)


def _read_list(
    path: pathlib.Path, part: str | None, starts: Sequence[pathlib.Path]
) -> Iterator[records.Record]:
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise records.DataError(f"{path} is not UTF-8 text ({error}).") from None
    count, parts = 0, set()
    for number, line in enumerate(lines, start=1):
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
    first = () if suffix == ".m4a" else (suffix,)
    for ending in (*first, *io.SUFFIXES, ".m4a"):
        for start in starts:
            found = f"{start}/{stem}{ending}"
            if os.path.exists(found):  # noqa: PTH110
                return found
    return f"{starts[0]}/{path}"
