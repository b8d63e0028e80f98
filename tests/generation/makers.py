"""Tiny networks that draw faces of voices and make voices of faces, as before training."""

import jax

from common import parallel, trained
from generation import maker, voice_maker
from tests.generation import people as toy


def make(folder, changes=None) -> maker.FaceMaker:
    """At 8 x 8, without checkpoints; its faces differ from voice to voice and draw to draw."""
    return maker.FaceMaker(_untrained(folder, changes))


def make_voices(folder) -> voice_maker.VoiceMaker:
    """Of 16 frames."""
    changes = {"model.kind": "face2voice", "picture.size": 64, "model.frames": 16}
    return voice_maker.VoiceMaker(_untrained(folder, changes))


def _untrained(folder, changes) -> trained.Trained:
    task = toy.make_task(folder, changes)
    variables = jax.jit(task.init)(jax.random.key(0))
    mesh = parallel.make_mesh(jax.devices()[:1])
    return trained.Trained(folder, task.config, task, mesh, variables, {"step": 0})
