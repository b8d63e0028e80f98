"""One person's mouth, picture by picture as they come: no picture of later is known."""

import collections
import threading
import time
from typing import Any

import av
import numpy as np
from jaxtyping import UInt8

from common import errors
from common.video import crops, finding, frames, tracking

_STEADY = 13  # places that steady a crop
_TIMED = 10_000  # pictures whose times are kept
_LOST = 25  # places without a sight after which nobody is in view


class Follower:
    """`follower(picture)` is the mouth of who was largest when first seen, None: is not in view.

    The finder looks at one picture in `finder.step`; between, the last sight holds. Whoever is lost
    for a second makes way for the then largest.

    Attributes:
        portraits: the face at the first sight.
        seconds: what each of the latest pictures took.
        seen, pictures: with a mouth, and all.
    """

    def __init__(self, finder: finding.Finder) -> None:
        self.finder = finder
        self._boxes: collections.deque[tuple[float, ...]] = collections.deque(maxlen=_STEADY)
        self._box: tuple[float, ...] | None = None
        self._looked, self._sight = -finder.step, -_LOST
        self.portraits: UInt8[np.ndarray, "1 224 224 3"] | None = None
        self.seconds: collections.deque[float] = collections.deque(maxlen=_TIMED)
        self.seen = self.pictures = 0

    def __call__(self, picture: frames.Picture) -> UInt8[np.ndarray, "96 96"] | None:
        """Pictures in their order."""
        started = time.perf_counter()
        self.pictures += 1
        if picture.number - self._sight >= _LOST:
            self._box = None
            self._boxes.clear()
        if picture.number - self._looked >= self.finder.step:
            self._looked = picture.number
            self._look(picture)
        mouth = None
        if self._box is not None:
            self._boxes.append(self._box)
            image, track = picture.rgb(), self._track()
            last = len(track) - 1
            mouth = crops.as_array(crops.mouth_views(track).cut(image, last).convert("L"))
            if self.portraits is None:
                portrait = crops.face_views(track).cut(image, last)
                self.portraits = crops.as_array(portrait)[None]
            self.seen += 1
        self.seconds.append(time.perf_counter() - started)
        return mouth

    def _look(self, picture: frames.Picture) -> None:
        before = self._box

        def weight(face: finding.Face) -> float:
            if before is None:
                return face.box[2] * face.box[3]
            return finding.overlap(face.box, before)

        found = max(self.finder.find(picture), key=weight, default=None)
        if found is not None and weight(found) > 0:
            self._box, self._sight = found.box, picture.number

    def _track(self) -> tracking.Track:
        boxes = np.array(self._boxes, np.float64)
        return tracking.Track(0, boxes, None, np.ones(len(boxes), bool))


class Camera:
    """A camera whose newest mouth is there at any time; finding it is a thread of its own.

    Raises UserError for a camera that cannot be opened.
    """

    def __init__(self, device: int, follower: Follower) -> None:
        import cv2  # the finder needs it, too

        self._opened: Any = cv2.VideoCapture(device)
        if not self._opened.isOpened():
            raise errors.UserError(
                f"--camera={device}: there is no such camera, or another program has it. "
                "--video=FILM takes a film in its place."
            )
        self._follower, self._mouth, self._ended = follower, None, threading.Event()
        self._first = threading.Event()
        self._thread = threading.Thread(target=self._work, name="camera", daemon=True)

    def __enter__(self) -> "Camera":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._opened.release()

    def wait(self, seconds: float | int) -> bool:
        """For the first face, at most so long; whether there is one."""
        return self._first.wait(seconds)

    @property
    def mouth(self) -> UInt8[np.ndarray, "96 96"] | None:
        """The newest."""
        return self._mouth

    def _work(self) -> None:
        number = 0
        try:
            while not self._ended.is_set():
                there, image = self._opened.read()
                if not there:
                    break
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="bgr24")
                self._mouth = self._follower(frames.Picture(number, frame, number, 0.0, False))
                number += 1
                if self._mouth is not None:
                    self._first.set()
        finally:
            self._mouth = None  # whatever ended it: an old mouth is not what is seen now
