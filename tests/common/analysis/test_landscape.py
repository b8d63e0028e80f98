"""Landscapes: the values of the grid, what is kept, and the command."""

import dataclasses
import json
import logging
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from common import checkpoint, errors, metrics, parallel, trained
from common.analysis import directions, grid, landscape, objective, planes
from common.analysis.settings import LandscapeOptions
from common.nn import norm
from tests.common import toy
from tests.common.analysis import toy_run


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    toy_run.train(folder)
    return folder


@pytest.fixture(scope="module")
def found(workdir):
    return trained.load(toy_run.PACKAGE, workdir, step=20, config=toy.make_config())


@pytest.fixture(scope="module")
def data(found):
    return objective.collect(found.task.eval_data()["dev"], found.mesh, repack=True)


@pytest.fixture(scope="module")
def two(found):
    space = directions.Space(directions.flat(found.variables["params"]), {})
    drawn = directions.random_directions(space, 2, seed=0)
    return [directions.unflat(one) for one in drawn]


AXES = [planes.axis(-1.0, 1.0, 5), planes.axis(-0.5, 0.5, 3)]


def fill(path, found, data, two, *, devices=8, stop=lambda: None, per_call=5):
    mesh = parallel.make_mesh(jax.devices()[:devices])
    known = grid.open_grid(path, AXES, {"of": "this"})
    program = grid.make_program(objective.Objective(found.task, 0, found.step), mesh)
    place = [parallel.place(jax.device_get(x), mesh) for x in (found.variables, two, data)]
    state = {"batch_stats": place[0]["batch_stats"]}
    grid.fill(
        known,
        program,
        (place[0]["params"], place[1], state, place[2]),
        mesh,
        per_call=per_call,
        progress=lambda done: None,
        stop=stop,
    )
    return known


@pytest.fixture(scope="module")
def whole(tmp_path_factory, found, data, two):
    return fill(tmp_path_factory.mktemp("grid") / "20.npz", found, data, two)


def test_the_grid_is_what_one_evaluation_after_the_other_gives(whole, found, two):
    """Without the grid's program: whole evaluation batches, parameters moved by hand."""
    for place, point in enumerate(whole.points):
        params = jax.tree.map(
            lambda w, a, b, at=point: w + np.float32(at[0]) * a + np.float32(at[1]) * b,
            found.variables["params"],
            *two,
        )
        total = count = 0.0
        for batch in found.task.eval_data()["dev"]:
            batch = jax.tree.map(jnp.asarray, batch)
            moved = {**found.variables, "params": params}
            terms, _ = found.task.loss(moved, batch, jax.random.key(0), 0, train=False)
            total += float(terms["squared_error"].total)
            count += float(terms["squared_error"].count)
        assert whole.values["loss"][place] == pytest.approx(total / count, rel=1e-5)


def test_the_centre_is_the_checkpoint_itself(whole, found, data):
    (centre,) = np.flatnonzero(np.all(whole.points == 0, axis=1))
    here = float(objective.Objective(found.task, 0, found.step)(found.variables, data))
    assert whole.values["loss"][centre] == pytest.approx(here, rel=1e-6)
    assert whole.surface("loss").shape == (5, 3)
    assert whole.surface("loss")[2, 1] == whole.values["loss"][centre]


def test_one_device_has_the_values_of_eight(whole, found, data, two, tmp_path):
    alone = fill(tmp_path / "20.npz", found, data, two, devices=1)
    np.testing.assert_allclose(alone.values["loss"], whole.values["loss"], rtol=1e-6)


def test_a_grid_that_was_stopped_goes_on_to_the_same_bits(found, data, two, tmp_path):
    path, other = tmp_path / "20.npz", tmp_path / "whole.npz"
    with pytest.raises(errors.UserError, match="stopped by SIGTERM: 8 of 15 points are in"):
        fill(path, found, data, two, stop=lambda: "SIGTERM")
    half = grid.open_grid(path, AXES, {"of": "this"})
    assert half.done.sum() == 8
    resumed = fill(path, found, data, two)
    once = fill(other, found, data, two)
    np.testing.assert_array_equal(resumed.values["loss"], once.values["loss"])
    np.testing.assert_array_equal(grid.open_grid(path, AXES, {"of": "this"}).done, True)


