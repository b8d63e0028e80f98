"""Faces followed through a film: one track a person and shot."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from common.video.finding import Face, overlap

_LEAST_OVERLAP = 0.2  # of a face and where it was last seen
_MOST_LOST = 25  # places of the grid without a sight
_CUT = 28  # of 255: the mean difference of two small pictures in which nothing stayed


@dataclasses.dataclass(frozen=True)
class Track:
    """A person from place `first` of the grid on, a value for every place.

    `boxes` hold left, top, width and height; `seen` says where the finder did see the face, the
    rest lies between two sights.
    """

    first: int
    boxes: Float[np.ndarray, "n 4"]
    landmarks: Float[np.ndarray, "n p 2"] | None
    seen: Bool[np.ndarray, "n"]
    person: str | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def last(self) -> int:
        """The first place after it."""
        return self.first + len(self)

    def until(self, last: int) -> "Track":
        """What of it comes before a place."""
        count = max(0, last - self.first)
        marks = None if self.landmarks is None else self.landmarks[:count]
        return dataclasses.replace(
            self, boxes=self.boxes[:count], landmarks=marks, seen=self.seen[:count]
        )


class _Open:
    """A track that may go on."""

    def __init__(self, number: int, face: Face) -> None:
        self.sights = [(number, face)]

    @property
    def face(self) -> Face:
        return self.sights[-1][1]


class Tracker:
    """Joins the faces of pictures in their order.

    A face continues the track whose last box it overlaps most, or that of its `person`. A track
    ends after a second without a sight, and where the shot ends.
    """

    def __init__(self, every: float | int) -> None:
        self._every = every
        self._open: list[_Open] = []
        self._done: list[Track] = []
        self._shot = 0
        self._small: np.ndarray | None = None

    def is_cut(self, small: np.ndarray) -> bool:
        """Whether a picture, uint8[h, w] of a few pixels, begins another shot; to be asked of each
        in its order."""
        small, before = small.astype(np.int16), self._small
        self._small = small
        if before is None or before.shape != small.shape:  # some films change their size
            return before is not None
        return float(np.abs(small - before).mean()) > _CUT

    def cut(self, number: int) -> None:
        """Another shot begins at a place."""
        self._close(self._open, number)
        self._open, self._shot = [], number

    def add(self, number: int, faces: Sequence[Face]) -> None:
        """The faces at a place."""
        late = [track for track in self._open if number - track.sights[-1][0] > _MOST_LOST]
        self._close(late, number)
        self._open = [track for track in self._open if track not in late]
        pairs = [
            (overlap(track.face.box, face.box), t, f)
            for t, track in enumerate(self._open)
            for f, face in enumerate(faces)
            if track.face.person == face.person
        ]
        tracks, taken = {}, set()
        for share, t, f in sorted(pairs, key=lambda pair: (-pair[0], pair[1:])):
            known = faces[f].person is not None
            if (known or share > _LEAST_OVERLAP) and t not in tracks and f not in taken:
                tracks[t] = f
                taken.add(f)
        for t, f in tracks.items():
            self._open[t].sights.append((number, faces[f]))
        self._open += [_Open(number, face) for f, face in enumerate(faces) if f not in taken]

    def finish(self, end: int) -> list[Track]:
        """All tracks of a film that ends before a place, in the order of their beginnings."""
        self.cut(end)
        return sorted(self._done, key=lambda track: (track.first, *track.boxes[0]))

    def _close(self, some: Sequence[_Open], end: int) -> None:
        for track in some:
            numbers = np.array([number for number, _ in track.sights])
            # Between two questions nobody looked, and one may have missed the face: at the edges
            # of a shot it was there.
            near = 2 * self._every
            first = self._shot if numbers[0] - self._shot <= near else numbers[0]
            last = end if end - numbers[-1] <= near else numbers[-1] + 1
            boxes = np.array([face.box for _, face in track.sights], np.float64)
            marks = [face.landmarks for _, face in track.sights]
            whole = all(m is not None and len(m) == len(marks[0]) for m in marks)
            places = np.arange(first, last)
            self._done.append(
                Track(
                    int(first),
                    _between(places, numbers, boxes),
                    _between(places, numbers, np.array(marks, np.float64)) if whole else None,
                    np.isin(places, numbers),
                    track.face.person,
                )
            )


def _between(places: np.ndarray, numbers: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values at all places from those at some of them: linear between, held outside."""
    flat = values.reshape(len(values), -1)
    columns = [np.interp(places, numbers, column) for column in flat.T]
    return np.stack(columns, 1).reshape(len(places), *values.shape[1:])
