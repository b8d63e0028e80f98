"""A trained model of a work directory: what every command that uses one starts from."""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jax.sharding import Mesh
from ml_collections import FrozenConfigDict

from common import checkpoint, evaluation, parallel, state, workdir
from common.package import Package
from common.task import Task

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """The task of a work directory, and the variables of one of its checkpoints on `mesh`.

    `meta` is what was saved beside them (`Checkpointer.load_variables`).
    """

    folder: pathlib.Path
    config: FrozenConfigDict
    task: Task
    mesh: Mesh
    variables: state.Variables
    meta: Mapping[str, Any]

    @property
    def step(self) -> int:
        """The step of the checkpoint."""
        return int(self.meta["step"])

    @functools.cached_property
    def eval_step(self) -> Callable:
        """(variables, batch) -> (sums, outputs), compiled; each device holds all variables."""
        return evaluation.make_eval_step(self.task, self.config, self.mesh, sharded=())


def checkpoints(found: Trained) -> Iterator[tuple[int, state.Variables]]:
    """The step and the variables of every checkpoint of the run, oldest first.

    One that a training deletes meanwhile is left out, with a warning. Raises UserError for one of
    another network.
    """
    loader = checkpoint.Checkpointer(found.folder / "checkpoints", read_only=True)
    try:
        for step in loader.steps():
            try:
                variables, meta = loader.load_variables(found.mesh, step=step)
            except checkpoint.CheckpointError:
                if (loader.directory / str(step)).exists():
                    raise
                log.warning("The checkpoint of step %d is gone: a training goes on there.", step)
                continue
            found.task.check_checkpoint(meta)
            advice = "It is of another network than the others: move it away."
            folder = loader.directory / str(step)
            checkpoint.check_shapes(variables, found.variables, folder, advice)
            yield step, variables
    finally:
        loader.close()


def load(
    package: Package,
    folder: pathlib.Path | str,
    *,
    step: int | None = None,
    config: FrozenConfigDict | None = None,
    mesh: Mesh | None = None,
) -> Trained:
    """What a training left in `folder`, by default its best checkpoint.

    `config` stands in for the saved one; `mesh` is by default that of all devices. No data are
    opened. Raises UserError: no work directory, of another task, no such checkpoint, or damaged.
    """
    folder = pathlib.Path(folder).expanduser().resolve()
    if config is None:
        config = workdir.load_config(folder, package.name, package.default_config())
    mesh = parallel.make_mesh() if mesh is None else mesh
    task = package.make_task(config, folder)
    _, _, mode = task.best_metric
    loader = checkpoint.Checkpointer(folder / "checkpoints", best_mode=mode, read_only=True)
    variables, meta = loader.load_variables(mesh, step=step)
    loader.close()
    task.check_checkpoint(meta)
    log.info("Checkpoint of step %d.", meta["step"])
    return Trained(folder, config, task, mesh, variables, meta)
