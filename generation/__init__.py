"""A face from a voice, or a voice from a face, by adversarial networks; words in another voice.

from generation import load
faces = load("runs/faces")
pictures = faces("ann.wav", count=4)
sounds = load("runs/voices").voice("ann.jpeg", 4)
said = load("runs/revoice")("bob.wav", face="ann.jpeg")
"""

from typing import Any


def load(workdir: Any, *, step: int | None = None) -> Any:
    """The network of a work directory: `generation.maker.FaceMaker`, of one that makes voices
    `generation.voice_maker.VoiceMaker`, of one that changes them `voice_changer.VoiceChanger`."""
    # Not before they are wanted: data workers import this package too.
    from common import trained
    from generation import maker, task, voice_changer, voice_maker

    found = trained.load(task.PACKAGE, workdir, step=step)
    kinds = {"face2voice": voice_maker.VoiceMaker, "revoice": voice_changer.VoiceChanger}
    return kinds.get(found.config.model.kind, maker.FaceMaker)(found)
