"""Points of a loss landscape a second: the grid's one program, beside one evaluation a point.

    python -m benchmarks.landscape runs/an4 [--points 51] [--of_peer 6]

The peer is what the first low-rank ContextNet project did at every point: weights moved on the host
and copied to the device, then an evaluation of the split with its decoding, which reads the
recordings anew ("evaluation"); and what a careful loop would do: weights moved on the host, batches
already on the device, a compiled loss of one batch, its value fetched after each ("loop"). All in
one process; the peers at `--of_peer` points of the same plane, whose losses are compared.
"""

import argparse
import importlib
import pathlib
import time
from typing import Any

import jax
import numpy as np

from common import app, evaluation, parallel, trained, workdir
from common.analysis import directions, grid, objective, planes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", type=pathlib.Path)
    parser.add_argument("--points", type=int, default=51, help="on each axis")
    parser.add_argument("--of_peer", type=int, default=6)
    parser.add_argument("--extent", type=float, default=1.0)
    args = parser.parse_args()
    app.keep_memory()
    app.set_up_logging()
    app.use_compile_cache()
    owner, _ = workdir.read_config(args.workdir)
    package = importlib.import_module(f"{owner}.task").PACKAGE
    found = trained.load(package, args.workdir)
    split, batches = next(iter(found.task.eval_data().items()))
    data = objective.collect(batches, found.mesh, repack=True)
    goal = objective.Objective(found.task, int(found.config.seed), found.step)
    origin = directions.flat(found.variables["params"])
    space = directions.Space(origin, directions.find_factors(goal, found.variables, data))
    drawn = [directions.unflat(d) for d in directions.random_directions(space, 2, seed=0)]
    axis = planes.axis(-args.extent, args.extent, args.points)
    points = np.float32(grid.points_of([axis, axis]))

    program = grid.make_program(goal, found.mesh)
    state = {name: tree for name, tree in found.variables.items() if name != "params"}
    along = [parallel.place(one, found.mesh) for one in drawn]
    call = args.points * found.mesh.size

    def rows(start: int) -> dict[str, np.ndarray]:
        some = np.resize(points[start : start + call], (call, 2))
        arguments = found.variables["params"], along, state, data
        return jax.device_get(program(*arguments, parallel.global_batch(some, found.mesh)))

    start = time.perf_counter()
    rows(0)
    compiled = time.perf_counter() - start
    start = time.perf_counter()
    losses = np.concatenate([rows(k)["loss"] for k in range(0, len(points), call)])[: len(points)]
    seconds = time.perf_counter() - start
    ours = len(points) / seconds
    print(f"{owner}, step {found.step}, {split}: {args.points} x {args.points} points")
    print(f"grid        {ours:8.3g} points/s ({seconds:.0f} s; first call {compiled:.0f} s)")

    chosen = np.linspace(0, len(points) - 1, args.of_peer).astype(int)
    for name, peer in (
        ("evaluation", Evaluation(found, split, batches)),
        ("loop", Loop(goal, data)),
    ):

        def at(point: np.ndarray, peer: Any = peer) -> float:
            moved = jax.tree.map(
                lambda w, x, y: w + point[0] * x + point[1] * y,
                jax.device_get(found.variables["params"]),
                *drawn,
            )
            return peer({**state, "params": parallel.place(moved, found.mesh)})

        at(points[0])  # compiles
        start = time.perf_counter()
        values = [at(points[place]) for place in chosen]
        rate = len(chosen) / (time.perf_counter() - start)
        worst = float(np.max(np.abs(np.array(values) / losses[chosen] - 1)))
        print(
            f"{name:<11} {rate:8.3g} points/s: the grid is {ours / rate:.1f} x as fast; largest "
            f"difference of the loss {worst:.1e}"
        )


class Evaluation:
    """What `--mode=evaluate` does, its pipeline and its decoding included."""

    def __init__(self, found: trained.Trained, split: str, batches: Any) -> None:
        self._found, self._split, self._batches = found, split, batches

    def __call__(self, variables: Any) -> float:
        found = self._found
        report = evaluation.evaluate(
            found.task, found.eval_step, variables, self._split, self._batches, found.mesh
        )
        return report.scalars["loss"]


class Loop:
    """The loss of one batch after the other, the batches being on the device."""

    def __init__(self, goal: objective.Objective, data: objective.Data) -> None:
        self._batches = [
            jax.tree.map(lambda x, k=k: x[k], group)
            for group in data.groups
            for k in range(len(group["mask"]))
        ]
        self._step = jax.jit(goal.batch_sums)

    def __call__(self, variables: Any) -> float:
        total: dict[str, list[float]] = {}
        for batch in self._batches:
            for name, term in jax.device_get(self._step(variables, batch)[0]).items():
                now = total.setdefault(name, [0.0, 0.0, 0.0])
                for k, x in enumerate((term.total, term.count)):
                    now[k] += float(x)
                now[2] = float(term.weight)
        return sum(weight * value / count for value, count, weight in total.values())


if __name__ == "__main__":
    main()
