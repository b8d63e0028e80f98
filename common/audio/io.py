"""Audio files in, audio files out: decoding, resampling, validation (NumPy, host side)."""

import contextlib
import dataclasses
import io
import math
import os
import pathlib
import re
from typing import Literal

import numpy as np
import soundfile
import soxr
from jaxtyping import Float, Num

from common import errors, files
from common.audio import mp3

PathLike = str | os.PathLike
# What a search for recordings takes for one.
SUFFIXES = (".flac", ".wav", ".ogg", ".opus", ".mp3", ".sph")
_BLOCK = 1 << 20  # samples decoded at a time: a header may claim any length
# How libsndfile says that a chunk of samples (WAV, AIFF, AU) ends beyond the file.
_SHORT_CHUNK = re.compile(r"^\s*(?:data|SSND|Data Size) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
_NO_SIZE = 0x7FFF0000  # programs that write to a pipe state sizes about here
_SPHERE_LENGTH = re.compile(rb"^sample_count -i (\d+)", re.MULTILINE)
_RESAMPLE_CONTEXT_SECONDS = 0.05  # beyond the reach of soxr's filter, for partial reads


class AudioError(errors.UserError, ValueError):
    """Audio that cannot be used; the message names the file and the reason."""

    def __init__(self, name: object, reason: str):
        super().__init__(f"{name}: {reason}")
        self.name = str(name)
        self.reason = reason

    def __reduce__(self):  # keeps its two arguments when a worker process raises it
        return AudioError, (self.name, self.reason)


@dataclasses.dataclass(frozen=True)
class AudioInfo:
    """What the header says (for MP3: what the frame headers add up to)."""

    sample_rate_hz: int
    channels: int
    num_samples: int

    @property
    def seconds(self) -> float:
        return self.num_samples / self.sample_rate_hz


def probe(path: PathLike) -> AudioInfo:
    """Rate, channels and length of a file without decoding it.

    The length is the header's; only decoding proves it. Raises AudioError.
    """
    with _open(path) as file:
        num_samples = _stated_samples(path, file)
        # A stream without a stated length is reported by libsndfile as a huge number.
        if num_samples >= 1 << 62:
            raise AudioError(path, "the header states no length")
        return AudioInfo(file.samplerate, file.channels, num_samples)


def load_audio(
    path_or_array: PathLike | Num[np.ndarray, "t *d"],
    *,
    sample_rate_hz: int,
    channel: Literal["mean"] | int = "mean",
    start: float = 0.0,
    duration: float | None = None,
    source_rate_hz: int | None = None,
) -> Float[np.ndarray, "n"]:
    """One channel of a recording as float32 at the wanted rate.

    Takes WAV, FLAC, OGG, MP3 and SPHERE files, or an array `[t]` or `[t, channels]` with its
    `source_rate_hz`. Integers are scaled to [-1, 1); floats are taken as they are. `start` and
    `duration` are seconds and read only what they need, with enough context that the excerpt
    equals the same stretch of the whole; a `duration` past the end gives what there is.
    Raises AudioError for what cannot be read, is empty or holds NaN or infinity.
    """
    if start < 0 or (duration is not None and duration <= 0):
        raise ValueError(f"start={start} must be >= 0 and duration={duration} > 0 seconds")
    stop = math.inf if duration is None else start + duration
    if isinstance(path_or_array, np.ndarray):
        name = "array"
        if source_rate_hz is None:
            raise ValueError("an array needs its source_rate_hz")
        rate = source_rate_hz
        first, last = _source_range(start, stop, rate, sample_rate_hz)
        audio = path_or_array[:, None] if path_or_array.ndim == 1 else path_or_array
        if audio.ndim != 2:
            raise AudioError(name, f"shape {path_or_array.shape} is neither [t] nor [t, channels]")
        audio = _one_channel(audio[first:last], channel, name)
    else:
        name = path_or_array
        with _open(path_or_array) as file:
            rate = file.samplerate
            first, last = _source_range(start, stop, rate, sample_rate_hz)
            audio = _read(file, first, last, channel, name)
    if rate != sample_rate_hz and audio.size:
        audio = soxr.resample(audio, rate, sample_rate_hz, quality="HQ")
    # `first` is a whole number of output samples (see _source_range).
    offset = first * sample_rate_hz // rate
    begin = round(start * sample_rate_hz) - offset
    end = None if duration is None else round(stop * sample_rate_hz) - offset
    if start > 0 and begin >= audio.size:
        raise AudioError(name, f"start={start} s lies past the end of the recording")
    audio = np.ascontiguousarray(audio[begin:end], dtype=np.float32)
    check_audio(audio, name=name)
    return audio


def check_audio(audio: Num[np.ndarray, "..."], *, name: object = "array") -> tuple[str, ...]:
    """Raises AudioError for audio without samples or with NaN or infinity; returns the warnings.

    The only warning is "silent": every sample is 0, which is odd but not wrong.
    """
    if audio.size == 0:
        raise AudioError(name, "empty: no samples")
    # The sum is finite only if all samples are (or overflows, which the exact count then clears).
    if not np.isfinite(np.sum(audio, dtype=np.float64)):
        bad = np.count_nonzero(~np.isfinite(audio))
        if bad:
            raise AudioError(name, f"{bad} of {audio.size} samples are NaN or infinite")
    return () if audio.any() else ("silent",)


def write_wav(
    path: PathLike,
    audio: Float[np.ndarray, "t *d"],
    sample_rate_hz: int,
    *,
    subtype: Literal["PCM_16", "PCM_24", "FLOAT"] = "PCM_16",
) -> None:
    """Writes `[t]` or `[t, channels]` as WAV under a temporary name, then renames.

    PCM_16 rounds to the grid that load_audio reads (x * 32768) and clips, so 16-bit audio survives
    the round trip bit for bit. Raises AudioError for empty or non-finite audio, UserError where the
    system refuses.
    """
    path = pathlib.Path(path)
    check_audio(audio, name=path)
    if subtype == "PCM_16":
        audio = np.clip(np.rint(np.asarray(audio, np.float64) * 32768), -32768, 32767)
        audio = audio.astype(np.int16)
    encoded = io.BytesIO()  # libsndfile does not say why the system refuses a file
    soundfile.write(encoded, audio, sample_rate_hz, format="WAV", subtype=subtype)
    with files.replacing(path) as temporary:
        temporary.write_bytes(encoded.getvalue())


class _Stream(soundfile.SoundFile):
    """A file read front to back: soundfile otherwise seeks after every block, which fails or
    stops short where the header states a wrong length."""

    def seekable(self) -> bool:
        return False


@contextlib.contextmanager
def _open(path: PathLike):
    """Opens a file for reading; every way in which that fails becomes an AudioError."""
    source = pathlib.Path(path)
    if not source.exists():
        raise AudioError(path, "no such file")
    if source.is_dir():
        raise AudioError(path, "is a directory, not an audio file")
    try:
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(_Stream(source))
            except TypeError as error:  # soundfile asks for the format of a headerless file
                raise AudioError(path, "headerless (raw) audio is not supported") from error
            if file.format == "MP3" and (corrected := _correct_mp3(source, file)):
                file = stack.enter_context(_Stream(corrected))
            yield file
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioError(path, _reason(source, error)) from error


def _stated_samples(path: PathLike, file: soundfile.SoundFile) -> int:
    """The length that the header states; of uncompressed files libsndfile gives what is there."""
    if file.format == "NIST":
        with pathlib.Path(path).open("rb") as opened:
            found = _SPHERE_LENGTH.search(opened.read(1024))
        return max(file.frames, int(found[1])) if found else file.frames
    found = _SHORT_CHUNK.search(file.extra_info)
    stated, there = (int(size) for size in found.groups()) if found else (0, 0)
    if there < stated < _NO_SIZE:
        return file.frames * stated // there if there else stated
    return file.frames


def _correct_mp3(path: pathlib.Path, file: soundfile.SoundFile) -> io.BytesIO | None:
    """The same MP3 with its true length stated, or None when the header already tells the truth."""
    data = path.read_bytes()
    found = mp3.scan(data)
    # Encoder delay and padding, which a decoder leaves out, are below four frames.
    if found is None or found.num_samples <= file.frames + 4 * found.header.num_samples:
        return None
    return io.BytesIO(mp3.with_true_length(data, found))


def _reason(path: pathlib.Path, error: Exception) -> str:
    """Says in one clause why a file could not be read."""
    if isinstance(error, OSError):
        return f"cannot be opened ({error.strerror})"
    if path.stat().st_size == 0:
        return "the file has 0 bytes"
    with path.open("rb") as file:
        head = file.read(1024)
    if head.startswith(b"NIST_1A") and b"shorten" in head:
        return "SPHERE with shorten compression is not supported; convert it with sph2pipe -f wav"
    return f"cannot be decoded as audio ({str(error).rpartition(': ')[2].strip(' .')})"


def _source_range(start: float, stop: float, rate: int, wanted: int) -> tuple[int, int | None]:
    """Source samples needed for [start, stop) seconds: `first` falls on an output sample."""
    context = 0 if rate == wanted else math.ceil(_RESAMPLE_CONTEXT_SECONDS * rate)
    grid = rate // math.gcd(rate, wanted)
    first = max(0, int(round(start * wanted) * rate // wanted) - context) // grid * grid
    return first, None if stop == math.inf else math.ceil(stop * rate) + context + 1


def _read(
    file: soundfile.SoundFile, first: int, last: int | None, channel: str | int, name: object
) -> Float[np.ndarray, "t"]:
    """Decodes samples [first, last) of one channel block by block."""
    position = 0
    # MP3 seeks by a table of contents that may be off by many samples; its decoder starts anew.
    if first and file.format != "MP3" and first <= file.frames < 1 << 62:
        position = file.seek(first)
    blocks = []
    while last is None or position < last:
        wanted = _BLOCK if last is None else min(_BLOCK, last - position)
        block = file.read(wanted, dtype="float32", always_2d=True)
        skip = max(0, min(first - position, len(block)))
        position += len(block)
        blocks.append(_one_channel(block[skip:], channel, name))
        if len(block) < wanted:
            break
    if not position:
        raise AudioError(name, "empty: no samples could be decoded (cut off or damaged?)")
    return np.concatenate(blocks)


def _one_channel(
    audio: Num[np.ndarray, "t d"], channel: str | int, name: object
) -> Float[np.ndarray, "t"]:
    """Picks or averages channels, integers scaled to [-1, 1)."""
    channels = audio.shape[1]
    if channel == "mean":
        audio = audio[:, 0] if channels == 1 else audio
    elif not isinstance(channel, int):
        raise ValueError(f'channel={channel!r} is neither "mean" nor an integer')
    elif not 0 <= channel < channels:
        raise AudioError(name, f"channel {channel} wanted, but it has {channels} (counted from 0)")
    else:
        audio = audio[:, channel]
    if audio.dtype.kind in "iu":
        half = float(1 << 8 * audio.dtype.itemsize - 1)
        audio = (audio.astype(np.float64) - (half if audio.dtype.kind == "u" else 0)) / half
    audio = audio.astype(np.float32, copy=False)
    return audio.mean(axis=1) if audio.ndim == 2 else audio
