"""What libsndfile does not read: AAC, WMA and the sound of videos, decoded by PyAV (FFmpeg)."""

import contextlib
import io
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Num

# FFmpeg tries no others: some, as its concat, read whatever files the content names. WAV, AIFF,
# FLAC and MP3 are libsndfile's: what it refuses of these is damaged.
_FORMATS = "aac,ac3,amr,ape,asf,avi,caf,eac3,flv,matroska,mov,mpeg,mpegts,ogg,tta,wv"
Bytes = io.FileIO | io.BytesIO


class Undecodable(Exception):
    """A file that FFmpeg cannot decode; the message is one clause that says why."""


class Sound:
    """The sound of an open file, decoded from its start: AAC seeks to other samples than these."""

    def __init__(self, container, stream):
        self._container = container
        self._stream = stream
        self.samplerate: int = stream.rate
        self.channels: int = stream.channels

    def stated_samples(self) -> int | None:
        """The length by the header; None where FFmpeg only guesses from the size of the file."""
        stream, container = self._stream, self._container
        if stream.frames and stream.duration:  # MP4 and AVI list what they hold
            return round(stream.duration * self._samples_a_tick)
        if container.format.name.startswith("matroska") and container.duration:
            seconds = container.duration / 1_000_000 - (stream.start_time or 0) * stream.time_base
            return round(seconds * self.samplerate)
        return None

    def counted_samples(self) -> int:
        """The length by the time stamps of all packets, undecoded; ends the reading of this one."""
        first, end = math.inf, 0
        for packet in self._container.demux(self._stream):
            if packet.pts is not None:
                first = min(first, packet.pts)
                end = max(end, packet.pts + (packet.duration or 0))
        # What stands before 0 primes the decoder.
        return round(max(0, end - max(0, first)) * self._samples_a_tick)

    def blocks(self, first: int, last: int | None) -> Iterator[Num[np.ndarray, "n d"]]:
        """Samples [first, last) as the file holds them, piece by piece; skipped pieces are empty.

        What the container calls priming or padding is left out.
        """
        position = 0
        for block in self._decoded():
            end = len(block) if last is None else max(0, last - position)
            yield block[max(0, first - position) : end]
            position += len(block)
            if last is not None and position >= last:
                return

    def _decoded(self) -> Iterator[Num[np.ndarray, "n d"]]:
        block, ticks = None, 0
        for packet in self._container.demux(self._stream):
            for frame in packet.decode():
                if block is not None:
                    yield block
                block, ticks = self._block(frame), packet.duration
        if block is None:
            return
        # The last packet of an MP4 is stated to last as long as the sound does; FFmpeg 8.0 plays
        # all of it. Other containers count in milliseconds, or mark the padding.
        if ticks and self._container.format.name.startswith("mov"):
            block = block[: round(ticks * self._samples_a_tick)]
        yield block

    def _block(self, frame) -> Num[np.ndarray, "n d"]:
        if (frame.sample_rate, frame.layout.nb_channels) != (self.samplerate, self.channels):
            raise Undecodable(
                f"the sound changes from {self.channels} x {self.samplerate} Hz to "
                f"{frame.layout.nb_channels} x {frame.sample_rate} Hz"
            )
        samples = frame.to_ndarray()
        return samples.T if frame.format.is_planar else samples.reshape(-1, self.channels)

    @property
    def _samples_a_tick(self):
        return self._stream.time_base * self.samplerate


@contextlib.contextmanager
def open_container(file: Bytes) -> Iterator[Any]:
    """An open file as PyAV's input container. Raises Undecodable for what FFmpeg does not know."""
    import av  # takes .3 s, and most files do not need it

    # PyAV 18 refuses titles that are not UTF-8; PyAV 19 takes them, and has no such argument.
    lenient = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
    try:
        container = av.open(file, options={"format_whitelist": _FORMATS}, **lenient)
    except av.error.FFmpegError as error:
        raise Undecodable("its format is not known, or its header is damaged") from error
    with container:
        yield container


@contextlib.contextmanager
def open_sound(file: Bytes) -> Iterator[Sound]:
    """The best sound track of an open file that FFmpeg knows.

    Raises Undecodable, also for what fails while it is read.
    """
    import av

    with open_container(file) as container:
        stream = container.streams.best("audio")
        if stream is None:
            raise Undecodable("it holds no sound")
        if not stream.rate or not stream.channels:
            raise Undecodable("its header states no sampling rate")
        try:
            yield Sound(container, stream)
        except av.error.FFmpegError as error:  # its text names a function, or even permissions
            raise Undecodable("damaged or cut off") from error
