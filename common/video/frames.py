"""A film as pictures on a grid of 25 a second, whatever its own frame rate, beside its sound.

Picture k is the one on the screen at the middle of the samples from 640 k to 640 (k + 1) of the
sound at 16 kHz, so that it counts from the first sample and not from the first picture. Between
two time stamps the earlier picture is held: dropped frames and variable rates cost sharpness in
time, not synchrony.
"""

import contextlib
import dataclasses
import os
import pathlib
import re
import stat
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import PIL.Image

from common import errors
from common.audio import containers
from common.audio.io import printable
from common.data.embedded.visemes import FRAMES_PER_SECOND

_LATE_SECONDS = 0.2  # a first picture that comes later leaves the time before it without one
_STILL_SECONDS = 60  # between two time stamps: more is a damaged clock
_CUT_OFF_SECONDS, _CUT_OFF_SHARE = 0.5, 0.02
_DURATION = re.compile(r"(\d+):(\d+):(\d+(?:\.\d+)?)\0?")
_MAX_LOST = 0.05  # of the packets


class FilmError(errors.UserError):
    """A film that cannot be used. `reason` starts with one of a few fixed phrases."""

    def __init__(self, name: object, reason: str):
        self.name = printable(name)
        self.reason = reason
        super().__init__(f"{self.name}: {reason}")

    def __reduce__(self):  # keeps its two arguments when a worker process raises it
        return FilmError, (self.name, self.reason)


@dataclasses.dataclass(frozen=True)
class Picture:
    """What is on the screen at a place of the grid.

    `index` counts the film's own frames from 0, `seconds` those since the first of them.
    `held`: it was there at the place before, too.
    """

    number: int
    frame: Any
    index: int
    seconds: float
    held: bool

    def rgb(self) -> PIL.Image.Image:
        """Upright, in colour."""
        return upright(self.frame.to_image(), self.frame)

    def grey(self, long_side: int | None = None) -> tuple[np.ndarray, float]:
        """(uint8[h, w], its size in terms of the film's), not larger than `long_side`."""
        frame = self.frame
        scale = 1.0
        if long_side is not None:
            scale = min(1.0, long_side / max(frame.width, frame.height))
        size = (max(1, round(frame.width * scale)), max(1, round(frame.height * scale)))
        small = frame.reformat(*size, format="gray").to_ndarray()
        return np.ascontiguousarray(np.rot90(small, _quarters(frame))), scale


def _quarters(frame: Any) -> int:
    """Turns by 90 degrees, counter-clockwise, after which a frame is upright: phones store films
    as the sensor lies, with a note how to turn them."""
    return round(frame.rotation / 90) % 4


def upright(image: PIL.Image.Image, frame: Any) -> PIL.Image.Image:
    """The picture of a frame, turned as the frame says."""
    turns = {1: "ROTATE_90", 2: "ROTATE_180", 3: "ROTATE_270"}
    name = turns.get(_quarters(frame))
    return image.transpose(PIL.Image.Transpose[name]) if name else image


