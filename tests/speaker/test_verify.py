"""`python -m speaker.verify`: score, ratio, probability and verdict; and when it has none."""

import json
import math
import re
import shutil

import numpy as np
import pytest

from common.audio import io
from speaker import embed, evaluation, verify
from tests.speaker.conftest import RATE_HZ, failure, voice


def answers(text: str) -> dict[str, float | str]:
    found = re.findall(r"^(\w+)  +(\S+(?: speakers?)?)", text, re.MULTILINE)
    return {name: value if name == "verdict" else float(value) for name, value in found}


def test_it_tells_voices_apart(run, command, capsys):
    embedder = embed.Embedder(run.workdir)
    decision = embedder.decision
    for names, verdict in (
        (("ann-3", "ann-6"), "same speaker"),
        (("ann-3", "dee-6"), "different speakers"),
    ):
        verify.main(["--workdir", str(run.workdir), "--prior", "0.2", *run.files(*names)])
        text = capsys.readouterr().out
        said = answers(text)
        a, b = embedder.embed_files(run.files(*names)).astype(np.float64)
        cosine = a @ b / math.sqrt((a @ a) * (b @ b))
        assert said["score"] == pytest.approx(cosine, abs=1e-4)
        ratio = decision.calibration.slope * cosine + decision.calibration.offset
        assert said["ratio"] == pytest.approx(ratio, abs=2e-3)
        odds = math.exp(ratio) * 0.2 / 0.8
        assert said["probability"] == pytest.approx(odds / (1 + odds), abs=1e-3)
        assert said["verdict"] == verdict
        assert "Calibrated on 153 trials of the split 'dev' at step 60;" in text


def test_the_prior_decides(run, command, capsys):
    """A prior small enough turns any verdict, and only that."""
    seen = []
    for prior in ("0.5", "1e-300"):
        verify.main(["--workdir", str(run.workdir), "--prior", prior, *run.files("ann-3", "ann-6")])
        seen.append(answers(capsys.readouterr().out))
    assert seen[0]["ratio"] == seen[1]["ratio"]
    assert [s["verdict"] for s in seen] == ["same speaker", "different speakers"]


def test_without_a_calibration_there_is_a_score_only(run, tmp_path, command, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run.workdir, folder)
    path = folder / "checkpoints" / "60" / "meta" / "metadata"
    meta = json.loads(path.read_text())
    del meta["report"]  # as saved by earlier versions
    del meta["checksum"], meta["data"]  # as earlier versions wrote it
    path.write_text(json.dumps(meta))
    verify.main(["--workdir", str(folder), *run.files("ann-3", "ann-6")])
    text = capsys.readouterr().out
    assert set(answers(text)) == {"score"}
    assert "There is no verdict: the checkpoint holds no calibration." in text


def test_scores_are_normalised_where_normalised_ones_were_calibrated(
    run, tmp_path, command, capsys
):
    folder = tmp_path / "run"
    shutil.copytree(run.workdir, folder)
    path = folder / "checkpoints" / "60" / "meta" / "metadata"
    meta = json.loads(path.read_text())
    files = run.files("ann-3", "ann-6")
    rows = embed.Embedder(folder).embed_files([*files, *run.files("bob-0", "cid-0", "dee-0")])
    rows = rows.astype(np.float64) / np.linalg.norm(rows, axis=1, keepdims=True)
    meta["report"]["train-cohort"] = {"means": evaluation.pack(rows[2:].astype(np.float32))}
    del meta["checksum"], meta["data"]  # as earlier versions wrote it
    path.write_text(json.dumps(meta))
    verify.main(["--workdir", str(folder), *files])
    text = capsys.readouterr().out
    nearest = [np.sort(rows[2:] @ row)[-2:] for row in rows[:2]]
    score = np.mean([(rows[0] @ rows[1] - n.mean()) / n.std() for n in nearest])
    assert answers(text)["score"] == pytest.approx(score, rel=2e-3)
    assert "(cosine, AS-norm)" in text
    meta["evaluated"] = 40  # of other weights, and so is the cohort
    path.write_text(json.dumps(meta))
    assert embed.Embedder(folder).decision is None


def test_useless_audio_is_one_message(run, tmp_path, command):
    (tmp_path / "broken.wav").write_bytes(b"RIFF....WAVE")
    io.write_wav(tmp_path / "silent.wav", np.zeros(RATE_HZ, np.float32), RATE_HZ)
    io.write_wav(tmp_path / "short.wav", voice(0, 0.1, 0), RATE_HZ)
    for name, reason in (
        ("broken", "cannot be decoded"),
        ("silent", "silent"),
        ("short", "too short: 0.100 s"),
        ("absent", "no such file"),
    ):
        said = failure(
            verify.main, "--workdir", run.workdir, *run.files("ann-0"), tmp_path / f"{name}.wav"
        )
        assert said.startswith(f"speaker.verify: {tmp_path}/{name}.wav: {reason}")
        assert "\n" not in said


def test_priors_are_probabilities(run, command, capsys):
    for prior in ("0", "1", "-1", "half"):
        with pytest.raises(SystemExit) as stopped:
            verify.main(["--workdir", "x", "--prior", prior, "a", "b"])
        assert stopped.value.code == 2
        assert "--prior" in capsys.readouterr().err
