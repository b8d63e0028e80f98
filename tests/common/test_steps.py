"""One device equals N, shard_map equals pmap, accumulated equals whole."""

import jax
import numpy as np
import pytest

from common import errors, parallel, trainer
from tests.common import toy

STEPS = 5


def run(devices: int, **changes) -> dict[str, np.ndarray]:
    """Parameters, statistics and the last loss after a few steps."""
    task = toy.ToyTask(toy.make_config(**changes))
    mesh = parallel.make_mesh(jax.devices()[:devices])
    step = trainer.make_train_step(task, task.config, mesh)
    state = task.create_state(task.init(jax.random.key(1)))
    state = parallel.place(state, mesh)
    for k in range(STEPS):
        batch = toy.Examples()[k]
        state, sums = step(state, parallel.global_batch(batch, mesh))
    flat = {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(state)}
    flat["loss"] = sums["loss"].total / sums["loss"].count
    flat["rows"] = sums["rows"].total
    return {name: np.asarray(value) for name, value in flat.items()}


@pytest.fixture(scope="module")
def one_device() -> dict[str, np.ndarray]:
    return run(1)


# Different orders of float32 sums, five Adam steps of size 0.02: a few units in the last place of
# the gradients, which Adam can magnify where a gradient is nearly 0.
TOLERANCE = {"rtol": 2e-4, "atol": 2e-5}


def assert_close(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], err_msg=name, **TOLERANCE)


@pytest.mark.parametrize("devices", [2, 8])
def test_n_devices_equal_one(one_device, devices):
    assert_close(one_device, run(devices))


def test_pmap_equals_shard_map():
    a, b = run(4), run(4, parallel="pmap")
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_accumulation_on_n_devices_equals_one():
    # Batch norm sees micro-batches, so accumulation is not the whole batch; but the micro-batches
    # are the same sets of rows on any number of devices.
    assert_close(run(1, accumulate=2), run(4, accumulate=2))


def test_gradients_are_divided_once_by_the_global_count(one_device):
    assert one_device["rows"] == toy.Examples()[STEPS - 1]["mask"].sum()


def test_the_toy_learns():
    task = toy.ToyTask(toy.make_config(total_steps=60), noise=0.0)
    mesh = parallel.make_mesh(jax.devices()[:1])
    step = trainer.make_train_step(task, task.config, mesh)
    state = parallel.place(task.create_state(task.init(jax.random.key(1))), mesh)
    batch = parallel.global_batch(toy.Examples()[0], mesh)
    losses = []
    for _ in range(150):
        state, sums = step(state, batch)
        losses.append(float(sums["loss"].total / sums["loss"].count))
    assert losses[-1] < 0.02 * losses[0]


def test_unknown_mapping_names_the_choices():
    with pytest.raises(errors.UserError, match="shard_map"):
        run(1, parallel="dp")
