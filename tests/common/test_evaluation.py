"""The average is evaluated; of large outputs a few rows are fetched; reports have files."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from common import checkpoint, errors, evaluation, parallel, pictures, trainer
from common.task import Report
from tests.common import toy


@dataclasses.dataclass(frozen=True)
class Pictures(toy.ToyTask):
    """Shows its first inputs, and lists the records that it has seen."""

    num_examples: int = 3

    def eval_step(self, variables, batch):
        sums, outputs = super().eval_step(variables, batch)
        pictures = {"x": 2 * batch["x"], "length": batch["x_lengths"]}
        return sums, {**outputs, "examples": pictures}

    def report(self, split, outputs, examples=()):
        assert all(set(batch) == {"y", "index", "mask"} for batch in outputs)
        images = {f"{int(one['index'])}": one["x"] for one in examples}
        lengths = " ".join(str(one["length"]) for one in examples)
        files = {f"{split}/lengths.txt": lengths + "\n", "raw.bin": b"\x00\xff"}
        samples = {"first": examples[0]["x"].clip(0, 1)}
        return Report({"shown": float(len(images))}, images=images, files=files, samples=samples)


def split_of(order, rows=4):
    """Batches of `rows` in which record i stands at the place of i in `order`; -1 is padding."""
    rng = np.random.default_rng(0)
    records = rng.normal(size=(max(order) + 1, toy.FRAMES, toy.DIM)).astype(np.float32)
    index = np.reshape(order, (-1, rows)).astype(np.int32)
    batches = [
        {
            "x": records[part],
            "x_lengths": 1 + np.abs(part) % toy.FRAMES,
            "y": np.zeros(rows, np.float32),
            "mask": part >= 0,
            "index": part,
        }
        for part in index
    ]
    return records, batches


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize(
    ("order", "first"),
    [
        ([7, 3, -1, 5, 9, 1, 6, 3 + 5, 0, 4, -1, -1], [0, 1, 3]),  # buckets come in any order
        ([1, -1, -1, -1, 0, -1, -1, -1], [0, 1]),  # fewer than are wanted
    ],
)
def test_examples_are_those_of_the_first_records_on_any_number_of_devices(devices, order, first):
    task = Pictures(toy.make_config())
    mesh = parallel.make_mesh(jax.devices()[:devices])
    variables = parallel.place(task.init(jax.random.key(0)), mesh)
    records, batches = split_of(order)
    step = evaluation.make_eval_step(task, task.config, mesh)
    report = evaluation.evaluate(task, step, variables, "dev", batches, mesh)
    assert list(report.images) == [str(i) for i in first]
    for i in first:
        np.testing.assert_array_equal(report.images[str(i)], 2 * records[i])
    assert report.files["dev/lengths.txt"].split() == [str(1 + i % toy.FRAMES) for i in first]


def test_a_signal_stops_an_evaluation_after_a_batch():
    task = Pictures(toy.make_config())
    mesh = parallel.make_mesh(jax.devices()[:1])
    variables = parallel.place(task.init(jax.random.key(0)), mesh)
    step = evaluation.make_eval_step(task, task.config, mesh)
    _, batches = split_of(range(16))
    taken, answers = [], iter([None, "SIGTERM"])
    counted = (taken.append(batch) or batch for batch in batches)
    with pytest.raises(errors.UserError, match="stopped by SIGTERM before all of dev"):
        evaluation.evaluate(
            *(task, step, variables, "dev", counted, mesh), stop=lambda: next(answers)
        )
    assert len(taken) == 2 < len(batches)


def test_only_the_rows_that_are_shown_leave_the_devices(monkeypatch):
    """Once three are found, batches of later records send none."""
    task = Pictures(toy.make_config())
    mesh = parallel.make_mesh(jax.devices()[:1])
    variables = parallel.place(task.init(jax.random.key(0)), mesh)
    _, batches = split_of([0, 5, 1, 3, 4, 6, 7, 8, 9, 10, 11, 2, 12, 13, 14, 15])
    fetched, rows = [], evaluation._rows

    def count(tree, places, whole):
        fetched.append(len(places))
        return rows(tree, places, whole)

    monkeypatch.setattr(evaluation, "_rows", count)
    step = evaluation.make_eval_step(task, task.config, mesh)
    report = evaluation.evaluate(task, step, variables, "dev", batches, mesh)
    assert list(report.images) == ["0", "1", "2"]
    assert fetched == [3, 3]  # of the first batch and of the one that has record 2


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained")
    task = Pictures(toy.make_config(ema_decay=0.9, total_steps=5))
    mesh = parallel.make_mesh(jax.devices()[:1])
    state, reports = trainer.train(task, task.config, workdir, mesh)
    return workdir, task, mesh, state, reports


def error_of(variables, task):
    """The mean error of the toy's evaluation batches, added up here."""
    total = count = 0.0
    for batch in task.eval_data()["dev"]:
        lengths = jnp.asarray(batch["x_lengths"])
        found = toy.Net().apply(variables, batch["x"], lengths, train=False)
        total += np.abs(np.asarray(found) - batch["y"])[batch["mask"]].sum()
        count += batch["mask"].sum()
    return total / count


