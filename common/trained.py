"""A trained model of a work directory: what every command that uses one starts from."""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import FrozenConfigDict

from common import checkpoint, evaluation, parallel, state, workdir
from common.package import Package
from common.task import Task

log = logging.getLogger(__name__)

_ANOTHER = (
    "This version builds another network than that one: an earlier version trained it, or "
    "config.json was changed since. Use that version, put that file back, or train anew in another "
    "--workdir."
)


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
    losses: bool = False,
) -> Trained:
    """What a training left in `folder`, by default its best checkpoint.

    `config` stands in for the saved one; `mesh` is by default that of all devices; `losses` says
    whether any are computed, see `Package.for_losses`. No data are opened. Raises UserError: no
    work directory, of another task, no such checkpoint, damaged, or not of the network that the
    task builds.
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
    unasked = () if losses else package.for_losses
    _check_network(variables, task, loader.directory / str(meta["step"]), unasked)
    log.info("Checkpoint of step %d.", meta["step"])
    return Trained(folder, config, task, mesh, variables, meta)


def _check_network(
    variables: state.Variables, task: Task, folder: pathlib.Path, unasked: tuple[str, ...]
) -> None:
    """Raises UserError for variables that are not those of the task's network, which is traced for
    it and not compiled; the parts `unasked` may be any or none."""
    wanted = jax.eval_shape(lambda: task.init(jax.random.key(0)))
    asked = (
        {
            name: {part: below for part, below in tree.items() if part not in unasked}
            for name, tree in found.items()
        }
        for found in (variables, wanted)
    )
    checkpoint.check_shapes(*asked, folder, _ANOTHER)
