"""What a task's folder gives to the shared command line and to `trained.load`."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jax.sharding import Mesh
from ml_collections import ConfigDict, FrozenConfigDict

from common.task import Report, Task


class Mode(NamedTuple):
    """A value of --mode: what it does, and which of --config and --checkpoint it takes.

    `run(package, context)` does it; `says` is its line in --help. Settings may be overridden in
    every mode; one that does not train allows those that `Package.changeable` names. `options` is a
    frozen dataclass whose fields are flags of this mode (`mode_options`).
    """

    run: Callable[["Package", "Context"], None]
    says: str
    takes: frozenset[str] = frozenset()
    trains: bool = False
    options: type | None = None


@dataclasses.dataclass(frozen=True)
class Package:
    """One task.

    Attributes:
      name: of the folder ("asr"), saved in every work directory.
      default_config: every setting with its default. A work directory made before a setting was
        there gets the default, so that a new setting's default has to mean what was done before.
      make_task: (config, work directory) -> task. Opens no data: see `Task.prepare`.
      close: (task, work directory, reports) prints the last words of a training or an evaluation.
      changeable: settings, or sections, that leave the weights what they are: an evaluation may
        override them. `fixed` are those among them that do not.
      modes: of this task alone, beside those of `common.app`.
      completed: the config of a command line with what follows from other settings filled in,
        before anything is built from it or saved.
      for_losses: parts of the parameters that nothing but losses needs, as a discriminator is. A
        checkpoint may lack them, or have those of an earlier version (`trained.load`).
    """

    name: str
    default_config: Callable[[], ConfigDict]
    make_task: Callable[[FrozenConfigDict, pathlib.Path], Task]
    close: Callable[[Any, pathlib.Path, Mapping[str, Report]], None]
    changeable: tuple[str, ...] = ("data", "parallel")
    fixed: tuple[str, ...] = ()
    modes: Mapping[str, Mode] = dataclasses.field(default_factory=dict)
    completed: Callable[[FrozenConfigDict], FrozenConfigDict] = lambda config: config
    for_losses: tuple[str, ...] = ()

    def may_change(self, setting: str) -> bool:
        """Whether `setting` ("data.root") can be another one than in training."""
        within = any(f"{setting}.".startswith(f"{name}.") for name in self.changeable)
        return within and setting not in self.fixed


@dataclasses.dataclass(frozen=True)
class Context:
    """What a mode works with: the work directory, the resolved config, the step of --checkpoint,
    the settings that the command line has changed, with what they are now, and the mode's flags."""

    folder: pathlib.Path
    config: FrozenConfigDict
    mesh: Mesh
    checkpoint: int | None
    changed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    options: Any = None