def test_a_file_of_another_run_is_not_gone_on_with(whole, tmp_path):
    path = tmp_path / "20.npz"
    shutil.copy(whole.path, path)
    with pytest.raises(errors.UserError, match="another run: of 'this' there, 'that' here"):
        grid.open_grid(path, AXES, {"of": "that"})
    with pytest.raises(errors.UserError, match="of other points"):
        grid.open_grid(path, [AXES[0], AXES[0]], {"of": "this"})
    path.write_bytes(b"nothing")
    with pytest.raises(errors.UserError, match="no grid of --mode=landscape, or damaged"):
        grid.open_grid(path, AXES, {"of": "this"})


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"text"])
def test_damaged_files_are_named(tmp_path, content):
    path = tmp_path / "plane.npz"
    path.write_bytes(content)
    with pytest.raises(errors.UserError, match="is no plane of --mode=landscape, or damaged"):
        planes.load(path)
    with pytest.raises(errors.UserError, match="is no grid of --mode=landscape, or damaged"):
        grid.open_grid(path, AXES, {})


def test_points_that_are_not_finite_are_counted(found, data, two, tmp_path):
    far = [jax.tree.map(lambda x: x * 1e30, one) for one in two]
    known = fill(tmp_path / "20.npz", found, data, far)
    values = known.values["loss"]
    assert known.failed == int(np.isnan(values).sum()) > 0
    assert not np.isinf(values).any()


def test_second_differences_are_the_curvature(found, data, two):
    """f(a) - 2 f(0) + f(-a) = a^2 d'Hd + O(a^4), and of two steps without the O(a^4)."""
    goal = objective.Objective(found.task, 0, found.step)

    def loss(at):
        params = grid.at(found.variables["params"], two[:1], at[None])
        return goal({**found.variables, "params": params}, data)

    second = float(jax.grad(jax.grad(loss))(jnp.float32(0)))
    program = grid.make_program(goal, found.mesh)
    points = np.zeros((8, 1), np.float32)
    points[1:5, 0] = 0.1, -0.1, 0.2, -0.2
    state = {"batch_stats": found.variables["batch_stats"]}
    values = program(found.variables["params"], two[:1], state, data, points)["loss"]
    centre, *others = np.asarray(values[:5], np.float64)
    near, far = (
        (others[k] - 2 * centre + others[k + 1]) / step**2 for k, step in ((0, 0.1), (2, 0.2))
    )
    # float32: 1e-7 of the loss over step^2, 1e-3 of the curvature
    assert (4 * near - far) / 3 == pytest.approx(second, rel=1e-2)


