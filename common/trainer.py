"""The one training loop."""

import contextlib
import logging
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from common import (
    checkpoint,
    compiles,
    errors,
    evaluation,
    metrics,
    parallel,
    parameters,
    preemption,
    starting,
    state,
    writers,
)
from common import workdir as workdir_lib
from common.task import Metrics, Report, Task

log = logging.getLogger(__name__)


class TrainingDiverged(errors.UserError):
    """A loss or gradient that is not finite."""


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


class _Throttle:
    """Metrics one step late: the host never waits for the step that it has just started."""

    def __init__(self, saver: checkpoint.Checkpointer) -> None:
        self._saver = saver
        self._pending: tuple[int, Metrics] | None = None
        self.window: dict[str, metrics.Ratio] = {}

    def push(self, step: int, sums: Metrics) -> None:
        """Takes the sums of the step just started, after looking at those of the one before."""
        self.flush()
        self._pending = (step, sums)

    def flush(self) -> None:
        """Adds the pending sums to the window; raises if one of them is not finite."""
        if self._pending is None:
            return
        step, sums = self._pending
        self._pending = None
        host = metrics.merge([sums])
        bad = [name for name, value in host.items() if not math.isfinite(value.total)]
        if bad:
            self._saver.wait()
            saved = self._saver.steps()
            good = self._saver.directory / str(saved[-1]) if saved else "none was saved yet"
            names = ", ".join(sorted(bad, key=lambda name: name != "loss"))
            raise TrainingDiverged(
                f"Step {step}: not finite: {names}. Last good checkpoint: {good}. Nothing was "
                "saved after it. Lower config.optimizer.learning_rate or set "
                "config.optimizer.clip_norm and start again: the run resumes from there."
            )
        self.window = metrics.merge([self.window, host])

    def take(self) -> dict[str, metrics.Ratio]:
        """The sums since the last call."""
        window, self.window = self.window, {}
        return window


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


def train(
    task: Task, config: Any, workdir: pathlib.Path, mesh: Mesh
) -> tuple[state.TrainState, dict[str, Report] | None]:
    """Trains to `config.total_steps`, resuming if `workdir` has checkpoints.

    Returns the state and the last evaluation's reports; None for these if a signal stopped the run.
    """
    with contextlib.ExitStack() as stack:
        compiled = stack.enter_context(compiles.CompileCounter())
        variables = jax.eval_shape(task.init, jax.random.key(0))
        log.info("Parameters:\n%s", parameters.table(variables["params"]))
        split, name, mode = task.best_metric
        saver = checkpoint.Checkpointer(
            workdir / "checkpoints",
            keep_last=config.keep_last,
            keep_best=config.keep_best,
            best_mode=mode,
            keep_every=config.keep_every,
        )
        stack.callback(saver.close)
        iterator = iter(task.train_data())
        template = jax.eval_shape(task.create_state, variables)
        restored = saver.restore(template, mesh, iterator, task.sharded)
        if restored is None:
            train_state = starting.first_state(task, config, mesh)
            meta, start = {"evaluated": -1}, 0
        else:
            train_state, meta = restored
            task.check_checkpoint(meta)
            start = int(train_state.step)
            log.info("Resumed at step %d from %s.", start, saver.directory / str(start))
        if jax.process_index() == 0:  # Only now: a config that does not fit must not replace one.
            workdir_lib.save_config(workdir, task.name, config)
        writer = stack.enter_context(
            writers.Writers(
                workdir,
                config=config.to_dict(),
                tensorboard=config.writers.tensorboard,
                wandb=config.writers.wandb,
                project=config.writers.wandb_project,
                resume_step=start,
                is_writer=jax.process_index() == 0,
            )
        )
        bar = stack.enter_context(writer.progress(config.total_steps, start))
        stop = stack.enter_context(preemption.Preemption())
        train_step = make_train_step(task, config, mesh)
        eval_step = evaluation.make_eval_step(task, config, mesh)
        late = _Throttle(saver)
        evaluated, best, reports = int(meta["evaluated"]), None, None
        said = meta.get("report", {})  # by split, of the evaluation at step `evaluated`
        shown: dict[str, float] = {}
        clock = time.monotonic()
        trace_from = start + 10 if config.profile_steps else -1

        for step in range(start, config.total_steps + 1):
            last = step == config.total_steps
            stopping = stop.requested(step)
            if (step and step % config.log_every == 0) or last or stopping:
                late.flush()
                if window := late.take():
                    work = window.pop(task.work_metric, None)
                    values = metrics.finalize(window)
                    values.update(task.schedule(step - 1))
                    values["compilations"] = float(compiled.count)
                    if work is not None:
                        seconds = max(time.monotonic() - clock, 1e-9)
                        values[f"{task.work_metric}_per_second"] = work.total / seconds
                    writer.scalars(step, "train", values)
                    shown = {k: values[k] for k in ("loss", f"{task.work_metric}_per_second")}
                    clock = time.monotonic()
            due = (step and step % config.evaluate_every == 0) or last
            if due and step > evaluated and not stopping:
                late.flush()
                paused = time.monotonic()
                reports = evaluation.evaluate_all(
                    task,
                    eval_step,
                    train_state.eval_variables,
                    mesh,
                    writer,
                    step,
                    workdir / "results",
                )
                evaluated, best = step, float(reports[split].scalars[name])
                said = {part: dict(report.meta) for part, report in reports.items()}
                clock += time.monotonic() - paused
            # Stopped at the very step of an evaluation, a run saved it without one: again, with it
            # (while another checkpoint is there to fall back to).
            owed = step == start and best is not None and len(saver.steps()) > 1
            if (step > start or owed) and (
                evaluated == step or stopping or last or step % config.checkpoint_every == 0
            ):
                late.flush()  # No state with a loss that is not finite is ever saved.
                score = best if evaluated == step else None
                meta = {**task.checkpoint_meta(), "evaluated": evaluated, "report": said}
                saver.save(step, train_state, iterator, meta, score)
                writer.flush()
            if stopping:
                saver.wait()
                log.warning(
                    "%s: saved step %d and stopped. The same command resumes it.", stopping, step
                )
                return train_state, None
            if last:
                break
            if step == trace_from:
                jax.profiler.start_trace(workdir / "profile")
                stack.callback(_stop_trace)
            batch = parallel.global_batch(next(iterator), mesh)
            train_state, sums = train_step(train_state, batch)
            late.push(step + 1, sums)
            if step + 1 == trace_from + config.profile_steps:
                jax.block_until_ready(train_state)
                _stop_trace()
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


def _stop_trace() -> None:
    with contextlib.suppress(RuntimeError):  # It has ended already.
        jax.profiler.stop_trace()
