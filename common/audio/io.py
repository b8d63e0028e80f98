"""Audio files in, audio files out: decoding, resampling, validation (NumPy, host side)."""

import contextlib
import dataclasses
import io
import math
import os
import pathlib
import re
import select
import stat
from collections.abc import Iterator
from typing import Literal

import numpy as np
import soundfile
import soxr
from jaxtyping import Float, Int16, Num

from common import errors, files
from common.audio import containers, mp3

PathLike = str | os.PathLike
Encoded = PathLike | bytes | io.BytesIO
# What a search for recordings takes for one; of several with one name, the first is wanted.
# fmt: off
SUFFIXES = (
    ".flac", ".wav", ".w64", ".aif", ".aiff", ".au", ".caf", ".sph",
    ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".aac", ".wma", ".amr",
    ".mp4", ".m4v", ".mov", ".3gp", ".webm", ".mkv", ".mka", ".avi", ".mpg", ".mpeg",
)
# fmt: on
_BLOCK = 1 << 20  # samples decoded at a time: a header may claim any length
_LOUDEST = 1e4  # no recording goes beyond 1 by so much
_PIPE_SECONDS = 10  # how long a pipe may be silent before its first byte
_UNKNOWN_FORMAT = 1  # libsndfile's number for it
_SURROGATE = re.compile("[\ud800-\udfff]")
# How libsndfile says that a chunk of samples (WAV, AIFF, AU) ends beyond the file.
_SHORT_CHUNK = re.compile(r"^\s*(?:data|SSND|Data Size) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
_NO_SIZE = 0x7FFF0000  # programs that write to a pipe state sizes about here
_SPHERE_LENGTH = re.compile(rb"^sample_count -i (\d+)", re.MULTILINE)
_RESAMPLE_CONTEXT_SECONDS = 0.05  # beyond the reach of soxr's filter, for partial reads


class AudioError(errors.UserError, ValueError):
    """Audio that cannot be used; the message names the file and the reason."""

    def __init__(self, name: object, reason: str):
        self.name = printable(name)
        self.reason = reason
        super().__init__(f"{self.name}: {reason}")

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


def printable(name: object) -> str:
    """A name that every terminal prints: its bytes that are not UTF-8 are escaped (`caf\\xe9`)."""

    def escape(found: re.Match) -> str:
        code = ord(found[0])
        return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"

    return _SURROGATE.sub(escape, str(name))


def probe(source: Encoded) -> AudioInfo:
    """Rate, channels and length of a file, or of the bytes of one, without decoding it.

    The length is the header's, or that of the packets where it states none; only decoding proves
    it. Raises AudioError.
    """
    with _open(source) as file:
        num_samples = file.stated_samples()
        if num_samples is None and isinstance(file, containers.Sound):
            num_samples = file.counted_samples()
        if num_samples is None:
            raise AudioError(_name(source), "the header states no length")
        return AudioInfo(file.samplerate, file.channels, num_samples)


def sample_rate(source: Encoded) -> int:
    """The rate in Hz by the header, also of what states no length. Raises AudioError."""
    with _open(source) as file:
        return file.samplerate


def load_audio(
    source: Encoded | Num[np.ndarray, "t *d"],
    *,
    sample_rate_hz: int,
    channel: Literal["mean"] | int = "mean",
    start: float = 0.0,
    duration: float | None = None,
    source_rate_hz: int | None = None,
    max_seconds: float = math.inf,
) -> Float[np.ndarray, "n"]:
    """One channel of a recording as float32 at the wanted rate.

    Takes a file, or the bytes of one, of any format that libsndfile reads (WAV, FLAC, OGG, MP3,
    SPHERE, ...) or that FFmpeg does (M4A, WebM, the sound of a video), or an array with its
    `source_rate_hz`: `[t, channels]`, or `[t]`, which is one channel whatever `channel` says.
    Integers are scaled to [-1, 1); floats are taken as they are. `start` and `duration` are seconds
    and read only what they need, with enough context that the excerpt equals the same stretch of
    the whole; a `duration` past the end gives what there is. A stretch longer than `max_seconds` is
    refused, by what the header says or after so much was decoded. Raises AudioError for that, and
    for what cannot be read, is empty or fails `check_audio`.
    """
    if start < 0 or (duration is not None and duration <= 0) or max_seconds <= 0:
        raise ValueError(
            f"start={start} must be >= 0, duration={duration} and max_seconds={max_seconds} > 0"
        )
    stop = math.inf if duration is None else start + duration
    name = _name(source)

    def check_length(end: int, rate: int) -> None:
        if min(end, stop * rate) - start * rate > max_seconds * rate + 0.5:
            raise AudioError(name, f"longer than the limit of {max_seconds:g} s")

    if isinstance(source, np.ndarray):
        if source_rate_hz is None:
            raise ValueError("an array needs its source_rate_hz")
        rate = source_rate_hz
        first, last = _source_range(start, stop, rate, sample_rate_hz)
        if source.ndim == 1:
            source, channel = source[:, None], "mean"
        if source.ndim != 2:
            raise AudioError(name, f"shape {source.shape} is neither [t] nor [t, channels]")
        check_length(len(source), rate)
        audio = _one_channel(source[first:last], channel, name)
    else:
        with _open(source) as file:
            rate = file.samplerate
            first, last = _source_range(start, stop, rate, sample_rate_hz)
            check_length(file.stated_samples() or 0, rate)
            blocks, position = [], first
            for block in file.blocks(first, last):
                position += len(block)
                check_length(position, rate)
                blocks.append(_one_channel(block, channel, name))
        if not blocks:
            raise AudioError(name, "empty: no samples could be decoded (cut off or damaged?)")
        audio = np.concatenate(blocks)
    if rate != sample_rate_hz and audio.size:
        check_audio(audio, name=name)  # resampled, one bad sample would be many
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
    """Raises AudioError for audio without samples or with impossible ones; returns the warnings.

    Impossible are NaN, infinity and what is 10,000 times as loud as full scale. The only warning is
    "silent": every sample is 0, which is odd but not wrong.
    """
    if audio.size == 0:
        raise AudioError(name, "empty: no samples")
    if audio.dtype.kind == "f":
        peak = max(float(audio.max()), -float(audio.min()))
        if not peak <= _LOUDEST:  # NaN compares as false
            raise AudioError(name, _impossible(audio, peak))
    return () if audio.any() else ("silent",)


def silence(channel: str | int) -> str:
    """What is meant by "silent" of a recording of which `load_audio` reads this channel."""
    if channel == "mean":
        return "every sample is zero; if it has channels, in their mean: see config.data.channel"
    return f"every sample of channel {channel} is zero"


def _impossible(audio: Float[np.ndarray, "..."], peak: float) -> str:
    """Says how many samples are impossible, and what they look like."""
    bad = np.count_nonzero(~np.isfinite(audio))
    if bad:
        return f"{bad} of {audio.size} samples are NaN or infinite"
    bad = np.count_nonzero(np.abs(audio) > _LOUDEST)
    lie = "lies" if bad == 1 else "lie"
    reason = f"{bad} of {audio.size} samples {lie} beyond any possible value ({peak:.5g})"
    unscaled = "; they look like 16-bit integers that were not scaled: divide them by 32768"
    return reason + unscaled if peak <= 32768 else reason


def write_wav(
    path: PathLike,
    audio: Float[np.ndarray, "t *d"],
    sample_rate_hz: int,
    *,
    subtype: Literal["PCM_16", "PCM_24", "FLOAT"] = "PCM_16",
) -> None:
    """Writes `[t]` or `[t, channels]` as WAV under a temporary name, then renames.

    PCM_16 rounds to the grid that load_audio reads (x * 32768) and clips, so 16-bit audio survives
    the round trip bit for bit. Raises AudioError where `check_audio` does, UserError where the
    system refuses.
    """
    _write(path, audio, sample_rate_hz, "WAV", subtype)


def write_flac(path: PathLike, audio: Float[np.ndarray, "t *d"], sample_rate_hz: int) -> None:
    """Writes FLAC of 16 bits, otherwise as `write_wav` does PCM_16."""
    _write(path, audio, sample_rate_hz, "FLAC", "PCM_16")


def convert_to_flac(
    source: Encoded,
    path: PathLike,
    *,
    sample_rate_hz: int,
    channel: Literal["mean"] | int = "mean",
) -> tuple[int, float]:
    """Writes what `load_audio` gives of a recording as `write_flac` does, block by block.

    Takes as much memory for a film as for a clip. Returns the number of samples and the greatest
    magnitude. Raises AudioError and UserError as those do.
    """
    count, peak = 0, 0.0
    with (
        files.replacing(path) as temporary,
        temporary.open("wb") as file,
        soundfile.SoundFile(file, "w", sample_rate_hz, 1, "PCM_16", format="FLAC") as out,
    ):
        for block in _resampled_blocks(source, sample_rate_hz, channel):
            count += len(block)
            peak = max(peak, float(np.abs(block).max()))
            out.write(_pcm16(block))
        if not count:
            raise AudioError(_name(source), "empty: no samples could be decoded")
    return count, peak


def _resampled_blocks(
    source: Encoded, sample_rate_hz: int, channel: Literal["mean"] | int
) -> Iterator[Float[np.ndarray, "n"]]:
    """One channel of a whole recording at the wanted rate, checked, in pieces that hold samples."""
    name, resampler = _name(source), None
    with _open(source) as file:
        if file.samplerate != sample_rate_hz:
            rates = (file.samplerate, sample_rate_hz)
            resampler = soxr.ResampleStream(*rates, 1, dtype="float32", quality="HQ")
        for block in file.blocks(0, None):
            audio = _one_channel(block, channel, name)
            if not audio.size:
                continue
            check_audio(audio, name=name)
            if resampler is not None:
                audio = resampler.resample_chunk(np.ascontiguousarray(audio))
            if audio.size:
                yield audio
    if resampler is not None:
        rest = resampler.resample_chunk(np.empty(0, np.float32), last=True)
        if rest.size:
            yield rest


def wav_bytes(audio: Float[np.ndarray, "t *d"], sample_rate_hz: int) -> bytes:
    """The file that `write_wav` writes, of 16 bits."""
    check_audio(audio)
    return _encoded(audio, sample_rate_hz, "WAV", "PCM_16")


def _write(
    path: PathLike, audio: Float[np.ndarray, "t *d"], rate: int, form: str, subtype: str
) -> None:
    path = pathlib.Path(path)
    check_audio(audio, name=path)
    # libsndfile does not say why the system refuses a file
    encoded = _encoded(audio, rate, form, subtype)
    with files.replacing(path) as temporary:
        temporary.write_bytes(encoded)


def _encoded(audio: Float[np.ndarray, "t *d"], rate: int, form: str, subtype: str) -> bytes:
    if subtype == "PCM_16":
        audio = _pcm16(audio)
    encoded = io.BytesIO()
    soundfile.write(encoded, audio, rate, format=form, subtype=subtype)
    return encoded.getvalue()


def _pcm16(audio: Float[np.ndarray, "..."]) -> Int16[np.ndarray, "..."]:
    rounded = np.rint(np.asarray(audio, np.float64) * 32768)
    return np.clip(rounded, -32768, 32767).astype(np.int16)


class _Stream(soundfile.SoundFile):
    """A file read front to back: soundfile otherwise seeks after every block, which fails or
    stops short where the header states a wrong length."""

    head = b""

    def seekable(self) -> bool:
        return False

    def stated_samples(self) -> int | None:
        """The length by the header; of uncompressed files libsndfile gives what is there."""
        if self.frames >= 1 << 62:  # so it reports a stream without a stated length
            return None
        if self.format == "NIST":
            found = _SPHERE_LENGTH.search(self.head)
            return max(self.frames, int(found[1])) if found else self.frames
        found = _SHORT_CHUNK.search(self.extra_info)
        stated, there = (int(size) for size in found.groups()) if found else (0, 0)
        if there < stated < _NO_SIZE:
            return self.frames * stated // there if there else stated
        return self.frames

    def blocks(self, first: int, last: int | None) -> Iterator[Float[np.ndarray, "n d"]]:
        """Samples [first, last), piece by piece; pieces that were skipped are empty."""
        position = 0
        # MP3 seeks by a table of contents that may be off by many samples; its decoder starts anew.
        if first and self.format != "MP3" and first <= self.frames < 1 << 62:
            position = self.seek(first)
        most = max(1, _BLOCK // self.channels)
        while last is None or position < last:
            wanted = most if last is None else min(most, last - position)
            block = self.read(wanted, dtype="float32", always_2d=True)
            skipped = max(0, first - position)
            position += len(block)
            if position:
                yield block[skipped:]
            if len(block) < wanted:
                break


def _name(source: object) -> object:
    """What messages call it."""
    if isinstance(source, np.ndarray):
        return "array"
    return "bytes" if isinstance(source, bytes | io.BytesIO) else source


@contextlib.contextmanager
def _open(source: Encoded):
    """The decoder of a file or of bytes; every way in which that fails becomes an AudioError."""
    name = _name(source)
    try:
        with contextlib.ExitStack() as stack:
            yield _decoder(_opened(source, stack), name, stack)
    except FileNotFoundError as error:
        raise AudioError(name, "no such file") from error
    except IsADirectoryError as error:
        raise AudioError(name, "is a directory, not an audio file") from error
    except OSError as error:
        raise AudioError(name, f"cannot be opened ({error.strerror or error})") from error
    except soundfile.LibsndfileError as error:
        raise AudioError(name, f"cannot be decoded as audio ({_clause(error)})") from error
    except containers.Undecodable as error:
        raise AudioError(name, f"cannot be decoded as audio ({error})") from error


def _opened(source: Encoded, stack: contextlib.ExitStack) -> containers.Bytes:
    """What can be read and wound back; what comes through a pipe is read to its end."""
    if isinstance(source, bytes | io.BytesIO):
        return io.BytesIO(source if isinstance(source, bytes) else source.getvalue())

    def opener(path: str, flags: int) -> int:
        return os.open(path, flags | os.O_NONBLOCK)  # or a pipe without a writer holds for ever

    try:
        file = open(source, "rb", buffering=0, opener=opener)  # noqa: SIM115
    except ValueError as error:
        raise AudioError(source, f"is no name of a file ({error.args[-1]})") from error
    stack.enter_context(file)
    mode = os.fstat(file.fileno()).st_mode
    if stat.S_ISFIFO(mode):
        if not select.select([file], [], [], _PIPE_SECONDS)[0]:
            raise AudioError(source, f"is a pipe that nothing came through in {_PIPE_SECONDS} s")
        os.set_blocking(file.fileno(), True)
        return io.BytesIO(file.read())
    if not stat.S_ISREG(mode):
        raise AudioError(source, "is a device, not an audio file")
    return file


def _decoder(
    file: containers.Bytes, name: object, stack: contextlib.ExitStack
) -> _Stream | containers.Sound:
    """libsndfile's decoder, or FFmpeg's for what libsndfile does not read."""
    head = file.read(1024)
    file.seek(0)
    if not head:
        raise AudioError(name, "the file has 0 bytes")
    # By its number: soundfile cannot encode each name, and takes `.raw` for a format.
    number_or_bytes = file if isinstance(file, io.BytesIO) else file.fileno()
    try:
        stream = stack.enter_context(_Stream(number_or_bytes, closefd=False))
    except soundfile.LibsndfileError as error:
        refused = error
    else:
        stream.head = head
        return _with_true_length(stream, file, stack) if stream.format == "MP3" else stream
    if head.startswith(b"NIST_1A") and b"shorten" in head:
        reason = "SPHERE with shorten compression is not supported; convert it with sph2pipe -f wav"
        raise AudioError(name, reason) from refused
    file.seek(0)
    try:
        return stack.enter_context(containers.open_sound(file))
    except containers.Undecodable:
        if pathlib.PurePath(printable(name)).suffix.lower() == ".raw":
            raise AudioError(name, "headerless (raw) audio is not supported") from refused
        if refused.code != _UNKNOWN_FORMAT:  # libsndfile says best what is wrong with its own
            raise refused from None
        raise


def _with_true_length(
    stream: _Stream, file: containers.Bytes, stack: contextlib.ExitStack
) -> _Stream:
    """An MP3 whose header states what is there, or more because the file was cut off."""
    place = file.tell()  # where libsndfile goes on
    file.seek(0)
    data = file.read()
    file.seek(place)
    found = mp3.scan(data)
    if found is None:
        return stream
    missing = found.num_samples - stream.frames
    # Encoder delay and padding, which a decoder leaves out, are below four frames.
    if (abs(missing) if found.estimated else missing) <= 4 * found.header.num_samples:
        return stream
    return stack.enter_context(_Stream(io.BytesIO(mp3.with_true_length(data, found))))


def _clause(error: soundfile.LibsndfileError) -> str:
    return str(error).rpartition(": ")[2].strip(" .")


def _source_range(start: float, stop: float, rate: int, wanted: int) -> tuple[int, int | None]:
    """Source samples needed for [start, stop) seconds: `first` falls on an output sample."""
    context = 0 if rate == wanted else math.ceil(_RESAMPLE_CONTEXT_SECONDS * rate)
    grid = rate // math.gcd(rate, wanted)
    first = max(0, int(round(start * wanted) * rate // wanted) - context) // grid * grid
    return first, None if stop == math.inf else math.ceil(stop * rate) + context + 1


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
