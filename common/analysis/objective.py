"""The loss of a task over fixed batches, as a pure function that can be compiled as a whole.

All batches lie on the devices, those of one shape stacked; a scan goes over them. So neither points
of a landscape nor products with a Hessian wait for the host.
"""

import contextlib
import dataclasses
import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, Float

from common import errors, metrics, parallel, state
from common.data import buckets, pipeline
from common.nn import marks, norm
from common.task import Batch, Metrics, Task

log = logging.getLogger(__name__)

SHAPES = 3  # of repacked batches: each is compiled
_FEATURES = "features of the front end"  # in batches
TRAIN = "train"  # the name of the first batches of training, among the splits


class Data(NamedTuple):
    """Batches on every device: of each shape one tree with a new first axis. A pytree."""

    groups: tuple[Any, ...]

    @property
    def num_batches(self) -> int:
        return sum(len(group["mask"]) for group in self.groups)


def collect(batches: Iterable[Batch], mesh: Mesh, *, most: int = 0, repack: bool = False) -> Data:
    """The first `most` batches (0: all), whole on each device of the mesh.

    With `repack` their rows are put together by length, into a few shapes with less padding: an
    evaluation pads all of a small split to one length (62 % of AN4's dev). Otherwise the batches
    stay as they are. Every process reads its rows and gets those of all.
    """
    read: list[dict[str, np.ndarray]] = []
    with pipeline.opened(batches) as iterator:
        for batch in itertools.islice(iterator, most or None):
            read.append({name: np.asarray(array) for name, array in batch.items()})
    if jax.process_count() > 1:
        read = [multihost_utils.process_allgather(batch, tiled=True) for batch in read]
    if not any(batch["mask"].any() for batch in read):
        raise errors.UserError("there is not one recording to analyse.")
    read = _repacked(read) if repack else read
    found: dict[Any, list[Any]] = {}
    for batch in read:
        shape = tuple((name, array.shape, array.dtype.str) for name, array in batch.items())
        found.setdefault(shape, []).append(batch)
    groups = tuple(jax.tree.map(lambda *rows: np.stack(rows), *same) for same in found.values())
    return Data(parallel.place(groups, mesh))


