"""The mode `hessian` on a trained toy: what is said, what is kept, on one device and on eight."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from common import errors
from common.analysis import curvature, hessian, objective
from common.analysis.settings import HessianOptions
from tests.common import toy
from tests.common.analysis import toy_run

FLAGS = {"top": 2, "steps": 12, "probes": 8}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    toy_run.train(folder)
    return folder


def run(workdir, devices=8, **flags):
    options = HessianOptions(**{**FLAGS, **flags})
    hessian.run(toy_run.PACKAGE, toy_run.context(workdir, options, devices=devices))
    stem = "hessian_20" + ("_float64" if options.float64 else "")
    return json.loads((workdir / "analysis" / f"{stem}.json").read_text())


def test_figures_pictures_and_words(workdir, capsys, caplog):
    caplog.set_level(logging.INFO)
    found = run(workdir, blocks=True)
    said = capsys.readouterr().out
    assert "Hessian of 57 parameters: loss" in said
    assert "|least / largest|" in said
    assert "MaskedBatchNorm_0" in said
    assert "compilations took" in caplog.text
    assert found["largest"][0] >= found["largest"][1] > found["least"][1] >= found["least"][0]
    assert found["ratio"] == pytest.approx(abs(found["least"][0] / found["largest"][0]))
    traces = [row[1] for row in found["blocks"].values()]
    # Other probes than those of the trace: equal within the errors.
    assert abs(sum(traces) - found["trace"]) < 5 * found["trace_error"] + 0.2 * abs(found["trace"])
    assert max(row[0] for row in found["blocks"].values()) <= found["largest"][0] * 1.001
    folder = workdir / "analysis"
    with np.load(folder / "hessian_20.npz") as arrays:
        assert arrays["nodes"].shape == (8, 12)
        np.testing.assert_allclose(arrays["weights"].sum(1), 1, rtol=1e-5)
        assert json.loads(str(arrays["about"]))["split"] == "dev"
    for name in ("spectrum", "blocks"):
        with PIL.Image.open(folder / f"hessian_20_{name}.png") as picture:
            assert np.asarray(picture).std() > 10


def test_second_derivatives_that_are_not_finite(workdir, monkeypatch):
    product = curvature.hessian
    broken = lambda flat: lambda v: product(flat)(v).at[3].set(jnp.nan)  # noqa: E731
    monkeypatch.setattr(curvature, "hessian", broken)
    with pytest.raises(errors.UserError, match="its second derivatives are not"):
        run(workdir, devices=1)


def test_the_largest_eigenvalue_of_every_layer(workdir):
    """Of layers with fewer parameters than Lanczos has steps too, and of one that is idle."""
    context = toy_run.context(workdir, None, devices=1)
    task = toy.ToyTask(context.config)
    variables = jax.jit(task.init)(jax.random.key(0))
    params = {**variables["params"], "idle": {"scale": jnp.ones(20)}}
    variables = {**variables, "params": params}
    data = objective.collect(task.eval_data()["dev"], context.mesh)
    goal = objective.Objective(task, 0, 0)
    options = HessianOptions(**FLAGS, blocks=True)
    found = hessian.measure(goal, variables, data, context.mesh, options).blocks
    product = jax.jit(curvature.hessian(curvature.Flat(goal, variables, data)))
    masks = curvature.blocks(params)
    whole = np.stack([product(row) for row in jnp.eye(len(masks["idle"]))])
    assert min(mask.sum() for mask in masks.values()) < 12
    for name, mask in masks.items():
        inside = np.flatnonzero(mask)
        wanted = np.linalg.eigvalsh(whole[np.ix_(inside, inside)])[-1]
        assert found[name][0] == pytest.approx(wanted, rel=1e-3, abs=1e-6)


def test_a_network_without_marked_outputs_is_named(workdir):
    with pytest.raises(errors.UserError, match="marks no outputs"):
        run(workdir, gauss_newton=True)


def test_one_device_and_eight_agree(workdir):
    eight, one = run(workdir), run(workdir, devices=1)
    for name in ("loss", "gradient_norm", "largest", "least", "trace", "trace_error"):
        np.testing.assert_allclose(eight[name], one[name], rtol=1e-3, atol=1e-5)


def test_double_precision_is_of_the_call_alone(workdir):
    single, double = run(workdir), run(workdir, float64=True)
    assert not jax.config.jax_enable_x64
    np.testing.assert_allclose(single["largest"], double["largest"], rtol=1e-3)
    for name, kind in (("hessian_20", np.float32), ("hessian_20_float64", np.float64)):
        with np.load(workdir / "analysis" / f"{name}.npz") as arrays:
            assert arrays["nodes"].dtype == kind
    with pytest.raises(RuntimeError), hessian.precision(True):
        raise RuntimeError
    assert not jax.config.jax_enable_x64


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"top": 9}, "at most s / 2"),
        ({"steps": 99}, "the network has 57 parameters only"),
        ({"probes": 1}, "two at least"),
        ({"split": "tset"}, "no such split; choose dev, train"),
    ],
)
def test_flags_that_cannot_be(workdir, flags, message):
    with pytest.raises(errors.UserError, match=message):
        run(workdir, **flags)


def test_a_folder_without_checkpoints(tmp_path):
    with pytest.raises(errors.UserError, match="no checkpoint in"):
        run(tmp_path)
