"""The state that a run starts with: new, or with the variables of other runs."""

import logging
import pathlib
from typing import Any

import jax
from jax.sharding import Mesh

from common import checkpoint, compiles, parallel, state
from common import workdir as workdir_lib
from common.task import Task

log = logging.getLogger(__name__)


def first_state(task: Task, config: Any, mesh: Mesh) -> state.TrainState:
    """The state at step 0: new, or with the variables of another run (`config.init_from`)."""

    def fresh() -> state.Variables:
        return task.init(state.stream_key(config.seed, "init", 0))

    template = jax.eval_shape(fresh)
    first, arguments = fresh, ()
    if config.init_from:
        other = pathlib.Path(config.init_from).expanduser()
        workdir_lib.check_owner(other, task.name)
        folder = other / "checkpoints"
        loader = checkpoint.Checkpointer(folder, best_mode=task.best_metric[2], read_only=True)
        found, meta = loader.load_variables(mesh)
        loader.close()

        def first(found: state.Variables) -> state.Variables:
            return task.adopt(fresh(), found, meta)

        checkpoint.check_shapes(jax.eval_shape(first, found), template, folder)
        log.info("Starting from step %d of %s.", meta["step"], folder)
        arguments = (found,)
    # Made where it lies: no device ever holds all of what is sharded.
    placed = jax.eval_shape(task.create_state, template)
    make = compiles.jit_once(
        lambda *found: task.create_state(first(*found)),
        out_shardings=parallel.shardings(placed, mesh, task.sharded),
    )
    return make(*arguments)
