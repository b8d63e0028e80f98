"""A task's network as functions that attributions call: compiled, rows over the devices."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from common import errors, parallel, state
from common.analysis import attribution, baselines
from common.task import Batch, Explained, Input, Part, Target

SMOOTH_DRAWS = 16  # noisy copies of SmoothGrad (Smilkov et al. 2017, arXiv:1706.03825)
SMOOTH_NOISE = 0.15  # its deviation, as a share of the range of the values


def find_input(task: Explained, name: str) -> tuple[str, Input]:
    """An input by its name, "" for the first. UserError with the list of those that there are."""
    known = task.explanation.inputs
    name = name or next(iter(known))
    if name not in known:
        raise errors.UserError(
            f"--input={name}: the task has no such input; choose {_listed(known)}."
        )
    return name, known[name]


def find_target(task: Explained, name: str) -> tuple[str, Target]:
    """A target by its name, "" for the first. UserError with the list of those that there are."""
    known = task.explanation.targets
    name = name or next(iter(known))
    stem, colon, number = name.partition(":")
    target = known.get(stem)
    if target is not None and colon and target.numbered is not None and number.isdecimal():
        return name, target.numbered(int(number))
    if target is None or colon:
        raise errors.UserError(
            f"--target={name}: the task has no such target; choose {_listed(known)}."
        )
    return name, target


def _listed(found: Mapping[str, Input | Target]) -> str:
    names = [
        f"{name} or {name}:N" if getattr(it, "numbered", None) else name
        for name, it in found.items()
    ]
    return ", ".join(f"{name} ({it.says})" for name, it in zip(names, found.values()))


@dataclasses.dataclass(frozen=True, eq=False)
class Explainer:
    """The scalars of one target as functions of one input.

    All take and give host arrays; rows are padded to the devices. `batch` is what `chosen` gave.
    """

    task: Explained
    input_name: str
    target_name: str
    mesh: Mesh
    kind: str = "shard_map"
    at_once: int = attribution.BLOCK

    @functools.cached_property
    def input(self) -> Input:
        return find_input(self.task, self.input_name)[1]

    @functools.cached_property
    def target(self) -> Target:
        return find_target(self.task, self.target_name)[1]

    def _mapped(self, fn: Callable, rows: int) -> Callable:
        """`fn(variables, batch, *rows)` over the devices, to the host and back."""
        mapped = parallel.data_parallel(
            fn,
            self.mesh,
            in_specs=(parallel.REPLICATED, *[parallel.ROWS] * (1 + rows)),
            out_specs=parallel.ROWS,
            kind=self.kind,
        )

        def call(variables: state.Variables, batch: Batch, *arrays: Any) -> Any:
            sharded = parallel.global_batch((dict(batch), *arrays), self.mesh)
            return jax.device_get(mapped(variables, *sharded))

        return call

    def _score(self, variables: state.Variables, batch: Batch, point: Array) -> Array:
        return self.target.score(variables, batch, {self.input_name: point})

    @functools.cached_property
    def _choose(self) -> Callable:
        return self._mapped(lambda variables, batch: self.target.choose(variables, batch), 0)

    @functools.cached_property
    def _read(self) -> Callable:
        return self._mapped(lambda variables, batch: self.input.read(variables, batch), 0)

    @functools.cached_property
    def score(self) -> Callable:
        """(variables, batch, point) -> [b, n]."""
        return self._mapped(self._score, 1)

    @functools.cached_property
    def path(self) -> Callable:
        """(variables, batch, start, end, nodes, weights) -> [b, n, l, ...]."""

        def one(
            variables: state.Variables,
            batch: Batch,
            start: Array,
            end: Array,
            nodes: Array,
            weights: Array,
        ) -> Array:
            score = functools.partial(self._score, variables, batch)
            return attribution.path_gradients(score, start, end, nodes, weights, self.at_once)

        return self._mapped(one, 4)

    def chosen(self, variables: state.Variables, batch: Batch) -> dict[str, np.ndarray]:
        """The batch with what the target decides at the recordings, without idle columns."""
        needs = self.target.needs
        if needs and needs not in batch:
            how = "name the other recording with --against=FILE" if needs == "against" else (
                "recordings of a --split have it, --files do not"
            )  # fmt: skip
            raise errors.UserError(
                f"--target={self.target_name} needs more than a recording: {how}."
            )
        return trim({**batch, **self._choose(variables, batch)})

    def read(
        self, variables: state.Variables, batch: Batch
    ) -> tuple[Float[np.ndarray, "b l *f"], np.ndarray, Float[np.ndarray, "b l *f"]]:
        """Values of the input, their lengths, and silence."""
        return tuple(map(np.asarray, self._read(variables, batch)))

    def parts(self, batch: Batch) -> list[Sequence[Part]]:
        """Of each real row."""
        rows = np.flatnonzero(batch["mask"])
        return [self.target.parts({name: x[row] for name, x in batch.items()}) for row in rows]

    def starts(
        self, kind: str, values: np.ndarray, lengths: np.ndarray, silence: np.ndarray, seed: int
    ) -> list[Float[np.ndarray, "b l *f"]]:
        """Baselines of a batch, 0 beyond the lengths."""
        draws: list[np.ndarray] = []
        for row, length in enumerate(lengths):
            own = values[row, :length], silence[row, :length]
            if not length:
                continue
            for i, one in enumerate(baselines.baselines(kind, *own, self.input.seconds, seed)):
                if i == len(draws):
                    draws.append(np.zeros_like(values))
                draws[i][row, :length] = one
        return draws

    def explain(
        self,
        variables: state.Variables,
        batch: Batch,
        values: Float[np.ndarray, "b l *f"],
        lengths: np.ndarray,
        starts: Sequence[Float[np.ndarray, "b l *f"]],
        *,
        method: str = "integrated_gradients",
        tolerance_percent: float = 0.1,
        max_nodes: int = 256,
        seed: int = 0,
    ) -> list[attribution.Attribution]:
        """The attributions of every row of the batch, in the padded shape."""
        path = functools.partial(self.path, variables, batch)
        score = functools.partial(self.score, variables, batch)
        if method in ("integrated_gradients", "averaged_gradients"):
            each = [
                attribution.integrated_gradients(
                    path,
                    score,
                    start,
                    values,
                    tolerance_percent=tolerance_percent,
                    first_nodes=min(attribution.BLOCK, max_nodes),
                    max_nodes=max_nodes,
                    times_difference=method == "integrated_gradients",
                )
                for start in starts
            ]
            return [attribution.average(row, tolerance_percent) for row in zip(*each)]
        at, here = np.zeros((2, len(values), 1), np.float32)
        here += 1
        if method == "smoothgrad":
            noisy = smooth_points(values, lengths, seed)
            maps = np.mean([path(point, point, at, here) for point in noisy], axis=0)
        else:
            maps = path(values, values, at, here)
            if method == "saliency":
                maps = np.abs(maps)
            elif method == "input_x_gradient":
                maps = maps * values[:, None]
        nodes = SMOOTH_DRAWS if method == "smoothgrad" else 1
        ends = np.asarray(score(values), np.float64)
        firsts = np.mean([np.asarray(score(start), np.float64) for start in starts], axis=0)
        return [
            attribution.Attribution(np.asarray(m, np.float64), e, f, np.nan, nodes, True)
            for m, e, f in zip(maps, ends, firsts)
        ]


def smooth_points(
    values: Float[np.ndarray, "b l *f"], lengths: np.ndarray, seed: int
) -> list[Float[np.ndarray, "b l *f"]]:
    """Noisy copies for SmoothGrad; the noise of a recording depends on the seed alone."""
    found = []
    for draw in range(SMOOTH_DRAWS):
        noisy = np.array(values)
        for row, length in enumerate(lengths):
            own = values[row, :length]
            if length:
                rng = np.random.default_rng([seed, 1000 + draw])
                noise = rng.standard_normal(own.shape) * SMOOTH_NOISE * np.ptp(own)
                noisy[row, :length] = own + noise
        found.append(noisy)
    return found


def trim(batch: Batch) -> dict[str, np.ndarray]:
    """Sequences no longer than the longest of the rows, but one entry at least."""
    found = {name: np.asarray(array) for name, array in batch.items()}
    for name, array in found.items():
        sizes = found.get(f"{name}_lengths")
        if sizes is not None and array.ndim > 1:
            found[name] = array[:, : max(1, int(np.max(sizes, initial=0)))]
    return found
