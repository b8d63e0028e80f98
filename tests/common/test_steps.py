"""Steps against NumPy's gradients; one device equals N, shard_map pmap, accumulated whole."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from common import errors, metrics, parallel, state, steps, trainer
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


def test_n_devices_equal_one(one_device):
    assert_close(one_device, run(8))


def test_pmap_equals_shard_map():
    a, b = run(4), run(4, parallel="pmap")
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_accumulation_on_n_devices_equals_one():
    # Batch norm sees micro-batches, so accumulation is not the whole batch; but the micro-batches
    # are the same sets of rows on any number of devices.
    assert_close(run(1, accumulate=2), run(4, accumulate=2))


def two_terms(variables, batch, key, step, *, train):
    """Squared errors, one a row, and squares of frames, one a frame, with another weight."""
    del key, train
    w, v = variables["params"]["w"], variables["params"]["v"]
    lengths = jnp.where(batch["mask"], batch["lengths"], 0)
    frames = jnp.arange(batch["frames"].shape[1])[None, :] < lengths[:, None]
    terms = {
        "error": metrics.Term(*metrics.ratio((batch["x"] @ w - batch["y"]) ** 2, batch["mask"])),
        "frames": metrics.Term(*metrics.ratio((batch["frames"] @ v) ** 2, frames), 0.3 + step),
    }
    heard = {"heard": variables["counters"]["heard"] + 1}
    return terms, ({}, {"counters": heard})


def two_terms_batch():
    """Devices (pairs of rows) with 2, 0, 1, 2 real rows; a frame count of its own for each row."""
    rng = np.random.default_rng(0)
    return {
        "x": rng.normal(size=(8, 3)).astype(np.float32),
        "y": rng.normal(size=8).astype(np.float32),
        "frames": rng.normal(size=(8, 5, 2)).astype(np.float32),
        "lengths": np.array([5, 1, 3, 4, 2, 5, 1, 2], np.int32),
        "mask": np.array([1, 1, 0, 0, 0, 1, 1, 1], bool),
    }


def two_terms_in_numpy(params, batch):
    """(loss, gradients) of the whole batch, in float64, at step 0."""
    real = batch["mask"]
    x, y, w, v = (np.float64(a) for a in (batch["x"][real], batch["y"][real], *params.values()))
    kept = zip(batch["frames"][real], batch["lengths"][real])
    frames = np.concatenate([np.float64(row[:length]) for row, length in kept])
    rest, heights = x @ w - y, frames @ v
    loss = np.mean(rest**2) + 0.3 * np.mean(heights**2)
    return loss, {"w": 2 * x.T @ rest / len(x), "v": 0.6 * frames.T @ heights / len(frames)}


def sgd_step(devices, accumulate, loss=two_terms):
    """The compiled step, its first state and batch, and the parameters in NumPy."""
    rng = np.random.default_rng(1)
    params = {
        "w": rng.normal(size=3).astype(np.float32),
        "v": rng.normal(size=2).astype(np.float32),
    }
    tx = optax.sgd(0.5)
    variables = {
        "params": params,
        "counters": {"heard": np.float32(0)},
        "kept": {"seven": np.float32(7)},
    }
    mesh = parallel.make_mesh(jax.devices()[:devices])
    first = parallel.place(state.create(variables, tx, ema=False), mesh)
    step = steps.supervised(loss, tx, accumulate=accumulate)
    mapped = parallel.data_parallel(
        lambda s, b: step(s, b, jax.random.key(0)),
        mesh,
        in_specs=(parallel.REPLICATED, parallel.ROWS),
        out_specs=parallel.REPLICATED,
    )
    return mapped, first, parallel.global_batch(two_terms_batch(), mesh), params


@pytest.mark.parametrize(("devices", "accumulate"), [(1, 1), (4, 1), (1, 4), (2, 2), (4, 2)])
def test_gradients_are_those_of_the_whole_batch_in_numpy(devices, accumulate):
    """Terms with counts of their own, devices without a real row, any number of micro-batches."""
    step, first, batch, params = sgd_step(devices, accumulate)
    after, sums = step(first, batch)
    loss, grads = two_terms_in_numpy(params, two_terms_batch())
    for name, gradient in grads.items():
        # Sums of 5 and 13 products of order 1 in float32.
        np.testing.assert_allclose(
            after.params[name], params[name] - 0.5 * gradient, rtol=1e-5, atol=1e-6
        )
    said = metrics.finalize(sums)
    assert said["loss"] == pytest.approx(loss, rel=1e-5)
    assert said["error"] + 0.3 * said["frames"] == pytest.approx(loss, rel=1e-5)
    assert (float(sums["error"].count), float(sums["frames"].count)) == (5, 14)
    norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
    assert said["grad_norm"] == pytest.approx(norm, rel=1e-5)
    # Every micro-batch was heard; what the loss does not return stays.
    assert float(after.model_state["counters"]["heard"]) == accumulate
    assert float(after.model_state["kept"]["seven"]) == 7


def test_a_step_without_a_real_row_changes_nothing():
    step, first, batch, params = sgd_step(2, 1)
    after, sums = step(first, {**batch, "mask": jnp.zeros_like(batch["mask"])})
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(after.params), params)
    assert float(sums["loss"].count) == 0


def test_state_that_init_did_not_make_is_refused():
    def loss(*args, **options):
        terms, (sums, new) = two_terms(*args, **options)
        return terms, (sums, {**new, "intermediates": {"x": jnp.zeros(3)}})

    step, *arguments, _ = sgd_step(1, 1, loss)
    with pytest.raises(ValueError, match=r"'intermediates'\] beside \['counters', 'kept'\]"):
        step(*arguments)


def deep(variables, batch, key, step, *, train):
    """`two_terms` after a product with tanh, over statistics of all devices."""
    x = jnp.tanh(batch["x"] @ jnp.eye(3) * jax.lax.pmean(jnp.mean(batch["x"]), parallel.AXIS))
    return two_terms(variables, {**batch, "x": x}, key, step, train=train)


@pytest.mark.parametrize("devices", [1, 4])
def test_counting_before_accumulation_costs_no_pass_through_the_model(devices):
    """What the terms count is known before the first gradient; nothing else is worked out twice."""

    def text(accumulate):
        step, *arguments, _ = sgd_step(devices, accumulate, deep)
        return step.lower(*arguments).compile().as_text()

    whole, parts = text(1), text(2)
    for operation in (" tanh(", " dot("):
        assert 0 < parts.count(operation) <= whole.count(operation), operation


class Dice(toy.ToyTask):
    """A step that says one number drawn from its key."""

    def train_step(self, train_state, batch, key):
        train_state = train_state.replace(step=train_state.step + 1)
        return train_state, {"drawn": metrics.gauge(jax.random.uniform(key))}


@pytest.mark.parametrize("seed", [0, 5])
def test_keys_follow_from_the_seed_and_the_step(seed):
    mesh = parallel.make_mesh(jax.devices()[:1])
    task = Dice(toy.make_config(seed=seed))
    step = trainer.make_train_step(task, task.config, mesh)
    now = parallel.place(state.create({"params": {}}, optax.sgd(1.0), ema=False), mesh)
    batch = {"mask": np.ones(1, bool)}
    drawn = []
    for _ in range(3):
        now, sums = step(now, batch)
        drawn.append(float(sums["drawn"].total))
    expected = [float(jax.random.uniform(state.stream_key(seed, "train", k))) for k in range(3)]
    assert drawn == expected
    assert len(set(drawn)) == 3
    other = float(jax.random.uniform(state.stream_key(seed + 1, "train", 0)))
    assert other not in drawn


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
