"""A trained toy task with several checkpoints, for the modes that look inside."""

import pathlib

import jax

from common import parallel, trainer
from common.package import Context, Package
from tests.common import toy

PACKAGE = Package(
    "toy", trainer.default_config, lambda config, _: toy.ToyTask(config), lambda *_: None
)


def train(folder: pathlib.Path) -> Package:
    """Twenty steps, with checkpoints at 5, 10, 15 and 20."""
    config = toy.make_config(keep_every=5)
    trainer.train(toy.ToyTask(config), config, folder, parallel.make_mesh())
    return PACKAGE


def context(folder: pathlib.Path, options, *, devices: int = 8, checkpoint: int = 20) -> Context:
    mesh = parallel.make_mesh(jax.devices()[:devices])
    return Context(folder, toy.make_config(keep_every=5), mesh, checkpoint, {}, options)
