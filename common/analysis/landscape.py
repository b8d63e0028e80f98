"""The mode `landscape`: the loss along lines and over planes through a checkpoint, in pictures.

Everything lies in DIR/analysis/<name>/: plane.npz (the directions, for all checkpoints of the run),
<step>.npz (the values), pictures of each, a film. A second call draws from what is there, and goes
on with what was not finished.
"""

import functools
import json
import logging
import math
import pathlib
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from common import errors, evaluation, files, fingerprint, hosts, parallel, trained
from common.analysis import (
    curvature,
    directions,
    grid,
    landscape_pictures,
    objective,
    opening,
    planes,
    surfaces,
)
from common.analysis.settings import LandscapeOptions
from common.package import Context, Package

log = logging.getLogger(__name__)

_LANCZOS_STEPS = 30  # for one eigenvalue of either end
_WORDS = {"eigenvalue_ratio": "ratio of eigenvalues"}


def check(options: LandscapeOptions) -> None:
    """Raises UserError for flags that cannot be, or that have no effect."""
    if options.points < 3 or options.points % 2 == 0:
        raise errors.UserError(
            f"--points={options.points}: an odd number from 3 on, so that the checkpoint itself is "
            "one of them."
        )
    if options.dims not in (1, 2):
        raise errors.UserError(f"--dims={options.dims}: choose 1 (a line) or 2 (a plane).")
    if options.dims == 2 and options.along in ("between", "gradient"):
        raise errors.UserError(f"--along={options.along} is a line: add --dims=1.")
    if not 0 <= options.extent < math.inf:
        raise errors.UserError(f"--extent={options.extent:g}: give half the length of the axes.")
    if options.name and files.safe_name(options.name) != options.name:
        raise errors.UserError(f"--name={options.name}: give a plain name, of letters and digits.")
    for name in ("metric_points", "curvature_points"):
        if not 0 <= getattr(options, name) <= options.points:
            raise errors.UserError(
                f"--{name}={getattr(options, name)}: at most the {options.points} of --points."
            )
    if options.batch_norm != "frozen" and (
        options.curvature_points or options.along in ("hessian", "gradient")
    ):
        raise errors.UserError(
            "Derivatives are those with running averages: leave --batch_norm at frozen with "
            "--along=hessian, --along=gradient and --curvature_points."
        )
    if options.to != -1 and options.along != "between":
        raise errors.UserError("--to has no use without --along=between.")
    if options.along != "random":
        for name, default in (("normalize", "filter"), ("vectors", False), ("seed", 0)):
            if getattr(options, name) != default:
                raise errors.UserError(f"--{name} has no use without --along=random.")


class Run(NamedTuple):
    """What the parts of this mode work with; `base` is what all values of a folder have in common.

    `scored` are the batches by which the task's own metric is measured.
    """

    opened: opening.Opened
    options: LandscapeOptions
    folder: pathlib.Path
    base: dict[str, Any]
    scored: tuple[str, Any] | None

    @property
    def found(self) -> trained.Trained:
        return self.opened.found


def _base(it: opening.Opened, batch_norm: str) -> dict[str, Any]:
    return {
        "task": it.found.task.name,
        "split": it.split,
        "batches": it.data.num_batches,
        "data": digest(dict(enumerate(it.data.groups))),
        "batch_norm": batch_norm,
        "seed": int(it.found.config.seed),
    }


def _scored(it: opening.Opened, metric_points: int) -> tuple[str, Any] | None:
    """The split whose metric is asked for: training has none, that of the best checkpoint has."""
    if not metric_points:
        return None
    task = it.found.task
    split = task.best_metric[0] if it.split == objective.TRAIN else it.split
    data = task.eval_data(test=True)
    if split not in data:
        raise errors.UserError(
            "--metric_points wants an evaluation split: config.data.eval names none."
        )
    return split, data[split]


def digest(tree: Any) -> str:
    """A short name for the bits of all arrays of a tree."""
    prints, _ = fingerprint.of_tree({str(name): part for name, part in tree.items()})
    return f"{zlib.crc32(json.dumps(prints, sort_keys=True).encode()):08x}"


