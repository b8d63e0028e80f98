"""Faces in a picture: where a finder sees them, and the tables in which other tools say it."""

import dataclasses
import functools
import pathlib
import threading
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from common import errors
from common.video.frames import Picture

# Of eyes 1 apart, from 112 portraits with known eyes in which the cascade below found the face:
# its box is 2.58 (+- .13) wide, its centre .29 (+- .03) below the eyes.
BOX_PER_EYES, BOX_BELOW_EYES = 2.58, 0.29
_LONG_SIDE = 640  # pixels that are enough to find a face in
_DOUBLE = 0.3  # intersection over union of two boxes that are one face
MEND = (
    "Finding faces takes OpenCV 4: pip install 'opencv-python-headless>=4.14,<5' (5 has no "
    "cascades). Or give --faces=CSV with boxes or landmarks of another tool."
)


@dataclasses.dataclass(frozen=True)
class Face:
    """A face in a picture, in pixels of the upright picture.

    Attributes:
      box: left, top, width, height.
      landmarks: [68, 2] in the order of iBUG 300-W, or [5, 2]: eyes, tip of the nose, corners of
        the mouth, left in the picture first; None: unknown.
      person: whose it is, where a table says so.
    """

    box: tuple[float, float, float, float]
    landmarks: Float[np.ndarray, "p 2"] | None = None
    person: str | None = None


@runtime_checkable
class Finder(Protocol):
    """Finds the faces in pictures of one film.

    It is asked about one picture in `step`, and sees a face that is there in one of `every`.
    """

    @property
    def step(self) -> int: ...

    @property
    def every(self) -> float | int: ...

    def find(self, picture: Picture) -> list[Face]: ...


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """The intersection of two boxes over their union."""
    common = shared(a, b)
    return common / (a[2] * a[3] + b[2] * b[3] - common)


def shared(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """The area that two boxes (left, top, width, height) have in common."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height)


class Cascade:
    """OpenCV's Haar cascade for frontal faces.

    Viola and Jones, "Robust real-time face detection", IJCV 2004; alt2 of Lienhart's. Profiles are
    missed. `least` is the height of a face as a share of the picture's short side. Raises UserError
    where there is no OpenCV 4.
    """

    def __init__(self, every: int = 5, least: float = 0.12) -> None:
        self.step = self.every = every
        self.least = least
        _cascade_file()
        self._of_thread = threading.local()  # a classifier serves one thread

    def find(self, picture: Picture) -> list[Face]:
        """The faces in a picture, the most certain first, none of them twice."""
        import cv2

        if not hasattr(self._of_thread, "classifier"):
            cv2.setNumThreads(1)  # several films are read at once
            self._of_thread.classifier = cv2.CascadeClassifier(_cascade_file())
        grey, scale = picture.grey(_LONG_SIDE)
        side = max(20, round(self.least * min(grey.shape)))
        boxes, votes = self._of_thread.classifier.detectMultiScale2(
            cv2.equalizeHist(grey), scaleFactor=1.1, minNeighbors=5, minSize=(side, side)
        )
        found: list[tuple[float, ...]] = []
        for place in np.argsort(-np.asarray(votes).ravel(), kind="stable"):
            box = tuple(float(value) / scale for value in boxes[place])
            if not any(_same(box, other) for other in found):
                found.append(box)
        return [Face(box) for box in found]


def _same(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    smaller = min(a[2] * a[3], b[2] * b[3])
    return overlap(a, b) > _DOUBLE or shared(a, b) > 0.7 * smaller


@functools.cache
def _cascade_file() -> str:
    try:
        import cv2
    except ImportError as error:
        raise errors.UserError(f"OpenCV is not installed. {MEND}") from error
    path = pathlib.Path(cv2.__file__).parent / "data" / "haarcascade_frontalface_alt2.xml"
    if not hasattr(cv2, "CascadeClassifier") or not path.is_file():
        raise errors.UserError(f"OpenCV {cv2.__version__} here has no cascades. {MEND}")
    return str(path)


def box_of(landmarks: Float[np.ndarray, "p 2"]) -> tuple[float, float, float, float]:
    """The box in which the cascade would see a face with these landmarks."""
    left, right = eyes(landmarks)
    across = right - left
    width = BOX_PER_EYES * float(np.hypot(*across))
    down = np.array([-across[1], across[0]])
    x, y = (left + right) / 2 + BOX_BELOW_EYES * down
    return float(x - width / 2), float(y - width / 2), width, width


def eyes(landmarks: Float[np.ndarray, "p 2"]) -> tuple[np.ndarray, np.ndarray]:
    """The centres of both eyes, left in the picture first."""
    if len(landmarks) == 5:
        return landmarks[0], landmarks[1]
    return landmarks[36:42].mean(0), landmarks[42:48].mean(0)
