"""launch/train.sbatch with two processes, and a stand-in for SLURM's own commands."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from common import app, command_line
from speaker.task import PACKAGE
from tests.commands import ROOT

SCRIPT = ROOT / "launch" / "train.sbatch"
# What srun gives to the processes of a step; a step ends with the highest of their codes.
SRUN = f"""#!{sys.executable}
import os, subprocess, sys
command = sys.argv[1:]
while command[0].startswith("-"):
    command = command[1:]
own = {{"SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "1"}}
ranks = [{{"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}} for i in range(2)]
started = [subprocess.Popen(command, env={{**os.environ, **own, **rank}}) for rank in ranks]
with open("pids", "w") as file:
    file.write(" ".join(str(process.pid) for process in started))
sys.exit(max(process.wait() for process in started))
"""


@pytest.fixture
def start(tmp_path):
    """Starts the script with a text for srun; scontrol notes what it is told in `told`."""
    (tmp_path / "scontrol").write_text('#!/bin/sh\necho "$@" >> told\n')

    def run(srun: str, *words: str) -> subprocess.Popen:
        (tmp_path / "srun").write_text(srun)
        for name in ("srun", "scontrol"):
            (tmp_path / name).chmod(0o755)
        settings = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PYTHON": sys.executable,
            "SLURM_JOB_ID": str(os.getpid()),  # gives the port at which the processes meet
        }
        job = subprocess.Popen(
            ["bash", SCRIPT, *words],
            cwd=tmp_path,
            env=os.environ | settings,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        jobs.append(job)
        return job

    jobs = []
    yield run
    for job in jobs:  # of a test that failed
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)


@pytest.mark.slow
def test_two_processes_that_are_stopped_save_and_are_queued_again(start, tmp_path):
    folder = tmp_path / "run"
    job = start(SRUN, "tests.common.toy", f"--workdir={folder}", "--seconds_a_step=0.05")
    while not list((folder / "checkpoints").glob("[0-9]*")):
        assert job.poll() is None, job.communicate()
        time.sleep(0.01)
    for pid in (tmp_path / "pids").read_text().split():
        os.kill(int(pid), signal.SIGTERM)
    said = job.communicate(timeout=120)[1].decode()
    assert job.returncode == 75, said
    assert said.count("2 process(es)") == said.count("SIGTERM: saved step") == 2
    assert (tmp_path / "told").read_text() == f"requeue {os.getpid()}\n"


@pytest.mark.parametrize("code", [0, 1, 75])
def test_only_what_was_stopped_is_queued_again(start, tmp_path, code):
    job = start(f'#!/bin/sh\necho "$@" > line\nexit {code}\n', "asr.main", "--workdir=a  b")
    said = job.communicate()[1]
    assert job.returncode == code, said
    assert (tmp_path / "told").exists() == (code == 75)
    line = (tmp_path / "line").read_text()
    assert line == f"--wait=120 {sys.executable} -m asr.main --workdir=a  b --multihost\n"


def test_what_the_script_says_is_understood():
    """Its example by our command line, its options by their form."""
    text = SCRIPT.read_text()
    (words,) = re.findall(r"^#   sbatch launch/train.sbatch speaker.main (.*)$", text, re.M)
    options = command_line.parse(PACKAGE, app.MODES, ["", *words.split(), "--multihost"])
    assert options.multihost
    settings = re.findall(r"^#SBATCH(.*)$", text, re.M)
    assert len(settings) > 5
    assert all(re.fullmatch(r" --[a-z-]+(=\S+)?", setting) for setting in settings)
