"""`python -m speaker.main`, as a user starts it."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = "--config=configs/speaker/quickstart.py:debug"


def command(*options: str) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "speaker.main", *options]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_it_trains_resumes_and_evaluates(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    done = command(CONFIG, f"--workdir={whole}")
    assert done.returncode == 0, done.stderr
    assert "dev EER" in done.stdout
    assert (whole / "speakers.txt").read_text().count("\n") == 8
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "dev"] == [15, 30]
    done = command(CONFIG, f"--workdir={parts}", "--config.total_steps=15")
    assert done.returncode == 0, done.stderr
    resumed = command(CONFIG, f"--workdir={parts}")
    assert resumed.returncode == 0, resumed.stderr
    assert "Resumed at step 15" in resumed.stderr
    # Constant schedule: the same bits as the unbroken run, by the fingerprints of all arrays.
    prints = []
    for run in (whole, parts):
        meta = json.loads((run / "checkpoints" / "30" / "meta" / "metadata").read_text())
        prints.append(meta["fingerprint"])
    assert prints[0] == prints[1]
    again = command(f"--workdir={parts}", "--mode=evaluate", "--checkpoint=30")
    assert again.returncode == 0, again.stderr
    assert "dev EER" in again.stdout
