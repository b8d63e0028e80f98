"""The class-sharded head against the dense one: values, gradients, padding, memory; overfitting."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from common import errors, parallel
from speaker import head, margins

ROWS, DIM = 16, 5
CLASSES = 13  # 14 with padding on 2 devices, 16 on 4 and on 8: there the last shard is all padding
CONFIGS = {
    "softmax": margins.MarginConfig(kind="softmax"),
    "l2_softmax": margins.MarginConfig(kind="l2_softmax", scale=12.0),
    "sphereface": margins.MarginConfig(kind="sphereface", margin=0.4, scale=2.0),
    "am": margins.MarginConfig(kind="am"),
    "aam": margins.MarginConfig(kind="aam", scale=8.0),
    "sub_center_top_k": margins.MarginConfig(kind="aam", scale=8.0, sub_centers=3, top_k=4),
    "am_top_k": margins.MarginConfig(kind="am", scale=8.0, top_k=20),
    "adacos": margins.MarginConfig(kind="adacos"),
    "sphereface2": margins.MarginConfig(kind="sphereface2", scale=8.0),
}


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, DIM)).astype(np.float32)
    labels = rng.integers(0, CLASSES, ROWS).astype(np.int32)
    labels[0], labels[1] = CLASSES - 1, 0
    mask = np.ones(ROWS, bool)
    mask[[3, 14, 15]] = False
    x[3], labels[15] = np.nan, -7
    return x, labels, mask


def initialised(config, num_shards, make=jax.jit):
    """The head and its variables; with `make=shapes_of` only their shapes, without compiling."""
    module = head.MarginHead(config, CLASSES, num_shards)
    zeros = jnp.zeros((2, DIM)), jnp.zeros(2, jnp.int32)
    init = make(functools.partial(module.init, train=True))
    return module, init(jax.random.key(0), *zeros)


def shapes_of(fn):
    return functools.partial(jax.eval_shape, fn)


def value_and_grads(module, variables, x, labels, mask, margin, scale):
    """Rows' losses and flags, the new state, gradients (parameters, embeddings) of their sum."""

    def total(params, x):
        tree = {**variables, "params": params}
        out, new = module.apply(
            tree, x, labels, margin, scale, mask=mask, train=True, mutable=[head.STATE]
        )
        return jnp.sum(out.loss), (out, new)

    grads, (out, new) = jax.grad(total, (0, 1), has_aux=True)(variables["params"], x)
    return out[:3], new, grads


@functools.lru_cache
def dense(name):
    module, _ = initialised(CONFIGS[name], 1, shapes_of)
    module = module.clone(axis_name=None)
    return jax.jit(functools.partial(value_and_grads, module))


def sharded(name, devices):
    """The same function on `devices` devices, and the shapes of its variables."""
    config = CONFIGS[name]
    module, variables = initialised(config, devices, shapes_of)
    params = head.param_specs(config, devices)
    specs = {key: params if key == "params" else parallel.REPLICATED for key in variables}

    def per_device(*args):
        rows, new, (grads, dx) = value_and_grads(module, *args)
        # As a train step would: only leaves that every device holds are added.
        grads = {
            key: jax.lax.psum(g, parallel.AXIS) if params[key] == parallel.REPLICATED else g
            for key, g in grads.items()
        }
        return rows, new, (grads, dx)

    mapped = jax.shard_map(
        per_device,
        mesh=parallel.make_mesh(jax.devices()[:devices]),
        in_specs=(specs, *[parallel.ROWS] * 3, parallel.REPLICATED, parallel.REPLICATED),
        out_specs=(parallel.ROWS, parallel.REPLICATED, (params, parallel.ROWS)),
        check_vma=False,
    )
    return jax.jit(mapped), variables


# All kinds on 8 devices, the one with every collective on each number, a bias and a state on some.
CASES = [(name, 8) for name in CONFIGS]
CASES += [("sub_center_top_k", n) for n in (1, 2, 4)] + [("softmax", 4), ("adacos", 2)]


