"""The metrics of the steps since the last log line, added on the device.

The host fetches them at log lines, before evaluations and before saves, and knows then at which
step the first of them was not finite.
"""

import collections
import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from common import checkpoint, errors, fingerprint, hosts, metrics, state
from common.task import Batch, Metrics, Task

# A step that waits for the device holds its batch there: the host is at most so many ahead.
_AHEAD = 4
_MOST_NAMES = 100
# How many batches are named where the state is found to be bad at a save, and not by its step.
LAST_BATCHES = 3


class TrainingDiverged(errors.UserError):
    """A loss, a gradient or a state that is not finite."""


class _Added(NamedTuple):
    sums: Metrics
    # By name, and last for the model's state: the first step that was not finite, 0 = none.
    first_bad: Int[Array, "n"]


@jax.jit
def _add(before: _Added | None, sums: Metrics, step: Int[Array, ""], model_state: Any) -> _Added:
    """In float32: the error of a sum of n steps is below n * 2**-24 of it."""
    bad = [~jnp.isfinite(sums[name].total + sums[name].count) for name in sorted(sums)]
    leaves = jax.tree.leaves(model_state)
    bad.append(sum(map(fingerprint.not_finite, leaves), jnp.int32(0)) > 0)
    first_bad = jnp.where(jnp.stack(bad), step, 0)
    if before is None:
        return _Added(sums, first_bad)
    first_bad = jnp.where(before.first_bad > 0, before.first_bad, first_bad)
    return _Added(metrics.add(before.sums, sums), first_bad)


class Window:
    """The sums since the last `take`, and which recordings the last steps saw."""

    def __init__(self, task: Task, saver: checkpoint.Checkpointer, most_steps: int) -> None:
        self._task, self._saver = task, saver
        self._added: _Added | None = None
        self._started: collections.deque[Any] = collections.deque()
        self._rows: collections.deque[tuple[int, Any]] = collections.deque(
            maxlen=max(most_steps, LAST_BATCHES)
        )
        self._clock = time.monotonic()

    def add(self, step: int, train_state: state.TrainState, sums: Metrics, batch: Batch) -> None:
        """Takes what a step that was just started will give; `batch` is that of this process."""
        self._added = _add(self._added, dict(sums), train_state.step, train_state.model_state)
        self._rows.append((step, np.where(batch["mask"], batch["index"], -1)))
        self._started.append(self._added.first_bad)
        if len(self._started) > _AHEAD:
            jax.block_until_ready(self._started.popleft())

    def check(self, train_state: state.TrainState) -> None:
        """Raises TrainingDiverged if a step since the last `take` was not finite."""
        if self._added is None:
            return
        first_bad = jax.device_get(self._added.first_bad)
        if not first_bad.any():
            return
        step = first_bad[first_bad > 0].min()
        bad = [name for name, at in zip(sorted(self._added.sums), first_bad) if at == step]
        if not bad:
            _, bad = fingerprint.of_tree({"model_state": train_state.model_state})
        raise self.diverged(int(step), sorted(bad, key=lambda name: name != "loss"), 1)

    def take(self, train_state: state.TrainState) -> tuple[dict[str, metrics.Ratio], float]:
        """The sums, checked, and the seconds since the last call."""
        self.check(train_state)
        sums = {} if self._added is None else jax.device_get(dict(self._added.sums))
        seconds = max(time.monotonic() - self._clock, 1e-9)
        self._added, self._clock = None, time.monotonic()
        return sums, seconds

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What is done here does not count as the steps' time."""
        started = time.monotonic()
        yield
        self._clock += time.monotonic() - started

    def diverged(self, step: int, what: Sequence[str], batches: int) -> TrainingDiverged:
        """The error that names what is not finite, and the recordings of the last batches."""
        self._saver.wait()
        return TrainingDiverged(
            f"Step {step}: not finite: {', '.join(what)}. "
            f"{self._recordings(range(step - batches + 1, step + 1))}Nothing was saved after it: "
            f"{self._saver.last_good()}. If one of these recordings holds garbage (a single sample "
            "far beyond full scale is enough), mend it or leave it out; otherwise lower "
            "config.optimizer.learning_rate or set config.optimizer.clip_norm. Then start again: "
            "the run resumes from there."
        )

    def _recordings(self, steps: range) -> str:
        rows = [index for step, index in self._rows if step in steps]
        if not rows:
            return ""
        places = hosts.gather(np.concatenate(rows)).ravel()
        places = np.unique(places[places >= 0])
        names = ", ".join(self._task.names(places[:_MOST_NAMES]))
        more = len(places) - _MOST_NAMES
        batch = "It saw" if len(steps) == 1 else f"The last {len(rows)} steps saw"
        return f"{batch}: {names}{f' and {more} more' if more > 0 else ''}. "
