"""Trains or evaluates a network that extracts a voice.

python -m separation.main --config=configs/separation/quickstart.py --workdir=runs/separation
python -m separation.main --workdir=runs/separation --mode=evaluate
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from common import app
from common.task import Report
from separation import bench, enhancer
from separation import task as task_lib

_SECONDS = 5.0  # of sound


def close(task: Any, workdir: pathlib.Path, reports: Mapping[str, Report]) -> None:
    """The last words of a run, of a streaming network with how fast its stream is."""
    more = []
    # Of one process alone: a checkpoint is restored by all of them together.
    if reports and task.config.model.kind == "causal" and jax.process_count() == 1:
        taken, _ = bench.hops(enhancer.load(workdir), _SECONDS)
        more.append(f"As a stream: real-time factor {taken.mean():.4f}")
        more.append(f"  on one thread: python -m separation.bench --workdir={workdir}")
    task_lib.close(task, workdir, reports, more)


if __name__ == "__main__":
    app.run(dataclasses.replace(task_lib.PACKAGE, close=close))
