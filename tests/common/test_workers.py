"""Runs whose batches are made by processes leave nothing in shared memory, however they end."""

import signal
import subprocess

import pytest

from common import preemption
from tests import commands

ENDS = {
    "done": (("--steps=12",), 0),
    "SIGTERM": (("--steps=100000", "--seconds_a_step=0.02"), preemption.EXIT_CODE),
    "training": (("--fail=training",), 1),
    "evaluation": (("--fail=evaluation",), 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDS)
def test_nothing_is_left_in_shared_memory(tmp_path, end):
    """Python's resource tracker says on stderr what a process left, after its last line."""
    options, code = ENDS[end]
    options = (f"--workdir={tmp_path}", "--workers", *options)
    with commands.start("tests.common.toy", *options, stderr=subprocess.PIPE) as process:
        said = ""
        if end.startswith("SIG"):
            while "rows_seen" not in said:
                said += process.stderr.readline()
            process.send_signal(signal.Signals[end])
        said += process.communicate(timeout=120)[1]
    assert process.returncode == code, said
    assert ("meant" in said) == (code == 1)
    assert "leaked" not in said
    assert "ignored" not in said  # as exceptions on the way out are
