"""The command line of every task: flags, devices, work directory, modes.

A `<task>/main.py` is `app.run("asr", make_task)` with its own docstring.
"""

import contextlib
import ctypes
import logging
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
from absl import app, flags
from ml_collections import config_flags

from common import checkpoint, errors, evaluation, parallel, trainer, workdir, writers
from common.data import splits
from common.task import Task

log = logging.getLogger(__name__)

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Experiment, e.g. configs/asr/quickstart.py or that plus :debug.",
    lock_config=True,
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives; it resumes if it is there.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "evaluate"], "What to do.")
_CHECKPOINT = flags.DEFINE_integer("checkpoint", None, "Evaluate this step (default: the best).")
_MULTIHOST = flags.DEFINE_bool(
    "multihost", False, "Call jax.distributed.initialize() (SLURM, Open MPI, TPU pods, GKE)."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "host:port of process 0, without a cluster."
)
_PROCESSES = flags.DEFINE_integer("processes", None, "With --coordinator: how many processes.")
_PROCESS = flags.DEFINE_integer("process", None, "With --coordinator: the number of this one.")
_HOST_DEVICES = flags.DEFINE_integer("host_devices", None, "Pretend that the CPU is N devices.")

# make_task(config, workdir, mode) -> Task; without training data when the mode is "evaluate".
MakeTask = Callable[[Any, pathlib.Path, str], Task]


def set_up_logging() -> None:
    """Our own lines on stderr, above the progress bar; libraries only when they warn."""
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


def set_up_jax() -> None:
    """Devices, processes, and the compile cache that outlives the process."""
    if _HOST_DEVICES.value:
        jax.config.update("jax_num_cpu_devices", _HOST_DEVICES.value)
    use_compile_cache()
    if _COORDINATOR.value:
        jax.distributed.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    elif _MULTIHOST.value:
        jax.distributed.initialize()


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
    """Compiled programs are kept in $SPEECH_CACHE (default ~/.cache/speech-jax)/xla."""
    root = pathlib.Path(os.environ.get("SPEECH_CACHE") or "~/.cache/speech-jax").expanduser()
    jax.config.update("jax_compilation_cache_dir", str(root / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def command(name: str, work: Callable[[], None]) -> None:
    """Does the work of a small command line; user errors are one message and exit code 1."""
    keep_memory()
    set_up_logging()
    use_compile_cache()
    try:
        work()
    except errors.UserError as error:
        sys.exit(f"{name}: {error}")
    except KeyboardInterrupt:
        sys.exit(f"{name}: interrupted.")


def run(name: str, make_task: MakeTask, close: Callable[..., None]) -> None:
    """Parses the flags and runs the mode; user errors are one message and exit code 1.

    `close(task, workdir, reports)` prints the last words after training or evaluation.
    """

    def parse(argv: list[str]) -> list[str]:
        try:
            rest = flags.FLAGS(argv)
            if len(rest) > 1:
                raise flags.Error(f"what is {rest[1]!r}? Options start with --")
            return rest
        except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
            text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
            if "Traceback" in text:  # ml_collections puts that of the config file into the message
                lines = text.strip().splitlines()
                text = f"{lines[0]} {lines[-1].strip()}"
            sys.exit(f"{name}: {text}\nTry python -m {name}.main --help.")

    def main(_: list[str]) -> None:
        keep_memory()
        set_up_logging()
        try:
            _main(name, make_task, close)
        except errors.UserError as error:
            sys.exit(f"{name}: {error}")
        except KeyboardInterrupt:
            sys.exit(f"{name}: interrupted before there was anything to save.")

    app.run(main, flags_parser=parse)


def _main(name: str, make_task: MakeTask, close: Callable[..., None]) -> None:
    if not _WORKDIR.value:
        raise errors.UserError("--workdir is missing: name the folder in which the run lives.")
    folder = pathlib.Path(_WORKDIR.value).expanduser().resolve()
    set_up_jax()
    mesh = parallel.make_mesh()
    log.info(
        "%d %s device(s), %d process(es), jax %s",
        jax.device_count(),
        jax.devices()[0].device_kind,
        jax.process_count(),
        jax.__version__,
    )
    if _MODE.value == "evaluate":
        config = workdir.load_config(folder, name)
        task = make_task(config, folder, "evaluate")
        _, _, mode = task.best_metric
        loader = checkpoint.Checkpointer(folder / "checkpoints", best_mode=mode, read_only=True)
        variables, meta = loader.load_variables(mesh, step=_CHECKPOINT.value)
        task.check_checkpoint(meta)
        log.info("Checkpoint of step %d.", meta["step"])
        writer = writers.Writers(folder, tensorboard=False, wandb="disabled", jsonl=False)
        step = evaluation.make_eval_step(task, config, mesh)
        close(
            task, folder, evaluation.evaluate_all(task, step, variables, mesh, writer, meta["step"])
        )
        return
    if _CONFIG.value is not None:
        try:
            config = workdir.freeze(splits.separate_names(_CONFIG.value))
        except OSError as error:  # ml_collections: no such file
            raise errors.UserError(f"--config: {' '.join(str(error).split())}") from error
    elif (folder / "config.json").is_file():
        config = workdir.load_config(folder, name)
    else:
        raise errors.UserError("--config is missing, e.g. --config=configs/asr/quickstart.py")
    with workdir.Lock(folder) if jax.process_index() == 0 else contextlib.nullcontext():
        workdir.check_owner(folder, name)
        task = make_task(config, folder, "train")
        _, reports = trainer.train(task, config, folder, mesh)
        if reports is not None and jax.process_index() == 0:
            close(task, folder, reports)
