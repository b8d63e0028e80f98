"""The loop on a toy task: learns, logs, stops on NaN, resumes to the same bits."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from common import checkpoint, evaluation, parallel, trainer
from tests.common import toy


def train(workdir, devices=1, task=None, **changes):
    config = toy.make_config(**changes)
    mesh = parallel.make_mesh(jax.devices()[:devices])
    task = task or toy.ToyTask(config)
    return trainer.train(task, task.config, workdir, mesh)


def bits(state) -> dict[str, bytes]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(k): np.asarray(v).tobytes() for k, v in leaves}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of 20 steps."""
    workdir = tmp_path_factory.mktemp("whole")
    state, reports = train(workdir)
    return workdir, state, reports


def test_logs_and_checkpoints(whole):
    workdir, _, reports = whole
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if line["split"] == "train"]
    assert [line["step"] for line in trained] == [5, 10, 15, 20]
    assert trained[-1]["loss"] < trained[0]["loss"]
    assert trained[0]["rows_per_second"] > 0
    assert trained[-1]["compilations"] == trained[-2]["compilations"]  # none after warm-up
    dev = [line for line in lines if line["split"] == "dev"]
    assert [line["step"] for line in dev] == [10, 20]
    masks = sum(toy.Examples(seed=99)[k]["mask"].sum() for k in range(3))
    assert reports["dev"].scalars["rows_seen"] == masks  # each record once, no padding counted
    steps = {int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()}
    assert {15, 20} <= steps  # the last two, and the best


def test_resumed_equals_uninterrupted(whole, tmp_path):
    """Restarted from each checkpoint that was kept: the same bits at the end."""
    workdir, state, _ = whole
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "20")
    resumed, _ = train(tmp_path / "run")
    assert bits(resumed) == bits(state)
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [(line["split"], line["step"]) for line in lines]
    assert len(set(steps)) == len(steps)  # what the lost run wrote does not stand twice


def test_what_a_report_keeps_is_saved_with_the_checkpoints(tmp_path):
    """That of the last evaluation, after a resume too."""

    def said(step):
        text = (tmp_path / "checkpoints" / str(step) / "meta" / "metadata").read_text()
        return json.loads(text)["report"]

    _, reports = train(tmp_path, keep_every=5)
    assert said(5) == {}
    assert said(10) == said(15) != said(20)
    assert said(20) == {"dev": dict(reports["dev"].meta)}
    shutil.rmtree(tmp_path / "checkpoints" / "20")
    train(tmp_path, keep_every=1, checkpoint_every=1)
    assert said(16) == said(10)


def test_an_evaluation_that_a_stop_put_off_is_saved(tmp_path, monkeypatch):
    def kept(run):
        folder = tmp_path / run / "checkpoints" / "10"
        metrics = folder / "metrics" / "metrics"
        meta = json.loads((folder / "meta" / "metadata").read_text())
        return meta, json.loads(metrics.read_text()) if metrics.exists() else None

    train(tmp_path / "whole", keep_every=5)
    with monkeypatch.context() as patch:
        patch.setattr(trainer.preemption.Preemption, "requested", lambda _, step: step == 10)
        train(tmp_path / "parts", keep_every=5)
    assert kept("parts")[1] is None
    train(tmp_path / "parts", keep_every=5)
    assert kept("parts") == kept("whole")
    assert kept("parts")[1]["best"] > 0


def test_a_finished_run_is_left_alone(whole):
    workdir, state, _ = whole
    again, _ = train(workdir)
    assert bits(again) == bits(state)


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove", "empty"])
def test_a_damaged_newest_checkpoint_is_skipped(whole, tmp_path, harm, caplog):
    workdir, state, _ = whole
    run = tmp_path / "run"
    shutil.copytree(workdir, run)
    files = [path for path in (run / "checkpoints" / "20" / "state").rglob("*") if path.is_file()]
    victim = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(victim.read_bytes())
    if harm == "flip":  # in the values, which Orbax does not check
        data[len(data) // 2] ^= 1
        victim.write_bytes(data)
    elif harm == "truncate":
        victim.write_bytes(data[: len(data) // 2])
    elif harm == "remove":
        victim.unlink()
    else:
        (run / "checkpoints" / "20" / "meta" / "metadata").write_text("")
    with caplog.at_level("WARNING"):
        resumed, _ = train(run)
    assert "damaged" in caplog.text
    assert (run / "damaged" / "20").is_dir()
    assert bits(resumed) == bits(state)


def test_config_that_does_not_fit_lists_the_shapes(whole):
    workdir, _, _ = whole
    with pytest.raises(checkpoint.CheckpointError) as error:
        train(workdir, ema_decay=0.0)
    assert "ema/params/Dense_0/kernel: checkpoint float32[5, 7], config absent" in str(error.value)


def test_nan_stops_with_step_metric_and_checkpoint(tmp_path):
    config = toy.make_config()
    with pytest.raises(trainer.TrainingDiverged) as error:
        train(tmp_path, task=toy.ToyTask(config, poison_step=12))
    assert "Step 13: not finite: loss, grad_norm" in str(error.value)
    assert str(tmp_path / "checkpoints" / "10") in str(error.value)
    saved = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert "15" not in saved


def test_best_and_every_nth_are_kept(tmp_path):
    train(tmp_path, keep_every=10, keep_last=1, total_steps=25)
    loader = checkpoint.Checkpointer(tmp_path / "checkpoints", read_only=True)
    assert {10, 20, 25} <= set(loader.steps())
    variables, meta = loader.load_variables(parallel.make_mesh(jax.devices()[:1]))
    assert meta["step"] == loader.best_step()
    assert set(variables) == {"params", "batch_stats"}


def test_the_best_outlives_the_process(tmp_path, monkeypatch):
    """An error that falls and rises: a later run keeps the best of an earlier one, and finds it."""
    errors, evaluate = iter([0.5, 0.2, 0.4, 0.3, 0.6, 0.7]), evaluation.evaluate

    def said(*args):
        report = evaluate(*args)
        return dataclasses.replace(report, scalars={**report.scalars, "error": next(errors)})

    monkeypatch.setattr(evaluation, "evaluate", said)
    for total in (15, 30):
        train(tmp_path, keep_last=1, evaluate_every=5, total_steps=total)
        loader = checkpoint.Checkpointer(tmp_path / "checkpoints", read_only=True)
        assert (loader.steps(), loader.best_step()) == ([10, total], 10)


def test_full_disk_is_one_message_and_loses_nothing(tmp_path, monkeypatch):
    train(tmp_path, total_steps=5, evaluate_every=100)
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage)
        with pytest.raises(checkpoint.CheckpointError, match=r"the disk is full .*free") as error:
            train(tmp_path, total_steps=10)
    assert "step 10" in str(error.value)
    assert str(tmp_path / "checkpoints" / "5") in str(error.value)

    def full(*args, **kwargs):  # as another program fills it meanwhile
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.ocp.CheckpointManager, "save", full)
        with pytest.raises(checkpoint.CheckpointError, match="the disk is full"):
            train(tmp_path, total_steps=10)
    assert train(tmp_path, total_steps=10)[0].step == 10
