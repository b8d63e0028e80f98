"""Whose faces there are, and people who have both a voice and a face."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from common import errors
from common.data import embedded, records, splits
from common.data.embedded import talking
from generation import images

log = logging.getLogger(__name__)

_NAMED = 3  # people in a message


@runtime_checkable
class Faces(Protocol):
    """Pictures of people, random access. `fingerprint` changes when they do."""

    name: str
    fingerprint: str

    @property
    def people(self) -> Sequence[str]:
        """Those of whom there are pictures."""

    def count(self, person: str) -> int:
        """Their number."""

    def __call__(self, person: str, number: int) -> UInt8[np.ndarray, "h w 3"]:
        """One of them. Raises images.ImageError."""


@dataclasses.dataclass(frozen=True)
class EmbeddedFaces:
    """The drawn portraits of the embedded corpus's voices; drawings, no people."""

    portraits: talking.Portraits

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


@dataclasses.dataclass
class Small:
    """Faces at one size, read once: at 64 x 64 in colour ten thousand take 123 MB.

    It pickles without what it has read.
    """

    faces: Faces
    size: int
    channels: int
    _kept: dict[tuple[str, int], np.ndarray] = dataclasses.field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}

    @property
    def identity(self) -> str:
        """Changes with the pictures and what is made of them."""
        return f"{self.faces.fingerprint} {self.size} {self.channels}"

    def count(self, person: str) -> int:
        return self.faces.count(person)

    def __call__(self, person: str, number: int) -> UInt8[np.ndarray, "h w c"]:
        """One picture of a person. Raises images.ImageError."""
        if (person, number) not in self._kept:
            found = self.faces(person, number)
            self._kept[person, number] = images.resized(found, self.size, self.channels)
        return self._kept[person, number]


def open_faces(split: splits.Split, settings: Any) -> Faces:
    """The faces that `config.faces` describes, of the people of a split."""
    if settings.kind != "embedded":
        raise errors.UserError(f"config.faces.kind={settings.kind!r} is unknown; choose embedded.")
    if not isinstance(split.source, embedded.EmbeddedCorpus):
        raise errors.UserError(
            "config.faces.kind=embedded has the faces of the voices of config.data.kind=embedded, "
            "of no others."
        )
    folder = split.source.folder
    drawn = talking.draw(folder.parent, mouths=False)
    return EmbeddedFaces(talking.Portraits(drawn / folder.name))


def with_faces(split: splits.Split, faces: Faces) -> splits.Split:
    """The recordings of people who have a face; who lacks one of the two is named in a warning.

    Raises UserError if there are fewer than two.
    """
    speakers = np.array(splits.speakers_of(split))
    heard, seen = set(speakers.tolist()), set(faces.people)
    for lacking, what in ((heard - seen, "a face"), (seen - heard, "a voice")):
        if lacking:
            some = ", ".join(sorted(lacking)[:_NAMED])
            log.warning(
                "%s: %d people without %s are left out: %s%s",
                *(split.name, len(lacking), what, some, ", ..." if len(lacking) > _NAMED else ""),
            )
    if len(heard & seen) < 2:
        raise errors.UserError(
            f"{split.source.name} and {faces.name} have {len(heard & seen)} people in common, and "
            "two are needed at least. The speakers of the recordings have to bear the same names "
            "as the people of the pictures."
        )
    both = np.isin(speakers, sorted(heard & seen))
    index = records.Index(
        split.index.positions[both], split.index.lengths[both], split.index.rate_hz
    )
    return splits.Split(split.name, split.source, index)
