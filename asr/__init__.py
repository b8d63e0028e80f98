"""Speech recognition: ContextNet with a transducer or CTC.

from asr import load
recognizer = load("runs/quickstart")
recognizer("a.wav").text
"""

from typing import Any


def load(workdir: Any, *, step: int | None = None) -> Any:
    """The recogniser of a work directory, see `asr.transcriber.Transcriber`."""
    from asr import transcriber  # not before it is wanted: data workers import this package too

    return transcriber.load(workdir, step=step)
