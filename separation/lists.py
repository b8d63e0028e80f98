"""Fixed lists of mixtures, read as they were published: who talks, how loud, known by what.

Forms, told apart by the columns of the first line (fields between tabs or commas):
  mix, source1, source2, speaker1, speaker2, s1_over_s2_db; genders, noise, s1_over_noise_db
      Source 1 scaled to an RMS of 0.05 and source 2 so far below it, both cut to the shorter;
      noise, where it is not "-", cut or repeated from its start and scaled likewise. Each source is
      the target once.
  mixture_ID, mixture_path, source_1_path, source_2_path, ...; enrolment_1_path, speaker_1,
  utterance_1, ..., noisy (of the enrolment: 1), genders
      As LibriMix writes it: the files are taken as they are, and what the mixture holds beside
      its sources is noise. Each source is the target once; where there are columns of enrolments,
      those sources that have one. A source without a path is silent: its speaker is absent.
      Without `speaker_k` the file's name, or else the k-th part (between "_") of mixture_ID, is
      an utterance of LibriSpeech ("84-121123-0000"), whose first number is the speaker.
  clean_utterance, embedding_utterance, interference_utterance
      Google's lists of VoiceFilter: ids of a LibriSpeech tree (84-121123-0000) or of a VCTK tree
      (p225_001: wav48/p225/p225_001.wav; of VCTK 0.92 wav48_silence_trimmed/p225/p225_001_mic1.flac
      or, where that microphone is missing, _mic2). The interference is cut or filled up with zeros
      to the length of the clean utterance, and added as it is.
  video1, video2, s1_over_s2_db; mix, speaker1, speaker2, genders
      Films of one person each that `separation.prepare_video` prepared, by paths that may begin
      anywhere; mixed by the rule of the first form. For networks that see, and for those alone.

Who has no enrolment in the list is known by another recording of the same speaker in it, always the
same one.
"""

import contextlib
import csv
import dataclasses
import functools
import io
import math
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence

from common.data import librispeech, records, tables
from separation import films as films_lib

_RMS = 0.05
_PLAIN = ("mix", "source1", "source2", "speaker1", "speaker2", "s1_over_s2_db")
_LIBRIMIX = ("mixture_ID", "mixture_path", "source_1_path")
_TUPLES = ("clean_utterance", "embedding_utterance", "interference_utterance")
_FILMS = ("video1", "video2", "s1_over_s2_db")
_UTTERANCE = re.compile(r"(?P<speaker>\d+)-(?P<chapter>\d+)-\d+")
_VCTK = re.compile(r"(?P<speaker>[ps]\d+)_\d+")  # s5 is the one who is no p
# Where an utterance of VCTK may lie in a tree: as published in 2012 and 2019, then by others, who
# resampled it or took the folder of one microphone out.
_VCTK_ROOTS = (".", "VCTK-Corpus", "VCTK-Corpus-0.92", "VCTK")
_VCTK_FOLDERS = ("wav48_silence_trimmed", "wav48", "wav16", ".")
_VCTK_ENDINGS = ("_mic1.flac", "_mic2.flac", "_mic1.wav", "_mic2.wav", ".wav", ".flac")


@dataclasses.dataclass(frozen=True)
class Voice:
    """One of a mixture.

    `path` is "" where it says nothing; `utterance` what is heard, which may lie in several files;
    `rms` what the whole recording is scaled to, None: it is taken as it is.
    """

    path: str
    speaker: str
    utterance: str
    rms: float | None = None


@dataclasses.dataclass(frozen=True)
class Entry:
    """A mixture with one of its voices, the first, as the target.

    `mixture` and `enrolment` are paths, "" where there is none. Without a file of the mixture its
    length is that of the target (`whole_target`) or of the shortest voice. `noise` is scaled to
    `noise_rms`.
    """

    id: str
    line: int
    voices: tuple[Voice, ...]
    enrolment: str = ""
    mixture: str = ""
    noise: str = ""
    noise_rms: float = 0.0
    genders: str = ""
    noisy: bool = False  # the enrolment
    whole_target: bool = False

    @property
    def paths(self) -> Iterator[str]:
        """Of all that has to be there."""
        found = (*(voice.path for voice in self.voices), self.enrolment, self.mixture, self.noise)
        return filter(None, found)


@dataclasses.dataclass(frozen=True)
class FixedList:
    """The entries of a list and the folder at which relative paths start."""

    path: pathlib.Path
    root: pathlib.Path
    entries: tuple[Entry, ...]

    def resolve(self, path: str) -> pathlib.Path:
        """Where a file of the list lies."""
        return self.root / path


