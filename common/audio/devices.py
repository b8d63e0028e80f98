"""Sound devices, by the optional package sounddevice: opening them, and what they hear."""

import contextlib
import queue
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float

from common import errors

_MOST_WAITING = 64  # blocks that were heard and not yet worked on; more are lost
_PATIENCE_SECONDS = 5.0


class Heard:
    """Blocks on their way from the callback of a device, which may never wait, to one reader."""

    def __init__(self) -> None:
        self._blocks: queue.Queue = queue.Queue(_MOST_WAITING)

    def __len__(self) -> int:
        return self._blocks.qsize()

    def put(self, block: Float[np.ndarray, "n 1"]) -> bool:
        """Takes a copy of what the device heard; False where it is lost, for want of room."""
        try:
            self._blocks.put_nowait(np.array(block[:, 0], np.float32))
        except queue.Full:
            return False
        return True

    def get(self) -> Float[np.ndarray, "n"]:
        """The next block. Raises UserError where none comes."""
        try:
            return self._blocks.get(timeout=_PATIENCE_SECONDS)
        except queue.Empty:
            raise errors.UserError("The input device gives no sound: choose another.") from None

    def get_all(self) -> Float[np.ndarray, "n"]:
        """The next block and all that wait behind it, end to end. Raises UserError as `get`."""
        blocks = [self.get()]
        while len(self):
            blocks.append(self.get())
        return np.concatenate(blocks)


def module(instead: str) -> Any:
    """sounddevice. Raises UserError where it or its library is missing, with what to do `instead`:
    "give ..."."""
    try:
        import sounddevice
    except ImportError:
        raise errors.UserError("Live sound needs a package: pip install sounddevice") from None
    except Exception as error:  # OSError without the library, its own errors with a broken set-up
        raise errors.UserError(
            f"sounddevice cannot be used ({error}): install PortAudio (libportaudio2), or {instead}"
        ) from error
    return sounddevice


def named(device: str | None) -> int | str | None:
    """A device as sounddevice takes it: its number, a part of its name, or the system's choice."""
    return int(device) if device is not None and device.isdecimal() else device


@contextlib.contextmanager
def opened(sounddevice: Any, kind: Callable[..., Any], **settings: Any) -> Iterator[Any]:
    """A stream of sounddevice, of the class `kind`. Raises UserError where it cannot be opened."""
    with contextlib.ExitStack() as stack:
        try:
            stream = stack.enter_context(kind(**settings))
        except (sounddevice.PortAudioError, ValueError) as error:
            raise errors.UserError(
                f"No sound device: {error}. --list shows what there is."
            ) from error
        yield stream


def level_db(audio: Float[np.ndarray, "n"]) -> float:
    """RMS below full scale, -99 at the least."""
    if not len(audio):
        return -99.0
    return max(-99.0, 10 * float(np.log10(np.mean(np.square(audio, dtype=np.float64)) + 1e-12)))
