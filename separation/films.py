"""What is seen of the speakers of recordings: their mouths frame by frame, and their faces."""

import collections
import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt8

from common.data import records, stored_faces
from common.data.embedded import visemes

FRAMES_PER_SECOND = visemes.FRAMES_PER_SECOND
MOUTH = (stored_faces.MOUTH_SIZE, stored_faces.MOUTH_SIZE)  # pictures
FACE = (stored_faces.FACE_SIZE, stored_faces.FACE_SIZE, 3)


class ByPath:
    """Films found by the end of their paths, which lists begin anywhere."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = [f"/{path}" for path in paths]
        self._named: dict[str, list[int]] = collections.defaultdict(list)
        for place, path in enumerate(paths):
            self._named[pathlib.PurePath(path).name].append(place)

    def ending(self, name: str) -> list[int]:
        """The places of the paths that end so: of one film, a place for each person in it."""
        places = self._named.get(pathlib.PurePath(name).name, ())
        return [place for place in places if self._paths[place].endswith(f"/{name}")]


@dataclasses.dataclass(frozen=True)
class Films:
    """The pictures beside the recordings of a source, at `sample_rate_hz`.

    Frame k of a film stands for the samples from k * `grain` on, a `grain` of them. `pictures`: how
    many portraits are shown at once. Without `with_lips` or `with_faces` those are not read.
    """

    source: records.Source
    sample_rate_hz: int
    pictures: int = 1
    with_lips: bool = True
    with_faces: bool = True

    @property
    def grain(self) -> int:
        """Samples of a frame."""
        return self.sample_rate_hz // FRAMES_PER_SECOND

    def frames(self, samples: int) -> int:
        """Of so many samples; the last one may stand for fewer."""
        return visemes.num_frames(samples, self.sample_rate_hz)

    def mouth(
        self, position: int, start: int, samples: int
    ) -> tuple[UInt8[np.ndarray, "v 96 96"], Bool[np.ndarray, "v"]]:
        """(the mouth over `samples` samples of a recording from `start` on, which frames there are)

        `start` is a multiple of `grain`. Raises OSError for a film that cannot be read, and
        records.DataError for pictures of another size.
        """
        count, first = self.frames(samples), start // self.grain
        found, there = np.zeros((count, *MOUTH), np.uint8), np.zeros(count, bool)
        if not self.with_lips:
            return found, there
        record = self.source[position]
        film = record.get("video")
        if film is None:
            return found, there
        film = _checked(record["id"], "video", np.asarray(film[first : first + count]), MOUTH)
        found[: len(film)], there[: len(film)] = film, True
        return found, there

    def face(
        self, position: int, rng: np.random.Generator | None
    ) -> tuple[UInt8[np.ndarray, "k 224 224 3"], Bool[np.ndarray, "k"]]:
        """(portraits of the speaker of a recording, which there are): drawn ones, or the first."""
        found = np.zeros((self.pictures, *FACE), np.uint8)
        there = np.zeros(self.pictures, bool)
        if not self.with_faces:
            return found, there
        record = self.source[position]
        faces = record.get("face")
        if faces is None:
            return found, there
        if not isinstance(faces, stored_faces.Portraits):  # which decode those that are asked for
            faces = np.asarray(faces)
        order = np.arange(len(faces)) if rng is None else rng.permutation(len(faces))
        faces = _checked(record["id"], "face", faces[order[: self.pictures]], FACE)
        found[: len(faces)], there[: len(faces)] = faces, True
        return found, there


def _checked(
    name: str, what: str, pictures: np.ndarray, shape: tuple[int, ...]
) -> UInt8[np.ndarray, "n *s"]:
    if pictures.shape[1:] != shape or pictures.dtype != np.uint8:
        size = "x".join(map(str, pictures.shape[1:]))
        raise records.DataError(
            f"{name}: its {what} has pictures of {size} {pictures.dtype}, not of "
            f"{'x'.join(map(str, shape))} uint8. Make it with python -m separation.prepare_video."
        )
    return pictures
