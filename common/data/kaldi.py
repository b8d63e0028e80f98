"""Kaldi data folders: wav.scp (with segments) or feats.scp, utt2spk, spk2utt, and what goes along.

Formats: https://kaldi-asr.org/doc/data_prep.html. A line is an id, blanks, and the rest. What an
scp file would have Kaldi run in a shell is never run: commands of a wav.scp that only decode are
understood (see commands.py), others are refused.
"""

import dataclasses
import functools
import itertools
import math
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

from common.data import ark, columns, commands, records, tables

_IN_ARCHIVE = re.compile(r".+:\d+")
_Place = TypeVar("_Place")


class _Row(NamedTuple):
    """One utterance."""

    id: str
    place: str  # path, or archive entry, that exists from the current directory
    speaker: str | None
    text: str | None = None
    start: float | None = None
    duration: float | None = None
    num_frames: int | None = None
    vad: str | None = None
    channel: str | int | None = None
    problem: str | None = None


class KaldiFolders:
    """The utterances of data folders: of audio, or with `hop_ms` of features."""

    def __init__(self, name: str, rows: Iterable[_Row], hop_ms: float | None):
        self.name, self.hop_ms = name, hop_ms
        self._rows = columns.Table()  # memory matters, there may be millions
        for row in rows:
            self._rows.append(row._asdict())

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> records.Record:
        record = self._rows[position]
        place, vad = record.pop("place"), record.pop("vad", None)
        if "problem" in record:
            return record
        if self.hop_ms is None:
            return record | {"audio": place}
        record |= {"features": ark.parse(place), "hop_ms": self.hop_ms}
        return record if vad is None else record | {"vad": ark.parse(vad)}


def read_folders(
    root: str | os.PathLike,
    names: Sequence[str],
    *,
    hop_ms: float | int | None = None,
    vad: bool = False,
    sample_rate_hz: int = 0,
) -> KaldiFolders:
    """The utterances of several data folders, in their order, as one source.

    Args:
      root: the folder that holds them; "" for the current one.
      names: the folders, below root or absolute. A speaker that occurs in several is one speaker.
      hop_ms: None reads recordings: wav.scp, and segments where there is one. Otherwise features,
        feats.scp, whose frames are so far apart; with utt2num_frames their number is checked.
      vad: gives the decisions of vad.scp beside the features.
      sample_rate_hz: at which recordings will be read: no command of wav.scp may go below it.

    A relative path in an scp file starts from the current directory, as in Kaldi, or where nothing
    is there, from the folder. An utterance of which utt2spk, or the list of recordings or features,
    knows nothing, or a table has two lines that differ, becomes a record with a "problem": indexing
    rejects and names it, and the second of an id that two folders have.
    Raises records.DataError: missing folder or file, damaged line, a command that does more than
    decode, utt2spk and spk2utt that differ, or utt2spk and features that have nothing in common.
    """
    if isinstance(names, str):
        raise TypeError(f"names must be a sequence of folders, not the string {names!r}")
    hop_ms = None if hop_ms is None else float(hop_ms)
    folders = [pathlib.Path(root).expanduser() / pathlib.Path(name).expanduser() for name in names]
    rows = []
    for folder in folders:
        if not folder.is_dir():
            raise records.DataError(
                f"There is no folder {folder}. config.data.root holds the Kaldi data folders that "
                "config.data.train and config.data.eval name."
            )
        rows.append(_read_folder(folder, hop_ms, vad, sample_rate_hz))
    return KaldiFolders(", ".join(map(str, folders)), itertools.chain.from_iterable(rows), hop_ms)


