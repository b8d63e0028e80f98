"""The memory that `--mode=estimate` states, beside what a step of the same program takes (Linux).

    python -m benchmarks.estimate_memory asr --config=configs/asr/quickstart.py [--config.a=b ...]

Each bucket in a process of its own: the training step is compiled and taken once; then what is free
goes back to the kernel, the mark of the largest resident memory is set back, and a few steps are
taken. Measured is the highest mark, less what was resident before the step, plus the state and the
batch, which were. glibc returns what is freed at once here (trainings do not: `app.keep_memory`).
"""

import ctypes
import importlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import jax

from common import app, command_line, estimate, parallel, starting, trainer
from common.package import Package

STEPS = 5
RESET_PEAK = "5"  # proc(5), clear_refs
# Large buffers are mapped each by itself. If this is not set, glibc raises the limit as it goes.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def resident_bytes(mark: str) -> int:
    """`VmRSS`, now, or `VmHWM`, the largest since it was set back."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{mark}:")]
    return int(line.split()[1]) << 10


def measure(package: Package, argv: Sequence[str], bucket: int) -> dict | None:
    """The shapes of a bucket's batch, and both figures in bytes; None: there is no such bucket."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        config = command_line.parse(package, app.MODES, [*argv, f"--workdir={folder}"]).config
        task, mesh = package.make_task(config, folder), parallel.make_mesh()
        task.prepare()
        batches = list(task.train_data().one_of_each_shape())
    if bucket >= len(batches):
        return None
    state, batch = starting.first_state(task, config, mesh), batches[bucket]
    arguments = parallel.global_batch(batch, mesh)
    compiled = trainer.make_train_step(task, config, mesh).lower(state, arguments).compile()
    state, _ = jax.block_until_ready(compiled(state, arguments))
    taken = []
    for _ in range(STEPS):
        time.sleep(1)  # until other threads have freed what was the last step's
        ctypes.CDLL(None).malloc_trim(0)
        before = resident_bytes("VmRSS")
        pathlib.Path("/proc/self/clear_refs").write_text(RESET_PEAK)
        state, _ = jax.block_until_ready(compiled(state, arguments))
        taken.append(resident_bytes("VmHWM") - before)
    return {
        "shapes": estimate.shapes(batch),
        "estimated": estimate.peak_bytes(compiled),
        "measured": max(taken) + compiled.memory_analysis().argument_size_in_bytes,
    }


def measured_apart(package: str, argv: Sequence[str], bucket: int) -> dict | None:
    """`measure` in a process of its own."""
    this = [sys.executable, "-m", "benchmarks.estimate_memory", package, f"--bucket={bucket}"]
    settings = {"stdout": subprocess.PIPE, "text": True, "check": True}
    done = subprocess.run([*this, *argv], env=os.environ | GIVE_BACK, **settings)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Prints a row of a Markdown table for each bucket."""
    package, *argv = sys.argv[1:]
    if argv[0].startswith("--bucket="):
        task = importlib.import_module(f"{package}.task")
        print(json.dumps(measure(task.PACKAGE, argv, int(argv[0].partition("=")[2]))))
        return
    (config,) = [word.partition("=")[2] for word in argv if word.startswith("--config=")]
    print("| config | batch | estimated, MiB | measured, MiB | ratio |\n|---|---|---|---|---|")
    bucket = 0
    while found := measured_apart(package, argv, bucket):
        estimated, measured = (found[name] / 2**20 for name in ("estimated", "measured"))
        print(
            f"| {config} | {found['shapes']} | {estimated:,.1f} | {measured:,.1f} | "
            f"{estimated / measured:.2f} |",
            flush=True,
        )
        bucket += 1


if __name__ == "__main__":
    main()
