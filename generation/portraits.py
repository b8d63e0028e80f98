"""Faces of people: folders of pictures, films, the drawings of the embedded corpus."""

import dataclasses
import functools
import hashlib
import logging
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from common import cache, errors
from common.data import embedded, folders, indexing, records, splits, tables, voxceleb
from common.data.embedded import talking
from generation import images

log = logging.getLogger(__name__)

KINDS = ("embedded", "folder", "films")


@dataclasses.dataclass(frozen=True)
class EmbeddedFaces:
    """The drawn portraits of the embedded corpus's voices; drawings, no people."""

    portraits: talking.Portraits
    mirrored = True

    @property
    def name(self) -> str:
        return "the portraits of the embedded corpus"

    @property
    def fingerprint(self) -> str:
        return self.portraits.fingerprint

    @property
    def people(self) -> tuple[str, ...]:
        return tuple(self.portraits.lines)

    def count(self, person: str) -> int:
        del person
        return talking.faces.PORTRAITS

    def __call__(self, person: str, number: int) -> UInt8[np.ndarray, "h w 3"]:
        return self.portraits[person][number]


@dataclasses.dataclass(frozen=True)
class FolderFaces:
    """ROOT/<person>/*.jpeg: the usable ones of `files`; `others` have pictures, too."""

    root: str
    files: Mapping[str, tuple[str, ...]]
    others: tuple[str, ...]
    mirrored = True

    @property
    def name(self) -> str:
        return self.root

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of the names of the files, below their root."""
        listed = sorted(os.path.relpath(p, self.root) for some in self.files.values() for p in some)
        digest = hashlib.sha256("\n".join(listed).encode("utf-8", "surrogateescape"))
        return digest.hexdigest()[:16]

    @property
    def people(self) -> tuple[str, ...]:
        return (*self.files, *self.others)

    def count(self, person: str) -> int:
        return len(self.files[person])

    def __call__(self, person: str, number: int) -> UInt8[np.ndarray, "h w 3"]:
        return images.read(pathlib.Path(self.files[person][number]))


@dataclasses.dataclass(frozen=True)
class FilmFaces:
    """The portraits that the records of films have beside their sound."""

    source: records.Source
    places: Mapping[str, tuple[tuple[int, int], ...]]  # of a person: (record, portrait)
    fingerprint: str
    mirrored = True

    @property
    def name(self) -> str:
        return f"the portraits of {self.source.name}"

    @property
    def people(self) -> tuple[str, ...]:
        return tuple(self.places)

    def count(self, person: str) -> int:
        return len(self.places[person])

    def __call__(self, person: str, number: int) -> UInt8[np.ndarray, "h w 3"]:
        position, portrait = self.places[person][number]
        record = self.source[position]
        try:
            return np.asarray(record["face"][portrait])
        except OSError as error:
            raise images.ImageError(record["id"], f"its portraits cannot be read ({error}).") from (
                error
            )


def read_names(path: str) -> dict[str, str]:
    """The folder of pictures of every speaker: the first two columns of a table with a header.

    As vox1_meta.csv: `VoxCeleb1 ID`, `VGGFace1 ID`, ..., between tabs or commas. Of speakers who
    are given one folder the first one has it, in all parts of the data, and a warning names the
    others. Raises UserError.
    """
    lines = tables.read_lines(pathlib.Path(path).expanduser(), errors.UserError)
    separator = "\t" if "\t" in (lines or [""])[0] else ","
    found: dict[str, str] = {}
    owners: dict[str, str] = {}
    for number, line in enumerate(lines[1:], start=2):
        fields = [field.strip() for field in line.split(separator)]
        if not any(fields):
            continue
        if len(fields) < 2 or not (fields[0] and fields[1]):
            raise errors.UserError(
                f"{path}, line {number}: {line!r} does not name a speaker and a folder of "
                "pictures, as vox1_meta.csv does. Mend the line."
            )
        speaker, folder = fields[:2]
        if found.setdefault(speaker, folder) != folder:
            raise errors.UserError(
                f"{path}, line {number}: {speaker} has another folder here than above."
            )
        if (owner := owners.setdefault(folder, speaker)) != speaker:
            log.warning(
                "%s, line %d: %s and %s are given one folder, %s: it is that of %s alone.",
                *(path, number, owner, speaker, folder, owner),
            )
    if not found:
        raise errors.UserError(f"{path} names nobody below its first line.")
    return {speaker: folder for folder, speaker in owners.items()}


def read_genders(path: str) -> dict[str, str]:
    """ "f" or "m" of the speakers of such a table; of none where it has no column for it."""
    return voxceleb.read_genders(pathlib.Path(path).expanduser()) if path else {}


def read_folder(
    split: splits.Split, config: Any, workdir: pathlib.Path, names: Mapping[str, str]
) -> FolderFaces:
    """The pictures of `config.faces.root` of the speakers of a split, each looked at once.

    `names`: the folder of a speaker, where it is called otherwise. What cannot be used is counted
    in a warning and listed in DIR/rejected.tsv. Raises UserError: no folder of people, or more than
    `config.data.max_bad_share` of the pictures unusable.
    """
    root = pathlib.Path(config.faces.root).expanduser()
    if not config.faces.root:
        raise errors.UserError("config.faces.root is empty: name the folder of <person>/*.jpeg.")
    try:
        inside = [entry for entry in folders.visible(root) if entry.is_dir()]
    except OSError as error:
        raise errors.UserError(
            f"config.faces.root={root} cannot be read ({error.strerror}): name the folder of "
            "<person>/*.jpeg."
        ) from error
    if not inside:
        raise errors.UserError(
            f"config.faces.root={root} holds no folders: it takes one of pictures for each person."
        )
    called = {folder: speaker for speaker, folder in names.items()}
    of = {entry.name: entry for entry in inside if entry.name not in called}
    of |= {called[entry.name]: entry for entry in inside if entry.name in called}
    heard = set(splits.speakers_of(split))
    rows = [row for person in sorted(heard & set(of)) for row in _pictures(person, of[person])]
    usable: dict[str, list[str]] = {}
    if rows:
        source = records.RecordList(f"{root} ({split.name})", rows)
        index = indexing.build_index(
            source,
            cache=cache.folder() / "index",
            rejected_tsv=workdir / "rejected.tsv",
            sample_rate_hz=1,  # of a picture there is one, however many pixels it has
            min_seconds=0,
            max_seconds=math.inf,
            require_text=False,
            max_bad_share=config.data.max_bad_share,
            num_workers=os.cpu_count() or 1,
            progress=jax.process_index() == 0,
            inspect=images.inspect_picture,
        )
        for position in index.positions:
            row = source[int(position)]
            usable.setdefault(row["speaker"], []).append(row["face"])
    files = {person: tuple(paths) for person, paths in usable.items()}
    return FolderFaces(str(root), files, tuple(sorted(set(of) - heard)))


def _pictures(person: str, folder: os.DirEntry) -> Sequence[records.Record]:
    """A record of each picture of a folder, or one that says why there is none."""
    try:
        found = folders.visible(folder.path)
    except OSError as error:
        return [folders.unreadable(folder.path, error)]
    return [
        {"id": f"{folder.name}/{entry.name}", "face": entry.path, "speaker": person}
        for entry in found
        if os.path.splitext(entry.name)[1].lower() in images.SUFFIXES  # noqa: PTH122
    ]


def of_films(split: splits.Split) -> FilmFaces:
    """The portraits of the people of a split. Raises UserError for recordings without pictures."""
    places: dict[str, list[tuple[int, int]]] = {}
    for position, speaker in zip(split.index.positions.tolist(), splits.speakers_of(split)):
        face = split.source[position].get("face")
        if face is None:
            raise errors.UserError(
                f"config.faces.kind=films takes the portraits of the recordings, and those of "
                f"{split.source.name} have none: it goes with config.data.kind=films (of "
                "separation.prepare_video), voxceleb_films or embedded_faces."
            )
        places.setdefault(speaker, []).extend((position, k) for k in range(len(face)))
    return FilmFaces(split.source, {p: tuple(some) for p, some in places.items()}, split.identity)


def of_embedded(split: splits.Split) -> EmbeddedFaces:
    """The portraits of the voices of the embedded corpus. Raises UserError for other recordings."""
    if not isinstance(split.source, embedded.EmbeddedCorpus):
        raise errors.UserError(
            "config.faces.kind=embedded has the faces of the voices of config.data.kind=embedded, "
            "of no others."
        )
    folder = split.source.folder
    drawn = talking.draw(folder.parent, mouths=False)
    return EmbeddedFaces(talking.Portraits(drawn / folder.name))