@contextlib.contextmanager
def _opened(path: str | os.PathLike) -> Iterator[Any]:
    """PyAV's container of a film. What fails becomes a FilmError."""
    import av

    try:
        with pathlib.Path(path).open("rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise FilmError(path, "unreadable (not a file)")
            if not status.st_size:
                raise FilmError(path, "empty (0 bytes)")
            with containers.open_container(file) as container:
                yield container
    except containers.Undecodable as error:
        raise FilmError(path, f"unreadable ({error})") from error
    except FileNotFoundError as error:
        raise FilmError(path, "missing file") from error
    except av.error.FFmpegError as error:
        raise FilmError(path, "damaged (cannot be decoded)") from error
    except OSError as error:
        raise FilmError(path, f"unreadable ({error.strerror or error})") from error


def sound_start(path: str | os.PathLike) -> float:
    """When the first sample of a film's sound is heard, in seconds of its clock.

    Raises FilmError for a film without sound, or with one that nothing is known to decode.
    """
    with _opened(path) as container:
        stream = container.streams.best("audio")
        if stream is None:
            raise FilmError(path, "no sound")
        if stream.codec_context is None:
            raise FilmError(path, "odd codec (of the sound)")
        for packet in container.demux(stream):
            for frame in _decoded(packet) or ():
                return 0.0 if frame.pts is None else float(frame.pts * frame.time_base)
    raise FilmError(path, "no sound (none of it decodes)")


def pictures(path: str | os.PathLike, zero: float) -> Iterator[Picture]:
    """The pictures of a film on the grid whose time 0 is `zero` on the film's clock, in order.

    Memory does not grow with the length. Raises FilmError, also at the end, where less decoded
    than the header states.
    """
    shown, number, latest = None, 0, None  # latest: the frame of the picture before
    for frame, index, time in every_frame(path):
        start = time - zero
        if shown is None:
            first_time = time
            number = 0 if start <= _LATE_SECONDS else _after(start)
        else:
            if start - shown[2] > _STILL_SECONDS:
                reason = f"damaged (no picture for {start - shown[2]:.0f} s)"
                raise FilmError(path, reason)
            while number < _after(start):
                yield Picture(number, shown[0], shown[1], shown[3], latest == shown[1])
                number, latest = number + 1, shown[1]
        shown = (frame, index, start, time - first_time)
    if shown is None:
        raise FilmError(path, "no picture (none of it decodes)")
    frame, index, start, seconds = shown
    end = _after(start + _lasting(frame))
    while number < end:
        yield Picture(number, frame, index, seconds, latest == index)
        number, latest = number + 1, index


def _after(seconds: float) -> int:
    """The first place whose middle is not before a time. A millisecond decides nothing: at 50
    frames a second each second one starts in the very middle."""
    return max(0, int(np.ceil(seconds * FRAMES_PER_SECOND - 0.5 - 0.025)))


def _lasting(frame: Any) -> float:
    """Seconds that the last frame is on the screen."""
    if frame.duration and frame.time_base:
        return min(1.0, float(frame.duration * frame.time_base))
    return 1 / FRAMES_PER_SECOND


def moving(container: Any) -> Any:
    """The stream of a container's pictures; None: there is none."""
    return next((s for s in container.streams.video if not _is_cover(s)), None)


def every_frame(path: str | os.PathLike) -> Iterator[tuple[Any, int, float]]:
    """(frame, number from 0, seconds on the clock) of a film, in the order of showing."""
    with _opened(path) as container:
        stream = moving(container)
        if stream is None:
            raise FilmError(path, "no picture (it holds sound only)")
        if stream.codec_context is None:
            raise FilmError(path, "odd codec (of the pictures)")
        stream.codec_context.thread_count = 1  # several films are read at once
        # What a frame lasts where the container does not say when it is shown.
        step = 1 / _rate(stream)
        packets = lost = index = 0
        first = time = None
        for packet in container.demux(stream):
            found = _decoded(packet)
            packets += 1
            lost += found is None
            for frame in found or ():
                if frame.pts is not None:
                    now = float(frame.pts * frame.time_base)
                else:
                    now = 0.0 if time is None else time + step
                if time is not None and now <= time:
                    continue  # a clock that goes back
                first, time = (now if first is None else first), now
                yield frame, index, now
                index += 1
        if lost > _MAX_LOST * packets:
            raise FilmError(path, f"damaged ({lost} of {packets} packets cannot be decoded)")
        stated = _stated_seconds(container, stream)
        there = 0.0 if time is None else time + step
        if not container.format.name.startswith("matroska"):  # which counts from the clock's 0
            there -= first or 0.0
        if index and stated - there > max(_CUT_OFF_SECONDS, _CUT_OFF_SHARE * stated):
            raise FilmError(path, f"cut off ({there:.2f} of {stated:.2f} s decode)")


def rate(path: str | os.PathLike) -> float:
    """The frames a second of a film, on the average. Raises FilmError."""
    with _opened(path) as container:
        stream = moving(container)
        if stream is None:
            raise FilmError(path, "no picture (it holds sound only)")
        return _rate(stream)


def _rate(stream: Any) -> float:
    return float(stream.average_rate or stream.guessed_rate or FRAMES_PER_SECOND)


def _is_cover(stream: Any) -> bool:
    """A picture of the disc beside a sound."""
    import av

    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _stated_seconds(container: Any, stream: Any) -> float:
    """How long the header says the pictures last; 0: it does not, or only by the file's size."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if container.format.name.startswith("matroska"):
        found = _DURATION.fullmatch(stream.metadata.get("DURATION", ""))
        if found:
            hours, minutes, seconds = map(float, found.groups())
            return 3600 * hours + 60 * minutes + seconds
    return 0.0


def _decoded(packet: Any) -> list[Any] | None:
    """The frames of a packet; None where it is damaged."""
    import av

    try:
        return packet.decode()
    except av.error.FFmpegError:
        return None


def spread(path: str | os.PathLike, count: int, parts: Sequence[int]) -> list[PIL.Image.Image]:
    """The pictures in the middles of some of `count` equal parts of a film, found by seeking.

    Raises FilmError.
    """
    with _opened(path) as container:
        stream = moving(container)
        if stream is None or stream.codec_context is None:
            raise FilmError(path, "no picture")
        stream.codec_context.thread_count = 1
        first = float((stream.start_time or 0) * stream.time_base)
        seconds = _stated_seconds(container, stream) or (container.duration or 0) / 1_000_000
        found = []
        for part in parts:
            wanted = first + seconds * (2 * part + 1) / (2 * count)
            container.seek(int(wanted / stream.time_base), stream=stream)
            latest = None
            for packet in container.demux(stream):
                for frame in _decoded(packet) or ():
                    if latest is None or (frame.time or 0.0) <= wanted:
                        latest = frame
                    if (frame.time or 0.0) >= wanted:
                        break
                else:
                    continue
                break
            if latest is None:
                raise FilmError(path, "no picture (none of it decodes)")
            found.append(upright(latest.to_image(), latest))
        return found
