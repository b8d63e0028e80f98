"""Attributions of a small separator: complete, of files whose sources are unknown too."""

import jax
import numpy as np
import pytest

from common import errors
from common.analysis import baselines, explaining, recordings
from tests.asr.test_targets import check_linearity, explained
from tests.separation import test_task as mixtures


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return mixtures.make_task(
        tmp_path_factory.mktemp("task"), **{"mixing.absent": 0.0, "data.max_eval_seconds": 0.5}
    )


@pytest.fixture(scope="module")
def variables(task):
    return jax.jit(task.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def batch(task):
    return recordings.of_split(task, "dev", 2, task.config, 30.0).batch


@pytest.mark.parametrize("target", ["energy", "si_sdr"])
def test_it_is_complete(task, variables, batch, target, monkeypatch):
    """From noise; near silence SI-SDR does not change with the level, and its way is a step."""
    monkeypatch.setattr(baselines, "NOISES", 1)
    found, _, _ = explained(
        task, variables, target, batch, "waveform", baseline="noise", max_nodes=4096
    )
    for row in found:
        assert row.gap_percent <= 0.1
        assert row.converged
        wanted = row.score[0] - row.baseline_score[0]
        assert row.values.sum() == pytest.approx(wanted, rel=1.1e-3)


def test_it_is_linear(task, variables, batch):
    check_linearity(task, variables, "energy", "si_sdr", batch, "waveform")


def test_energy_from_silence(task, variables, batch):
    found, _, lengths = explained(task, variables, "energy", batch, "waveform")
    for row, length in zip(found, lengths):
        assert row.converged
        assert row.baseline_score[0] == pytest.approx(0, abs=1e-6)
        assert not row.values[:, length:].any()


def test_files_have_no_sources(task, variables):
    audio = [mixtures.voices.corpus().source[0]["audio"][:4000]]
    batch = task.recordings(audio)
    found, _, _ = explained(task, variables, "energy", batch, "waveform")
    assert found[0].score[0] > 0
    other = {**batch, "against": audio[0][None], "against_lengths": np.int32([4000])}
    shown, _, _ = explained(task, variables, "energy", other, "waveform")
    assert shown[0].score[0] != found[0].score[0]  # the other recording is its enrolment
    with pytest.raises(errors.UserError, match="recordings of a --split have it"):
        explained(task, variables, "si_sdr", batch, "waveform")
    with pytest.raises(errors.UserError, match="samples of the mixture"):
        explaining.find_input(task, "log_mel")
