"""A mouth followed picture by picture, and a camera whose newest mouth is there at any time."""

import sys
import threading
import types

import av
import numpy as np
import pytest

from common import errors
from common.video import crops, finding, following, frames, tracking


def picture(number: int, image: np.ndarray) -> frames.Picture:
    frame = av.VideoFrame.from_ndarray(image, format="rgb24")
    return frames.Picture(number, frame, number, number / 25, False)


class Finder:
    """Sees what it is told for each picture."""

    step = every = 5

    def __init__(self, boxes):
        self.boxes, self.asked = boxes, []

    def find(self, picture):
        self.asked.append(picture.number)
        return [finding.Face(box) for box in self.boxes(picture.number)]


def image(seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 255, (30, 40, 3), np.uint8)
    return np.kron(coarse, np.ones((8, 8, 1), np.uint8))


def test_the_largest_is_followed_until_it_is_lost():
    large, small = (60.0, 40.0, 100.0, 100.0), (200.0, 40.0, 60.0, 60.0)

    def boxes(number):
        return [small, large] if number < 20 else [small]

    follower, shown = following.Follower(Finder(boxes)), image()
    mouths = [follower(picture(k, shown)) for k in range(60)]
    assert follower.finder.asked == list(range(0, 60, 5))
    views = {
        box: crops.mouth_views(tracking.Track(0, np.array([box]), None, np.ones(1, bool)))
        for box in (large, small)
    }
    expected = {
        box: crops.as_array(view.cut(picture(0, shown).rgb(), 0).convert("L"))
        for box, view in views.items()
    }
    # Last seen in picture 15; a second later it is given up, and the next look finds the other.
    for number, mouth in enumerate(mouths):
        if number < 40:
            np.testing.assert_array_equal(mouth, expected[large])
        else:
            assert mouth is not None
            np.testing.assert_array_equal(mouth, expected[small])
    assert follower.portraits.shape == (1, 224, 224, 3)
    assert (follower.seen, follower.pictures, len(follower.seconds)) == (60, 60, 60)


def test_nobody_is_nothing():
    follower = following.Follower(Finder(lambda number: []))
    assert [follower(picture(k, image())) for k in range(7)] == [None] * 7
    assert follower.portraits is None
    assert (follower.seen, follower.pictures) == (0, 7)


def test_a_camera_has_the_newest_mouth(monkeypatch):
    asked, released = threading.Semaphore(0), []

    class Capture:
        def __init__(self, device):
            self.device, self.number = device, 0

        def isOpened(self):
            return self.device == 3

        def read(self):
            asked.acquire(timeout=10)
            self.number += 1
            return self.number < 9, image(self.number)[:, :, ::-1]

        def release(self):
            released.append(self.device)

    monkeypatch.setitem(sys.modules, "cv2", types.SimpleNamespace(VideoCapture=Capture))
    with pytest.raises(errors.UserError, match=r"--camera=0: there is no such camera.*--video"):
        following.Camera(0, following.Follower(Finder(lambda number: [])))
    box = (60.0, 40.0, 100.0, 100.0)
    follower = following.Follower(Finder(lambda number: [box]))
    with following.Camera(3, follower) as camera:
        assert camera.mouth is None
        assert not camera.wait(0.01)
        asked.release()
        assert camera.wait(10)
        expected = following.Follower(Finder(lambda number: [box]))(picture(0, image(1)))
        np.testing.assert_allclose(camera.mouth.astype(int), expected, atol=1)
        asked.release(20)  # to the end: then nobody is in view
        camera._thread.join(10)
        assert camera.mouth is None
    assert released == [3]
    assert follower.pictures == 8
