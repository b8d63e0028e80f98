"""Convolutions on padded batches: alignment, padding, gradients against XLA's own convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.nn import conv


def naive(x, kernel, stride, left):
    """y[i] = sum_k kernel[k] x[i * stride + k - left] for one row, zeros outside."""
    k, frames = kernel.shape[0], x.shape[0]
    y = np.zeros((-(-frames // stride), kernel.shape[-1]))
    for i in range(y.shape[0]):
        for tap in range(k):
            n = i * stride + tap - left
            if 0 <= n < frames:
                y[i] += x[n] * kernel[tap] if kernel.ndim == 2 else x[n] @ kernel[tap]
    return y


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("k", "stride"), [(5, 1), (5, 2), (4, 1), (3, 3), (1, 2), (40, 2)])
def test_depthwise_value_and_gradient(k, stride, causal):
    # 19 frames: neither a multiple of a stride nor of the frames summed in one loop.
    keys = jax.random.split(jax.random.key(k), 3)
    x, kernel = jax.random.normal(keys[0], (2, 19, 3)), jax.random.normal(keys[1], (k, 3))
    left = conv.left_padding(k, causal)
    weight = jax.random.normal(keys[2], (2, -(-19 // stride), 3))

    def reference(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel[:, None],
            (stride,),
            [(left, k - 1 - left)],
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=3,
        )

    def both(fn):
        return lambda x, kernel: (jnp.sum(jnp.sin(fn(x, kernel)) * weight), fn(x, kernel))

    ours = jax.jit(
        jax.grad(both(lambda x, w: conv.depthwise_conv(x, w, stride, causal)), (0, 1), True)
    )(x, kernel)
    theirs = jax.jit(jax.grad(both(reference), (0, 1), True))(x, kernel)
    # float32 sums of up to 40 products.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, theirs)
    expected = [naive(np.asarray(row), np.asarray(kernel), stride, left) for row in x]
    np.testing.assert_allclose(ours[1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kind", ["depthwise", "dense"])
def test_padded_equals_alone(kind, stride, causal):
    if kind == "depthwise":
        module = conv.DepthwiseConv(5, stride, causal)
    else:
        module = conv.Conv(4, 5, stride, causal, use_bias=True)
    x = jax.random.normal(jax.random.key(0), (3, 12, 4))
    x = x.at[1, 7:].set(jnp.nan).at[2, 10:].set(1e9)
    lengths = jnp.array([12, 7, 10])
    variables = module.init(jax.random.key(1), x, lengths)
    y, new_lengths = module.apply(variables, x, lengths)
    np.testing.assert_array_equal(new_lengths, np.ceil(np.asarray(lengths) / stride))
    for row, length in enumerate([12, 7, 10]):
        alone, _ = module.apply(variables, x[row : row + 1, :length], lengths[row : row + 1])
        # The same products in the same order: equal up to fused multiply-adds.
        np.testing.assert_allclose(y[row, : new_lengths[row]], alone[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("k", "stride", "dilation"), [(3, 1, 2), (3, 1, 4), (5, 2, 3), (4, 1, 2)])
def test_dilated_conv_is_one_with_zeros_between_its_taps(k, stride, dilation, causal):
    """Value against loops, a padded row against the row alone; 7 frames are fewer than the taps."""
    module = conv.Conv(2, k, stride, causal, use_bias=True, dilation=dilation)
    x = jax.random.normal(jax.random.key(0), (2, 12, 4)).at[1, 7:].set(jnp.nan)
    lengths = jnp.array([12, 7])
    variables = module.init(jax.random.key(1), x, lengths)
    assert variables["params"]["kernel"].shape == (k, 4, 2)
    y, new_lengths = module.apply(variables, x, lengths)
    np.testing.assert_array_equal(new_lengths, -(-np.array([12, 7]) // stride))
    spread = np.zeros(((k - 1) * dilation + 1, 4, 2))
    spread[::dilation] = variables["params"]["kernel"]
    left = conv.left_padding(len(spread), causal)
    for row, length in enumerate([12, 7]):
        expected = naive(np.asarray(x[row, :length]), spread, stride, left)
        # Sums of up to 20 products in float32.
        np.testing.assert_allclose(y[row, : len(expected)], expected, rtol=1e-5, atol=1e-5)
        alone, _ = module.apply(variables, x[row : row + 1, :length], lengths[row : row + 1])
        np.testing.assert_allclose(y[row, : len(expected)], alone[0], rtol=1e-5, atol=1e-6)


def test_causal_sees_no_future():
    module = conv.DepthwiseConv(5, 2, causal=True)
    x, lengths = jax.random.normal(jax.random.key(0), (1, 12, 2)), jnp.array([12])
    variables = module.init(jax.random.key(1), x, lengths)
    y, _ = module.apply(variables, x, lengths)
    changed, _ = module.apply(variables, x.at[:, 7:].add(1.0), lengths)
    np.testing.assert_array_equal(changed[:, :4], y[:, :4])  # frames 0, 2, 4, 6
    assert bool((changed[:, 4] != y[:, 4]).any())


def test_pointwise_takes_every_stride_th_frame():
    module = conv.Pointwise(3, stride=2)
    x = jax.random.normal(jax.random.key(0), (2, 5, 4))
    variables = module.init(jax.random.key(1), x)
    expected = np.asarray(x)[:, ::2] @ np.asarray(variables["params"]["kernel"])
    np.testing.assert_allclose(module.apply(variables, x), expected, rtol=1e-5, atol=1e-6)
    biased = conv.Pointwise(3, stride=2, use_bias=True)
    params = {**variables["params"], "bias": jnp.array([1.0, -2.0, 3.0])}
    assert set(biased.init(jax.random.key(1), x)["params"]) == set(params)
    got = biased.apply({"params": params}, x)
    np.testing.assert_allclose(got, expected + np.array([1.0, -2.0, 3.0]), rtol=1e-5, atol=1e-5)


def test_bfloat16_gradient_of_taps_sums_in_float32():
    x = jnp.ones((1, 1000, 1), jnp.bfloat16)

    def loss(kernel):
        return conv.depthwise_conv(x, kernel).astype(jnp.float32).sum()

    gradient = jax.grad(loss)(jnp.ones((3, 1), jnp.float32))
    np.testing.assert_array_equal(gradient[:, 0], [999.0, 1000.0, 999.0])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("frames", "dilation"), [(12, 1), (13, 2), (11, 3), (2, 3)])
def test_three_taps_in_half_of_the_products(frames, dilation, causal):
    """Value and gradients against the convolution; frames fill their blocks or do not."""
    left = conv.left_padding(2 * dilation + 1, causal)
    keys = jax.random.split(jax.random.key(frames), 3)
    x, kernel = jax.random.normal(keys[0], (2, frames, 4)), jax.random.normal(keys[1], (3, 4, 5))
    weight = jax.random.normal(keys[2], (2, frames, 5))

    def reference(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (1,),
            [(left, 2 * dilation - left)],
            rhs_dilation=(dilation,),
            dimension_numbers=("NWC", "WIO", "NWC"),
        )

    def ours(x, kernel):
        return conv.three_taps(x, kernel, dilation=dilation, left=left)

    def both(fn):
        def value(x, kernel):
            y = fn(x, kernel)
            return jnp.sum(jnp.sin(y) * weight), y

        return jax.jit(jax.grad(value, (0, 1), True))(x, kernel)

    # float32 sums of up to 12 products, and of 24 x 5 in the gradients.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=5e-5),
        both(ours),
        both(reference),
    )


def test_wide_dilated_conv_of_three_taps():
    """The path of the x-vector's layers: against a sum of shifted products in float64, padded
    against alone."""
    module = conv.Conv(256, 3, dilation=2, use_bias=True)
    x = jax.random.normal(jax.random.key(0), (2, 9, conv.MIN_THREE_TAPS_CHANNELS))
    x = x.at[1, 5:].set(jnp.nan)
    lengths = jnp.array([9, 5])
    variables = module.init(jax.random.key(1), x, lengths)
    y, _ = module.apply(variables, x, lengths)
    kernel = np.asarray(variables["params"]["kernel"], np.float64)
    for row, length in enumerate([9, 5]):
        padded = np.pad(np.asarray(x[row, :length], np.float64), ((2, 2), (0, 0)))
        expected = sum(padded[2 * k : 2 * k + length] @ kernel[k] for k in range(3))
        # Sums of 768 products of deviation 1 in all.
        np.testing.assert_allclose(y[row, :length], expected, atol=2e-5)
        alone, _ = module.apply(variables, x[row : row + 1, :length], lengths[row : row + 1])
        np.testing.assert_allclose(y[row, :length], alone[0], rtol=1e-5, atol=1e-5)
