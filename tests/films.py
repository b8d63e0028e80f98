"""Small films made for tests: pictures at any times, with or without sound."""

import fractions
import pathlib
from collections.abc import Sequence

import av
import numpy as np

RATE_HZ = 16_000
_TICKS = 1000


def encode(
    path: pathlib.Path,
    pictures: np.ndarray,
    times: Sequence[float],
    sound: np.ndarray | None,
    *,
    rate: float = 25,
    codec: str = "ffv1",
    sound_codec: str = "flac",
    sound_start: float = 0.0,
    options: dict[str, str] | None = None,
    coding: dict[str, str] | None = None,
    pix_fmt: str = "yuv420p",
) -> pathlib.Path:
    """A film of uint8[n, h, w] or [n, h, w, 3] shown at `times` (s), beside sound at 16 kHz.

    `options` are the container's, `coding` those of the codec of the pictures.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options or {}) as out:
        video = out.add_stream(codec, rate=fractions.Fraction(rate).limit_denominator(1001))
        video.height, video.width = pictures.shape[1:3]
        video.pix_fmt = pix_fmt
        video.codec_context.time_base = fractions.Fraction(1, _TICKS)
        if codec == "libx264":
            video.options = {"crf": "12", "preset": "ultrafast", "bf": "0"}
        if coding is not None:
            video.options = coding
        audio = None
        if sound is not None:
            audio = out.add_stream(sound_codec, rate=RATE_HZ, layout="mono")
        for picture, time in zip(pictures, times):
            form = "gray" if picture.ndim == 2 else "rgb24"
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format=form)
            frame = frame.reformat(format=pix_fmt)
            frame.pts, frame.time_base = round(time * _TICKS), fractions.Fraction(1, _TICKS)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        if audio is not None:
            pcm = np.rint(sound * 32767).astype(np.int16)[None]
            frame = av.AudioFrame.from_ndarray(pcm, "s16", "mono")
            frame.sample_rate, frame.time_base = RATE_HZ, fractions.Fraction(1, RATE_HZ)
            frame.pts = round(sound_start * RATE_HZ)
            wanted = audio.codec_context.format.name
            for piece in av.AudioResampler(wanted, "mono", RATE_HZ).resample(frame):
                out.mux(audio.encode(piece))
            out.mux(audio.encode(None))
    return path


def tone(seconds: float) -> np.ndarray:
    """A quiet tone."""
    return 0.1 * np.sin(2 * np.pi * 300 * np.arange(round(seconds * RATE_HZ)) / RATE_HZ)


def numbered(count: int) -> np.ndarray:
    """Pictures 64 x 48 that show their number in two digits to the base 16: see `number`."""
    pictures = np.empty((count, 48, 64), np.uint8)
    pictures[:, :, :32] = (np.arange(count) // 16 * 12 + 30)[:, None, None]
    pictures[:, :, 32:] = (np.arange(count) % 16 * 12 + 30)[:, None, None]
    return pictures


def number(picture) -> int:
    """Which of `numbered` a `common.video.frames.Picture` is."""
    grey = picture.grey()[0].astype(float)
    high, low = (round((half.mean() - 30) / 12) for half in (grey[:, :24], grey[:, 40:]))
    return 16 * high + low
