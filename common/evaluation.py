"""Evaluation: every record once, summed over devices and hosts, written and said."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from common import metrics, parallel, state
from common.task import Metrics, Report, Task


def make_eval_step(
    task: Task, config: Any, mesh: Mesh, *, sharded: Sequence[str] | None = None
) -> Callable:
    """(variables, batch) -> (sums over all devices, outputs by rows), mapped.

    `sharded`: the variables whose rows lie over the devices, by default those of the task.
    """
    sharded = task.sharded if sharded is None else sharded

    def step(variables: state.Variables, batch: Any) -> tuple[Metrics, Mapping[str, jax.Array]]:
        sums, outputs = task.eval_step(variables, batch)
        outputs = {**outputs, "index": batch["index"], "mask": batch["mask"]}
        return metrics.psum(sums, parallel.AXIS), outputs

    variables = parallel.REPLICATED
    if sharded:
        template = jax.eval_shape(task.init, jax.random.key(0))
        variables = parallel.specs(template, sharded)
    return parallel.data_parallel(
        step,
        mesh,
        in_specs=(variables, parallel.ROWS),
        out_specs=(parallel.REPLICATED, parallel.ROWS),
        kind=config.parallel,
    )


def evaluate(
    task: Task,
    eval_step: Callable,
    variables: state.Variables,
    split: str,
    batches: Iterable[Any],
    mesh: Mesh,
) -> Report:
    """Every record of a split exactly once; sums over all devices and hosts, divided at the end."""
    started = time.monotonic()
    pending: tuple[Any, Any] | None = None
    parts: list[Metrics] = []
    outputs: list[Mapping[str, np.ndarray]] = []

    def collect(result: tuple[Any, Any]) -> None:
        sums, rows = result
        parts.append(metrics.merge([sums]))
        if jax.process_count() > 1:
            rows = multihost_utils.process_allgather(parallel.local_rows(rows), tiled=True)
        outputs.append(jax.tree.map(np.asarray, jax.device_get(rows)))

    for batch in batches:
        result = eval_step(variables, parallel.global_batch(batch, mesh))
        if pending is not None:
            collect(pending)
        pending = result
    if pending is not None:
        collect(pending)
    report = task.report(split, outputs)
    sums = metrics.merge(parts)
    work = sums.pop(task.work_metric, None)
    scalars = {**metrics.finalize(sums), **report.scalars}
    if work is not None:
        scalars[f"{task.work_metric}_per_second"] = work.total / (time.monotonic() - started)
    return dataclasses.replace(report, scalars=scalars)


def evaluate_all(
    task: Task,
    eval_step: Callable,
    variables: state.Variables,
    mesh: Mesh,
    writer: Any,
    step: int,
    *,
    test: bool = False,
) -> dict[str, Report]:
    """All evaluation splits, with `test` those for testing too, written and said."""
    reports = {}
    for split, batches in task.eval_data(test=test).items():
        report = evaluate(task, eval_step, variables, split, batches, mesh)
        writer.scalars(step, split, report.scalars)
        for name, image in report.images.items():
            writer.image(step, f"{split}/{name}", image)
        for name, (samples, rate) in report.audio.items():
            writer.audio(step, f"{split}/{name}", samples, rate)
        reports[split] = report
    return reports
