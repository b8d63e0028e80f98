"""A tiny network that draws faces of voices, as it is before training."""

import jax

from common import parallel, trained
from generation import maker
from tests.generation import people as toy


def make(folder, changes=None) -> maker.FaceMaker:
    """At 8 x 8, without checkpoints; its faces differ from voice to voice and draw to draw."""
    task = toy.make_task(folder, changes)
    variables = jax.jit(task.init)(jax.random.key(0))
    mesh = parallel.make_mesh(jax.devices()[:1])
    found = trained.Trained(folder, task.config, task, mesh, variables, {"step": 0})
    return maker.FaceMaker(found)
