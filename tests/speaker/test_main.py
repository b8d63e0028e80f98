"""`python -m speaker.main`, as a user starts it."""

import json

import pytest

from tests import commands

CONFIG = "--config=configs/speaker/quickstart.py:debug"


@pytest.mark.slow
def test_it_trains_resumes_and_evaluates(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    done = commands.run("speaker.main", CONFIG, f"--workdir={whole}")
    assert "dev EER" in done.stdout
    assert (whole / "speakers.txt").read_text().count("\n") == 8
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "dev"] == [15, 30]
    commands.run("speaker.main", CONFIG, f"--workdir={parts}", "--config.total_steps=15")
    resumed = commands.run("speaker.main", CONFIG, f"--workdir={parts}")
    assert "Resumed at step 15" in resumed.stderr
    # Constant schedule: the same bits as the unbroken run, by the fingerprints of all arrays.
    prints = []
    for run in (whole, parts):
        meta = json.loads((run / "checkpoints" / "30" / "meta" / "metadata").read_text())
        prints.append(meta["fingerprint"])
    assert prints[0] == prints[1]
    options = (f"--workdir={parts}", "--mode=evaluate", "--checkpoint=30")
    assert "dev EER" in commands.run("speaker.main", *options).stdout
