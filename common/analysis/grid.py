"""The loss at every point of a plane: one compiled program over all devices, kept as it goes."""

import dataclasses
import json
import logging
import pathlib
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from common import errors, files, metrics, parallel, state
from common.analysis import objective as objective_lib
from common.analysis import planes

log = logging.getLogger(__name__)

_SAVE_SECONDS = 20.0  # between two writes of an unfinished grid
Values = dict[str, np.ndarray]


def at(origin: Any, directions: Sequence[Any], point: Float[Array, "d"]) -> Any:
    """The parameters at a point of the plane."""

    def moved(weights: Any, *along: Any) -> Array:
        return weights + sum(point[k] * direction for k, direction in enumerate(along))

    return jax.tree.map(moved, origin, *directions)


def make_program(objective: objective_lib.Objective, mesh: Mesh) -> Callable:
    """(parameters, directions, model state, data, points [n, d]) -> name -> [n], compiled.

    The points lie over the devices, each of which has all the data: a device goes through its
    points, and at each through the batches, without the host; features that no parameters change
    are computed once. Names: "loss", its terms, and what
    the task's loss counts beside ("accuracy").
    """
    work = objective.task.work_metric

    def values(
        origin: Any,
        directions: Sequence[Any],
        model_state: state.Variables,
        data: objective_lib.Data,
        points: Float[Array, "n d"],
    ) -> dict[str, Array]:
        data = objective.with_features({**model_state, "params": origin}, data)

        def one(point: Float[Array, "d"]) -> dict[str, Array]:
            variables = {**model_state, "params": at(origin, directions, point)}
            terms, sums = objective.sums(variables, data)
            ratios = {name: sums[name] for name in sums if name != work}
            if len(terms) > 1:
                ratios |= {name: metrics.Ratio(t.total, t.count) for name, t in terms.items()}
            found = {name: r.total / metrics.at_least_one(r.count) for name, r in ratios.items()}
            return {**found, "loss": objective_lib.value(terms)}

        return jax.lax.map(one, points)

    whole = parallel.REPLICATED
    return parallel.data_parallel(
        values,
        mesh,
        in_specs=(whole, whole, whole, whole, parallel.ROWS),
        out_specs=parallel.ROWS,
    )


@dataclasses.dataclass
class Grid:
    """The values of a plane's points that are there so far; a file that grows.

    `done[i]` tells of point i, the last axis running fastest. `values` are [n] by name, NaN where
    the loss is not finite (or not there yet). `about` says of which checkpoint, data and settings.
    """

    path: pathlib.Path
    points: Float[np.ndarray, "n d"]
    about: Mapping[str, Any]
    done: Bool[np.ndarray, "n"]
    values: Values

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(np.unique(self.points[:, k])) for k in range(self.points.shape[1]))

    def surface(self, name: str) -> Float[np.ndarray, "..."]:
        """Values of the points in the form of the plane."""
        return self.values[name].reshape(self.shape)

    @property
    def failed(self) -> int:
        """Points whose loss is not finite."""
        return int(np.sum(self.done & ~np.isfinite(self.values["loss"])))

    def save(self) -> None:
        arrays = {f"values/{name}": x for name, x in self.values.items()}
        about = json.dumps(self.about)
        with files.replacing(self.path) as temporary, temporary.open("wb") as out:
            np.savez(out, about=about, points=self.points, done=self.done, **arrays)


def points_of(axes: Sequence[Float[np.ndarray, "_"]]) -> Float[np.ndarray, "n d"]:
    """All points of a plane, the last axis running fastest."""
    return np.stack([x.reshape(-1) for x in np.meshgrid(*axes, indexing="ij")], axis=1)