def _read_folder(
    folder: pathlib.Path, hop_ms: float | None, vad: bool, sample_rate_hz: int
) -> list[_Row]:
    repeated: dict[str, str] = {}
    speakers = _read_speakers(folder, repeated)
    if hop_ms is None:
        listed = _read_recordings(folder, sample_rate_hz, repeated)
    else:
        listed = _read_features(folder, vad, repeated)
    name = "feats.scp" if hop_ms is not None else "wav.scp"
    if (folder / "segments").is_file() and hop_ms is None:
        name = "segments"
    if not speakers.keys() & listed.keys():
        raise records.DataError(
            f"{folder}: utt2spk and {name} have no id in common: {next(iter(speakers), 'nothing')} "
            f"and {next(iter(listed), 'nothing')} come first. One belongs to other data."
        )
    texts = {}
    if (folder / "text").is_file():
        texts = _read_table(folder / "text", repeated, needs_value=False)
    rows = []
    for key, row in listed.items():
        problem = row.problem or (None if key in speakers else "missing speaker (not in utt2spk)")
        problem = repeated.get(key) or problem
        text = texts.get(key)
        rows.append(row._replace(speaker=speakers.get(key), text=text, problem=problem))
    what = "recording" if hop_ms is None else "features"
    for key in (key for key in speakers if key not in listed):
        rows.append(_Row(key, "", speakers[key], problem=f"missing {what} (not in {name})"))
    return rows


def _read_speakers(folder: pathlib.Path, repeated: dict[str, str]) -> dict[str, str]:
    """Utterance -> speaker, and spk2utt says the same where it is there."""
    listed = _read_table(folder / "utt2spk", repeated)
    for key, speaker in listed.items():
        if len(speaker.split()) != 1:
            raise records.DataError(
                f"{_place(folder / 'utt2spk', key)}: {key} has {speaker!r}, but a speaker is one "
                "word. Repair the line: utterance, blank, speaker."
            )
    speakers = {key: sys.intern(speaker) for key, speaker in listed.items()}
    if not (folder / "spk2utt").is_file():
        return speakers
    inverse = _read_table(folder / "spk2utt", {})
    pairs = {(key, speaker) for speaker, keys in inverse.items() for key in keys.split()}
    differ = sorted(row for row in pairs ^ set(speakers.items()) if row[0] not in repeated)
    if differ:
        shown = "; ".join(
            f"{key} of {speaker} is only in {'spk2utt' if (key, speaker) in pairs else 'utt2spk'}"
            for key, speaker in differ[:3]
        )
        raise records.DataError(
            f"{folder}: utt2spk and spk2utt differ in {len(differ)} pairs: {shown}. Write spk2utt "
            "anew: utils/utt2spk_to_spk2utt.pl utt2spk > spk2utt."
        )
    return speakers


def _read_recordings(
    folder: pathlib.Path, sample_rate_hz: int, repeated: dict[str, str]
) -> dict[str, _Row]:
    """What wav.scp lists, cut as segments say."""
    path = folder / "wav.scp"
    if not path.is_file():
        hint = "It holds features: set config.features.kind to given. "
        raise records.DataError(
            f"{folder} has no wav.scp. {hint if (folder / 'feats.scp').is_file() else ''}"
            "A data folder of recordings needs wav.scp and utt2spk."
        )
    places = _read_scp(path, _recording_place(folder, sample_rate_hz), repeated)
    if not (folder / "segments").is_file():
        return {key: _Row(key, p.path, None, channel=p.channel) for key, p in places.items()}
    found, path = {}, folder / "segments"
    for key, value in _read_table(path, repeated).items():
        fields = value.split()
        try:
            recording, start, end = fields[0], float(fields[1]), float(fields[2])
            valid = len(fields) == 3 and math.isfinite(start) and math.isfinite(end)
        except (IndexError, ValueError):
            valid = False
        if not valid:
            raise records.DataError(
                f"{_place(path, key)}: {key} has {value!r}, not: recording, start and end in "
                "seconds. Repair the line (channels are not supported)."
            )
        place, channel = places.get(recording, ("", None))
        problem = None if place else f"missing recording ({recording} is not in wav.scp)"
        problem = repeated.get(recording) or problem
        if start < 0 or (end != -1 and end <= start):
            problem = f"empty segment ({start:g} to {end:g} s)"
        duration = None if end == -1 else end - start  # -1: to the end of the recording
        found[key] = _Row(
            key, place, None, start=start, duration=duration, channel=channel, problem=problem
        )
    return found


