"""Evaluation: every record once, summed over devices and hosts, written and said."""

import dataclasses
import functools
import json
import math
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Int

from common import errors, files, hosts, metrics, parallel, pictures, state
from common.data import pipeline
from common.task import Metrics, Report, Task


def make_eval_step(
    task: Task, config: Any, mesh: Mesh, *, sharded: Sequence[str] | None = None
) -> Callable:
    """(variables, batch) -> (sums over all devices, outputs by rows), mapped.

    `sharded`: the variables whose rows lie over the devices, by default those of the task.
    """
    sharded = task.sharded if sharded is None else sharded

    def step(variables: state.Variables, batch: Any) -> tuple[Metrics, Mapping[str, Any]]:
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


@functools.partial(jax.jit, static_argnums=2)
def _rows(tree: Any, rows: Int[Array, "k"], whole: NamedSharding) -> Any:
    """Rows of global arrays, on every device."""
    return jax.lax.with_sharding_constraint(jax.tree.map(lambda x: x[rows], tree), whole)


def _keep_examples(
    kept: dict[int, dict[str, np.ndarray]],
    arrays: Mapping[str, jax.Array],
    index: Int[np.ndarray, "b"],
    mask: np.ndarray,
    most: int,
    mesh: Mesh,
) -> dict[int, dict[str, np.ndarray]]:
    """The examples of the `most` lowest indices of those `kept` and of a batch.

    Only their rows leave the devices. All processes see the same `index` and fetch the same rows.
    """
    seen = {int(index[row]): row for row in np.flatnonzero(mask)}
    chosen = sorted({*kept, *seen})[:most]
    rows = [seen[i] for i in chosen if i not in kept]
    kept = {i: kept[i] for i in chosen if i in kept}
    if rows:
        whole = NamedSharding(mesh, parallel.REPLICATED)
        # Always as many rows: one program for each shape of batches.
        found = jax.device_get(_rows(arrays, np.resize(np.int32(rows), most), whole))
        for place, row in enumerate(rows):
            example = {**{name: array[place] for name, array in found.items()}, "index": index[row]}
            kept[int(index[row])] = {name: np.asarray(value) for name, value in example.items()}
    return kept


def evaluate(
    task: Task,
    eval_step: Callable,
    variables: state.Variables,
    split: str,
    batches: Iterable[Any],
    mesh: Mesh,
    stop: Callable[[], str | None] | None = None,
) -> Report:
    """Every record of a split exactly once; sums over all devices and hosts, divided at the end.

    Raises UserError where `stop` gives the name of a signal; it is called after every batch.
    """
    started = time.monotonic()
    pending: tuple[Any, Any] | None = None
    parts: list[Metrics] = []
    outputs: list[Mapping[str, np.ndarray]] = []
    examples: dict[int, dict[str, np.ndarray]] = {}

    def collect(result: tuple[Any, Any]) -> None:
        nonlocal examples
        sums, rows = result
        parts.append(metrics.merge([sums]))
        arrays = rows.get("examples", {})
        rows = {name: value for name, value in rows.items() if name != "examples"}
        rows = jax.tree.map(np.asarray, parallel.rows_of_all(rows))
        outputs.append(task.keep(split, rows))
        if arrays and task.num_examples:
            examples = _keep_examples(
                examples, arrays, rows["index"], rows["mask"], task.num_examples, mesh
            )

    with pipeline.opened(batches) as iterator:
        for batch in iterator:
            result = eval_step(variables, parallel.global_batch(batch, mesh))
            if pending is not None:
                collect(pending)
            pending = result
            if stop is not None and (signal := stop()):
                jax.block_until_ready(pending)  # a process that ends amid a computation crashes
                raise errors.UserError(f"stopped by {signal} before all of {split} was evaluated.")
    if pending is not None:
        collect(pending)
    report = task.report(split, outputs, [examples[i] for i in sorted(examples)])
    sums = metrics.merge(parts)
    work = sums.pop(task.work_metric, None)
    scalars = {**metrics.finalize(sums), **report.scalars}
    if work is not None:
        scalars[f"{task.work_metric}_per_second"] = work.total / (time.monotonic() - started)
    return dataclasses.replace(report, scalars=scalars)


def reports(
    task: Task, eval_step: Callable, variables: state.Variables, mesh: Mesh
) -> dict[str, Report]:
    """Of all evaluation splits, by name, as `evaluate` finds them; nothing is written or said."""
    return {
        split: evaluate(task, eval_step, variables, split, batches, mesh)
        for split, batches in task.eval_data().items()
    }


def evaluate_all(
    task: Task,
    eval_step: Callable,
    variables: state.Variables,
    mesh: Mesh,
    writer: Any,
    step: int,
    results: pathlib.Path,
    *,
    test: bool = False,
    about: Mapping[str, Any] | None = None,
    stop: Callable[[], str | None] | None = None,
) -> dict[str, Report]:
    """All evaluation splits, with `test` those for testing too, written and said.

    The reports' files go into the folder `results`, with the numbers of each in <split>.json, and
    `about` what they were measured; their samples into `samples` beside it. `stop` is that of
    `evaluate`.
    """
    reports = {}
    for split, batches in task.eval_data(test=test).items():
        report = evaluate(task, eval_step, variables, split, batches, mesh, stop)
        writer.scalars(step, split, report.scalars)
        for name, image in {**report.images, **report.samples}.items():
            writer.image(step, f"{split}/{name}", image)
        for name, (samples, rate) in report.audio.items():
            writer.audio(step, f"{split}/{name}", samples, rate)
        finite = {name: float(x) for name, x in report.scalars.items() if math.isfinite(x)}
        numbers = {**dict.fromkeys(report.scalars), **finite}  # others are null
        text = json.dumps({"step": step, "split": split, **(about or {}), **numbers}, indent=2)
        figures = {f"{files.safe_name(split)}.json": f"{text}\n"}
        write_files(results, {**figures, **report.files})
        kept = {
            f"{files.safe_name(f'{split}-{name}')}-{step:07d}.png": pictures.png(image)
            for name, image in report.samples.items()
        }
        write_files(results.parent / "samples", kept)
        reports[split] = report
    return reports


def check_same(config: Any, data: Mapping[str, Iterable[Any]]) -> None:
    """Raises UserError where processes would go on by other settings or on other data, by name."""
    if jax.process_count() == 1:
        return
    said = {name: iter(batches) for name, batches in data.items()}
    streams = {
        f"{name} (recordings, lengths, buckets, seed)": str(stream.get_state().get("stream", ""))
        for name, stream in said.items()
        if hasattr(stream, "get_state")
    }
    settings = json.dumps(config.to_dict(), sort_keys=True, default=str)
    hosts.check_same(
        {"the config": settings, **streams},
        "Start the same command, with the same files, on all of them.",
    )


def write_files(folder: pathlib.Path, contents: Mapping[str, str | bytes]) -> None:
    """Writes name -> content under a folder, in process 0; text in UTF-8, each file whole or not.

    Raises UserError, and writes nothing, if a name leads out of the folder.
    """
    for name in contents:
        path = (folder / name).resolve()
        if path == folder.resolve() or not path.is_relative_to(folder.resolve()):
            raise errors.UserError(
                f"The results file {name!r} would lie outside of {folder}: choose a split name "
                "without slashes and dots at its start."
            )
    if jax.process_index() != 0:
        return
    for name, content in contents.items():
        with files.replacing(folder / name) as temporary:
            # Names of files that are no UTF-8 come out as they went in.
            text = isinstance(content, str)
            temporary.write_bytes(content.encode("utf-8", "surrogateescape") if text else content)