def coarse(axes: Sequence[Float[np.ndarray, "_"]], count: int) -> list[int]:
    """Places of `count` equidistant points of each axis among `points_of`, the origin among them
    where they are an odd number."""
    chosen = []
    for values in axes:
        zero, last = int(np.argmin(np.abs(values))), len(values) - 1
        if count % 2 == 0 or (zero * 2 == last and count > 1):
            chosen.append(np.round(np.linspace(0, last, count)).astype(int))
        else:
            half = np.round(np.linspace(0, 1, count // 2 + 1)[1:] * min(zero, last - zero))
            chosen.append(np.concatenate([zero - half[::-1], [zero], zero + half]).astype(int))
    shape = tuple(len(values) for values in axes)
    return sorted({int(i) for i in np.ravel_multi_index(np.ix_(*chosen), shape).ravel()})


def open_grid(
    path: pathlib.Path, axes: Sequence[Float[np.ndarray, "_"]], about: Mapping[str, Any]
) -> Grid:
    """The grid in `path`, or an empty one. Raises UserError if that is of something else."""
    points = points_of(axes)
    if not path.exists():
        return Grid(path, points, about, np.zeros(len(points), bool), {})
    try:
        with path.open("rb") as file, np.load(file) as arrays:  # NumPy leaves a broken one open
            then = json.loads(str(arrays["about"]))
            prefix = "values/"
            values = {
                name.removeprefix(prefix): arrays[name]
                for name in arrays.files
                if name.startswith(prefix)
            }
            found = Grid(path, arrays["points"], then, arrays["done"], values)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise errors.UserError(
            f"{path} is no grid of --mode=landscape, or damaged ({error}). Move it away."
        ) from error
    check_same(path, then, about)
    if found.points.shape != points.shape or not np.array_equal(found.points, points):
        raise errors.UserError(
            f"{path} is of other points. Move it away, or choose another --name."
        )
    return found


def check_same(path: pathlib.Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises UserError where what is kept in `path` was made in another way, and says which."""
    other = [name for name in now if json.dumps(then.get(name)) != json.dumps(now[name])]
    if other:
        said = "; ".join(f"{name} {then.get(name)!r} there, {now[name]!r} here" for name in other)
        raise errors.UserError(
            f"{path} is of other settings, or of another run: {said}. Move its folder away, or "
            "choose another --name."
        )


def fill(
    grid: Grid,
    program: Callable,
    arguments: Sequence[Any],
    mesh: Mesh,
    *,
    per_call: int,
    progress: Callable[[int], None],
    stop: Callable[[], str | None],
) -> None:
    """Evaluates what is not done, `per_call` points a call from the centre on, and keeps it.

    `program(*arguments, points)` is that of `make_program`. A grid that was stopped and goes on has
    the bits of one that was not. Raises UserError where `stop` names a signal (what is done stays),
    and where the loss is not finite at the centre.
    """
    size = -(-per_call // mesh.size) * mesh.size  # rows divide over the devices
    share, first = size // jax.process_count(), jax.process_index()
    saved = time.monotonic()
    reach = np.abs(grid.points).max(axis=0)
    from_centre = np.argsort(np.linalg.norm(grid.points / reach, axis=1), kind="stable")
    while not grid.done.all():
        todo = from_centre[~grid.done[from_centre]][:size]
        points = np.float32(grid.points[np.resize(todo, size)])
        mine = points[first * share : (first + 1) * share]
        found = program(*arguments, parallel.global_batch(mine, mesh))
        for name, values in parallel.rows_of_all(found).items():
            kept = grid.values.setdefault(name, np.full(len(grid.points), np.nan))
            values = np.asarray(values[: len(todo)], np.float64)
            kept[todo] = np.where(np.isfinite(values), values, np.nan)
        if not np.isfinite(grid.values["loss"][from_centre[0]]):
            raise errors.UserError(objective_lib.not_finite(grid.about.get("split", "")))
        grid.done[todo] = True
        progress(int(grid.done.sum()))
        signal = stop()
        if signal or grid.done.all() or time.monotonic() - saved > _SAVE_SECONDS:
            if first == 0:
                grid.save()
            saved = time.monotonic()
        if signal:
            raise errors.UserError(
                f"stopped by {signal}: {int(grid.done.sum())} of {len(grid.done)} points are in "
                f"{grid.path}. The same command goes on."
            )


def describe(plane: planes.Plane) -> list[str]:
    """Lines about a plane for the terminal."""
    lines = []
    if "cosine" in plane.about:
        lines.append(f"cosine of the angle between the directions: {plane.about['cosine']:.2g}")
    if "explained" in plane.about:
        shares = ", ".join(f"{100 * x:.1f} %" for x in plane.about["explained"][:4])
        lines.append(f"principal directions explain {shares} of the trajectory")
    if plane.about.get("low_rank_layers"):
        lines.append(f"{plane.about['low_rank_layers']} low-rank layers by their composed filters")
    return lines
