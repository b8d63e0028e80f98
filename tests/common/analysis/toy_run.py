"""A trained toy task with several checkpoints, for the modes that look inside.

As a program: one process of several that look at a run that is there.
"""

import argparse
import pathlib

import jax

from common import app, parallel, trainer
from common.analysis import hessian, landscape
from common.analysis.settings import HessianOptions, LandscapeOptions
from common.package import Context, Package
from tests.common import toy

PACKAGE = Package(
    "toy", trainer.default_config, lambda config, _: toy.ToyTask(config), lambda *_: None
)
SHARED = Package(
    "toy", trainer.default_config, lambda config, _: toy.SlowTask(config), lambda *_: None
)


def train(folder: pathlib.Path) -> Package:
    """Twenty steps, with checkpoints at 5, 10, 15 and 20."""
    config = toy.make_config(keep_every=5)
    trainer.train(toy.ToyTask(config), config, folder, parallel.make_mesh())
    return PACKAGE


def context(folder: pathlib.Path, options, *, devices: int = 8, checkpoint: int = 20) -> Context:
    mesh = parallel.make_mesh(jax.devices()[:devices])
    return Context(folder, toy.make_config(keep_every=5), mesh, checkpoint, {}, options)


def look(package: Package, folder: pathlib.Path, devices: int) -> None:
    """A film over the trajectory's plane with the task's metric, and the spectrum."""
    plane = LandscapeOptions(along="pca", points=5, film=True, metric_points=3)
    landscape.run(package, context(folder, plane, devices=devices))
    hessian.run(package, context(folder, HessianOptions(top=2, steps=8), devices=devices))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--host_devices", type=int, default=2)
    parser.add_argument("--multihost", action="store_true")
    parser.add_argument("--coordinator")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--process", type=int, default=0)
    args = parser.parse_args()
    app.set_up_logging()
    app.set_up_jax(args)  # the flags of every command, by their names
    look(SHARED, args.workdir, jax.device_count())


if __name__ == "__main__":
    main()
