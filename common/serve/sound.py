"""Sound of clients: uploads as samples, frames of a stream as samples, samples as a response."""

import numpy as np
from jaxtyping import Float

from common.audio import io
from common.serve import settings as serve_settings

MIN_RATE_HZ, MAX_RATE_HZ = 4000, 192_000
_FULL_LENGTH_RATE_HZ = 48_000  # at more than it, as many samples are the limit
FORMATS = {"pcm16": np.dtype("<i2"), "float32": np.dtype("<f4")}


def decode(
    data: bytes, name: str | None, channel: str | int, limits: serve_settings.Limits
) -> tuple[Float[np.ndarray, "n"], int]:
    """One channel of an uploaded file of any format, and its rate in Hz.

    Raises io.AudioError, which calls it by the name that the client gave.
    """
    try:
        rate = io.sample_rate(data)
        check_rate(rate)
        seconds = limits.upload_seconds * min(1.0, _FULL_LENGTH_RATE_HZ / rate)
        return io.load_audio(data, sample_rate_hz=rate, channel=channel, max_seconds=seconds), rate
    except io.AudioError as error:
        raise io.AudioError(name or "upload", error.reason) from error


def check_rate(rate: int) -> None:
    """Raises io.AudioError for a rate at which no speech is recorded."""
    if not MIN_RATE_HZ <= rate <= MAX_RATE_HZ:
        raise io.AudioError(
            "rate", f"{rate} Hz lie outside the range of {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz"
        )


class Frames:
    """Bytes of a stream, cut anywhere, as samples; and samples as bytes."""

    def __init__(self, form: str) -> None:
        self._dtype = FORMATS[form]
        self._rest = b""  # less than a sample

    @property
    def is_whole(self) -> bool:
        """Whether the bytes so far end with a sample."""
        return not self._rest

    def samples(self, data: bytes) -> Float[np.ndarray, "n"]:
        """The samples that `data` completes. Raises io.AudioError for NaN and the like."""
        data = self._rest + data
        size = len(data) // self._dtype.itemsize * self._dtype.itemsize
        self._rest = data[size:]
        found = np.frombuffer(data[:size], self._dtype)
        if self._dtype.kind == "i":
            return found.astype(np.float32) / 32768
        found = found.astype(np.float32)
        if found.size:
            io.check_audio(found, name="stream")
        return found

    def data(self, samples: Float[np.ndarray, "n"]) -> bytes:
        """Samples as the client sends its own; PCM is rounded and clipped."""
        if self._dtype.kind == "i":
            samples = np.clip(np.rint(samples * 32768), -32768, 32767)
        return samples.astype(self._dtype).tobytes()