def _repacked(batches: Sequence[Mapping[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """The real rows in as few batches of the least padding, the shortest first."""
    lengths = {
        name: np.concatenate([batch[f"{name}_lengths"][batch["mask"]] for batch in batches])
        for name in batches[0]
        if f"{name}_lengths" in batches[0]
    }
    if not lengths:
        return [dict(batch) for batch in batches]

    def elements(name: str) -> int:
        return max(batch[name][0].size for batch in batches)

    primary = max(lengths, key=elements)
    total = max(batch[primary].shape[0] * batch[primary].shape[1] for batch in batches)
    options = {"primary": primary, "num_buckets": SHAPES, "max_total": total}
    shapes = buckets.choose_buckets(lengths, rows_multiple_of=1, **options)
    chosen = buckets.assign(shapes, lengths, len(lengths[primary]))
    order = np.argsort(lengths[primary], kind="stable")
    rows = [(batch, row) for batch in batches for row in np.flatnonzero(batch["mask"]).tolist()]
    packed = []
    for number, shape in enumerate(shapes):
        members = [place for place in order if chosen[place] == number]
        for start in range(0, len(members), shape.rows):
            some = [rows[place] for place in members[start : start + shape.rows]]
            packed.append(_stacked(some, shape))
    return packed


def _stacked(rows: Sequence[tuple[Mapping[str, np.ndarray], int]], shape: buckets.Bucket) -> Any:
    """A batch of these rows of others; what is lacking to its size are rows that are not real."""
    batch = {}
    for name in rows[0][0]:
        one = rows[0][0][name][0]
        size = (shape.lengths[name], *one.shape[1:]) if name in shape.lengths else one.shape
        array = np.zeros((shape.rows, *size), one.dtype)
        for place, (source, row) in enumerate(rows):
            leaf = source[name][row]
            if name in shape.lengths:
                leaf = leaf[: size[0]]
                array[place, : len(leaf)] = leaf
            else:
                array[place] = leaf
        batch[name] = array
    return batch


def batches_of(task: Task, split: str, most: int) -> tuple[str, Iterable[Batch]]:
    """The name of a split and its batches, as `evaluation_split`, or as "train" the first `most`
    of training. Raises UserError."""
    if split == TRAIN:
        if most < 1:
            raise errors.UserError("--split=train has no end: say how many with --batches=N.")
        return split, task.train_data()
    return evaluation_split(task, split, others=(TRAIN,))


def evaluation_split(
    task: Task, split: str, *, others: Sequence[str] = ()
) -> tuple[str, Iterable[Batch]]:
    """The name of an evaluation split ("" is the first) and its batches. Raises UserError, which
    lists those that there are, and `others`."""
    data = task.eval_data(test=True)
    if not data and not split:
        raise errors.UserError(
            "config.data.eval and config.data.test name no part of the data: give one, as "
            "--config.data.eval=dev" + "".join(f", or --split={name}" for name in others) + "."
        )
    split = split or next(iter(data))
    if split not in data:
        raise errors.UserError(
            f"--split={split}: there is no such split; choose {', '.join([*data, *others])}."
        )
    return split, data[split]


def not_finite(split: str) -> str:
    """The message where there is no loss at the checkpoint itself."""
    return (
        f"the loss of {split or 'the split'} is not finite at the checkpoint itself. Where its "
        "recordings have no labels (speakers that training has not) take those of training: "
        "--split=train --batches=8."
    )


@dataclasses.dataclass(frozen=True)
class Objective:
    """The loss of `task` at training step `step`, without the distortions of training.

    Batch normalisation is "frozen" (running averages) or takes the statistics of each "batch";
    "recalibrated" takes those of all the data at the very parameters, gathered in a pass before
    (Izmailov et al. 2018, arXiv:1803.05407, section 3.2).
    """

    task: Task
    seed: int
    step: int
    batch_norm: str = "frozen"

    def batch_sums(
        self, variables: state.Variables, batch: Batch
    ) -> tuple[Mapping[str, metrics.Term], Metrics, state.Variables]:
        """Terms, sums for the log and the new model state of one batch."""

        def loss(variables: state.Variables, batch: Batch) -> Any:
            with _batch_statistics(self.batch_norm != "frozen"):
                terms, (sums, new) = self._loss(variables, batch)
            return terms, sums, new

        return _alone(loss)(variables, batch)

    def batch_outputs(self, variables: state.Variables, batch: Batch) -> list[Any]:
        """What the network gives to the loss (`nn.marks`), with running averages."""

        def network(variables: state.Variables, batch: Batch) -> list[Any]:
            with marks.captured(marks.Outputs) as found:
                self._loss(variables, batch)
            return found

        return _alone(network)(variables, batch)

    def batch_terms(
        self, variables: state.Variables, batch: Batch, found: list[Any]
    ) -> Mapping[str, metrics.Term]:
        """The terms of the loss of these outputs."""

        def loss(variables: state.Variables, batch: Batch, found: list[Any]) -> Any:
            with marks.given(marks.Outputs, found):
                return self._loss(variables, batch)[0]

        return _alone(loss)(variables, batch, found)

    def _loss(self, variables: state.Variables, batch: Batch) -> Any:
        key = state.stream_key(self.seed, "analysis", self.step)
        batch = {**batch, "row": jnp.arange(batch["mask"].shape[0], dtype=jnp.int32)}
        with contextlib.ExitStack() as stack:
            if features := batch.pop(_FEATURES, None):
                stack.enter_context(marks.given(marks.Features, features))
            return self.task.loss(variables, batch, key, jnp.int32(self.step), train=False)

    def with_features(self, variables: state.Variables, data: Data) -> Data:
        """The data with what front ends without parameters make of them (`nn.marks.Features`).

        For many losses of the same data: it is then not computed at each.
        """

        def features(variables: state.Variables, batch: Batch) -> list[Any]:
            with marks.captured(marks.Features) as found:
                self._loss(variables, batch)
            return found

        def one(batch: Batch) -> Batch:
            return {**batch, _FEATURES: _alone(features)(variables, batch)}

        return Data(tuple(jax.lax.map(one, group) for group in data.groups))

    def sums(
        self, variables: state.Variables, data: Data
    ) -> tuple[dict[str, metrics.Term], dict[str, metrics.Ratio]]:
        """The terms of the loss over all the data, and the other sums."""
        if self.batch_norm == "recalibrated":
            frozen = dataclasses.replace(self, batch_norm="frozen")
            return frozen.sums(recalibrated(self, variables, data), data)

        def one(batch: Batch) -> Any:
            terms, sums, _ = self.batch_sums(variables, batch)
            return dict(terms), dict(sums)

        parts = []
        for group in data.groups:
            shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], group))
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

            def add(carry: Any, batch: Batch) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, carry, one(batch)), None

            parts.append(jax.lax.scan(add, zeros, group)[0])
        terms, sums = jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *parts)
        # A weight is the same in every batch, and was added like a total.
        weighed = {
            name: metrics.Term(term.total, term.count, term.weight / data.num_batches)
            for name, term in terms.items()
        }
        return weighed, sums

    def __call__(self, variables: state.Variables, data: Data) -> Float[Array, ""]:
        """The loss: what an evaluation of the data reports as `loss`, where the task reports it."""
        return value(self.sums(variables, data)[0])


