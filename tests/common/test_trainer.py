"""The loop on a toy task: learns, logs, stops on NaN, resumes to the same bits."""

import dataclasses
import json
import shutil

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import checkpoint, evaluation, parallel, starting, trainer
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


@dataclasses.dataclass(frozen=True)
class Spoilt(toy.ToyTask):
    """From step `at` on, one value of `where` is infinite, though every loss stays finite."""

    where: str = "model_state"
    at: int = 12

    def train_step(self, train_state, batch, key):
        new, sums = super().train_step(train_state, batch, key)
        leaves, structure = jax.tree.flatten(getattr(new, self.where))
        last = max(i for i, leaf in enumerate(leaves) if leaf.ndim)  # no counter
        infinite = leaves[last].at[0].set(jnp.inf)
        leaves[last] = jnp.where(train_state.step >= self.at, infinite, leaves[last])
        return new.replace(**{self.where: jax.tree.unflatten(structure, leaves)}), sums


def diverges(workdir, task) -> str:
    with pytest.raises(trainer.TrainingDiverged) as error:
        train(workdir, task=task)
    assert f"the last good checkpoint is {workdir / 'checkpoints' / '10'}." in str(error.value)
    assert "15" not in {path.name for path in (workdir / "checkpoints").iterdir()}
    return str(error.value)


def real_rows(batch: int) -> str:
    rows = toy.Examples()[batch]
    return ", ".join(f"recording-{i}" for i in rows["index"][rows["mask"]])


def test_nan_stops_with_step_metric_recordings_and_checkpoint(tmp_path):
    message = diverges(tmp_path, toy.ToyTask(toy.make_config(), poison_step=12))
    assert "Step 13: not finite: loss, grad_norm, squared_error. " in message
    assert f"It saw: {real_rows(12)}. " in message


def test_a_model_state_that_is_not_finite_is_named_by_its_first_step(whole, tmp_path):
    message = diverges(tmp_path, Spoilt(toy.make_config()))
    spoilt = "model_state/batch_stats/MaskedBatchNorm_0/var"
    assert f"Step 13: not finite: {spoilt}. It saw: {real_rows(12)}. " in message
    resumed, _ = train(tmp_path)  # mended, the run ends as if nothing had been
    assert bits(resumed) == bits(whole[1])


def test_any_other_state_that_is_not_finite_is_found_before_it_is_saved(tmp_path):
    message = diverges(tmp_path, Spoilt(toy.make_config(), where="opt_state", at=14))
    assert "Step 15: not finite: opt_state/" in message
    assert f"The last 3 steps saw: {real_rows(12)}, {real_rows(13)}, {real_rows(14)}. " in message


def test_the_host_fetches_at_log_lines_and_saves_only(tmp_path, monkeypatch):
    """Between them batches are drawn and nothing comes back; before, every step was waited for."""
    events = []

    class Watched(toy.Examples):
        def __getitem__(self, k):
            events.append(k)
            return super().__getitem__(k)

    class Task(toy.ToyTask):
        def train_data(self):
            return grain.MapDataset.source(Watched()).to_iter_dataset(
                grain.ReadOptions(num_threads=0)
            )

    array = type(jnp.ones(()))  # float() and jax.device_get() read its `_value`
    read = array._value.fget
    watched = property(lambda self: (events.append("fetched"), read(self))[1])
    monkeypatch.setattr(array, "_value", watched)
    assert (float(jnp.ones(())), events.pop()) == (1.0, "fetched")
    settings = {"total_steps": 12, "log_every": 6, "evaluate_every": 12, "checkpoint_every": 9}
    train(tmp_path, task=Task(toy.make_config(**settings)))
    assert events[events.index(0) : events.index(5)] == [0, 1, 2, 3, 4]
    assert events[events.index(6) : events.index(8)] == [6, 7]
    assert events[events.index(9) : events.index(11)] == [9, 10]
    for step in (6, 9):  # a log line, a save
        assert "fetched" in events[events.index(step - 1) : events.index(step)]


def test_log_lines_hold_the_sums_of_their_steps(whole):
    """Added in float64 on the host, step by step."""
    task, mesh = toy.ToyTask(toy.make_config()), parallel.make_mesh(jax.devices()[:1])
    step = trainer.make_train_step(task, task.config, mesh)
    state, totals, expected = starting.first_state(task, task.config, mesh), [], []
    for k in range(10):
        state, sums = step(state, parallel.global_batch(toy.Examples()[k], mesh))
        loss, norm = jax.device_get((sums["loss"], sums["grad_norm"]))
        totals.append([loss.total, loss.count, norm.total, norm.count])
        if (k + 1) % 5 == 0:
            added = np.sum(np.float64(totals), axis=0)
            expected.append([added[0] / added[1], added[2] / added[3]])
            totals = []
    lines = [json.loads(line) for line in (whole[0] / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["split"] == "train"][:2]
    # Four additions in float32, of total and count each: 8 half units in the last place.
    np.testing.assert_allclose(
        [[line["loss"], line["grad_norm"]] for line in lines], expected, rtol=8 * 2**-24
    )


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


class Unevaluated(toy.ToyTask):
    best_metric: tuple = ("", "error", "min")

    def eval_data(self, *, test=False):
        return {}


def test_a_run_without_evaluation_keeps_its_last_checkpoints(tmp_path):
    _, reports = train(tmp_path, task=Unevaluated(toy.make_config()))
    assert reports == {}
    loader = checkpoint.Checkpointer(tmp_path / "checkpoints", read_only=True)
    assert (loader.steps(), loader.best_step()) == ([15, 20], 20)
