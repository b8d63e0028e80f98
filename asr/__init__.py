"""Speech recognition: ContextNet with a transducer or CTC.

from asr import load
recognizer = load("runs/quickstart")
recognizer("a.wav").text
"""

from typing import Any


def load(workdir: Any, **options: Any) -> Any:
    """The recogniser of a work directory, see `asr.transcriber.load`."""
    from asr import transcriber  # not before it is wanted: data workers import this package too

    return transcriber.load(workdir, **options)