def _alone(fn: Any) -> Any:
    """`fn` inside a mapped axis, over which layers may sum, that is this one device."""
    return jax.vmap(fn, in_axes=None, out_axes=None, axis_size=1, axis_name=parallel.AXIS)


def value(terms: Mapping[str, metrics.Term]) -> Float[Array, ""]:
    """The loss that terms over all the data add up to."""
    return sum(
        term.weight * term.total / metrics.at_least_one(term.count) for term in terms.values()
    )


@contextlib.contextmanager
def _batch_statistics(wanted: bool) -> Iterator[None]:
    """Batch normalisation, and nothing else, does as in training; its new averages are those of
    the batch alone."""

    def intercept(following: Any, args: Any, kwargs: Any, context: Any) -> Any:
        layer = context.module
        if not isinstance(layer, norm.MaskedBatchNorm) or context.method_name != "__call__":
            return following(*args, **kwargs)
        if not layer.is_mutable_collection("batch_stats"):  # a network that stays as it was
            return following(*args, **kwargs)
        before = {name: layer.get_variable("batch_stats", name) for name in ("mean", "var")}
        y = following(*args, **{**kwargs, "train": True})
        for name, old in before.items():
            moved = layer.get_variable("batch_stats", name) - old
            layer.put_variable("batch_stats", name, old + moved / (1.0 - layer.momentum))
        return y

    if not wanted:
        yield
        return
    with nn.intercept_methods(intercept):
        yield


def recalibrated(objective: Objective, variables: state.Variables, data: Data) -> state.Variables:
    """The variables with statistics of batch normalisation over all the data.

    Means and second moments of the batches, weighed by their rows. What is no "batch_stats" stays.
    """
    if "batch_stats" not in variables:
        return variables
    objective = dataclasses.replace(objective, batch_norm="batch")

    def moments(batch: Batch) -> tuple[Any, Array]:
        stats = objective.batch_sums(variables, batch)[2].get("batch_stats", {})
        rows = jnp.sum(batch["mask"].astype(jnp.float32))
        return jax.tree.map(lambda x: rows * x, _to_moments(stats)), rows

    total = None
    for group in data.groups:

        def add(carry: Any, batch: Batch) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, carry, moments(batch)), None

        shapes = jax.eval_shape(moments, jax.tree.map(lambda x: x[0], group))
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        part, _ = jax.lax.scan(add, zeros, group)
        total = part if total is None else jax.tree.map(jnp.add, total, part)
    sums, rows = total
    mean = jax.tree.map(lambda x: x / metrics.at_least_one(rows), sums)
    return {**variables, "batch_stats": _from_moments(mean)}


def _each_norm(tree: Any, of_norm: Any) -> Any:
    """`of_norm` of every {"mean", "var"} in nested dicts; other leaves as they are."""
    if not isinstance(tree, Mapping):
        return tree
    if set(tree) == {"mean", "var"}:
        return of_norm(tree["mean"], tree["var"])
    return {name: _each_norm(below, of_norm) for name, below in tree.items()}


def _to_moments(tree: Any) -> Any:
    return _each_norm(tree, lambda mean, var: {"mean": mean, "var": var + jnp.square(mean)})


def _from_moments(tree: Any) -> Any:
    return _each_norm(
        tree, lambda mean, square: {"mean": mean, "var": jnp.maximum(square - jnp.square(mean), 0)}
    )
