"""A face from a voice, by adversarial networks.

from generation import load
faces = load("runs/faces")
pictures = faces("ann.wav", count=4)
"""

from typing import Any


def load(workdir: Any, *, step: int | None = None) -> Any:
    """The network of a work directory, see `generation.maker.FaceMaker`."""
    from generation import maker  # not before it is wanted: data workers import this package too

    return maker.load(workdir, step=step)
