"""Factored layers equal their dense ones at full rank and after merging; SVD error = tail."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.nn import conv, lowrank

# Two float32 products in place of one, of numbers near 1.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(0), (2, 13, 6))


@pytest.mark.parametrize("stride", [1, 2])
def test_pointwise_full_rank_and_merge(x, stride):
    dense = conv.Pointwise(4, stride)
    params = dense.init(jax.random.key(1), x)["params"]
    factored = lowrank.LowRankPointwise(4, 4, stride)
    full = lowrank.factor_pointwise(params, 4)
    expected = dense.apply({"params": params}, x)
    np.testing.assert_allclose(factored.apply({"params": full}, x), expected, **TOLERANCE)
    low = lowrank.LowRankPointwise(4, 2, stride)
    trained = low.init(jax.random.key(2), x)["params"]
    merged = lowrank.merge_pointwise(trained)
    np.testing.assert_allclose(
        dense.apply({"params": merged}, x), low.apply({"params": trained}, x), **TOLERANCE
    )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_spectro_temporal_merges_to_dense(x, rank, stride, causal):
    lengths = jnp.array([13, 8])
    module = lowrank.SpectroTemporalConv(7, rank, 5, stride, causal)
    params = module.init(jax.random.key(1), x, lengths)["params"]
    y, new_lengths = module.apply({"params": params}, x, lengths)
    dense = conv.Conv(7, 5, stride, causal)
    merged = lowrank.merge_conv(params, rank)
    z, dense_lengths = dense.apply({"params": merged}, x, lengths)
    np.testing.assert_allclose(y, z, **TOLERANCE)
    np.testing.assert_array_equal(new_lengths, dense_lengths)
    size = sum(p.size for p in jax.tree.leaves(params))
    assert size == 7 * rank * (5 + 6)  # F R (N + M)


def test_full_rank_filters_equal_dense_and_truncation_is_the_tail(x):
    lengths = jnp.array([13, 8])
    dense = conv.Conv(3, 5)
    params = dense.init(jax.random.key(1), x, lengths)["params"]
    full = lowrank.factor_conv(params, 5)
    y, _ = lowrank.SpectroTemporalConv(3, 5, 5).apply({"params": full}, x, lengths)
    np.testing.assert_allclose(y, dense.apply({"params": params}, x, lengths)[0], **TOLERANCE)
    kernel = np.asarray(params["kernel"], np.float64)
    for rank in (1, 2, 4):
        back = lowrank.merge_conv(lowrank.factor_conv(params, rank), rank)["kernel"]
        error = np.square(np.asarray(back) - kernel).sum((0, 1))
        spectra = np.linalg.svd(kernel.transpose(2, 0, 1), compute_uv=False)
        np.testing.assert_allclose(error, np.square(spectra[:, rank:]).sum(1), rtol=1e-4)


def test_truncated_matrix_error_is_the_tail():
    matrix = jax.random.normal(jax.random.key(0), (9, 6))
    spectrum = np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)
    for rank in (1, 3, 5):
        v, u = lowrank.factor_matrix(matrix, rank)
        error = np.linalg.norm(np.asarray(v @ u) - np.asarray(matrix))
        np.testing.assert_allclose(error, np.sqrt(np.square(spectrum[rank:]).sum()), rtol=1e-4)
    with pytest.raises(ValueError, match=r"choose 1\.\.6"):
        lowrank.factor_matrix(matrix, 7)


def test_stride_is_on_the_temporal_filter():
    """A filter that reads odd frames only still sees them at stride 2."""
    module = lowrank.SpectroTemporalConv(1, 1, 3, stride=2)
    params = {"spectral": jnp.ones((1, 1)), "temporal": jnp.array([[0.0], [0.0], [1.0]])}
    x = jnp.arange(6.0).reshape(1, 6, 1)
    y, _ = module.apply({"params": params}, x, jnp.array([6]))
    np.testing.assert_array_equal(y[0, :, 0], [1.0, 3.0, 5.0])


def test_composed_separable_filter_equals_the_two_layers(x):
    lengths = jnp.array([13, 13])
    taps = jax.random.normal(jax.random.key(1), (5, 6))
    mixing = jax.random.normal(jax.random.key(2), (6, 4))
    two = conv.depthwise_conv(x, taps) @ mixing
    kernel = lowrank.compose_separable(taps, mixing)
    one, _ = conv.Conv(4, 5).apply({"params": {"kernel": kernel}}, x, lengths)
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)


def test_ranks_of_known_spectra():
    spectra = jnp.array([[1.0, 1.0, 1.0, 1.0], [2.0, 0.0, 0.0, 0.0], [0.0] * 4, [2.0, 1.0, 0, 0]])
    np.testing.assert_allclose(lowrank.stable_rank(spectra), [4.0, 1.0, 0.0, 1.25], rtol=1e-6)
    entropy = np.exp(-(2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3)))
    np.testing.assert_allclose(lowrank.entropy_rank(spectra), [4.0, 1.0, 0.0, entropy], rtol=1e-5)
