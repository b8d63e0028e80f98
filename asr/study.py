"""The study of low rank: forms of an encoder x front ends x seeds, trained alike and looked into.

    python -m asr.study --config=configs/asr/an4.py --config.data.root=/data/an4/an4.tsv \\
        --workdir=runs/study [--cells separable/log_mel dense/log_mel ...] [--seeds 3] [--gpus 0 1]

Every cell is a run of asr.main in a folder of its own, of equal parameters (--equal=macs, none);
the responses of its filters come at once. When all are trained come landscapes (a film over its
checkpoints on one plane), Hessians of each checkpoint, and attributions with their deletion curves.
What is done is not done again: the same command goes on where it was, with more cells or seeds too.
DIR/report.html is the result, whole in one file (asr/study_report.py); --report writes it anew from
what there is.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import logging
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from ml_collections import FrozenConfigDict

from asr import study_report, widths
from common import app, command_line, errors, files, preemption, workdir

log = logging.getLogger(__name__)

FRONTS: Mapping[str, Mapping[str, Any]] = {
    "log_mel": {"kind": "log_mel"},
    "waveform": {"kind": "learned", "rank": 0},
    # Of pairs of filters there are twice as many, of which rank 24 keeps less.
    "waveform_low_rank": {"kind": "learned", "rank": 24, "filters": "single", "pooling": 8},
}
KEPT = ("checkpoints", "points", "batches", "recordings")  # flags, the same for all cells
CELLS = tuple(f"{form}/{front}" for form in widths.VARIANTS for front in FRONTS)
FIRST = 2  # stages that all cells have behind them before any goes on: training, responses
TAIL = 12  # lines of a log that are shown where a stage failed


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training. `name` is form/front; forms may have a / of their own ("pointwise_1/8")."""

    name: str
    seed: int
    folder: pathlib.Path

    @property
    def form(self) -> str:
        return self.name.rpartition("/")[0]

    @property
    def front(self) -> str:
        return self.name.rpartition("/")[2]


@dataclasses.dataclass(frozen=True)
class Stage:
    """A command of a cell. `codes` are exit codes with which it is done, if it `leaves` a file."""

    name: str
    words: tuple[str, ...]
    codes: tuple[int, ...] = (0,)
    leaves: str = "*"


