"""`python -m speaker.main`, as a user starts it."""

import json
import os

import pytest

from tests import commands

CONFIG = "--config=configs/speaker/quickstart.py:debug"


def run(*options: str):
    """With XLA's optimisation, which the other tests do without (conftest.py)."""
    xla_flags = os.environ["XLA_FLAGS"].replace("--xla_backend_optimization_level=0", "").strip()
    return commands.run("speaker.main", *options, env={**os.environ, "XLA_FLAGS": xla_flags})


@pytest.mark.slow
def test_it_learns_resumes_and_evaluates(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert "dev EER" in run(CONFIG, f"--workdir={whole}").stdout
    assert (whole / "speakers.txt").read_text().count("\n") == 8
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    dev = [line for line in lines if line["split"] == "dev"]
    assert [line["step"] for line in dev] == [15, 30]
    train = [line for line in lines if line["split"] == "train"]
    assert train[-1]["loss"] < 0.7 * train[0]["loss"]
    assert train[-1]["accuracy"] > 0.5  # of 8 speakers; 30 steps say little of 4 others
    run(CONFIG, f"--workdir={parts}", "--config.total_steps=15")
    resumed = run(CONFIG, f"--workdir={parts}")
    assert "Resumed at step 15" in resumed.stderr
    # Constant schedule: the same bits as the unbroken run, by the fingerprints of all arrays.
    prints = []
    for folder in (whole, parts):
        meta = json.loads((folder / "checkpoints" / "30" / "meta" / "metadata").read_text())
        prints.append(meta["fingerprint"])
    assert prints[0] == prints[1]
    assert "dev EER" in run(f"--workdir={parts}", "--mode=evaluate", "--checkpoint=30").stdout
