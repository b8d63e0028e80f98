"""Masks, lengths after a stride and means over true frames."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.nn import masking


def test_length_mask():
    mask = masking.length_mask(jnp.array([0, 2, 3, 9]), 3)
    expected = [[0, 0, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1]]
    np.testing.assert_array_equal(mask, np.array(expected, bool))


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_conv_lengths_is_ceil(stride):
    lengths = np.arange(0, 11, dtype=np.int32)
    new = masking.conv_lengths(jnp.asarray(lengths), stride)
    np.testing.assert_array_equal(new, np.ceil(lengths / stride))
    assert new.dtype == jnp.int32


def test_masked_mean_against_numpy():
    x = np.random.default_rng(0).standard_normal((3, 5, 4)).astype(np.float32)
    lengths = np.array([5, 2, 0], np.int32)
    mean = masking.masked_mean(jnp.asarray(x), jnp.asarray(lengths))
    expected = [x[0].mean(0), x[1, :2].mean(0), np.zeros(4)]
    np.testing.assert_allclose(mean, expected, atol=1e-6)  # sums of five float32 numbers


def test_rubbish_in_padding_reaches_neither_value_nor_gradient():
    x = jnp.ones((1, 4, 2)).at[:, 2:].set(jnp.nan)
    lengths = jnp.array([2])
    value, gradient = jax.value_and_grad(lambda x: masking.masked_mean(x, lengths).sum())(x)
    assert value == 2.0
    np.testing.assert_array_equal(gradient[0, :, 0], [0.5, 0.5, 0.0, 0.0])


def test_masked_sum_of_bfloat16_is_float32():
    # 1000 ones: a bfloat16 accumulator stops at 256.
    x = jnp.ones((1, 1000, 1), jnp.bfloat16)
    total = masking.masked_sum(x, jnp.array([1000]))
    assert total.dtype == jnp.float32
    assert total[0, 0] == 1000.0


def test_fold_row_mask():
    lengths, mask = jnp.array([3, 4]), jnp.array([True, False])
    np.testing.assert_array_equal(masking.fold_row_mask(lengths, mask), [3, 0])
    assert masking.fold_row_mask(lengths, None) is lengths


def test_float_mask_is_the_mask_exactly():
    lengths = jnp.array([0, 2, 9])
    mask = masking.float_mask(lengths, 5)
    assert mask.dtype == jnp.float32
    np.testing.assert_array_equal(mask, masking.length_mask(lengths, 5).astype(np.float32))