def run(package: Package, context: Context) -> None:
    """See the module."""
    options = context.options
    check(options)
    folder = context.folder / "analysis" / (options.name or f"{options.along}_{options.dims}d")
    with opening.opened(package, context, batch_norm=options.batch_norm) as opened:
        base, scored = _base(opened, options.batch_norm), _scored(opened, options.metric_points)
        it = Run(opened, options, folder, base, scored)
        _warn(it)
        plane, marks = _plane(it)
        steps = [mark.step for mark in marks] if options.film else [it.found.step]
        program = grid.make_program(opened.objective, context.mesh)
        along = [
            parallel.place(directions.unflat(direction), context.mesh)
            for direction in plane.directions
        ]
        grids = {}
        for step, variables in _wanted(it, steps):
            grids[step] = _evaluate(it, plane, along, program, step, variables)
        log.info("%d compilations took %.0f s.", opened.compiled.count, opened.compiled.seconds)
        if jax.process_index() == 0:
            some = {it.found.task.best_metric[1]: scored[0]} if scored else {}
            some |= {"eigenvalue_ratio": opened.split} if options.curvature_points else {}
            landscape_pictures.draw(folder, plane, marks, grids, some, opened.writer)
    if jax.process_index() == 0:
        print(f"Values and pictures: {folder}")


def _warn(it: Run) -> None:
    far = it.options.along in ("pca", "between")
    if far and it.options.batch_norm == "frozen" and "batch_stats" in it.found.variables:
        log.warning(
            "Running averages of batch normalisation are those of step %d at every point; those of "
            "other checkpoints are others. --batch_norm=recalibrated takes a point's own.",
            it.found.step,
        )


def _wanted(it: Run, steps: list[int]) -> Iterator[tuple[int, Any]]:
    """The checkpoints to look at, one at a time."""
    if steps == [it.found.step]:
        yield it.found.step, it.found.variables
        return
    for step, variables in trained.checkpoints(it.found):
        if step in steps:
            yield step, variables


def _plane(it: Run) -> tuple[planes.Plane, list[surfaces.Mark]]:
    """The plane of this folder, made if it is not there, and where all checkpoints lie."""
    options, path = it.options, it.folder / "plane.npz"
    origin = directions.flat(it.found.variables["params"])
    names = ("along", "dims", "points", "extent", "to", "normalize", "vectors", "seed")
    about = {
        "checkpoint": it.found.step,
        "weights": digest(it.found.variables),
        **{name: getattr(options, name) for name in names},
    }
    if options.along in ("gradient", "hessian"):  # they hang on the data
        about |= {"of": it.base}
    # Asked by all processes before the first one writes it.
    there = bool(hosts.gather(np.array(path.exists(), np.uint32))[0])

    def others() -> dict[int, directions.Flat]:
        every = {step: directions.flat(x["params"]) for step, x in trained.checkpoints(it.found)}
        return {step: flat for step, flat in every.items() if step != it.found.step}

    if there:
        plane = planes.load(path)
        grid.check_same(path, plane.about, about)
        log.info("The plane is that of %s.", path)
    else:
        goal, data = it.opened.objective, it.opened.data
        plane = planes.make(options, goal, it.found.variables, data, others)
        plane = plane._replace(about={**about, **plane.about})
        if jax.process_index() == 0:
            planes.save(plane, path)
    for line in grid.describe(plane):
        log.info("%s", line)
    marks = []
    for step, variables in trained.checkpoints(it.found):
        where = directions.place(directions.flat(variables["params"]), origin, plane.directions)
        marks.append(surfaces.Mark(step, where.coordinates, where.distance))
        there = ", ".join(f"{x:.3g}" for x in where.coordinates)
        log.info("step %d lies at (%s), %.3g beside it.", step, there, where.distance)
    return plane, marks


