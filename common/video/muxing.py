"""A film with another sound: its pictures are copied, and encoded again only where that fails."""

import fractions
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import av
import numpy as np
import soundfile

from common import files
from common.video import frames

_BLOCK = 16_384  # samples
_EARLY = 64  # packets without a time before the first one that has it, at most
_TICKS = 90_000  # a second


def with_sound(
    film: str | os.PathLike, sound: str | os.PathLike, path: pathlib.Path, *, zero: float
) -> None:
    """Writes `path` (MP4): the pictures of a film with a sound of one channel.

    The sound begins `zero` seconds into the film's own time. Pictures of a codec that cannot stand
    in an MP4 become H.264. Whole or not at all, in constant memory. Raises frames.FilmError where
    they cannot be had either way.
    """
    with files.replacing(path) as temporary:
        try:
            _write(film, sound, temporary, zero)
        except (av.FFmpegError, ValueError) as error:
            raise frames.FilmError(film, f"cannot be written as an MP4 ({error})") from error


def _write(
    film: str | os.PathLike, sound: str | os.PathLike, path: pathlib.Path, zero: float
) -> None:
    with (
        av.open(os.fspath(film)) as source,
        av.open(str(path), "w", format="mp4") as out,
        soundfile.SoundFile(os.fspath(sound)) as samples,
    ):
        pictures = frames.moving(source)
        try:
            # Without `opaque` PyAV looks for an encoder, which not all decoders have (AV1).
            video = out.add_stream_from_template(pictures, opaque=True)
            shown = _copied(source.demux(pictures), pictures, video)
        except ValueError:
            video = out.add_stream("libx264", rate=pictures.average_rate or 25)
            shown = _encoded(film, video)
        audio = out.add_stream("aac", rate=samples.samplerate, layout="mono")
        place, rate = 0, samples.samplerate
        # Packets of both by their time, or a player has to jump back and forth.
        for time, packet in shown:
            while place < len(samples) and place / rate <= time - zero:
                place += _sound(out, audio, samples, place, zero)
            out.mux(packet)
        while place < len(samples):
            place += _sound(out, audio, samples, place, zero)
        out.mux(audio.encode(None))


def _copied(packets: Iterable[Any], pictures: Any, video: Any) -> Iterator[tuple[float, Any]]:
    """(seconds, packet) of a stream, as they are.

    Matroska does not say when pictures are decoded, and FFmpeg does not know it of the first ones:
    those are put before the first that it knows, a picture's time apart.
    """
    base = pictures.time_base
    step = max(1, round(1 / ((pictures.average_rate or frames.FRAMES_PER_SECOND) * base)))
    early: list[Any] = []
    for packet in packets:
        if not packet.size:  # the end
            continue
        early.append(packet)
        if packet.dts is None:
            if len(early) > _EARLY:
                raise ValueError("its pictures have no times")
            continue
        for before, one in enumerate(reversed(early)):
            one.dts = packet.dts - before * step
        yield from _moved(early, base, video)
        early = []
    for one in early:
        one.dts = one.pts
    yield from _moved(early, base, video)


def _moved(packets: Iterable[Any], base: Any, video: Any) -> Iterator[tuple[float, Any]]:
    for packet in packets:
        time = float(packet.dts * base)
        packet.stream = video
        yield time, packet


def _encoded(film: str | os.PathLike, video: Any) -> Iterator[tuple[float, Any]]:
    """(seconds, packet) of a film as H.264, upright, of an even size."""
    base = fractions.Fraction(1, _TICKS)
    video.pix_fmt, video.options = "yuv420p", {"crf": "18", "preset": "veryfast"}
    video.codec_context.time_base = base
    for frame, index, time in frames.every_frame(film):
        image = frames.upright(frame.to_image(), frame)
        if not index:
            video.width, video.height = (size // 2 * 2 for size in image.size)
        shown = av.VideoFrame.from_image(image.resize((video.width, video.height)))
        shown = shown.reformat(format="yuv420p")
        shown.pts, shown.time_base = round(time * _TICKS), base
        yield from _lasting(video.encode(shown))
    yield from _lasting(video.encode(None))


def _lasting(packets: Iterable[Any]) -> Iterator[tuple[float, Any]]:
    """(seconds, packet), each as long as a picture of 25 a second: of the last one it counts."""
    for packet in packets:
        packet.duration = round(1 / (frames.FRAMES_PER_SECOND * packet.time_base))
        yield float(packet.dts * packet.time_base), packet


def _sound(out, audio, samples: soundfile.SoundFile, place: int, zero: float) -> int:
    """Encodes the next block; how many samples it has."""
    block = samples.read(_BLOCK, dtype="float32", always_2d=True).T
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), format="fltp", layout="mono")
    frame.sample_rate = samples.samplerate
    frame.pts = place + round(zero * samples.samplerate)
    out.mux(audio.encode(frame))
    return block.shape[1]