def named(texts: Sequence[str]) -> dict[str, pathlib.Path]:
    """The lists of `config.data.lists` by name: each "NAME=FILE", or a file and its stem.

    Raises records.DataError for two of one name.
    """
    found: dict[str, pathlib.Path] = {}
    for text in texts:
        name, given, path = text.partition("=")
        if not given or "/" in name:
            name, path = pathlib.PurePath(text).stem, text
        if name in found:
            raise records.DataError(
                f"config.data.lists has two lists {name!r}: give them names, as NAME=FILE."
            )
        found[name] = pathlib.Path(path).expanduser()
    return found


def names_films(path: pathlib.Path) -> bool:
    """Whether a list is one of films. Raises records.DataError: there is none."""
    return set(_FILMS) <= set(_rows(path)[0])


def read_films(path: pathlib.Path, source: records.Source) -> tuple[FixedList, Mapping[str, int]]:
    """A list of films, and the positions in `source` of those who are seen in them, by their paths.

    Raises records.DataError: no such list, a damaged line, films that are not among the records or
    have several people in view.
    """
    rows = _rows(path)[1]
    by_path = films_lib.ByPath([source[i].get("path", "") for i in range(len(source))])
    found: dict[str, int] = {}
    wrong: dict[str, str] = {}
    for line, row in rows:
        for name in map(row.get, _FILMS[:2]):
            places = by_path.ending(name)
            if len(places) == 1:
                found[name] = places[0]
            else:
                count = f"{len(places)} people are" if places else "nobody is"
                wrong.setdefault(name, f"{path}, line {line}: {count} in view in {name!r}")
    if wrong:
        raise records.DataError(
            f"{next(iter(wrong.values()))}, says {source.name} ({len(wrong)} of "
            f"{len(found) + len(wrong)} films of the list are like that). Prepare films of one "
            "person each by python -m separation.prepare_video."
        )
    known = {name: source[position] for name, position in found.items()}
    entries = _entries(path, rows, functools.partial(_filmed, known))
    return FixedList(path, path.parent, _with_enrolments(entries)), found


def read(path: pathlib.Path, root: pathlib.Path | None) -> FixedList:
    """A list of recordings. Relative paths start at `root`, or else at the nearest folder above the
    list where the first file of it is; utterances of a LibriSpeech tree are looked for in `root`.

    Raises records.DataError: no such list, no such form, a damaged line, files that are missing.
    """
    header, rows = _rows(path)
    forms: tuple[tuple[Sequence[str], Callable], ...] = (
        (_PLAIN, _plain),
        (_LIBRIMIX, _librimix),
        (_TUPLES, functools.partial(_tuples, root)),
    )
    read_row = next((fn for names, fn in forms if set(names) <= set(header)), None)
    if read_row is None:
        known = "; ".join(", ".join(names) for names in (*(names for names, _ in forms), _FILMS))
        raise records.DataError(
            f"{path}: the columns {', '.join(header)} are of no form that is known. There has to "
            f"be one of: {known}."
        )
    entries = _entries(path, rows, read_row)
    if root is None:
        first = next(entries[0].paths)
        folders = path.absolute().parents
        root = next((folder for folder in folders if (folder / first).is_file()), folders[0])
    found = FixedList(path, root, _with_genders(root, _with_enrolments(entries)))
    _check_files(found)
    return found


def _entries(
    path: pathlib.Path, rows: Sequence[tuple[int, dict[str, str]]], read_row: Callable
) -> list[Entry]:
    found: list[Entry] = []
    for line, row in rows:
        try:
            found += read_row(line, row)
        except ValueError as error:
            raise records.DataError(f"{path}, line {line}: {error}") from None
    if not found:
        raise records.DataError(f"{path} holds no mixtures.")
    return found


