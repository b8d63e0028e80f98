"""A film with another sound: its pictures are copied, not encoded again."""

import os
import pathlib

import av
import numpy as np
import soundfile

from common import files
from common.video import frames

_BLOCK = 16_384  # samples


def with_sound(
    film: str | os.PathLike, sound: str | os.PathLike, path: pathlib.Path, *, zero: float
) -> None:
    """Writes `path` (MP4): the pictures of a film with a sound of one channel.

    The sound begins `zero` seconds into the film's own time. Whole or not at all, in constant
    memory. Raises frames.FilmError where the pictures cannot stand in an MP4.
    """
    with files.replacing(path) as temporary:
        try:
            _write(film, sound, temporary, zero)
        except (av.FFmpegError, ValueError) as error:
            raise frames.FilmError(film, f"cannot be copied into an MP4 ({error})") from error


def _write(
    film: str | os.PathLike, sound: str | os.PathLike, path: pathlib.Path, zero: float
) -> None:
    with (
        av.open(os.fspath(film)) as source,
        av.open(str(path), "w", format="mp4") as out,
        soundfile.SoundFile(os.fspath(sound)) as samples,
    ):
        pictures = source.streams.video[0]
        video = out.add_stream_from_template(pictures)
        audio = out.add_stream("aac", rate=samples.samplerate, layout="mono")
        place, rate = 0, samples.samplerate
        # Packets of both by their time, or a player has to jump back and forth.
        for packet in source.demux(pictures):
            if packet.dts is None:
                continue
            now = float(packet.dts * packet.time_base) - zero
            while place < len(samples) and place / rate <= now:
                place += _sound(out, audio, samples, place, zero)
            packet.stream = video
            out.mux(packet)
        while place < len(samples):
            place += _sound(out, audio, samples, place, zero)
        out.mux(audio.encode(None))


def _sound(out, audio, samples: soundfile.SoundFile, place: int, zero: float) -> int:
    """Encodes the next block; how many samples it has."""
    block = samples.read(_BLOCK, dtype="float32", always_2d=True).T
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), format="fltp", layout="mono")
    frame.sample_rate = samples.samplerate
    frame.pts = place + round(zero * samples.samplerate)
    out.mux(audio.encode(frame))
    return block.shape[1]
