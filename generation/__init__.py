"""A face from a voice, or a voice from a face, by adversarial networks.

from generation import load
faces = load("runs/faces")
pictures = faces("ann.wav", count=4)
sounds = load("runs/voices").voice("ann.jpeg", 4)
"""

from typing import Any


def load(workdir: Any, *, step: int | None = None) -> Any:
    """The network of a work directory: `generation.maker.FaceMaker`, or of one that makes voices
    `generation.voice_maker.VoiceMaker`."""
    # Not before they are wanted: data workers import this package too.
    from common import trained
    from generation import maker, task, voice_maker

    found = trained.load(task.PACKAGE, workdir, step=step)
    voices = found.config.model.kind == "face2voice"
    return voice_maker.VoiceMaker(found) if voices else maker.FaceMaker(found)
