"""Networks that see: a run that goes on has the same bits as one that was never broken off."""

import json

import pytest

from tests import commands

SHORT = ("--config.evaluate_every=4", "--config.checkpoint_every=2", "--config.log_every=2")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["audiovisual_quickstart", "visualvoice"])
def test_it_resumes_to_the_bit(tmp_path, name):
    prints = {}
    for run, parts in {"whole": (4,), "parts": (2, 4)}.items():
        for steps in parts:
            said = commands.run(
                "separation.main",
                f"--config=configs/separation/{name}.py:debug",
                f"--workdir={tmp_path / run}",
                f"--config.total_steps={steps}",
                "--config.optimizer.schedule=constant",
                "--config.data.max_eval_mixtures=1",
                *SHORT,
            )
        meta = tmp_path / run / "checkpoints" / "4" / "meta" / "metadata"
        prints[run] = json.loads(meta.read_text())["fingerprint"]
    assert "Resumed at step 2" in said.stderr
    assert len(prints["whole"]) > 10
    assert prints["parts"] == prints["whole"]
