"""The encoder of voices and the net that judges: they learn, on any number of devices."""

import functools

import jax
import numpy as np
import pytest

from common import errors, evaluation, metrics, parallel
from generation import judging
from tests.generation import people as toy

KINDS = {
    "voice": {"voice.crop_frames": (20, 40), "optimizer.learning_rate": 5e-3},
    "matcher": {"model.matcher.colour": 0.1, "optimizer.learning_rate": 5e-3},
}


def make_task(tmp_path, kind, more=None):
    changes = {"model.kind": kind, "loss.wrong_pairs": False, "optimizer.b1": 0.9}
    changes["data.batch_rows"] = 24  # all 18 recordings in every batch
    return toy.make_task(tmp_path, {**changes, **KINDS[kind], **(more or {})})


@pytest.mark.parametrize("kind", list(KINDS))
def test_it_learns(tmp_path, kind):
    task = make_task(tmp_path, kind)
    state, sums = toy.trained(task, 60)
    assert metrics.finalize(sums)["accuracy"] > 0.5  # chance: 1 in 6, and 1 in 11 or so
    mesh = parallel.make_mesh(jax.devices()[:1])
    step = evaluation.make_eval_step(task, task.config, mesh)
    report = evaluation.evaluate(
        task, step, state.eval_variables, "dev", task.eval_data()["dev"], mesh
    )
    if kind == "voice":
        assert report.scalars["eer"] < 0.2
    else:
        assert report.scalars["match_2"] > 0.85
        assert "dev real faces: 6 people" in report.lines[0]
    split, name, _ = task.best_metric
    assert (split, name in report.scalars) == ("dev", True)
    with pytest.raises(errors.UserError, match=f"not '{kind}'"):
        task.check_checkpoint({"kind": "gan"})
    task.check_checkpoint(task.checkpoint_meta())


@pytest.mark.parametrize("kind", list(KINDS))
def test_eight_devices_equal_one(tmp_path, kind):
    """The matcher compares the rows of all devices, and its gradients go through them."""
    task = make_task(tmp_path, kind, toy.PLAIN)
    (one, said), (eight, said_eight) = (toy.trained(task, 3, devices=d) for d in (1, 8))
    # As in test_task.py.
    compare = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(compare, one.params, eight.params)
    said, said_eight = metrics.finalize(said), metrics.finalize(said_eight)
    assert said["loss"] == pytest.approx(said_eight["loss"], rel=1e-4)
    assert said["grad_norm"] == pytest.approx(said_eight["grad_norm"], rel=1e-3)


def test_a_judge_is_a_run_of_a_matcher(tmp_path):
    task = toy.make_task(tmp_path, {"judge": str(tmp_path / "none")})
    with pytest.raises(errors.UserError, match=r"config\.judge="):
        task.judge  # noqa: B018 - opened when first asked for
    with pytest.raises(errors.UserError, match="'gan', not 'matcher'"):
        judging.check_kind({"kind": "gan"}, "matcher", tmp_path)