def _evaluate(
    it: Run, plane: planes.Plane, along: list[Any], program: Callable, step: int, variables: Any
) -> grid.Grid:
    """The values around one checkpoint."""
    of_plane = digest(dict(enumerate(along)))
    about = {**it.base, "step": step, "weights": digest(variables), "plane": of_plane}
    known = grid.open_grid(it.folder / f"{step}.npz", plane.axes, about)
    start, before, total = time.monotonic(), int(known.done.sum()), len(known.points)
    if before < total:
        log.info("step %d: %d of %d points to go.", step, total - before, total)
        state = {name: tree for name, tree in variables.items() if name != "params"}
        with it.opened.writer.progress(total, before) as bar:
            grid.fill(
                known,
                program,
                (variables["params"], along, state, it.opened.data),
                it.found.mesh,
                per_call=it.options.points,
                progress=bar.update,
                stop=it.opened.stop,
            )
        seconds = time.monotonic() - start
        log.info(
            "step %d: %d points in %.1f s, %.3g a second with the compilation.",
            *(step, total - before, seconds, (total - before) / seconds),
        )
    if known.failed:
        log.warning(
            "step %d: the loss is not finite at %d of %d points; they stay white.",
            *(step, known.failed, total),
        )
    loss = known.values["loss"]
    centre = known.values["loss"][np.all(known.points == 0, axis=1)][0]
    if known.failed < total:
        lowest = int(np.nanargmin(loss))
        where = ", ".join(f"{x:.3g}" for x in known.points[lowest])
        log.info(
            "step %d: loss %.6g at the checkpoint, lowest %.6g at (%s), highest %.3g.",
            *(step, centre, loss[lowest], where, np.nanmax(loss)),
        )
    if it.options.metric_points:
        _measure(it, plane, along, known, variables)
    if it.options.curvature_points:
        _curve(it, plane, along, known, variables)
    return known


def _over(
    it: Run,
    plane: planes.Plane,
    known: grid.Grid,
    count: int,
    name: str,
    at: Callable[[np.ndarray], Mapping[str, float]],
) -> None:
    """Puts what `at` finds at some of the points into the grid, `name` among it.

    NaN is for points to come: what is no number there is kept as infinity.
    """
    places = grid.coarse(plane.axes, count)
    kept = known.values.get(name, np.full(len(known.points), np.nan))
    todo = [place for place in places if np.isnan(kept[place])]
    log.info("%s at %d points.", _WORDS.get(name, name), len(todo))
    with it.opened.writer.progress(len(todo)) as bar:
        for number, place in enumerate(todo):
            for key, value in at(np.float32(known.points[place])).items():
                value = np.inf if np.isnan(value) else value
                known.values.setdefault(key, np.full(len(known.points), np.nan))[place] = value
            if jax.process_index() == 0:
                known.save()
            bar.update(number + 1)
            if signal := it.opened.stop():
                raise errors.UserError(
                    f"stopped by {signal}: {number + 1} of {len(todo)} points are in {known.path}. "
                    "The same command goes on."
                )
    if failed := int(np.sum(np.isinf(known.values[name][places]))):
        log.warning(
            "%s is no number at %d of %d points; they stay white.",
            *(_WORDS.get(name, name), failed, len(places)),
        )


def _measure(
    it: Run, plane: planes.Plane, along: list[Any], known: grid.Grid, variables: Any
) -> None:
    """The task's own metric (WER, EER, SI-SDR) at some of the points, by whole evaluations."""
    task, mesh = it.found.task, it.found.mesh
    name, (split, batches), stop = task.best_metric[1], it.scored, it.opened.stop
    move = jax.jit(grid.at)
    recalibrate = jax.jit(functools.partial(objective.recalibrated, it.opened.objective))

    def at(point: np.ndarray) -> dict[str, float]:
        moved = {**variables, "params": move(variables["params"], along, point)}
        if it.options.batch_norm != "frozen":
            moved = recalibrate(moved, it.opened.data)
        report = evaluation.evaluate(task, it.found.eval_step, moved, split, batches, mesh, stop)
        return {name: report.scalars[name]}

    _over(it, plane, known, it.options.metric_points, name, at)


def _curve(
    it: Run, plane: planes.Plane, along: list[Any], known: grid.Grid, variables: Any
) -> None:
    """The ends of the Hessian's spectrum at some of the points (Li et al. 2018, section 6): where
    |least / largest| is small, the surface is as convex as it looks."""
    size = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    steps = min(_LANCZOS_STEPS, size)

    @jax.jit
    def both(variables: Any, along: Any, point: Any, data: Any) -> Any:
        moved = {**variables, "params": grid.at(variables["params"], along, point)}
        product = curvature.hessian(curvature.Flat(it.opened.objective, moved, data))
        start = curvature.signs(jax.random.key(0), size, jnp.float32)
        return curvature.ends(product, start, steps=steps, top=1).values

    def at(point: np.ndarray) -> dict[str, float]:
        largest, least = np.float64(both(variables, along, point, it.opened.data))
        return {
            "eigenvalue_largest": largest,
            "eigenvalue_least": least,
            "eigenvalue_ratio": abs(least / largest),
        }

    _over(it, plane, known, it.options.curvature_points, "eigenvalue_ratio", at)
