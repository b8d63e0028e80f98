"""Real training processes, killed: what is on disk is always enough to end with the same bits."""

import json
import pathlib
import signal
import socket
import subprocess
import time

import pytest

from common import preemption
from tests import commands

STEPS = 200
# Where a process dies while it saves: before a change to the checkpoints (`toy.change`), or as many
# changes later.
MOMENTS = (
    ("mkdir", 0),  # nothing of the new one is there
    ("mkdir", 3),
    ("open", 2),
    ("open", 4),
    ("rename", 0),  # its parts get their names one by one
    ("rename", 4),
    ("commit", 0),  # all is there but the name
    ("commit", 1),
    ("rmtree", 0),  # an old one goes
    ("rmtree", 2),
    ("rmtree", 9),
)


def start(workdir: pathlib.Path, *options: object) -> subprocess.Popen:
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / "stderr.txt").open("a") as log:
        return commands.start("tests.common.toy", f"--workdir={workdir}", *options, stderr=log)


def finish(workdir: pathlib.Path, *options: object) -> dict[str, str]:
    code = start(workdir, *options).wait(timeout=300)
    assert code == 0, (workdir / "stderr.txt").read_text()
    return json.loads((workdir / "final.json").read_text())


def checkpoints(workdir: pathlib.Path) -> list[int]:
    folder = workdir / "checkpoints"
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> dict[str, str]:
    """The end of an unbroken run."""
    return finish(tmp_path_factory.mktemp("whole"), f"--steps={STEPS}")


@pytest.mark.slow
def test_sigkill_amid_a_save_changes_no_bit(expected, tmp_path):
    """One run of many processes: each gets through one save and dies by SIGKILL in a later one."""
    last = 0
    for what, later in MOMENTS:
        process = start(
            tmp_path, f"--steps={STEPS}", f"--die_at={what}", f"--changes_later={later}"
        )
        log = (tmp_path / "stderr.txt").read_text()
        assert process.wait(timeout=300) == -signal.SIGKILL, f"{what} {later}: {log}"
        assert checkpoints(tmp_path)[-1] > last  # a checkpoint stays until a newer one is there
        last = checkpoints(tmp_path)[-1]
    assert finish(tmp_path, f"--steps={STEPS}") == expected
    assert not (tmp_path / "damaged").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits_cleanly(expected, tmp_path, number):
    process = start(tmp_path, f"--steps={STEPS}", "--seconds_a_step=0.02")
    while not checkpoints(tmp_path):
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(timeout=60) == preemption.EXIT_CODE
    log = (tmp_path / "stderr.txt").read_text()
    assert f"{number.name}: saved step {checkpoints(tmp_path)[-1]}" in log
    assert finish(tmp_path, f"--steps={STEPS}") == expected


def pair(workdir: pathlib.Path) -> list[subprocess.Popen]:
    """Two processes of two devices each, training one run."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    options = ("--steps=60", "--host_devices=2", f"--coordinator=localhost:{port}")
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
