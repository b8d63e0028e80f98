"""What the tasks on pairs of voices and faces have in common."""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from common import metrics, steps
from common.data import classes as classes_lib
from common.data import splits
from common.task import Batch
from generation import data, people

log = logging.getLogger(__name__)


class WithFaces(Mapping[str, splits.Split]):
    """The parts of the data, of people who have a face; opened when first asked for."""

    def __init__(self, parts: Mapping, settings: Any) -> None:  # a checker would open them
        self._parts, self._settings = parts, settings
        self._open: dict[str, splits.Split] = {}
        self._faces: dict[str, people.Faces] = {}

    def __getitem__(self, name: str) -> splits.Split:
        if name not in self._open:
            self._open[name] = people.with_faces(self._parts[name], self.faces(name))
        return self._open[name]

    def __iter__(self):
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def faces(self, name: str) -> people.Faces:
        """The faces of a part."""
        if name not in self._faces:
            self._faces[name] = people.open_faces(self._parts[name], self._settings)
        return self._faces[name]


@dataclasses.dataclass(frozen=True)
class PairedTask(splits.SplitTask, steps.SupervisedTask):
    """The data. `recordings` are the splits by name, `parts` those of people with a face."""

    config: Any
    workdir: pathlib.Path
    recordings: Mapping  # of splits.Split; a checker of its values would open them
    name: str = "generation"
    work_metric: str = "pictures"

    @functools.cached_property
    def parts(self) -> WithFaces:
        return WithFaces(self.recordings, self.config.faces)

    @functools.cached_property
    def classes(self) -> tuple[str, ...]:
        """The training people, from the work directory, where the first training puts them."""
        return classes_lib.read(self.workdir)

    def prepare(self) -> None:
        classes_lib.write(self.train_split, self.workdir)
        self.eval_data()
        for name in self.eval_names(test=False):
            seen = sorted(set(self.parts[name].speakers) & set(self.classes))
            if seen:
                log.warning(
                    "%s: %d of its people are in the training data too (%s, ...): figures on it "
                    "are not those of unseen people.",
                    *(name, len(seen), seen[0]),
                )

    def train_data(self) -> Any:
        name = "+".join(self.config.data.train)
        return data.train_batches(self.parts[name], self.parts.faces(name), self.config)

    def eval_batches(self, split: str) -> Any:
        return data.eval_batches(self.parts[split], self.parts.faces(split), self.config)

    def _work(self, batch: Batch) -> metrics.Ratio:
        """The rows, as work done."""
        return metrics.Ratio(jnp.sum(batch["mask"], dtype=jnp.float32), jnp.ones(()))


def lengths_of(audio: jax.Array) -> jax.Array:
    """Whole rows."""
    return jnp.full(audio.shape[:1], audio.shape[1], jnp.int32)
