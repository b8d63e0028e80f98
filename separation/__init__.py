"""Target speaker extraction: one voice out of several, in real time or offline.

from separation import load
enhancer = load("runs/separation")
voice = enhancer("meeting.wav", enrolment="ann.wav")
"""

from typing import Any


def load(workdir: Any, *, step: int | None = None) -> Any:
    """The network of a work directory, see `separation.enhancer.Enhancer`."""
    from separation import enhancer  # not before it is wanted: data workers import this package too

    return enhancer.load(workdir, step=step)


def exported(path: Any) -> Any:
    """The network of a file of `separation.export`, see `separation.artefact.Exported`."""
    from separation import artefact

    return artefact.read(path)
