"""What the modes that look at a loss begin with: a network, batches on the devices, places to
write to."""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

from common import compiles, errors, hosts, preemption, trained, writers
from common.analysis import figures, objective
from common.package import Context, Package


class Opened(NamedTuple):
    """A checkpoint and the data of its loss. `stop()` names a signal that came; `split` the data;
    `compiled` counts programs."""

    found: trained.Trained
    objective: objective.Objective
    data: objective.Data
    split: str
    writer: writers.Writers
    stop: Callable[[], str | None]
    compiled: compiles.CompileCounter


@contextlib.contextmanager
def opened(package: Package, context: Context, *, batch_norm: str = "frozen") -> Iterator[Opened]:
    """By the flags `split` and `batches` that these modes share. Raises UserError."""
    options, calls = context.options, itertools.count()
    found = trained.load(
        package,
        context.folder,
        step=context.checkpoint,
        config=context.config,
        mesh=context.mesh,
        losses=True,
    )
    with contextlib.ExitStack() as stack:
        compiled = stack.enter_context(compiles.CompileCounter())
        asked = stack.enter_context(preemption.Preemption())
        writer = stack.enter_context(figures.writer(context.folder, context.config))
        open_data = functools.partial(
            objective.batches_of, found.task, options.split, options.batches
        )
        split, batches = hosts.together(open_data, errors.UserError, "opening the data")
        # What a batch's statistics are of stays together.
        repack = batch_norm == "frozen"
        data = objective.collect(batches, context.mesh, most=options.batches, repack=repack)
        seed = int(context.config.seed)
        goal = objective.Objective(found.task, seed, found.step, batch_norm)
        stop = lambda: asked.requested(next(calls))  # noqa: E731
        yield Opened(found, goal, data, split, writer, stop, compiled)
