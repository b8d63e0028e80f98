"""Whose faces there are, and people who have both a voice and a face."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from common import errors
from common.data import records, splits
from generation import images

log = logging.getLogger(__name__)

_NAMED = 3  # people in a message
_ROOM = 1 << 30  # bytes of pictures that a process keeps


@runtime_checkable
class Faces(Protocol):
    """Pictures of people, random access. `fingerprint` changes when they do.

    `mirrored`: whether one that is turned round is one, too.
    """

    name: str
    fingerprint: str
    mirrored: bool

    @property
    def people(self) -> Sequence[str]:
        """Those of whom there are pictures."""

    def count(self, person: str) -> int:
        """Their number."""

    def __call__(self, person: str, number: int) -> UInt8[np.ndarray, "h w 3"]:
        """One of them. Raises images.ImageError."""


@dataclasses.dataclass
class Small:
    """Faces at one size, read once: at 64 x 64 in colour ten thousand take 123 MB.

    What there is no room for is read each time. It pickles without what it has read.
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
        if (found := self._kept.get((person, number))) is None:
            found = images.resized(self.faces(person, number), self.size, self.channels)
            if len(self._kept) * found.nbytes < _ROOM:
                self._kept[person, number] = found
        return found

    def drawn(
        self, person: str, rng: np.random.Generator, *, mirrored: bool
    ) -> UInt8[np.ndarray, "h w c"]:
        """Any picture of a person; with `mirrored` turned round or not. Consumes two numbers."""
        number, turned = rng.integers(self.count(person)), rng.integers(2)
        face = self(person, int(number))
        return self.turned(face) if mirrored and turned else face

    def turned(self, face: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w c"]:
        """A picture with its sides exchanged, where that is one, too."""
        return face[:, ::-1] if self.faces.mirrored else face


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
