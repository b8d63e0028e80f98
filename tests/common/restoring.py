"""Restores work directories in a process of its own, and says what came of it.

`python -m tests.common.restoring [--coordinator H:P --process I] [--stream DATA] DIR...` prints a
line of JSON for each DIR, and for a training on the stream of that name (Gloo prints its own).

Orbax reads all arrays at once. When one fails it forgets the others, which complain at the end of
the process.
"""

import argparse
import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from common import checkpoint, errors, parallel, state, trainer
from tests.common import toy


def make_state(step: int) -> state.TrainState:
    """Values too many and too random to lie in any file but that of the values."""
    values = np.random.default_rng(step).normal(size=(50, 60)).astype(np.float32)
    variables = {
        "params": {"dense": {"kernel": jnp.asarray(values), "bias": jnp.arange(4.0)}},
        "batch_stats": {"norm": {"var": jnp.ones(4)}},
    }
    return state.create(variables, optax.adam(1e-3), ema=False).replace(step=jnp.int32(step))


def new_iterator(at: int = 0):
    iterator = iter(toy.ToyTask(toy.make_config()).train_data())
    for _ in range(at):
        next(iterator)
    return iterator


def restore(workdir: pathlib.Path) -> tuple[int, int]:
    """The step of the newest checkpoint that is sound, and of its place in the data."""
    saver = checkpoint.Checkpointer(workdir / "checkpoints")
    mesh = parallel.make_mesh(jax.devices() if jax.process_count() > 1 else jax.devices()[:1])
    template, iterator = jax.eval_shape(lambda: make_state(0)), new_iterator()
    try:
        found = saver.restore(template, mesh, iterator)
    finally:
        saver.close()
    step = int(found[0].step)
    np.testing.assert_array_equal(
        found[0].params["dense"]["kernel"], make_state(step).params["dense"]["kernel"]
    )
    return step, iterator.get_state()["next_index"]


@dataclasses.dataclass(frozen=True)
class Named(toy.ToyTask):
    """Its stream has an identity, and no batch."""

    stream: str = ""

    def train_data(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        raise StopIteration

    def get_state(self):
        return {"stream": self.stream}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--coordinator")
    parser.add_argument("--process", type=int, default=0)
    parser.add_argument("--stream")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("workdirs", type=pathlib.Path, nargs="*")
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 1)
    if args.coordinator:
        jax.distributed.initialize(args.coordinator, 2, args.process)
    for workdir in args.workdirs:
        report(restore, workdir)
    if args.stream:
        task = Named(toy.make_config(seed=args.seed), stream=args.stream)
        report(trainer.train, task, task.config, args.workdirs[0], parallel.make_mesh())


def report(work, *arguments) -> None:
    try:
        said = work(*arguments)
    except errors.UserError as error:
        said = str(error)
    print(json.dumps({"said": said}), flush=True)


if __name__ == "__main__":
    main()