def _read_features(folder: pathlib.Path, vad: bool, repeated: dict[str, str]) -> dict[str, _Row]:
    """What feats.scp lists, with the numbers of frames and the decisions where they are there."""
    path = folder / "feats.scp"
    if not path.is_file():
        hint = "It holds recordings: set config.features.kind to log_mel. "
        raise records.DataError(
            f"{folder} has no feats.scp. {hint if (folder / 'wav.scp').is_file() else ''}"
            "A data folder of features needs feats.scp and utt2spk."
        )
    if vad and not (folder / "vad.scp").is_file():
        raise records.DataError(
            f"{folder} has no vad.scp, which config.data.vad=kaldi needs. Run "
            "sid/compute_vad_decision.sh, or set config.data.vad to none."
        )
    places = _read_scp(path, _entry_place(folder), repeated)
    decisions = _read_scp(folder / "vad.scp", _entry_place(folder), repeated) if vad else {}
    counts, path = {}, folder / "utt2num_frames"
    if path.is_file():
        for key, value in _read_table(path, repeated).items():
            if not value.isdecimal():
                raise records.DataError(
                    f"{_place(path, key)}: {key} has {value!r} frames. Write the file anew "
                    "(utils/data/get_utt2num_frames.sh)."
                )
            counts[key] = int(value)
    found = {}
    for key, place in places.items():
        problem = "missing vad (not in vad.scp)" if vad and key not in decisions else None
        stated, decided = counts.get(key), decisions.get(key)
        found[key] = _Row(key, place, None, num_frames=stated, vad=decided, problem=problem)
    return found


def _read_scp(
    path: pathlib.Path, place: Callable[[str], _Place], repeated: dict[str, str]
) -> dict[str, _Place]:
    """Id -> place of an scp file."""
    listed = _read_table(path, repeated)
    places, refused = {}, []
    for key, value in listed.items():
        try:
            places[key] = place(value)
        except ValueError as error:
            if not ark.is_command(value):
                raise records.DataError(
                    f"{_place(path, key)}: {key} {value!r} {error}. Repair the line."
                ) from error
            refused.append(f"{key} {value} ({error})")
    if refused:
        raise records.DataError(
            f"{path}: {len(refused)} of {len(listed)} lines are commands that do more than decode "
            f"a recording, which are not run; the first: {refused[0]}. Write what they give to "
            "files (for instance by wav-copy or copy-feats) and list those."
        )
    return places


def _recording_place(
    folder: pathlib.Path, sample_rate_hz: int
) -> Callable[[str], commands.Decoding]:
    there = _finder(folder)

    def place(value: str) -> commands.Decoding:
        if value == "-":
            raise ValueError("names no file")
        if ark.is_command(value):
            decoding = commands.parse(value, sample_rate_hz)
            return decoding._replace(path=there(decoding.path))
        found = there(value)
        if _IN_ARCHIVE.fullmatch(value) and not os.path.exists(found):  # noqa: PTH110
            raise ValueError("is a recording inside an archive; write it to a file by wav-copy")
        return commands.Decoding(found)

    return place


def _entry_place(folder: pathlib.Path) -> Callable[[str], str]:
    there = _finder(folder)

    def place(value: str) -> str:
        entry = ark.parse(value)
        return str(dataclasses.replace(entry, path=there(entry.path)))

    return place


def _finder(folder: pathlib.Path) -> Callable[[str], str]:
    """A path of an scp file -> the path to open, made absolute: workers may start elsewhere."""

    @functools.cache  # many entries share an archive
    def there(path: str) -> str:
        for candidate in (path, os.path.join(folder, path)):  # noqa: PTH118 - fast for millions
            if os.path.isabs(path) or os.path.exists(candidate):  # noqa: PTH110, PTH117
                return os.path.abspath(candidate)  # noqa: PTH100
        return os.path.abspath(path)  # noqa: PTH100 - missing: named when it is read

    return there


def _read_table(
    path: pathlib.Path, repeated: dict[str, str], *, needs_value: bool = True
) -> dict[str, str]:
    """First word of every line -> the rest of it. Ids that have several and differing lines get
    the first one, and in `repeated` why they are not used."""
    if not path.is_file():
        raise records.DataError(
            f"There is no {path}. A Kaldi data folder needs it; see utils/validate_data_dir.sh."
        )
    table, differing = tables.read_pairs(path, "value", needs_value=needs_value)
    for key, number in differing.items():
        repeated[key] = f"repeated id (again in {path}, line {number})"
    return table


def _place(path: pathlib.Path, key: str) -> str:
    return f"{path}, line {tables.line_of(path, key)}"