@pytest.mark.parametrize(("name", "devices"), CASES)
def test_sharded_equals_dense(batch, name, devices):
    config = CONFIGS[name]
    _, variables = initialised(config, 1)
    if config.bias != "none":  # zeros would hide a wrong order
        noise = jax.random.normal(jax.random.key(1), variables["params"]["bias"].shape)
        variables["params"]["bias"] += noise
    fn, shapes = sharded(name, devices)
    padded = {
        key: head.repad(leaf, leaf.shape[0], shapes["params"][key].shape[0]) if leaf.ndim else leaf
        for key, leaf in variables["params"].items()
    }
    padded = {**variables, "params": padded}
    for margin, scale in ((config.margin, config.scale), (0.0, 3.0)):
        expected, state, (grads, dx) = dense(name)(variables, *batch, margin, scale)
        rows, new, (many, many_dx) = fn(padded, *batch, margin, scale)
        # Sums over classes in another order; gradients are sums of up to 16 rows of size ~10.
        np.testing.assert_allclose(rows[0], expected[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(rows[1], expected[1])
        np.testing.assert_allclose(rows[2], expected[2], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(many_dx, dx, rtol=1e-4, atol=2e-5)
        np.testing.assert_array_equal(np.asarray(dx)[~batch[2]], 0.0)
        for key, gradient in grads.items():
            count = gradient.shape[0] if gradient.ndim else None
            there = many[key] if count is None else many[key][:count]
            np.testing.assert_allclose(there, gradient, rtol=1e-4, atol=2e-5)
            if count is not None:
                np.testing.assert_array_equal(many[key][count:], 0.0)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), new, state)
    assert bool(jnp.isfinite(rows[0]).all())
    assert bool((expected[0][batch[2]] > 0).all())
    if devices > 1:
        assert fn._cache_size() == 1  # two margins and scales, one program


def test_initial_weights_do_not_depend_on_shards():
    config = CONFIGS["sub_center_top_k"]
    (_, one), (_, eight), (_, four) = (initialised(config, n) for n in (1, 8, 4))
    weights = eight["params"]["weights"]
    assert weights.shape == (16 * 3, DIM)
    np.testing.assert_array_equal(weights[: CLASSES * 3], one["params"]["weights"])
    np.testing.assert_array_equal(weights[CLASSES * 3 :], 0.0)
    np.testing.assert_array_equal(
        head.repad(weights, CLASSES * 3, 16 * 3), four["params"]["weights"]
    )
    with pytest.raises(ValueError, match="cannot hold"):
        head.repad(weights, CLASSES * 3, 20)
    init = jax.jit(functools.partial(head.MarginHead(config, 2000).init, train=True))
    wide = init(jax.random.key(0), jnp.zeros((1, 64)), jnp.zeros(1, jnp.int32))
    lengths = jnp.sum(jnp.square(wide["params"]["weights"]), axis=1)
    np.testing.assert_allclose(lengths.mean(), 1.0, atol=0.02)


def test_adacos_state_moves_in_training_only(batch):
    module, variables = initialised(CONFIGS["adacos"], 1)
    module = module.clone(axis_name=None)
    start = variables[head.STATE]["scale"]
    np.testing.assert_allclose(start, margins.adacos_start(CLASSES), rtol=1e-6)

    @functools.partial(jax.jit, static_argnames="train")
    def apply(x, labels, mask, train):
        return module.apply(variables, x, labels, mask=mask, train=train, mutable=[head.STATE])

    out, new = apply(*batch, train=True)
    assert new[head.STATE]["scale"] == out.scale != start
    out, same = apply(*batch, train=False)
    assert same[head.STATE]["scale"] == out.scale == start
    frozen = functools.partial(module.apply, variables, train=True)  # nothing to write to
    assert isinstance(jax.eval_shape(frozen, *batch[:2]), margins.MarginLoss)


def test_no_array_of_all_classes_on_a_device():
    """Neither scores against all classes nor gathered weights: the compiled program has no such
    shape, and its arguments are an eighth of the weights."""
    classes, devices = 4096, 8
    config = CONFIGS["aam"]
    mapped = jax.shard_map(
        lambda w, x, y: jax.grad(
            lambda w, x: jnp.sum(
                head.sharded_margin_loss(config, x, w, y, 0.2, 32.0, num_classes=classes).loss
            ),
            (0, 1),
        )(w, x),
        mesh=parallel.make_mesh(),
        in_specs=(parallel.ROWS,) * 3,
        out_specs=(parallel.ROWS,) * 2,
        check_vma=False,
    )
    shapes = ((classes, DIM), jnp.float32), ((ROWS, DIM), jnp.float32), ((ROWS,), jnp.int32)
    compiled = jax.jit(mapped).lower(*(jax.ShapeDtypeStruct(*s) for s in shapes)).compile()
    sizes = {
        int(n)
        for shape in re.findall(r"\[([\d,]+)\]", compiled.as_text())
        for n in shape.split(",")
    }
    assert classes // devices in sizes
    assert classes not in sizes
    memory = head.head_memory(classes, DIM, ROWS, devices, sharded=True)
    assert memory.weights == 4 * classes // devices * DIM
    rows = ROWS // devices * (DIM + 1) * 4
    assert compiled.memory_analysis().argument_size_in_bytes == memory.weights + rows


def test_memory_table():
    dense_head = head.head_memory(1_000_000, 256, 1024, 8, sharded=False, moments=1)
    # Weights, gradients and one momentum of a million speakers: 3.07 GB.
    assert dense_head[:3] == (1_024_000_000,) * 3
    assert dense_head.scores == 128 * 1_000_000 * 4
    split = head.head_memory(1_000_000, 256, 1024, 8, sharded=True)
    assert split == (128_000_000, 128_000_000, 256_000_000, dense_head.scores)
    assert split.total == 512_000_000 + 512_000_000
    uneven = head.head_memory(17_982, 192, 512, 8, sharded=True, sub_centers=3)
    assert uneven.weights == 2248 * 3 * 192 * 4
    with pytest.raises(ValueError, match="do not divide"):
        head.head_memory(10, 4, 12, 8, sharded=True)


@pytest.mark.parametrize("name", ["aam", "sub_center_top_k", "adacos", "sphereface2"])
def test_overfits_a_tiny_batch_sharded(name):
    """Free embeddings of 8 rows and 4 + 1 classes on 4 devices: small losses, every row right."""
    config, devices = CONFIGS[name], 4
    module = head.MarginHead(config, 5, devices)
    labels = jnp.array([0, 1, 2, 3, 0, 1, 2, 4])
    x = jax.random.normal(jax.random.key(1), (8, DIM))
    variables = jax.jit(functools.partial(module.init, train=True))(jax.random.key(0), x, labels)
    specs = head.param_specs(config, devices)
    tx = optax.sgd(0.1, momentum=0.9)

    def train(params, state, x, labels):
        def body(carry, _):
            params, state, x, moments = carry

            def total(params, x):
                tree = {"params": params, **state}
                out, new = module.apply(tree, x, labels, train=True, mutable=[head.STATE])
                return jnp.sum(out.loss), (out, new)

            grads, (out, state) = jax.grad(total, (0, 1), has_aux=True)(params, x)
            if specs.get("bias") == parallel.REPLICATED:
                grads[0]["bias"] = jax.lax.psum(grads[0]["bias"], parallel.AXIS)
            grads = jax.tree.map(lambda g: g / 8, grads)
            updates, moments = tx.update(grads, moments)
            params, x = optax.apply_updates((params, x), updates)
            return (params, state, x, moments), (out.loss, out.correct)

        carry = params, state, x, tx.init((params, x))
        return jax.lax.scan(body, carry, length=300)[1]

    mapped = jax.shard_map(
        train,
        mesh=parallel.make_mesh(jax.devices()[:devices]),
        in_specs=(specs, parallel.REPLICATED, parallel.ROWS, parallel.ROWS),
        out_specs=jax.sharding.PartitionSpec(None, parallel.AXIS),
        check_vma=False,
    )
    params = variables.pop("params")
    losses, correct = jax.jit(mapped)(params, variables, x, labels)
    assert losses[0].mean() > 0.5
    if name == "adacos":
        # Its scale sinks until the median row has probability 1/2: log 2 is the floor.
        np.testing.assert_allclose(losses[-1], math.log(2.0), atol=0.15)
    else:
        assert losses[-1].max() < 0.05 * losses[0].mean()
    assert correct[-1].all()


def test_errors():
    zeros = jnp.zeros((2, DIM)), jnp.zeros(2, jnp.int32)
    with pytest.raises(errors.UserError, match="needs 2 classes"):
        head.MarginHead(CONFIGS["aam"], 1).init(jax.random.key(0), *zeros, train=True)
    with pytest.raises(ValueError, match="mapped axis"):
        head.MarginHead(CONFIGS["aam"], 9, 2, None).init(jax.random.key(0), *zeros, train=True)
    with pytest.raises(ValueError, match="num_classes"):
        margins.margin_loss(
            CONFIGS["aam"], zeros[0], jnp.ones((3, DIM)), zeros[1], 0.2, 32.0, class_axis="data"
        )
    with pytest.raises(ValueError, match="needs a bias"):
        margins.margin_loss(CONFIGS["softmax"], zeros[0], jnp.ones((3, DIM)), zeros[1], 0.2, 32.0)