def test_evaluation_uses_the_average(trained):
    """In training, and from the checkpoint as every other command reads it."""
    workdir, task, mesh, state, reports = trained
    averaged, current = error_of(state.ema, task), error_of(state.variables, task)
    assert abs(averaged - current) > 1e-3 * current
    # 15 float32 numbers of order 1, added in another order.
    assert reports["dev"].scalars["error"] == pytest.approx(averaged, rel=1e-5)
    loader = checkpoint.Checkpointer(workdir / "checkpoints", read_only=True)
    variables, _ = loader.load_variables(mesh)
    loader.close()
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(variables), state.eval_variables)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.ema), state.eval_variables)


def test_files_of_a_report_lie_in_the_results(trained):
    workdir, task, *_ = trained
    batch = task.eval_data()["dev"][0]
    lengths = batch["x_lengths"][:3].tolist()
    # All batches of the toy have records 0 to 7: the first to come are kept.
    assert (workdir / "results" / "dev" / "lengths.txt").read_text() == (
        " ".join(map(str, lengths)) + "\n"
    )
    assert (workdir / "results" / "raw.bin").read_bytes() == b"\x00\xff"
    assert json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])["shown"] == 3


def test_samples_are_kept_as_pictures_of_their_step(trained):
    workdir, *_, reports = trained
    (path,) = (workdir / "samples").iterdir()
    assert path.name == "dev-first-0000005.png"
    with PIL.Image.open(path) as image:
        found = np.asarray(image)
    np.testing.assert_array_equal(found, pictures.rgb(reports["dev"].samples["first"]))
    assert found.max() > found.min()


def test_tiles_keep_their_pixels():
    one, two = np.full((2, 3, 3), 10, np.uint8), np.linspace(0, 1, 6).reshape(2, 3)
    whole = pictures.tiled([[one, two], [two]], scale=2, gap=1)
    assert whole.shape == (2 * 4 + 1, 2 * 6 + 1, 3)
    np.testing.assert_array_equal(whole[:4:2, 7::2], pictures.rgb(two))
    np.testing.assert_array_equal(whole[5::2, 1:6:2], pictures.rgb(two))
    assert (whole[4] == 255).all()
    assert (whole[5:, 7:] == 255).all()
    with pytest.raises(ValueError, match="of one size"):
        pictures.tiled([[one], [two.T]])


@pytest.mark.parametrize("name", ["/corpus/dev.tsv", "../dev.tsv", "a/../../dev.tsv", ".", ""])
def test_files_stay_in_the_results(tmp_path, name):
    contents = {"good.tsv": "a\n", name: "b\n"}
    with pytest.raises(errors.UserError, match=r"would lie outside of .*results: choose"):
        evaluation.write_files(tmp_path / "results", contents)
    assert not list(tmp_path.iterdir())


def test_names_of_files_that_are_no_utf8_come_out_as_they_went_in(tmp_path):
    name = b"caf\xe9.wav".decode("utf-8", "surrogateescape")
    evaluation.write_files(tmp_path, {"dev.tsv": f"{name}\tté\n"})
    assert (tmp_path / "dev.tsv").read_bytes() == b"caf\xe9.wav\tt\xc3\xa9\n"
    assert [path.name for path in tmp_path.iterdir()] == ["dev.tsv"]
