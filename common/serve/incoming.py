"""Sound that comes through a websocket: what its header says of it, and its samples to the end."""

import json
from collections.abc import AsyncIterator, Callable, Collection
from typing import Any, NamedTuple

import numpy as np
import soxr
from jaxtyping import Float

from common.audio import io
from common.serve import sockets, sound

_END = {"end": True}


class Form(NamedTuple):
    """Samples per second, and how each is written (`sound.FORMATS`)."""

    rate: int
    name: str


def wrong(message: str) -> sockets.Refused:
    """For a header that cannot be."""
    return sockets.Refused(sockets.BAD_REQUEST, "header", message)


def form(header: dict[str, Any], others: Collection[str]) -> Form:
    """ "rate" and "format" of a header that may have `others` beside them. Raises Refused."""
    name, rate = header.get("format", "pcm16"), header.get("rate")
    if unknown := header.keys() - {"format", "rate", *others}:
        raise wrong(f"unknown in the first frame: {', '.join(sorted(unknown))}")
    if name not in tuple(sound.FORMATS):
        raise wrong(f"format: one of {', '.join(sound.FORMATS)}")
    if isinstance(rate, bool) or not isinstance(rate, int):
        raise wrong("rate: the samples per second, a whole number")
    try:
        sound.check_rate(rate)
    except io.AudioError as error:
        raise wrong(str(error)) from error
    return Form(rate, name)


async def samples(
    talk: sockets.Socket, frames: sound.Frames, most: int
) -> AsyncIterator[Float[np.ndarray, "n"]]:
    """Up to the end that the client states, {"end": true}; `most` at most. Raises Refused."""
    heard = 0
    while isinstance(frame := await talk.receive(), bytes):
        try:
            found = frames.samples(frame)
        except io.AudioError as error:
            raise sockets.Refused(sockets.BAD_REQUEST, "audio", str(error)) from error
        heard += len(found)
        if heard > most:
            message = f"more than {most} samples, the limit of a stream"
            raise sockets.Refused(sockets.TOO_MUCH, "long", message)
        yield found
    if not _is_end(frame):
        message = 'samples are binary frames; the only text is {"end": true}'
        raise sockets.Refused(sockets.BAD_REQUEST, "text", message)
    if not frames.is_whole:
        raise sockets.Refused(sockets.BAD_REQUEST, "cut", "the stream ended within a sample")


def resampler(source: int, wanted: int) -> Callable[[np.ndarray, bool], np.ndarray]:
    """(samples, whether they are the last) -> samples at the other rate."""
    if source == wanted:
        return lambda samples, last: samples
    return soxr.ResampleStream(source, wanted, 1, dtype="float32").resample_chunk


def _is_end(text: str) -> bool:
    try:
        return json.loads(text) == _END
    except (ValueError, RecursionError):
        return False