def interval(config: Any, checkpoints: int) -> int:
    """Steps from one checkpoint that is looked at to the next."""
    return max(1, -(-config.total_steps // checkpoints))


@functools.cache
def encoder_settings(config: FrozenConfigDict, form: str, equal: str) -> Mapping[str, Any]:
    """Those of a form; the search for its widths takes seconds, and cells share it."""
    if equal == "none":
        return widths.VARIANTS[form]
    return widths.settings(widths.of_config(config, form, equal))


def settings(config: Any, cell: Cell, equal: str, every: int) -> list[str]:
    """The settings that make the cell of a config. Raises UserError where widths do not go."""
    encoder = encoder_settings(config, cell.form, equal)
    changes = {f"encoder.{name}": value for name, value in encoder.items()}
    changes |= {f"features.{name}": value for name, value in FRONTS[cell.front].items()}
    changes |= {f"{name}_every": every for name in ("checkpoint", "keep", "evaluate")}
    return [f"--config.{name}={value}" for name, value in {**changes, "seed": cell.seed}.items()]


def steps(config: Any, every: int) -> list[int]:
    """Of the checkpoints that are looked at."""
    return sorted({*range(every, config.total_steps + 1, every), config.total_steps})


def stages(config: Any, cell: Cell, args: argparse.Namespace) -> list[Stage]:
    """The commands of a cell, in their order."""
    run, last = f"--workdir={cell.folder}", f"--checkpoint={config.total_steps}"
    some, every = f"--batches={args.batches}", interval(config, args.checkpoints)
    made = settings(config, cell, args.equal, every)
    main = ("asr.main", run)
    found = [Stage("train", (*main, f"--config={args.config}", *args.settings, *made))]
    found.append(Stage("responses", ("asr.responses", run, last)))
    grid = (*main, "--mode=landscape", "--film", some, last, f"--points={args.points}")
    found.append(Stage("landscape", (*grid, "--name=study")))
    ends = (*main, "--mode=hessian", some, "--top=2", "--steps=24", "--probes=4")
    found += [Stage(f"hessian_{k}", (*ends, f"--checkpoint={k}")) for k in steps(config, every)]
    maps = ("--mode=attribution", f"--n={args.recordings}", "--target=transcript", "--judge", last)
    # A map that does not add up is in its table as such.
    table = "analysis/attribution_*_transcript.json"
    found.append(Stage("attribution", (*main, *maps, "--max_nodes=512"), (0, 1), table))
    return found


def done(cell: Cell) -> list[str]:
    """The stages that are behind it."""
    path = cell.folder / "study.json"
    if not path.exists():
        return []
    with study_report.reading(path):
        return json.loads(path.read_text())["done"]


@dataclasses.dataclass(frozen=True)
class Slot:
    """What one process at a time has to itself.

    `environ` is added to its environment; `cores` are those it runs on (none named: any).
    """

    environ: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cores: frozenset[int] = frozenset()


def shares(jobs: int) -> list[Slot]:
    """A slot a job; where each can have cores of its own, those.

    Processes that share cores wait for each other at the end of every product.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return [
        Slot(cores=frozenset(cores[k::jobs] if 1 < jobs <= len(cores) else ())) for k in range(jobs)
    ]


class Workers:
    """Processes, one a slot at once."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self._slots: queue.Queue[Slot] = queue.Queue()
        self._running: set[subprocess.Popen] = set()
        self._stopped = threading.Event()
        for slot in slots:
            self._slots.put(slot)

    @contextlib.contextmanager
    def slot(self) -> Iterator[Slot]:
        """One that no process has now."""
        own = self._slots.get()
        try:
            yield own
        finally:
            self._slots.put(own)

    def call(self, words: Sequence[str], log_file: pathlib.Path, slot: Slot) -> int:
        """The exit code of `python -m words`; what it says is appended to a file."""
        if self._stopped.is_set():
            return -signal.SIGTERM
        with log_file.open("a") as out:
            out.write(f"\n$ python -m {' '.join(words)}\n")
            out.flush()
            command = [sys.executable, "-m", *words]
            env = {**os.environ, **slot.environ}
            with subprocess.Popen(command, stdout=out, stderr=out, env=env) as process:
                if slot.cores:  # before it has threads, which have the cores of their parent
                    os.sched_setaffinity(process.pid, slot.cores)
                self._running.add(process)
                code = process.wait()
                self._running.discard(process)
        return code

    def stop(self) -> None:
        """Asks all to save and end; no other begins."""
        self._stopped.set()
        for process in list(self._running):
            process.terminate()

    @property
    def stopped(self) -> bool:
        return self._stopped.is_set()


def work(cell: Cell, wanted: Sequence[Stage], workers: Workers) -> str | None:
    """Those stages of a cell that are not done; what went wrong, or None."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    with workers.slot() as slot:
        for stage in wanted:
            behind = done(cell)
            if stage.name in behind or workers.stopped:
                continue
            log.info("%s, seed %d: %s.", cell.name, cell.seed, stage.name)
            log_file = cell.folder / "study.log"
            code = workers.call(stage.words, log_file, slot)
            if workers.stopped and code:
                return None
            if code not in stage.codes or not any(cell.folder.glob(stage.leaves)):
                last = log_file.read_text(errors="replace").splitlines()[-TAIL:]
                return f"{stage.name} ended with {code}:\n  " + "\n  ".join(last)
            about = {"cell": cell.name, "seed": cell.seed, "done": [*behind, stage.name]}
            files.write_text(cell.folder / "study.json", json.dumps(about, indent=2) + "\n")
    return None


def work_all(
    folder: pathlib.Path,
    config: Any,
    wanted: Sequence[Cell],
    args: argparse.Namespace,
    workers: Workers,
    *,
    at_once: int,
) -> dict[Cell, str]:
    """The first stages of every cell, then the others of those that had none fail; what went wrong.

    So error rates and costs of all are there before hours of landscapes. After each cell, in either
    round, the report is written anew.
    """
    failed: dict[Cell, str] = {}
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        for part in (slice(FIRST), slice(FIRST, None)):
            running = {
                pool.submit(work, cell, stages(config, cell, args)[part], workers): cell
                for cell in wanted
                if cell not in failed
            }
            try:
                for future in concurrent.futures.as_completed(running):
                    cell = running[future]
                    if problem := future.result():
                        failed[cell] = problem
                        log.error("%s, seed %d: %s", cell.name, cell.seed, problem)
                    if not workers.stopped:
                        study_report.write(folder)
            except KeyboardInterrupt:
                workers.stop()
                raise
    return failed


def cells(folder: pathlib.Path, names: Sequence[str], seeds: int) -> list[Cell]:
    """All of them, one seed after the other, so that an early report has every form."""
    return [
        Cell(name, seed, folder / files.safe_name(f"{name.replace('/', '_')}.{seed}"))
        for seed in range(seeds)
        for name in names
    ]


def check(folder: pathlib.Path, args: argparse.Namespace, config: Any) -> None:
    """Keeps what the study is of in its folder. Raises UserError where it is another one."""
    about = {
        **{name: getattr(args, name) for name in ("equal", *KEPT)},
        "config": config.to_dict(),
    }
    path = folder / "study.json"
    if path.exists():
        with study_report.reading(path):
            before = dict(json.loads(path.read_text()))
        differ = [name for name in about if before.get(name) != json.loads(json.dumps(about))[name]]
        if differ:
            raise errors.UserError(
                f"{folder} has a study with another {', '.join(differ)}: take that of before, or "
                "another --workdir."
            )
        return
    files.write_text(path, json.dumps(about, indent=2) + "\n")


def main() -> None:
    """The command line."""
    parser = app.parser("asr.study", __doc__)
    parser.add_argument("--config", help="configs/asr/an4.py, settings behind it")
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="of the whole study")
    parser.add_argument(
        "--cells", nargs="+", default=list(CELLS), metavar="FORM/FRONT", help=", ".join(CELLS)
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--equal", choices=("params", "macs", "none"), default="params")
    parser.add_argument(
        "--jobs", type=int, default=1, help="cells at once; on CPUs each has its share of the cores"
    )
    parser.add_argument("--gpus", nargs="+", type=int, help="numbers: one cell at once on each")
    parser.add_argument("--checkpoints", type=int, default=4, help="of each run, looked at")
    parser.add_argument("--points", type=int, default=11, help="of a landscape's axis")
    parser.add_argument("--batches", type=int, default=2, help="of landscapes and Hessians")
    parser.add_argument("--recordings", type=int, default=8, help="of attributions")
    parser.add_argument("--report", action="store_true", help="write the report alone")
    args, args.settings = parser.parse_known_args()
    app.command("asr.study", lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    folder = args.workdir.expanduser().resolve()
    if args.report:
        print(f"The report: {study_report.write(folder)}")
        return
    if not args.config:
        raise errors.UserError("--config=configs/asr/an4.py says what is trained.")
    for name in ("seeds", "jobs", *KEPT):
        least = 3 if name == "points" else 1
        if (value := getattr(args, name)) < least:
            raise errors.UserError(f"--{name}={value}: {least} at least.")
    if unknown := [name for name in args.cells if name not in CELLS]:
        raise errors.UserError(f"--cells {unknown[0]}: choose of {', '.join(CELLS)}.")
    jax.config.update("jax_platforms", "cpu")  # the devices are for the processes
    config = command_line.read_config(args.config, args.settings)
    wanted = cells(folder, list(dict.fromkeys(args.cells)), args.seeds)
    for cell in wanted:  # a form that has no such widths is said before hours of training
        settings(config, cell, args.equal, interval(config, args.checkpoints))
    check(folder, args, config)
    gpus = [Slot({"CUDA_VISIBLE_DEVICES": str(k)}) for k in args.gpus or ()]
    slots = gpus or shares(args.jobs)
    workers = Workers(slots)
    signal.signal(signal.SIGTERM, lambda *_: workers.stop())
    with workdir.Lock(folder):
        failed = work_all(folder, config, wanted, args, workers, at_once=len(slots))
    print(f"The report: {study_report.write(folder)}")
    if workers.stopped:
        print("asr.study: stopped, what is done stays. The same command goes on.", file=sys.stderr)
        sys.exit(preemption.EXIT_CODE)
    if failed:
        names = ", ".join(f"{cell.name} (seed {cell.seed})" for cell in failed)
        raise errors.UserError(f"{len(failed)} of {len(wanted)} runs failed: {names}; see above.")


if __name__ == "__main__":
    main()
