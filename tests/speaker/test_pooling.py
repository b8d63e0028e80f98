"""Pooling against NumPy in float64, padding, gradients where the statistics degenerate."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speaker import pooling

LENGTHS = (23, 9, 2, 1)
EVERYTHING = "+".join((*pooling.STATISTICS, "attentive"))


@pytest.fixture(scope="module")
def padded():
    x = np.random.default_rng(0).gamma(2.0, 1.5, (5, 23, 6)).astype(np.float32)
    for row, length in enumerate(LENGTHS):
        x[row, length:] = np.nan
    return jnp.asarray(x), jnp.array([*LENGTHS, 0])


@pytest.fixture(scope="module")
def attentive(padded):
    module = pooling.AttentivePooling(bottleneck=4)
    variables = jax.jit(module.init)(jax.random.key(0), *padded)
    random = np.random.default_rng(1)

    def moved(leaf):
        return leaf + 0.3 * random.standard_normal(leaf.shape).astype(np.float32)

    return module, jax.tree.map(moved, variables)


def by_definition(x, kind):
    """One channel-wise statistic of `[l, d]` in float64."""
    mean, std = x.mean(0), np.sqrt(x.var(0) + 1e-7)
    if kind in ("skew", "kurtosis"):
        power = 3 if kind == "skew" else 4
        return (((x - mean) / std) ** power).mean(0) - (3.0 if kind == "kurtosis" else 0.0)
    return {"min": x.min(0), "max": x.max(0), "mean": mean, "std": std}[kind]


def test_statistics_against_numpy(padded):
    x, lengths = padded
    got = jax.jit(functools.partial(pooling.statistics, kinds=pooling.STATISTICS))(x, lengths)
    for kind in pooling.STATISTICS:
        assert got[kind].dtype == jnp.float32
        np.testing.assert_array_equal(got[kind][4], 0.0)  # no frame
        for row, length in enumerate(LENGTHS):
            expected = by_definition(np.asarray(x[row, :length], np.float64), kind)
            np.testing.assert_allclose(got[kind][row], expected, rtol=1e-5, atol=1e-5)


def test_sample_deviation_is_numpys(padded):
    """Divided by l - 1; other statistics stay. One frame has a deviation of 0, as elsewhere."""
    x, lengths = padded
    kinds = ("mean", "std", "skew")
    got = jax.jit(functools.partial(pooling.statistics, kinds=kinds, deviation="sample"))(
        x, lengths
    )
    usual = pooling.statistics(x, lengths, kinds)
    for row, length in enumerate(LENGTHS[:3]):
        values = np.asarray(x[row, :length], np.float64)
        expected = np.sqrt(values.var(0, ddof=1) + 1e-7)
        np.testing.assert_allclose(got["std"][row], expected, rtol=1e-5)
    np.testing.assert_allclose(got["std"][3], np.sqrt(1e-7), rtol=1e-3)
    np.testing.assert_array_equal(got["std"][4], 0.0)
    np.testing.assert_array_equal(got["mean"], usual["mean"])
    np.testing.assert_allclose(got["skew"], usual["skew"], rtol=1e-6)


def test_moments_are_scipys(padded):
    stats = pytest.importorskip("scipy.stats")
    x, lengths = padded
    got = pooling.statistics(x, lengths, ("skew", "kurtosis"))
    row = np.asarray(x[0], np.float64)
    np.testing.assert_allclose(got["skew"][0], stats.skew(row), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got["kurtosis"][0], stats.kurtosis(row), rtol=1e-5, atol=1e-5)


def test_large_mean_does_not_cancel():
    x = 1000.0 + jax.random.normal(jax.random.key(0), (1, 400, 3))
    got = pooling.statistics(x, jnp.array([400]), ("std", "skew"))
    row = np.asarray(x[0], np.float64)
    # The mean itself is rounded to 6e-5.
    for kind, values in got.items():
        np.testing.assert_allclose(values[0], by_definition(row, kind), rtol=1e-3, atol=1e-3)


def test_bfloat16_input_has_float32_statistics(padded):
    x, lengths = padded
    x = x.astype(jnp.bfloat16)
    got = pooling.statistics(x, lengths, ("mean", "std"))
    for kind, values in got.items():
        assert values.dtype == jnp.float32
        expected = by_definition(np.asarray(x[0], np.float64), kind)
        np.testing.assert_allclose(values[0], expected, rtol=1e-5, atol=1e-5)


def test_attentive_against_numpy(padded, attentive):
    """The map of [x, mean, std] as one matrix, one softmax per channel over the true frames."""
    module, variables = attentive
    got = jax.jit(module.apply)(variables, *padded)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    joint = np.concatenate([p["frame"]["kernel"], p["context"]["kernel"]])
    assert joint.shape == (18, 4)
    np.testing.assert_array_equal(got[4], 0.0)
    for row, length in enumerate(LENGTHS):
        x = np.asarray(padded[0][row, :length], np.float64)
        context = np.concatenate([by_definition(x, "mean"), by_definition(x, "std")])
        inputs = np.concatenate([x, np.tile(context, (length, 1))], axis=1)
        scores = np.tanh(inputs @ joint + p["frame"]["bias"]) @ p["score"]["kernel"]
        weights = np.exp(scores + p["score"]["bias"])
        weights /= weights.sum(0)
        mean = (weights * x).sum(0)
        std = np.sqrt((weights * (x - mean) ** 2).sum(0) + 1e-7)
        # One frame: the deviation is that of sqrt(1e-7) with a mean rounded in float32.
        np.testing.assert_allclose(got[row], np.concatenate([mean, std]), rtol=1e-5, atol=1e-5)


def test_local_attention_sees_the_frame_alone(padded, attentive):
    """That is the other one with a context without weight; its parameters are two fewer."""
    module, variables = attentive
    params = variables["params"]
    blind = {**params, "context": jax.tree.map(jnp.zeros_like, params["context"])}
    local = {name: tree for name, tree in params.items() if name != "context"}
    got = pooling.Pooling("attentive_local", 4).apply(
        {"params": {"attentive_local": local}}, *padded
    )
    expected = module.apply({"params": blind}, *padded)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)
    # wespeaker's floor of the weighted variance: at least 1e-7, not 1e-7 more.
    still = jnp.full((1, 5, 6), 2.0).at[0, 0].add(2e-3), jnp.array([5])
    options = {"context": False, "deviation": "sample"}
    got = pooling.AttentivePooling(4, **options).apply({"params": local}, *still)[0, 6:]
    usual = pooling.AttentivePooling(4, context=False).apply({"params": local}, *still)[0, 6:]
    np.testing.assert_allclose(got**2, np.maximum(usual**2 - 1e-7, 1e-7), rtol=1e-3)
    assert bool((got < usual).all())


def test_combination_is_in_the_order_of_the_name(padded):
    x, lengths = padded
    got = pooling.Pooling("max+statistical+min").apply({}, x, lengths)
    parts = pooling.statistics(x, lengths, pooling.STATISTICS)
    expected = jnp.concatenate([parts[kind] for kind in ("max", "mean", "std", "min")], axis=1)
    np.testing.assert_array_equal(got, expected)
    # The seed's "max" was the minimum.
    assert bool((parts["max"][:4] >= parts["mean"][:4] - 1e-5).all())
    module = pooling.Pooling("attentive+max", bottleneck=4)
    got = module.apply(module.init(jax.random.key(0), x, lengths), x, lengths)
    np.testing.assert_array_equal(got[:, 12:], parts["max"])


def test_padded_equals_alone(padded):
    x, lengths = padded
    module = pooling.Pooling(EVERYTHING, bottleneck=4)
    variables = jax.jit(module.init)(jax.random.key(0), x, lengths)
    got = jax.jit(module.apply)(variables, x, lengths)
    for row, length in enumerate(LENGTHS):
        alone = module.apply(variables, x[row : row + 1, :length], lengths[row : row + 1])
        # Kurtosis of two frames divides by a small variance to the square.
        np.testing.assert_allclose(got[row], alone[0], rtol=1e-5, atol=1e-5)


def test_gradients_are_finite_where_statistics_degenerate():
    """One frame, constant rows, a constant channel, an empty row, huge values, NaN in padding."""
    x = jax.random.normal(jax.random.key(0), (6, 8, 3))
    x = x.at[0, 1:].set(jnp.nan).at[1].set(2.5).at[2, :, 1].set(0.0).at[3].set(jnp.nan)
    x = x.at[4].multiply(1e4)
    lengths = jnp.array([1, 8, 8, 0, 8, 20])  # the last: beyond the array
    module = pooling.Pooling(EVERYTHING, bottleneck=4)
    variables = module.init(jax.random.key(0), x, lengths)
    weights = jax.random.normal(jax.random.key(1), (6, 24))

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def loss(variables, x):
        y = module.apply(variables, x, lengths)
        return jnp.sum(y * weights), y

    (_, y), grads = loss(variables, x)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves((y, grads)))
    np.testing.assert_array_equal(grads[1][3], 0.0)
    np.testing.assert_array_equal(grads[1][0, 1:], 0.0)


@pytest.mark.parametrize("kind", [*pooling.STATISTICS, "attentive"])
def test_gradient_against_differences(kind, attentive):
    x, lengths = jax.random.normal(jax.random.key(3), (2, 7, 6)), jnp.array([7, 5])
    module = pooling.Pooling(kind, bottleneck=4)
    params = {"attentive": attentive[1]["params"]} if kind == "attentive" else {}

    @jax.jit
    def loss(x):
        return jnp.sum(jnp.sin(module.apply({"params": params}, x, lengths)))

    direction = jax.random.normal(jax.random.key(4), x.shape)
    slope = (loss(x + 3e-3 * direction) - loss(x - 3e-3 * direction)) / 6e-3
    # Central differences in float32: per cents.
    expected = float(jnp.sum(jax.grad(loss)(x) * direction))
    assert float(slope) == pytest.approx(expected, rel=0.02, abs=0.02)


def test_errors_name_the_statistic():
    with pytest.raises(ValueError, match="'median'"):
        pooling.parse_kinds("mean+median")
    with pytest.raises(ValueError, match="deviation='biased': choose one of population, sample"):
        pooling.check("mean+std", "biased")
    with pytest.raises(ValueError, match="twice"):
        pooling.parse_kinds("statistical+std")