def _rows(path: pathlib.Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    if not path.is_file():
        raise records.DataError(f"There is no list {path}. Check config.data.lists.")
    text = tables.read_text(path)
    tab = "\t" in text.partition("\n")[0]
    kind = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tab else {}
    reader = csv.reader(io.StringIO(text, newline=""), **kind)
    header = [name.strip() for name in next(reader, [])]
    rows = []
    for fields in reader:
        if not fields:
            continue
        if len(fields) != len(header):
            raise records.DataError(
                f"{path}, line {reader.line_num}: {len(fields)} fields, but the header has "
                f"{len(header)}. Repair the line."
            )
        row = dict(zip(header, map(str.strip, fields), strict=True))
        rows.append((reader.line_num, row))
    return header, rows


def _filmed(
    known: Mapping[str, records.Record], line: int, row: Mapping[str, str]
) -> Iterator[Entry]:
    """By what the records of the films say, where the list does not say it."""
    plain = {"mix": f"line {line}", **row}
    for k in (1, 2):
        name = row[f"video{k}"]
        plain[f"source{k}"] = name
        plain[f"speaker{k}"] = row.get(f"speaker{k}") or known[name].get("speaker") or name
    told = [known[row[f"video{k}"]].get("gender") or "" for k in (1, 2)]
    plain["genders"] = row.get("genders") or ("".join(told) if all(told) else "")
    return _plain(line, plain)


def _plain(line: int, row: Mapping[str, str]) -> Iterator[Entry]:
    for name in ("source1", "source2"):
        if not row[name]:
            raise ValueError(f"{name} is empty: name its file.")
    ratio = _number(row, "s1_over_s2_db")
    noise = "" if row.get("noise", "-") in ("", "-") else row["noise"]
    noise_rms = _below(_number(row, "s1_over_noise_db")) if noise else 0.0
    voices = [
        Voice(row[f"source{k}"], row[f"speaker{k}"], row[f"source{k}"], rms)
        for k, rms in ((1, _RMS), (2, _below(ratio)))
    ]
    genders = "".join(sorted(row.get("genders", "").replace("-", "")))
    for target in (0, 1):
        order = (voices[target], voices[1 - target])
        yield Entry(*(row["mix"], line, order), noise=noise, noise_rms=noise_rms, genders=genders)


def _below(decibels: float) -> float:
    return _RMS * 10 ** (-decibels / 20)


def _number(row: Mapping[str, str], name: str) -> float:
    with contextlib.suppress(ValueError):
        if math.isfinite(number := float(row.get(name, ""))):
            return number
    raise ValueError(f"{name} is {row.get(name)!r}, which is no number. Repair it.")


def _librimix(line: int, row: Mapping[str, str]) -> Iterator[Entry]:
    count = sum(re.fullmatch(r"source_\d+_path", name) is not None for name in row)
    parts = row["mixture_ID"].split("_")
    voices = []
    for k in range(1, count + 1):
        path = row[f"source_{k}_path"]
        stem = pathlib.PurePath(path).stem
        names = (row.get(f"utterance_{k}", ""), stem, *parts[k - 1 : k])
        found = next((name for name in names if _UTTERANCE.fullmatch(name)), None)
        speaker = row.get(f"speaker_{k}") or (found or "").partition("-")[0]
        if path and not speaker:
            raise ValueError(
                f"neither {stem!r} nor {row['mixture_ID']!r} says who source {k} is, as "
                f"LibriSpeech's 84-121123-0000 does: add a column speaker_{k}."
            )
        voices.append(Voice(path, speaker, names[0] or found or path))
    if not row["mixture_path"] and not any(voice.path for voice in voices):
        raise ValueError("it names neither a mixture nor a source. Name one.")
    enrolments = [row.get(f"enrolment_{k}_path", "") for k in range(1, count + 1)]
    given = any(name.startswith("enrolment_") for name in row)
    for k, voice in enumerate(voices):
        if enrolments[k] or (not given and voice.path):
            # A source that says nothing is left out, unless it is the target.
            others = [v for v in voices[:k] + voices[k + 1 :] if v.path]
            yield Entry(
                row["mixture_ID"],
                line,
                (voice, *others),
                enrolment=enrolments[k],
                mixture=row["mixture_path"],
                genders=row.get("genders", ""),
                noisy=row.get("noisy") == "1",
            )


def _tuples(root: pathlib.Path | None, line: int, row: Mapping[str, str]) -> Iterator[Entry]:
    if root is None:
        raise ValueError(
            "its utterances are those of a LibriSpeech or VCTK tree: set config.data.audio_root to "
            "it."
        )
    clean, embedding, interference = (row[name] for name in _TUPLES)
    target, other = (
        Voice(_in_tree(root, name), re.split("[-_]", name)[0], name)
        for name in (clean, interference)
    )
    yield Entry(
        f"{clean}.{interference}",
        line,
        (target, other),
        enrolment=_in_tree(root, embedding),
        whole_target=True,
    )


@functools.cache
def _subsets(root: pathlib.Path) -> tuple[str, ...]:
    """The folders of subsets, in the order in which an utterance is looked for in them."""
    if (root / "LibriSpeech").is_dir():
        return tuple(f"LibriSpeech/{name}" for name in _subsets(root / "LibriSpeech"))
    return (".", *sorted(entry.name for entry in os.scandir(root) if entry.is_dir()))


@functools.cache
def _vctk(root: pathlib.Path) -> tuple[str, ...]:
    """The folders that have the folders of VCTK's speakers, in the order of the search."""
    names = (f"{above}/{folder}" for above in _VCTK_ROOTS for folder in _VCTK_FOLDERS)
    return tuple(name for name in names if (root / name).is_dir())


def _vctk_genders(corpus: pathlib.Path) -> dict[str, str]:
    """ "f" or "m" of the speakers by speaker-info.txt (ID, age, gender, ...), whose IDs are 225 in
    2012 and p225 in 2019; empty where there is no such file."""
    path = corpus / "speaker-info.txt"
    if not path.is_file():
        return {}
    rows = [line.split() for line in path.read_bytes().decode("utf-8", "replace").splitlines()]
    told = {row[0]: row[2].lower() for row in rows if len(row) > 2 and row[2] in ("F", "M")}
    return {f"p{name}" if name.isdigit() else name: gender for name, gender in told.items()}


def _in_tree(root: pathlib.Path, utterance: str) -> str:
    """The path of an utterance below a tree of LibriSpeech, a subset of it, or one of VCTK."""
    if not root.is_dir():
        raise records.DataError(f"There is no folder {root}: see config.data.audio_root.")
    if found := _UTTERANCE.fullmatch(utterance):
        inside = f"{found['speaker']}/{found['chapter']}/{utterance}.flac"
        paths = [f"{subset}/{inside}" for subset in _subsets(root)]
    elif found := _VCTK.fullmatch(utterance):
        inside = f"wav48/{found['speaker']}/{utterance}.wav"
        stems = [f"{folder}/{found['speaker']}/{utterance}" for folder in _vctk(root)]
        paths = [f"{stem}{ending}" for stem in stems for ending in _VCTK_ENDINGS]
    else:
        raise ValueError(
            f"{utterance!r} is no utterance of LibriSpeech (84-121123-0000) or VCTK (p225_001)."
        )
    # One that is nowhere is said with all that are missing.
    there = next((path for path in paths if (root / path).is_file()), inside)
    return str(pathlib.PurePosixPath(there))


def _with_enrolments(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """Each with an enrolment, where its speaker has another recording in the list."""
    of_speaker: dict[str, dict[str, str]] = {}
    for entry in entries:
        for voice in entry.voices:
            if voice.path:
                of_speaker.setdefault(voice.speaker, {}).setdefault(voice.utterance, voice.path)
    found = []
    for entry in entries:
        target = entry.voices[0]
        here = {voice.utterance for voice in entry.voices}
        others = of_speaker.get(target.speaker, {})
        names = sorted(set(others) - here)
        if not entry.enrolment and names:
            place = zlib.crc32(f"{entry.id} {target.utterance}".encode()) % len(names)
            entry = dataclasses.replace(entry, enrolment=others[names[place]])
        found.append(entry)
    return tuple(found)


def _with_genders(root: pathlib.Path, entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
    """Those of LibriSpeech's or VCTK's speakers, where the list does not tell them and their tree
    does."""
    known = librispeech.genders(root) or librispeech.genders(root / "LibriSpeech")
    known = known or next(filter(None, (_vctk_genders(root / name) for name in _VCTK_ROOTS)), {})

    def told(entry: Entry) -> str:
        found = [known.get(voice.speaker, "") for voice in entry.voices]
        return entry.genders or ("".join(sorted(found)) if all(found) else "")

    return tuple(dataclasses.replace(entry, genders=told(entry)) for entry in entries)


def _check_files(found: FixedList) -> None:
    """One DataError for all files that are not there, with the first."""
    lines: dict[str, int] = {}
    for entry in found.entries:
        for path in entry.paths:
            lines.setdefault(path, entry.line)
    missing = [path for path in lines if not found.resolve(path).is_file()]
    if missing:
        first = found.resolve(missing[0])
        raise records.DataError(
            f"{found.path}, line {lines[missing[0]]}: there is no file {first} ({len(missing)} of "
            f"{len(lines)} files of the list are missing). Paths start at {found.root}: set "
            "config.data.audio_root if that is not their folder."
        )
