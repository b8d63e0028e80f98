"""The one training loop."""

import contextlib
import dataclasses
import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from common import (
    checkpoint,
    compiles,
    errors,
    evaluation,
    hosts,
    metrics,
    parallel,
    parameters,
    preemption,
    starting,
    state,
    writers,
)
from common import sums as sums_lib
from common import workdir as workdir_lib
from common.data import pipeline
from common.sums import TrainingDiverged as TrainingDiverged
from common.task import Metrics, Report, Task

log = logging.getLogger(__name__)


def default_config() -> ConfigDict:
    """Everything that the loop itself reads, with its defaults."""
    return ConfigDict(
        {
            "seed": 0,
            "init_from": "",  # work directory of another run, or PART=DIR[:OTHER],...: `starting`
            "total_steps": 1000,  # optimizer updates
            "log_every": 20,
            "evaluate_every": 500,
            "checkpoint_every": 500,  # besides one after every evaluation and one at a stop
            "keep_last": 2,
            "keep_best": 1,
            "keep_every": 0,  # also keep every checkpoint whose step is a multiple; 0 = none
            "accumulate": 1,  # micro-batches a step
            "ema_decay": 0.0,  # 0 = no average
            "parallel": "shard_map",  # or pmap
            "profile_steps": 0,  # trace this many steps into DIR/profile
            "writers": {"tensorboard": True, "wandb": "disabled", "wandb_project": "speech"},
        }
    )


def make_train_step(task: Task, config: Any, mesh: Mesh) -> Callable:
    """(state, batch) -> (state, sums), mapped, with keys derived from the seed and the step."""

    def step(train_state: state.TrainState, batch: Any) -> tuple[state.TrainState, Metrics]:
        key = state.stream_key(config.seed, "train", train_state.step)
        return task.train_step(train_state, batch, key)

    specs = parallel.REPLICATED
    if task.sharded:
        template = jax.eval_shape(lambda key: task.create_state(task.init(key)), jax.random.key(0))
        specs = parallel.specs(template, task.sharded)
    return parallel.data_parallel(
        step,
        mesh,
        in_specs=(specs, parallel.ROWS),
        out_specs=(specs, parallel.REPLICATED),
        donate=(0,),
        kind=config.parallel,
    )


@dataclasses.dataclass(frozen=True)
class _Evaluated:
    """What was evaluated last; it is saved with every checkpoint until the next time."""

    step: int = -1
    report: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # `Report.meta` by split
    best: float | None = None  # the metric of the best checkpoint, if this process has evaluated
    over: str = ""  # `Report.over` of that metric

    def score(self, step: int) -> float | None:
        """The metric of the checkpoint of `step`."""
        return self.best if self.step == step else None


def train(
    task: Task, config: Any, workdir: pathlib.Path, mesh: Mesh
) -> tuple[state.TrainState, dict[str, Report] | None]:
    """Trains to `config.total_steps`, resuming if `workdir` has checkpoints.

    Returns the state and the last evaluation's reports: none of a run that had all its steps and
    their evaluation before; None in their place if a signal stopped the run (a command then ends
    with `preemption.EXIT_CODE`).
    """
    with contextlib.ExitStack() as stack:
        compiled = stack.enter_context(compiles.CompileCounter())
        data = hosts.together(task.train_data, errors.UserError, "opening the training data")
        iterator = stack.enter_context(pipeline.opened(data))
        evaluation.check_same(config, {"the training data": data, **task.eval_data()})
        saver = _make_saver(task, config, workdir)
        stack.callback(saver.close)
        train_state, evaluated = _begin(task, config, mesh, saver, iterator)
        start = int(train_state.step)
        if jax.process_index() == 0:  # Only now: a config that does not fit must not replace one.
            workdir_lib.save_config(workdir, task.name, config)
        writer = stack.enter_context(_make_writer(config, workdir, start))
        bar = stack.enter_context(writer.progress(config.total_steps, start))
        stop = stack.enter_context(preemption.Preemption())
        trace = stack.enter_context(_Trace(workdir / "profile", start + 10, config.profile_steps))
        train_step = make_train_step(task, config, mesh)
        eval_step = evaluation.make_eval_step(task, config, mesh)
        window = sums_lib.Window(task, saver, config.log_every)
        reports: dict[str, Report] = {}
        shown: dict[str, float] = {}

        for step in range(start, config.total_steps + 1):
            last = step == config.total_steps
            stopping = stop.requested(step)

            if _due(step, config.log_every) or last or stopping:
                values = _values(task, step, *window.take(train_state))
                if values:
                    writer.scalars(step, "train", {**values, "compilations": compiled.count})
                    names = ("loss", f"{task.work_metric}_per_second")
                    shown = {name: values[name] for name in names if name in values}

            evaluate = _due(step, config.evaluate_every) or last
            if evaluate and step > evaluated.step and not stopping:
                window.check(train_state)
                with window.paused():
                    reports = evaluation.evaluate_all(
                        task,
                        eval_step,
                        train_state.eval_variables,
                        mesh,
                        writer,
                        step,
                        workdir / "results",
                    )
                evaluated = _summary(task, step, reports)

            # Stopped at the very step of an evaluation, a run saved it without one: again, with it
            # (while another checkpoint is there to fall back to).
            owed = step == start and evaluated.best is not None and len(saver.steps()) > 1
            save = evaluated.step == step or stopping or last or _due(step, config.checkpoint_every)
            if (save and step > start) or owed:
                window.check(train_state)
                _save(task, saver, step, train_state, iterator, evaluated, window)
                writer.flush()

            if stopping:
                saver.wait()
                log.warning(
                    "%s: saved step %d and stopped. The same command resumes it.", stopping, step
                )
                return train_state, None
            if last:
                break

            trace.before(step)
            batch = next(iterator)
            train_state, sums = train_step(train_state, parallel.global_batch(batch, mesh))
            window.add(step + 1, train_state, sums, batch)
            trace.after(step, train_state)
            bar.update(step + 1, shown)

        saver.wait()
        if start == config.total_steps:
            log.info(
                "This run had all its %d steps. Raise config.total_steps to train on, or use "
                "--mode=evaluate.",
                start,
            )
        log.info(
            "Trained %d steps; %d compilations took %.0f s.",
            config.total_steps - start,
            compiled.count,
            compiled.seconds,
        )
        return train_state, reports


