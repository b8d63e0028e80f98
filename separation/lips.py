"""What a stream knows of lips: the pictures shown so far, as vectors, hop by hop."""

import collections
from collections.abc import Callable

import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from common import errors
from separation import films, sight

# Mouths and which of them are seen -> a vector each: `model.SeparationNet.motion`.
Look = Callable[[UInt8[np.ndarray, "1 f h w"], Bool[np.ndarray, "1 f"]], Float[Array, "1 f d"]]


class Watched:
    """`show` pictures in their order, ask for as many hops as are extracted (`at_hops`).

    A hop knows the newest picture of before its end, as in training (`sight.latest_picture`), and
    nothing where that one was not shown yet: what comes late serves the hops after it.
    """

    def __init__(
        self, look: Look, config: sight.SightConfig, hop_size: int, sample_rate_hz: int
    ) -> None:
        self._look, self._hop, self._rate = look, hop_size, sample_rate_hz
        recent = [(np.zeros(films.MOUTH, np.uint8), False)] * config.frames
        self._recent = collections.deque(recent, config.frames)
        self._nothing = self._latest()
        self._known: collections.deque[np.ndarray] = collections.deque()
        self._first = 0  # the number of the first picture in `_known`
        self._hops = 0  # that were asked for

    def show(self, mouth: UInt8[np.ndarray, "h w"] | None) -> None:
        """The next picture; None: the mouth is not in view. Raises UserError."""
        if mouth is None:
            mouth, seen = np.zeros(films.MOUTH, np.uint8), False
        else:
            mouth, seen = np.asarray(mouth), True
        if mouth.shape != films.MOUTH or mouth.dtype != np.uint8:
            size = "x".join(map(str, mouth.shape))
            wanted = "x".join(map(str, films.MOUTH))
            raise errors.UserError(
                f"A picture of a mouth is {wanted} uint8, grey, not {size} {mouth.dtype}: "
                "python -m separation.prepare_video makes them."
            )
        self._recent.append((mouth, seen))
        self._known.append(self._latest())

    def at_hops(self, samples: int) -> Float[np.ndarray, "1 k d"]:
        """What is known at the end of each hop of the next so many samples."""
        found = []
        for _ in range(samples // self._hop):
            self._hops += 1
            number = sight.latest_picture(self._hops * self._hop, self._rate)
            while self._first < number and self._known:
                self._known.popleft()
                self._first += 1
            there = self._first == number and self._known
            found.append(self._known[0] if there else self._nothing)
        return np.stack(found)[None]

    def _latest(self) -> Float[np.ndarray, "d"]:
        mouth, seen = (np.stack(x)[None] for x in zip(*self._recent))
        return np.asarray(self._look(mouth, seen))[0, -1]
