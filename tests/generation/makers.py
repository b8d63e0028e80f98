"""Tiny networks that draw faces of voices, make voices of faces and change voices, untrained."""

import jax

from common import parallel, trained
from generation import maker, voice_changer, voice_maker
from tests.generation import people as toy

SOUNDS = {"model.kind": "face2voice", "picture.size": 64, "model.frames": 16}
REVOICE = {
    **{"model.kind": "revoice", "loss.wrong_pairs": False},
    **{"model.revoice.width": 16, "model.revoice.code": 8, "model.revoice.blocks": 1},
}


def make(folder, changes=None) -> maker.FaceMaker:
    """At 8 x 8, without checkpoints; its faces differ from voice to voice and draw to draw."""
    return maker.FaceMaker(untrained(folder, changes))


def make_voices(folder) -> voice_maker.VoiceMaker:
    """Of 16 frames."""
    return voice_maker.VoiceMaker(untrained(folder, SOUNDS))


def make_changer(folder) -> voice_changer.VoiceChanger:
    """At 8 x 8, in 24 bands."""
    return voice_changer.VoiceChanger(untrained(folder, REVOICE))


def untrained(folder, changes) -> trained.Trained:
    """The task of these settings with fresh variables."""
    task = toy.make_task(folder, changes)
    variables = jax.jit(task.init)(jax.random.key(0))
    mesh = parallel.make_mesh(jax.devices()[:1])
    return trained.Trained(folder, task.config, task, mesh, variables, {"step": 0})
