"""The loss over fixed batches: as an evaluation has it, whatever the batches and their shapes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import errors, metrics, parallel
from common.analysis import objective
from common.nn import norm
from tests.common import toy


@pytest.fixture(scope="module")
def task():
    return toy.ToyTask(toy.make_config())


@pytest.fixture(scope="module")
def variables(task):
    drawn = task.init(jax.random.key(3))
    moved = jax.tree.map(lambda x: x + 0.3, drawn["batch_stats"])
    return {**drawn, "batch_stats": moved}


@pytest.fixture(scope="module")
def mesh():
    return parallel.make_mesh()


def in_turn(task, variables, batches):
    """The loss by hand: one batch after the other, sums added on the host."""
    total = count = 0.0
    for batch in batches:
        batch = jax.tree.map(jnp.asarray, batch)
        terms, _ = task.loss(variables, batch, jax.random.key(0), 0, train=False)
        total += float(terms["squared_error"].total)
        count += float(terms["squared_error"].count)
    return total / count


def test_all_batches_count_by_their_real_rows(task, variables, mesh):
    batches = task.eval_data()["dev"]
    data = objective.collect(batches, mesh)
    assert data.num_batches == 3
    assert len(data.groups) == 1
    goal = objective.Objective(task, 0, 7)
    found = float(jax.jit(goal)(variables, data))
    assert found == pytest.approx(in_turn(task, variables, batches), rel=1e-6)
    terms, sums = goal.sums(variables, data)
    assert float(terms["squared_error"].weight) == 1
    rows = sum(batch["mask"].sum() for batch in batches)
    assert float(sums["rows"].total) == rows


def test_rows_put_together_by_length_have_the_same_loss(task, variables, mesh):
    batches = task.eval_data()["dev"]
    packed = objective.collect(batches, mesh, repack=True)
    real = sum(int(group["mask"].sum()) for group in packed.groups)
    assert real == sum(batch["mask"].sum() for batch in batches)
    cells = sum(group["x"].size for group in packed.groups)
    assert cells < sum(batch["x"].size for batch in batches)
    for group in packed.groups:
        assert group["x"].shape[2] >= group["x_lengths"].max()
    goal = objective.Objective(task, 0, 7)
    assert float(goal(variables, packed)) == pytest.approx(
        in_turn(task, variables, batches), rel=1e-6
    )


def test_the_first_batches_of_training(task, variables, mesh):
    with pytest.raises(errors.UserError, match="say how many with --batches=N"):
        objective.batches_of(task, "train", 0)
    data = objective.collect(objective.batches_of(task, "train", 2)[1], mesh, most=2)
    wanted = [toy.Examples(task.config.seed)[k] for k in range(2)]
    assert data.num_batches == 2
    np.testing.assert_array_equal(np.asarray(data.groups[0]["x"][1]), wanted[1]["x"])


def test_a_split_that_is_not_there_is_named(task):
    with pytest.raises(errors.UserError, match="no such split; choose dev, train"):
        objective.batches_of(task, "test", 0)


def test_statistics_of_the_batch(task, variables, mesh):
    """In place of running averages, and without the noise of training."""
    batches = task.eval_data()["dev"][:1]
    data = objective.collect(batches, mesh)
    goal = objective.Objective(task, 0, 7, "batch")
    quiet = toy.ToyTask(task.config, noise=0.0)

    def trained(batch):
        batch = {**jax.tree.map(jnp.asarray, batch), "row": jnp.arange(len(batch["mask"]))}
        return quiet.loss(variables, batch, jax.random.key(0), 0, train=True)

    terms, _ = jax.vmap(trained, in_axes=None, out_axes=None, axis_size=1, axis_name=parallel.AXIS)(
        batches[0]
    )
    wanted = metrics.finalize(metrics.of_terms(terms))["loss"]
    assert float(goal(variables, data)) == pytest.approx(wanted, rel=1e-6)
    frozen = float(objective.Objective(task, 0, 7)(variables, data))
    assert abs(frozen - wanted) > 1e-3


def test_recalibrated_statistics_are_those_of_all_the_data(task, variables, mesh):
    """One layer of normalisation, before which nothing else is normalised: known exactly."""
    batches = [{**b, "mask": np.ones(len(b["mask"]), bool)} for b in task.eval_data()["dev"]]
    for batch in batches:  # all frames true: rows weigh as frames do
        batch["x_lengths"] = np.full_like(batch["x_lengths"], toy.FRAMES)
    data = objective.collect(batches, mesh)
    goal = objective.Objective(task, 0, 7, "recalibrated")
    found = objective.recalibrated(goal, variables, data)["batch_stats"]
    kernel = np.asarray(variables["params"]["Dense_0"]["kernel"], np.float64)
    x = np.concatenate([batch["x"].reshape(-1, toy.DIM) for batch in batches]) @ kernel
    np.testing.assert_allclose(found["MaskedBatchNorm_0"]["mean"], x.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["MaskedBatchNorm_0"]["var"], x.var(0), rtol=1e-3)
    frozen = objective.Objective(task, 0, 7)
    wanted = float(frozen({**variables, "batch_stats": found}, data))
    assert float(goal(variables, data)) == pytest.approx(wanted, rel=1e-6)


def test_without_a_recording_there_is_a_message(task, mesh):
    empty = {**toy.Examples()[0], "mask": np.zeros(toy.ROWS, bool)}
    with pytest.raises(errors.UserError, match="not one recording to analyse"):
        objective.collect([empty], mesh)


class Inner(nn.Module):
    @nn.compact
    def __call__(self, x, mask):
        return norm.MaskedBatchNorm()(x, mask, train=False)


def test_a_network_within_that_stays_as_it_was_keeps_its_averages():
    """Like the speaker network of a separator: applied with its own, constant variables."""
    x, mask = 3.0 + jnp.arange(24.0).reshape(2, 4, 3), jnp.ones((2, 4))
    inner = Inner().init(jax.random.key(0), x, mask)

    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            kept = self.variable("frozen", "network", lambda: inner).value
            return Inner().apply(kept, x, mask)

    def run():
        variables = {"frozen": {"network": inner}}
        return Outer().apply(variables, x, mutable=["batch_stats", "frozen"])[0]

    wanted = run()
    with objective._batch_statistics(True):
        np.testing.assert_array_equal(run(), wanted)
