"""Batch normalisation over true frames, against autodiff of the definition and across devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from common import parallel
from common.nn import masking, norm


def definition(x, mask, scale, bias, epsilon):
    """Two-pass statistics over the true frames, differentiated by JAX itself."""
    weight = mask.astype(jnp.float32)
    count = jnp.maximum(weight.sum(), 1.0)
    axes = tuple(range(x.ndim - 1))
    mean = (x * weight).sum(axes, keepdims=True) / count
    variance = (jnp.square(x - mean) * weight).sum(axes, keepdims=True) / count
    shape = (1,) * (x.ndim - 1) + (-1,)
    y = (x - mean) / jnp.sqrt(variance + epsilon) * scale.reshape(shape) + bias.reshape(shape)
    return jnp.where(mask, y, 0.0), mean.ravel(), variance.ravel()


@pytest.fixture(scope="module")
def problem():
    keys = jax.random.split(jax.random.key(0), 4)
    x = 3.0 + 2.0 * jax.random.normal(keys[0], (8, 7, 3))
    mask = masking.length_mask(jnp.array([7, 0, 3, 1, 7, 5, 0, 2]), 7)[..., None]
    scale, bias = jax.random.normal(keys[1], (2, 3))
    weight = jax.random.normal(keys[2], x.shape)
    return x, mask, scale, bias, weight


def test_value_and_closed_form_gradient(problem):
    x, mask, scale, bias, weight = problem
    weights = mask[..., 0].astype(jnp.float32)

    def ours(x, scale, bias):
        y, (count, mean, variance) = norm.normalize_batch(x, weights, scale, bias, 1e-5, None)
        return jnp.sum(jnp.sin(y) * weight), (y, count, mean, variance)

    def theirs(x, scale, bias):
        y, mean, variance = definition(x, mask, scale, bias, 1e-5)
        return jnp.sum(jnp.sin(y) * weight), (y, mask.sum(), mean, variance)

    a = jax.jit(jax.value_and_grad(ours, (0, 1, 2), has_aux=True))(x, scale, bias)
    b = jax.jit(jax.value_and_grad(theirs, (0, 1, 2), has_aux=True))(x, scale, bias)
    # float32 over 25 frames: a few rounding errors of numbers near 10.
    jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, rtol=2e-5, atol=2e-5), a, b)


def test_large_mean_does_not_cancel():
    x = 1000.0 + jax.random.normal(jax.random.key(0), (4, 500, 2))
    _, (_, _, variance) = norm.normalize_batch(x, None, jnp.ones(2), jnp.zeros(2), 0.0, None)
    # E[x^2] - E[x]^2 in float32 would be wrong by about 1e6 * 6e-8 * few = 0.1 and more.
    np.testing.assert_allclose(variance, np.var(np.asarray(x, np.float64), (0, 1)), rtol=1e-3)


@pytest.mark.parametrize("train", [True, False])
def test_devices_share_sums_not_means(problem, train):
    x, mask, *_, weight = problem
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    single = norm.MaskedBatchNorm()
    variables = single.init(jax.random.key(0), x, mask[..., 0], train=True)
    variables["batch_stats"]["mean"] += 0.5

    def loss(params, x, mask, weight, module):
        tree = {**variables, "params": params}
        y, new = module.apply(tree, x, mask, train=train, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(jnp.where(mask[..., None], y, 0)) * weight), new

    def per_device(params, x, mask, weight):
        module = norm.MaskedBatchNorm(axis_name="data")
        grads, new = jax.grad(loss, (0, 1), has_aux=True)(params, x, mask, weight, module)
        return jax.lax.psum(grads[0], "data"), grads[1], new

    rows, everywhere = PartitionSpec("data"), PartitionSpec()
    sharded = jax.shard_map(
        per_device,
        mesh=mesh,
        in_specs=(everywhere, rows, rows, rows),
        out_specs=(everywhere, rows, everywhere),
        check_vma=False,
    )
    many = jax.jit(sharded)(variables["params"], x, mask[..., 0], weight)
    alone = functools.partial(loss, module=single)
    grads, new = jax.jit(jax.grad(alone, (0, 1), has_aux=True))(
        variables["params"], x, mask[..., 0], weight
    )
    jax.tree.map(
        lambda p, q: np.testing.assert_allclose(p, q, rtol=1e-5, atol=1e-5), many, (*grads, new)
    )


def test_running_averages_and_empty_batch(problem):
    x, mask, *_ = problem
    module = norm.MaskedBatchNorm(momentum=0.9)
    variables = module.init(jax.random.key(0), x, mask[..., 0], train=True)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], np.zeros(3))
    _, new = module.apply(variables, x, mask[..., 0], train=True, mutable=["batch_stats"])
    true = np.asarray(x)[np.asarray(mask[..., 0])]
    np.testing.assert_allclose(new["batch_stats"]["mean"], 0.1 * true.mean(0), rtol=1e-5)
    np.testing.assert_allclose(new["batch_stats"]["var"], 0.9 + 0.1 * true.var(0), rtol=1e-5)
    nothing = jnp.zeros_like(mask[..., 0])
    y, same = module.apply(new | variables, x, nothing, train=True, mutable=["batch_stats"])
    assert bool(jnp.isfinite(y).all())
    jax.tree.map(np.testing.assert_array_equal, same["batch_stats"], variables["batch_stats"])


def test_bfloat16_input_has_float32_statistics():
    # Whole numbers up to 256 are exact in bfloat16: only the accumulation can be wrong.
    x = jax.random.randint(jax.random.key(0), (8, 500, 2), 0, 200).astype(jnp.bfloat16)
    y, (count, mean, variance) = norm.normalize_batch(x, None, jnp.ones(2), jnp.zeros(2), 0.0, None)
    assert y.dtype == jnp.bfloat16
    exact = np.asarray(x, np.float64)
    assert count == 4000
    np.testing.assert_allclose(mean, exact.mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(variance, exact.var((0, 1)), rtol=1e-5)


def test_two_dimensional_mask_beside_pictures():
    x = jax.random.normal(jax.random.key(0), (2, 4, 5, 3))
    mask = masking.length_mask(jnp.array([4, 2]), 4)
    module = norm.MaskedBatchNorm()
    variables = module.init(jax.random.key(0), x, mask[..., None], train=True)
    y, _ = module.apply(variables, x, mask[..., None], train=True, mutable=["batch_stats"])
    true = np.asarray(y)[np.asarray(mask)]
    np.testing.assert_allclose(true.mean((0, 1)), np.zeros(3), atol=1e-6)
    np.testing.assert_allclose(true.std((0, 1)), np.ones(3), atol=1e-4)  # epsilon 1e-5


def test_hessian_vector_product_goes_through(problem):
    x, mask, scale, bias, weight = problem

    def loss(fn, scale):
        return jnp.sum(jnp.sin(fn(x, mask, scale, bias, 1e-5)[0]) * weight)

    def hvp(fn):
        gradient = jax.grad(functools.partial(loss, fn))
        return jax.jit(lambda s: jax.jvp(gradient, (s,), (jnp.ones(3),))[1])(scale)

    weights = mask[..., 0].astype(jnp.float32)
    ours = hvp(lambda x, m, s, b, e: norm.normalize_batch(x, weights, s, b, e, None))
    np.testing.assert_allclose(ours, hvp(definition), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("train", [False, True])
def test_without_affine_is_scale_one_and_bias_zero(problem, train):
    x, mask, *_ = problem
    frames = mask[..., 0]
    plain = norm.MaskedBatchNorm(affine=False)
    variables = plain.init(jax.random.key(0), x, frames, train=False)
    assert "params" not in variables
    options = {"train": train, "mutable": ["batch_stats"]}
    y, new = plain.apply(variables, x, frames, **options)
    affine = norm.MaskedBatchNorm()
    ones = affine.init(jax.random.key(0), x, frames, train=False)
    z, expected = affine.apply(ones, x, frames, **options)
    np.testing.assert_array_equal(y, z)
    jax.tree.map(np.testing.assert_array_equal, new, {"batch_stats": expected["batch_stats"]})


def test_scale_starts_as_told(problem):
    x, mask, *_ = problem
    module = norm.MaskedBatchNorm(scale_init=jax.nn.initializers.zeros)
    variables = module.init(jax.random.key(0), x, mask[..., 0], train=False)
    np.testing.assert_array_equal(variables["params"]["scale"], 0.0)


def test_the_running_mean_is_that_of_all_frames_of_all_devices():
    """Rows of two devices, the second without a true frame in the last batch."""
    rng = np.random.default_rng(0)
    batches = rng.normal(3.0, 2.0, (5, 4, 6, 3)).astype(np.float32)
    mask = (rng.random((5, 4, 6)) < 0.7).astype(np.float32)
    mask[4, 2:] = 0
    mask[3] = 0  # a batch without any
    layer = norm.RunningMean(momentum=0.6, axis_name=parallel.AXIS)
    plain = norm.RunningMean()
    variables = plain.init(jax.random.key(0), batches[0], mask[0], train=False)

    def step(variables, x, mask):
        y, new = layer.apply(variables, x, mask, train=True, mutable=["batch_stats"])
        return new, y

    mesh = parallel.make_mesh(jax.devices()[:2])
    mapped = parallel.data_parallel(
        step,
        mesh,
        in_specs=(parallel.REPLICATED, parallel.ROWS, parallel.ROWS),
        out_specs=(parallel.REPLICATED, parallel.ROWS),
    )
    mean, count = np.zeros(3), 0
    for x, m in zip(batches, mask):
        variables, y = mapped(variables, x, m)
        if m.any():
            mean += max(0.4, 1 / (count + 1)) * (x[m > 0].mean(0) - mean)
            count += 1
        expected = (x - mean.astype(np.float32)) * m[..., None]
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
        # Used as it is when nothing is learned.
        still = plain.apply(variables, x, m, train=False)
        np.testing.assert_allclose(still, expected, rtol=1e-5, atol=1e-5)
    assert float(variables["batch_stats"]["batches"]) == 4.0