class Scaled(nn.Module):
    """Convolution, batch norm of the batch, ReLU, mean: w -> c w changes nothing."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(6, (3,), use_bias=False, name="conv")(x)
        x = norm.MaskedBatchNorm(epsilon=0.0, name="norm")(x, train=train)
        return jnp.mean(nn.relu(x), axis=(1, 2))


@dataclasses.dataclass(frozen=True)
class ScaledTask(toy.ToyTask):
    def loss(self, variables, batch, key, step, *, train):
        y, new = Scaled().apply(variables, batch["x"], train, mutable=["batch_stats"])
        total = metrics.ratio(jnp.square(y - batch["y"]), batch["mask"])
        return {"squared_error": metrics.Term(*total)}, ({}, new)


def test_the_slice_does_not_see_the_scale_of_the_weights(found):
    """Li et al. 2018, section 4: without normalisation it would be c times as wide."""
    task = ScaledTask(toy.make_config())
    batches = [{**batch, "y": np.float32(batch["y"])} for batch in task.eval_data()["dev"]]
    data = objective.collect(batches, found.mesh)
    variables = Scaled().init(jax.random.key(0), jnp.zeros((1, toy.FRAMES, toy.DIM)), False)
    program = grid.make_program(objective.Objective(task, 0, 0, "batch"), found.mesh)
    points = np.linspace(-1, 1, 8, dtype=np.float32)[:, None]

    def line(scale, normalize):
        params = {**variables["params"]}
        params["conv"] = {"kernel": scale * variables["params"]["conv"]["kernel"]}
        space = directions.Space(directions.flat(params), {})
        (one,) = directions.random_directions(space, 1, seed=0, normalize=normalize)
        state = {"batch_stats": variables["batch_stats"]}
        return np.asarray(program(params, [directions.unflat(one)], state, data, points)["loss"])

    np.testing.assert_allclose(line(10.0, "filter"), line(1.0, "filter"), rtol=1e-4)
    assert np.abs(line(10.0, "none") - line(1.0, "none")).max() > 1e-2 * line(1.0, "none").mean()


def run(workdir, **options):
    landscape.run(toy_run.PACKAGE, toy_run.context(workdir, LandscapeOptions(**options)))


def test_a_plane_and_a_film_from_the_command(workdir, caplog, capsys):
    caplog.set_level(logging.INFO)
    run(workdir, points=3, film=True, metric_points=3)
    folder = workdir / "analysis" / "random_2d"
    assert str(folder) in capsys.readouterr().out
    assert "cosine of the angle between the directions" in caplog.text
    for step in (5, 10, 15, 20):
        assert f"step {step} lies at (" in caplog.text
        known = np.load(folder / f"{step}.npz")
        assert known["done"].all()
        about = json.loads(str(known["about"]))
        assert (about["step"], about["split"], about["task"]) == (step, "dev", "toy")
        assert np.isfinite(known["values/error"]).sum() == 9
        for kind in ("filled", "contour", "surface"):
            with PIL.Image.open(folder / f"{step}_loss_{kind}.png") as picture:
                assert np.asarray(picture).std() > 10
    page = (folder / "20_loss_surface.html").read_text()
    assert "plotly.min.js" in page
    assert "https://cdn" not in page
    assert (folder / "plotly.min.js").stat().st_size > 1_000_000
    with PIL.Image.open(folder / "film_loss_filled.gif") as film:
        assert film.n_frames == 4
    assert (folder / "film_loss_filled.mp4").stat().st_size > 1000
    # The metric at the checkpoint is what an evaluation reports.
    known = np.load(folder / "20.npz")
    (centre,) = np.flatnonzero(np.all(known["points"] == 0, axis=1))
    lines = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["split"] == "dev"][-1]
    assert known["values/error"][centre] == pytest.approx(last["error"], rel=1e-5)
    # A second call draws what is there.
    before = (folder / "20.npz").stat().st_mtime_ns
    caplog.clear()
    run(workdir, points=3, film=True, metric_points=3)
    assert "points to go" not in caplog.text
    assert (folder / "20.npz").stat().st_mtime_ns == before
    with pytest.raises(errors.UserError, match=r"points 3 there, 5 here\. Move its folder away"):
        run(workdir, points=5)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"along": "pca", "batch_norm": "recalibrated"}, "principal directions explain"),
        ({"along": "between", "dims": 1}, "are those of step 20 at every point"),
        ({"along": "gradient", "dims": 1}, "loss"),
        ({"dims": 1, "split": "train", "batches": 2, "vectors": True}, "loss"),
        ({"along": "hessian", "curvature_points": 3}, "ratio of eigenvalues at 9 points"),
    ],
)
def test_other_lines_and_planes(workdir, tmp_path, caplog, options, text):
    caplog.set_level(logging.INFO)
    run(workdir, points=3, name=tmp_path.name, **options)
    folder = workdir / "analysis" / tmp_path.name
    assert text in caplog.text
    assert list(folder.glob("*.png"))
    known = np.load(folder / "20.npz")
    if options.get("along") == "between":
        # The other end is the first checkpoint, with this one's running averages.
        (there,) = np.flatnonzero(known["points"][:, 0] == 1)
        assert np.isfinite(known["values/loss"][there])
    if options.get("along") == "hessian":
        # Along an eigenvector of the top the parabola of its eigenvalue, near the checkpoint.
        plane = planes.load(folder / "plane.npz")
        values, losses = plane.about["eigenvalues"], known["values/loss"].reshape(3, 3)
        assert values[0] > values[1] > 0
        assert losses[0, 1] + losses[2, 1] > 2 * losses[1, 1]
        assert np.isfinite(known["values/eigenvalue_ratio"]).all()
        assert known["values/eigenvalue_largest"][4] == pytest.approx(values[0], rel=1e-3)
    if options.get("along") == "gradient":
        loss = known["values/loss"]
        assert loss[2] < loss[0]  # it falls along the way


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": 4}, "--points=4: an odd number"),
        ({"dims": 3}, "--dims=3: choose 1"),
        ({"along": "between"}, "--along=between is a line: add --dims=1"),
        ({"extent": -1.0}, "half the length"),
        ({"extent": float("nan")}, "half the length"),
        ({"name": "/tmp/x"}, "give a plain name"),
        ({"metric_points": 99}, "at most the 25"),
        ({"curvature_points": 3, "batch_norm": "batch"}, "running averages: leave --batch_norm"),
        ({"to": 5}, "no use without --along=between"),
        ({"along": "pca", "vectors": True}, "--vectors has no use without --along=random"),
        ({"along": "between", "dims": 1, "to": 7}, "no other checkpoint of that step; there are 5"),
        ({"split": "tset"}, "no such split; choose dev, train"),
    ],
)
def test_flags_that_cannot_be(workdir, options, message):
    with pytest.raises(errors.UserError, match=message):
        run(workdir, **options)


def test_a_checkpoint_of_another_network_among_the_others(workdir, tmp_path):
    shutil.copytree(workdir / "checkpoints", tmp_path / "checkpoints")
    task = toy.ToyTask(toy.make_config())
    variables = task.init(jax.random.key(0))
    narrow = {**variables["params"], "Dense_0": {"kernel": jnp.zeros((toy.DIM, 5))}}
    saver = checkpoint.Checkpointer(tmp_path / "checkpoints", keep_last=9)
    train_state = task.create_state({**variables, "params": narrow})
    placed = parallel.place(train_state, parallel.make_mesh())
    saver.save(23, placed, None, {**task.checkpoint_meta(), "evaluated": -1}, None)
    saver.close()
    with pytest.raises(errors.UserError, match=r"(?s)23 do not fit.*Dense_0.*of another network"):
        run(tmp_path, points=3, film=True)


def test_a_metric_that_is_no_number_is_not_computed_again(workdir, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    evaluate, calls = landscape.evaluation.evaluate, []

    def without(*args):
        found = evaluate(*args)
        calls.append(found)
        if len(calls) == 2:
            found.scalars["error"] = float("nan")
        return found

    monkeypatch.setattr(landscape.evaluation, "evaluate", without)
    for dims in (1, 2):
        calls.clear()
        options = {"points": 3, "dims": dims, "metric_points": 3, "name": f"{tmp_path.name}_{dims}"}
        run(workdir, **options)
        assert f"error is no number at 1 of {3**dims} points" in caplog.text
        run(workdir, **options)
        assert len(calls) == 3**dims


def test_a_folder_without_checkpoints(tmp_path):
    with pytest.raises(errors.UserError, match="no checkpoint in"):
        run(tmp_path)


def test_an_axis_has_the_origin_on_it():
    for low, high, points in ((-1.0, 1.0, 5), (-107.0, 21.0, 7), (-0.5, 1.5, 9)):
        values = planes.axis(low, high, points)
        assert len(values) == points
        assert (values == 0).sum() == 1
        assert abs(values[0] - low) <= (high - low) / (points - 1)


def test_a_coarse_grid_has_the_origin_in_it():
    even, uneven = planes.axis(-1.0, 1.0, 9), planes.axis(-3.0, 1.0, 9)
    for axes in ([even, even], [uneven, even]):
        points = grid.points_of(axes)
        for count in (3, 5):
            chosen = points[grid.coarse(axes, count)]
            assert len(chosen) == count**2
            assert np.all(chosen == 0, axis=1).any()
