"""Real training processes, killed: what is on disk is always enough to end with the same bits."""

import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

import pytest

from common import preemption

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 400
KILLS = 20


def start(workdir: pathlib.Path, *options: str) -> subprocess.Popen:
    workdir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.common.toy", f"--workdir={workdir}", *options]
    with (workdir / "stderr.txt").open("a") as log:
        return subprocess.Popen(
            command, cwd=ROOT, stderr=log, env={**os.environ, "PYTHONPATH": "."}
        )


def finish(workdir: pathlib.Path, *options: str) -> dict[str, str]:
    code = start(workdir, *options).wait(timeout=300)
    assert code == 0, (workdir / "stderr.txt").read_text()
    return json.loads((workdir / "final.json").read_text())


def checkpoints(workdir: pathlib.Path) -> list[int]:
    folder = workdir / "checkpoints"
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())


@pytest.mark.slow
def test_sigkill_at_random_moments_changes_no_bit(tmp_path):
    """SIGKILL at 20 random moments of one run, saves included; each loses at most one interval."""
    options = (f"--steps={STEPS}", "--seconds_a_step=0.01")
    expected = finish(tmp_path / "whole", *options)
    rng = random.Random(0)
    run, kills, last = tmp_path / "killed", 0, 0
    deadline = time.monotonic() + 400
    while kills < KILLS and time.monotonic() < deadline:
        process = start(run, *options)
        target = last + 1 if kills % 2 else last
        while not [s for s in checkpoints(run) if s > target] and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.15))  # anywhere between two saves, or inside one
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        saved = checkpoints(run)
        assert saved
        assert saved[-1] >= last  # a checkpoint, once there, stays until a newer one is
        last = saved[-1]
    assert kills >= KILLS, f"only {kills} kills fitted into {STEPS} steps"
    assert finish(run, *options) == expected
    assert not (run / "damaged").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits_cleanly(tmp_path, number):
    options = ("--steps=60", "--seconds_a_step=0.02")
    process = start(tmp_path / "run", *options)
    while not checkpoints(tmp_path / "run"):
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(timeout=60) == preemption.EXIT_CODE
    log = (tmp_path / "run" / "stderr.txt").read_text()
    assert f"{number.name}: saved step {checkpoints(tmp_path / 'run')[-1]}" in log
    assert finish(tmp_path / "run", *options) == finish(tmp_path / "whole", *options)


def pair(workdir: pathlib.Path) -> list[subprocess.Popen]:
    """Two processes of two devices each, training one run."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    options = ("--steps=60", "--devices=2", f"--coordinator=localhost:{port}")
    options = (*options, "--seconds_a_step=0.03")
    return [start(workdir, *options, f"--process={i}") for i in range(2)]


def train_pair(workdir: pathlib.Path) -> dict[str, str]:
    for process in pair(workdir):
        assert process.wait(timeout=120) == 0, (workdir / "stderr.txt").read_text()
    return json.loads((workdir / "final.json").read_text())


def killed_and_resumed(run: pathlib.Path) -> dict[str, str]:
    """Both processes get SIGKILL once and SIGTERM once; then the run goes on to its end."""
    for number in (signal.SIGKILL, signal.SIGTERM):
        before = checkpoints(run)[-1] if checkpoints(run) else 0
        processes = pair(run)
        while not [s for s in checkpoints(run) if s > before]:
            assert all(p.poll() is None for p in processes), (run / "stderr.txt").read_text()
            time.sleep(0.01)
        for process in processes:
            process.send_signal(number)
        for process in processes:
            code = process.wait(timeout=120)
            assert code == (preemption.EXIT_CODE if number == signal.SIGTERM else -number)
    return train_pair(run)


@pytest.mark.slow
def test_two_processes_of_two_devices_killed_and_resumed(tmp_path):
    """The same bits as an unbroken run of two processes."""
    whole = train_pair(tmp_path / "whole")
    resumed = killed_and_resumed(tmp_path / "run")
    assert not [name for name in whole if whole[name] != resumed[name]]
