"""`python -m separation.main` and `.enhance`, as a user starts them."""

import json

import numpy as np
import pytest

from common.audio import io
from tests import commands

CONFIG = "--config=configs/separation/quickstart.py:debug"


@pytest.mark.slow
def test_it_learns_resumes_evaluates_and_enhances(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    said = commands.run("separation.main", CONFIG, f"--workdir={whole}").stdout
    for part in ("dev SI-SDRi with an enrolment: median", "real-time factor ", "Next: python -m"):
        assert part in said
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "dev"] == [15, 30]
    train = [line for line in lines if line["split"] == "train"]
    assert train[-1]["loss"] < 0.7 * train[0]["loss"]
    commands.run("separation.main", CONFIG, f"--workdir={parts}", "--config.total_steps=15")
    resumed = commands.run("separation.main", CONFIG, f"--workdir={parts}")
    assert "Resumed at step 15" in resumed.stderr
    # The same bits as the unbroken run, by the fingerprints of all arrays.
    prints = []
    for folder in (whole, parts):
        meta = json.loads((folder / "checkpoints" / "30" / "meta" / "metadata").read_text())
        prints.append(meta["fingerprint"])
    assert prints[0] == prints[1]
    again = commands.run(
        "separation.main",
        f"--workdir={parts}",
        "--mode=evaluate",
        "--config.bss_eval=True",
        "--config.data.max_eval_mixtures=2",
    )
    assert "dev BSS Eval, medians: SDR" in again.stdout
    assert (parts / "results" / "dev.csv").read_text().count("\n") == 3
    # The mixtures of dev as files, read back as a list, have the figures of dev.
    options = ("--split=dev", f"--out={tmp_path / 'files'}", "--workers=1")
    commands.run("separation.prepare", CONFIG, *options)
    lists = f"--config.data.lists=files={tmp_path / 'files' / 'dev.csv'}"
    commands.run("separation.main", f"--workdir={parts}", "--mode=evaluate", lists)
    one, other = (
        json.loads((parts / "results" / f"{name}.json").read_text()) for name in ("dev", "files")
    )
    assert one["mixtures"] == other["mixtures"] == 8
    for name in ("si_sdri_mean", "blind_si_sdri_median", "wrong_speaker_rate"):
        assert one[name] == pytest.approx(other[name], abs=1e-3)
    noise = np.random.default_rng(0).normal(size=20000).astype(np.float32)
    io.write_wav(tmp_path / "mix.wav", 0.1 * noise, 8000)
    commands.run(
        "separation.enhance",
        f"--workdir={parts}",
        f"--enroll={tmp_path / 'mix.wav'}",
        f"--out={tmp_path / 'out'}",
        tmp_path / "mix.wav",
    )
    assert io.probe(tmp_path / "out" / "mix.wav").num_samples == 20000