def _due(step: int, every: int) -> bool:
    return step > 0 and step % every == 0


def _make_saver(task: Task, config: Any, workdir: pathlib.Path) -> checkpoint.Checkpointer:
    return checkpoint.Checkpointer(
        workdir / "checkpoints",
        keep_last=config.keep_last,
        keep_best=config.keep_best,
        best_mode=task.best_metric[2],
        keep_every=config.keep_every,
    )


def _make_writer(config: Any, workdir: pathlib.Path, start: int) -> writers.Writers:
    return writers.Writers(
        workdir,
        config=config.to_dict(),
        tensorboard=config.writers.tensorboard,
        wandb=config.writers.wandb,
        project=config.writers.wandb_project,
        resume_step=start,
        is_writer=jax.process_index() == 0,
    )


def _begin(
    task: Task, config: Any, mesh: Mesh, saver: checkpoint.Checkpointer, iterator: Any
) -> tuple[state.TrainState, _Evaluated]:
    """The state of the newest checkpoint, with `iterator` put where it was, or the first one."""
    variables = jax.eval_shape(task.init, jax.random.key(0))
    log.info("Parameters:\n%s", parameters.table(variables["params"]))
    template = jax.eval_shape(task.create_state, variables)
    restored = saver.restore(template, mesh, iterator, task.sharded, check=task.check_checkpoint)
    if restored is None:
        return starting.first_state(task, config, mesh), _Evaluated()
    train_state, meta = restored
    log.info("Resumed at step %d from %s.", meta["step"], saver.directory / str(meta["step"]))
    return train_state, _Evaluated(int(meta["evaluated"]), meta.get("report", {}))


def _values(
    task: Task, step: int, sums: dict[str, metrics.Ratio], seconds: float
) -> dict[str, float]:
    """The numbers of a log line; none if no step was made since the last one."""
    if not sums:
        return {}
    work = sums.pop(task.work_metric, None)
    values = metrics.finalize(sums)
    values.update(task.schedule(step - 1))
    if work is not None:
        values[f"{task.work_metric}_per_second"] = float(work.total) / seconds
    return values


def _summary(task: Task, step: int, reports: Mapping[str, Report]) -> _Evaluated:
    split, name, _ = task.best_metric
    said = {part: dict(report.meta) for part, report in reports.items()}
    if split not in reports:
        return _Evaluated(step, said)
    return _Evaluated(step, said, float(reports[split].scalars[name]), reports[split].over)


def _save(
    task: Task,
    saver: checkpoint.Checkpointer,
    step: int,
    train_state: state.TrainState,
    iterator: Any,
    evaluated: _Evaluated,
    window: sums_lib.Window,
) -> None:
    meta = {**task.checkpoint_meta(), "evaluated": evaluated.step, "report": evaluated.report}
    try:
        saver.save(step, train_state, iterator, meta, evaluated.score(step), evaluated.over)
    except checkpoint.NotFinite as error:  # Sums that were finite can leave a state that is not.
        raise window.diverged(step, error.arrays, sums_lib.LAST_BATCHES) from error


class _Trace:
    """`with _Trace(folder, first, steps) as trace:` traces so many steps from `first` on."""

    def __init__(self, folder: pathlib.Path, first: int, steps: int) -> None:
        self._folder, self._first, self._end = folder, first, first + steps
        self._running = False

    def __enter__(self) -> "_Trace":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False

    def before(self, step: int) -> None:
        if step == self._first < self._end:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, step: int, train_state: state.TrainState) -> None:
        if self._running and step + 1 == self._end:
            jax.block_until_ready(train_state)
            self._stop()
