"""What the tasks on pairs of voices and faces have in common."""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from common import errors, metrics, steps
from common.data import classes as classes_lib
from common.data import kept, splits
from common.task import Batch
from generation import data, dividing, genders, labelled, people, portraits

log = logging.getLogger(__name__)


class WithFaces(Mapping):  # of splits.Split; a checker of its values would open them
    """The parts of the data, of people who have a face; opened when first asked for.

    `config.data.split_by` says whether they are parts of the data, or are divided out of one.
    """

    def __init__(self, parts: Mapping, config: Any, workdir: pathlib.Path) -> None:
        self._parts, self._config, self._workdir = parts, config, workdir
        self._open: dict[str, splits.Split] = {}
        self._pool: splits.Split | None = None
        self._faces: dict[str, people.Faces] = {}

    def __getitem__(self, name: str) -> splits.Split:
        if name not in self._open:
            kind = self._config.data.split_by
            if kind == "parts":
                self._open[name] = self._with_faces(name, name)
            else:
                if self._pool is None:
                    self._pool = self._with_faces(self._collection(name), name)
                self._open[name] = dividing.divided(self._pool, name, kind, lambda: self._called)
        return self._open[name]

    def _with_faces(self, where: str, name: str) -> splits.Split:
        """The recordings of a part of the data, of those who have a face, where they are read."""
        settings = self._config.data
        found = people.with_faces(self._parts[where], self.faces(name))
        if not settings.cached or settings.kind == "none":
            return found
        return kept.keep(
            found,
            sample_rate_hz=settings.sample_rate_hz,
            channel=splits.channel(settings),
            detector=data.detector(self._config),
            rejected_tsv=self._workdir / "rejected.tsv",
            progress=jax.process_index() == 0,
        )

    def __iter__(self):
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def faces(self, name: str) -> people.Faces:
        """The faces of a part."""
        where = self._collection(name)
        key, data = where, self._config.data
        if self._config.faces.kind in labelled.KINDS and data.kind != "none":
            key = labelled.PARTS[name != "+".join(data.train)]
        if key not in self._faces:
            self._faces[key] = self._opened(where, key)
        return self._faces[key]

    def _opened(self, where: str, key: str) -> people.Faces:
        settings, split = self._config.faces, self._parts[where]
        if settings.kind == "folder":
            return portraits.read_folder(split, self._config, self._workdir, self._called)
        if settings.kind == "films":
            return portraits.of_films(split)
        if settings.kind == "embedded":
            return portraits.of_embedded(split)
        if self._config.data.kind == "none":
            return labelled.ClassFaces(split.source, split.source.held.names)
        source = labelled.Labelled(settings.kind, settings.root, key)
        training = self._parts[self._collection("+".join(self._config.data.train))]
        return labelled.of_classes(source, sorted(set(splits.speakers_of(training))))

    def _collection(self, name: str) -> str:
        """The part of the data in which the people of a part are."""
        data = self._config.data
        return name if data.split_by == "parts" else "+".join(data.pool)

    @functools.cached_property
    def _called(self) -> Mapping[str, str]:
        names = self._config.faces.names
        return portraits.read_names(names) if names else {}


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
        return WithFaces(self.recordings, self.config, self.workdir)

    @functools.cached_property
    def classes(self) -> tuple[str, ...]:
        """The training people, from the work directory, where the first training puts them."""
        return classes_lib.read(self.workdir)

    def prepare(self) -> None:
        classes_lib.write(self.train_split, self.workdir)
        self.eval_data()
        by_class = self.config.faces.kind in labelled.KINDS
        for name in () if by_class else self.eval_names(test=False):
            seen = sorted(set(self.parts[name].speakers) & set(self.classes))
            if seen:
                log.warning(
                    "%s: %d of its people are in the training data too (%s, ...): figures on it "
                    "are not those of unseen people.",
                    *(name, len(seen), seen[0]),
                )

    @functools.cached_property
    def _genders(self) -> dict[str, tuple[str, ...]]:
        return {}  # by part, filled when they are asked for

    def genders_of(self, split: str) -> tuple[str, ...]:
        """The genders of the people of a part in their order, "" where the data do not say it."""
        if split not in self._genders:
            names = data.names_of(self.parts[split])
            listed = portraits.read_genders(self.config.faces.names)
            found = genders.of_people(self.parts[split], names, listed)
            self._genders[split] = found
            if "" in found:
                log.info(
                    "%s: of %d of its %d people the data do not say the gender (column gender): "
                    "figures by gender are without them.",
                    *(split, found.count(""), len(found)),
                )
        return self._genders[split]

    def train_data(self) -> Any:
        name = "+".join(self.config.data.train)
        return data.train_batches(self.parts[name], self.parts.faces(name), self.config)

    def eval_batches(self, split: str) -> Any:
        found = self.parts[split]
        if self.config.voice.kind == "class" and data.names_of(found) != self.classes:
            raise errors.UserError(
                f"config.voice.kind=class: {split} has other people than the training, whom the "
                "network has no class for. Take config.data.split_by=recording, pictures with "
                "classes (config.faces.kind=cifar10, mnist), or another config.voice.kind."
            )
        return data.eval_batches(found, self.parts.faces(split), self.config)

    def _work(self, batch: Batch) -> metrics.Ratio:
        """The rows, as work done."""
        return metrics.Ratio(jnp.sum(batch["mask"], dtype=jnp.float32), jnp.ones(()))


def lengths_of(audio: jax.Array) -> jax.Array:
    """Whole rows."""
    return jnp.full(audio.shape[:1], audio.shape[1], jnp.int32)
