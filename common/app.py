"""The command line of every task: devices, work directory, modes.

A `<task>/main.py` is `app.run(task.PACKAGE)` with its own docstring.
"""

import argparse
import contextlib
import ctypes
import functools
import io
import itertools
import logging
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence

import jax

from common import (
    cache,
    command_line,
    errors,
    estimate,
    evaluation,
    hosts,
    parallel,
    pipes,
    preemption,
    trained,
    trainer,
    workdir,
    writers,
)
from common.analysis import modes as analysis_modes
from common.package import Context, Mode, Package
from common.task import Task

log = logging.getLogger(__name__)


def set_up_logging() -> None:
    """Our own lines on stderr, above the progress bar; libraries only when they warn."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files come out byte for byte
        sys.stdout.reconfigure(errors="surrogateescape")
    handler = writers.TerminalHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    handler.addFilter(_is_news)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    for name in ("common", "asr", "speaker", "separation", "generation", "__main__"):
        logging.getLogger(name).setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(logging.ERROR)


def _is_news(record: logging.LogRecord) -> bool:
    """False for the tracebacks of a failed save, logged by Orbax and asyncio: it is also raised."""
    of_a_save = record.name == "asyncio" and "orbax-checkpoint" in record.getMessage()
    return not (record.exc_info and ("orbax" in record.pathname or of_a_save))


def set_up_jax(options: command_line.Options) -> None:
    """Devices, processes, and the compile cache that outlives the process."""
    if options.host_devices:
        jax.config.update("jax_num_cpu_devices", options.host_devices)
    use_compile_cache()
    if options.coordinator:
        jax.distributed.initialize(options.coordinator, options.processes, options.process)
    elif options.multihost:
        jax.distributed.initialize()
    log.info(
        "%d %s device(s), %d process(es), jax %s",
        jax.device_count(),
        jax.devices()[0].device_kind,
        jax.process_count(),
        jax.__version__,
    )


def keep_memory() -> None:
    """Makes glibc keep the memory that XLA frees after each step, instead of returning it.

    XLA:CPU allocates its temporary buffers anew in every step; by default glibc maps and unmaps
    them, and the kernel clears every page again: a quarter of the quickstart's CPU time.
    Has to come before the first thread. Does nothing where there is no mallopt (macOS, musl).
    """
    arena_max, mmap_max, trim_threshold = -8, -4, -1  # malloc.h
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(arena_max, 1)
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)  # never; 2**31 - 1 gave those above 2 GiB back at every step


def use_compile_cache() -> None:
    """Compiled programs are kept in the cache folder.

    Not where one process has several CPU devices: of jaxlib 0.10.2 some of their programs, with
    sums over devices in a loop, crash when they come from there.
    """
    forced = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if forced or jax.config.jax_num_cpu_devices > 1:
        return
    root = cache.folder()
    jax.config.update("jax_compilation_cache_dir", str(root / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """That of a small command line, `python -m <name>`."""
    return argparse.ArgumentParser(
        prog=f"python -m {name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_run(parser: argparse.ArgumentParser) -> None:
    """--workdir and --checkpoint: whose network a command takes."""
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="of a training run")
    parser.add_argument("--checkpoint", type=int, help="step; default: the best on the dev set")


def command(name: str, work: Callable[[], None]) -> None:
    """Does the work of a small command line; user errors are one message and exit code 1."""
    keep_memory()
    set_up_logging()
    use_compile_cache()
    with _one_message(name, "interrupted."):
        work()


@contextlib.contextmanager
def _one_message(name: str, interrupted: str) -> Iterator[None]:
    try:
        with pipes.quiet_end():
            yield
    except errors.UserError as error:
        sys.exit(f"{name}: {error}")
    except KeyboardInterrupt:
        sys.exit(f"{name}: {interrupted}")


def run(package: Package, argv: Sequence[str] | None = None) -> None:
    """Parses the flags and runs the mode; user errors are one message and exit code 1."""
    modes = {**MODES, **package.modes}
    keep_memory()
    set_up_logging()
    with _one_message(package.name, "interrupted before there was anything to save."):
        options = command_line.parse(package, modes, sys.argv if argv is None else argv)
        _run(package, modes, options)


def _run(package: Package, modes: dict[str, Mode], options: command_line.Options) -> None:
    set_up_jax(options)
    changed = {}
    for setting, before in options.overridden.items():
        now = options.config
        for part in setting.split("."):
            now = now[part]
        if now != before:
            changed[f"config.{setting}"] = now
            if not modes[options.mode].trains:
                log.info("config.%s is %r here; it was %r in training.", setting, now, before)
    mesh = parallel.make_mesh()
    context = Context(
        options.folder, options.config, mesh, options.checkpoint, changed, options.of_mode
    )
    modes[options.mode].run(package, context)


def _train(package: Package, context: Context) -> None:
    folder, first = context.folder, jax.process_index() == 0
    with contextlib.ExitStack() as stack:

        def prepare() -> Task:
            if first:
                stack.enter_context(workdir.Lock(folder))
            workdir.check_owner(folder, package.name)
            if first:
                (folder / "rejected.tsv").unlink(missing_ok=True)
            task = package.make_task(context.config, folder)
            task.prepare()
            return task

        task = hosts.together(prepare, errors.UserError, "preparing the training")
        _, reports = trainer.train(task, context.config, folder, context.mesh)
        if reports is not None and first:
            package.close(task, folder, reports)
    if reports is None:  # `train && evaluate` must not go on
        sys.exit(preemption.EXIT_CODE)


def _evaluate(package: Package, context: Context) -> None:
    found = trained.load(
        package,
        context.folder,
        step=context.checkpoint,
        config=context.config,
        mesh=context.mesh,
    )
    first = jax.process_index() == 0
    writer = writers.Writers(
        context.folder, tensorboard=False, wandb="disabled", jsonl=False, is_writer=first
    )
    open_data = functools.partial(found.task.eval_data, test=True)
    data = hosts.together(open_data, errors.UserError, "opening the data")
    evaluation.check_same(context.config, data)
    if not data:
        raise errors.UserError(
            "config.data.eval and config.data.test name no part of the data: there is nothing to "
            "evaluate. Give one, as --config.data.eval=dev."
        )
    with preemption.Preemption() as asked:
        batches = itertools.count()
        reports = evaluation.evaluate_all(
            found.task,
            found.eval_step,
            found.variables,
            context.mesh,
            writer,
            found.step,
            context.folder / "results",
            test=True,
            about=context.changed,
            stop=lambda: asked.requested(next(batches)),
        )
    if first:
        package.close(found.task, context.folder, reports)


MODES: dict[str, Mode] = {
    "train": Mode(_train, "train, or go on training", frozenset({"config"}), trains=True),
    "estimate": Mode(
        estimate.run,
        "parameters, operations and memory of the train steps, without a step",
        frozenset({"config"}),
        trains=True,
    ),
    "evaluate": Mode(
        _evaluate, "measure a checkpoint, on other data too", frozenset({"checkpoint"})
    ),
    **analysis_modes.MODES,
}
