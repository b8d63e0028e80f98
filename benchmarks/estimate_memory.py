"""The memory that `--mode=estimate` states, beside what a step of the same program takes (Linux).

    python -m benchmarks.estimate_memory asr --config=configs/asr/quickstart.py [--config.a=b ...]

Each bucket in a process of its own: the first state, one batch, the training step compiled, one
step to warm up; then what is free goes back to the kernel, the mark of the largest resident memory
is reset, and a few steps run. Measured: that mark, less what was resident before them, plus the
state and the batch, which were. glibc gives large buffers back here (see `app.keep_memory`), and
the program is compiled anew: one out of the cache does not know its temporaries.
"""

import ctypes
import importlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import jax

from common import app, command_line, estimate, parallel, starting, trainer
from common.package import Package

CLEAR_PEAK = "5"  # proc(5), clear_refs
# Every larger buffer is mapped by itself and unmapped when freed; glibc would raise the limit.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def resident_bytes(mark: str) -> int:
    """`VmRSS`, now, or `VmHWM`, the largest since it was reset."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{mark}:")]
    return int(line.split()[1]) << 10


def measure(package: Package, argv: Sequence[str], bucket: int, times: int = 5) -> dict | None:
    """The shapes of a bucket's batch, and both figures in bytes; None: there is no such bucket."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        config = command_line.parse(package, app.MODES, [*argv, f"--workdir={folder}"]).config
        task, mesh = package.make_task(config, folder), parallel.make_mesh()
        task.prepare()
        batches = list(task.train_data().one_of_each_shape())
        if bucket >= len(batches):
            return None
        state = starting.first_state(task, config, mesh)
        batch = parallel.global_batch(batches[bucket], mesh)
        compiled = trainer.make_train_step(task, config, mesh).lower(state, batch).compile()
        state = jax.block_until_ready(compiled(state, batch))[0]
        steps = []
        for _ in range(times):
            time.sleep(1)  # until other threads have freed what was the last step's
            ctypes.CDLL(None).malloc_trim(0)
            before = resident_bytes("VmRSS")
            pathlib.Path("/proc/self/clear_refs").write_text(CLEAR_PEAK)
            state = jax.block_until_ready(compiled(state, batch))[0]
            steps.append(resident_bytes("VmHWM") - before)
        print([s >> 20 for s in steps], file=sys.stderr)
        memory = compiled.memory_analysis()
        return {
            "shapes": estimate.shapes(batch),
            "estimated": estimate.peak_bytes(compiled),
            "measured": statistics.median(steps) + memory.argument_size_in_bytes,
        }


def main() -> None:
    """Prints a row of a Markdown table for each bucket."""
    package, argv = sys.argv[1], sys.argv[2:]
    if argv[0].startswith("--bucket="):
        jax.config.update("jax_enable_compilation_cache", False)
        task = importlib.import_module(f"{package}.task")
        print(json.dumps(measure(task.PACKAGE, argv, int(argv[0].partition("=")[2]))))
        return
    (config,) = [word.partition("=")[2] for word in argv if word.startswith("--config=")]
    print("| config | batch | estimated, MiB | measured, MiB | estimated over measured |")
    print("|---|---|---|---|---|")
    bucket = 0
    while found := measured_apart(package, argv, bucket):
        estimated, measured = found["estimated"], found["measured"]
        print(
            f"| {config} | {found['shapes']} | {estimated / 2**20:,.0f} | {measured / 2**20:,.0f} "
            f"| {estimated / measured:.2f} |",
            flush=True,
        )
        bucket += 1


def measured_apart(package: str, argv: Sequence[str], bucket: int) -> dict | None:
    """`measure` in a process of its own."""
    this = [sys.executable, "-m", "benchmarks.estimate_memory", package, f"--bucket={bucket}"]
    environment = os.environ | GIVE_BACK
    done = subprocess.run(
        [*this, *argv], stdout=subprocess.PIPE, text=True, check=True, env=environment
    )
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
