"""Ours and a peer in one run: two processes that take turns, with the same cores and memory.

A process answers commands by `serve`, which takes the time of every command the same way; the one
that reports starts it by `Worker` and has `alternate` and `report` do the rest. Imports neither JAX
nor PyTorch, because both kinds of process import it.
"""

import contextlib
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

# What `common.app.keep_memory` sets, as glibc reads it from the environment of a process. Without
# it the memory of each step goes back to the kernel, which clears every page of the next one.
KEEP_MEMORY = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1"}
GEMM_SIZE = 2048  # of the square float32 matrices of the command `gemm`


@dataclasses.dataclass(frozen=True)
class Job:
    """A command of a worker, called `times` times a round, each doing `amount` `unit`s of `what`.

    The jobs with the same `what` are compared; `how` tells those of a worker apart.
    """

    who: str
    what: str
    how: str
    command: tuple
    amount: float
    unit: str
    times: int = 1


class Worker:
    """A process that answers commands; only one of them computes at a time."""

    def __init__(self, stack: contextlib.ExitStack, command: Sequence[str]):
        self.process = stack.enter_context(
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | KEEP_MEMORY,
            )
        )
        stack.callback(self.process.stdin.close)

    def time(self, *command: Any) -> dict:
        """{"answer", "seconds", "cpu_seconds", "faults"} of one command."""
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.process.args[0]} died; its messages are above.")
        return json.loads(line)

    def __call__(self, *command: Any) -> Any:
        return self.time(*command)["answer"]


def serve(answers: Any) -> None:
    """Calls the method of `answers` that each line of stdin names: `[name, argument, ...]`."""
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        faults = _page_faults()
        start, cpu_start = time.perf_counter(), time.process_time()
        answer = getattr(answers, name)(*arguments)
        timed = {
            "answer": answer,
            "seconds": time.perf_counter() - start,
            "cpu_seconds": time.process_time() - cpu_start,  # user + system, all threads
            "faults": _page_faults() - faults,
        }
        print(json.dumps(timed), flush=True)


def _page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def peak_mib() -> float:
    """The largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def use_cores(count: int | None) -> int:
    """Keeps this process and its children on `count` cores (None: all); returns how many."""
    cores = sorted(os.sched_getaffinity(0))[:count]
    os.sched_setaffinity(0, cores)
    return len(cores)


def gemm(who: str) -> Job:
    """The product of two square matrices: how much of a ratio is the BLAS?"""
    return Job(who, "gemm", "", ("gemm",), 2e-9 * GEMM_SIZE**3, "GFLOP", times=3)


def alternate(
    workers: Mapping[str, Worker], jobs: Sequence[Job], rounds: int
) -> dict[Job, list[dict]]:
    """The timings of all jobs; each is called once before, untimed: it compiles and warms up."""
    for job in jobs:
        workers[job.who](*job.command)
    timings = {job: [] for job in jobs}
    for _ in range(rounds):
        for job in sorted(jobs, key=lambda job: job.what):
            timings[job] += [workers[job.who].time(*job.command) for _ in range(job.times)]
    return timings


def report(timings: Mapping[Job, list[dict]]) -> None:
    """Prints medians, then how much faster the best of ours is than every job of the peer."""
    median = {
        (job, kind): statistics.median(timing[kind] for timing in values)
        for job, values in timings.items()
        for kind in ("seconds", "cpu_seconds", "faults")
    }
    for job, values in timings.items():
        seconds = [timing["seconds"] for timing in values]
        print(
            f"{job.who:5s} {job.what:8s} {job.how:24s} "
            f"{job.amount / median[job, 'seconds']:8.1f} {job.unit}/s  "
            f"{median[job, 'seconds']:.3f} s (min {min(seconds):.3f}, max {max(seconds):.3f}, "
            f"{len(seconds)} times), {median[job, 'cpu_seconds']:.3f} CPU s, "
            f"{median[job, 'faults']:.0f} page faults"
        )
    ours = {}  # by what is done, the best by wall time
    for job in timings:
        if job.who == "ours":
            ours[job.what] = min(
                job, ours.get(job.what, job), key=lambda job: median[job, "seconds"]
            )

    def ratio(job: Job, kind: str) -> float:
        return median[job, kind] / median[ours[job.what], kind]

    peers = [job for job in timings if job.who != "ours"]
    products = next((ratio(job, "seconds") for job in peers if job.what == "gemm"), None)
    for job in peers:
        if job.what != "gemm":
            print(
                f"ours is {ratio(job, 'seconds'):.2f} times as fast as {job.who} {job.what} "
                f"{job.how} ({ratio(job, 'cpu_seconds'):.2f} by CPU seconds; matrix products "
                f"{products:.2f})"
            )
