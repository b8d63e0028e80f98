"""Convolutions over time and frequency: values and both gradients against sums in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.nn import conv2d

WIDE = conv2d.MIN_THREE_BY_THREE_CHANNELS


def references(x, kernel, weight, stride, dilation):
    """The convolution y, and the gradients of sum(y * weight): every tap by itself."""
    (rows, columns), (_, frames, bins, _) = kernel.shape[:2], x.shape
    top, left = (rows - 1) // 2 * dilation, (columns - 1) // 2
    below, right = (rows - 1) * dilation - top, columns - 1 - left
    padded = np.pad(x, ((0, 0), (top, below), (left, right), (0, 0)))
    y, dx, dk = np.zeros(weight.shape), np.zeros(padded.shape), np.zeros(kernel.shape)
    for m in range(rows):
        for n in range(columns):
            first = m * dilation
            under = slice(None), slice(first, first + frames, stride), slice(n, n + bins, stride)
            y += padded[under] @ kernel[m, n]
            dx[under] += weight @ kernel[m, n].T
            dk[m, n] = np.einsum("blfc,blfd->cd", padded[under], weight)
    return y, dx[:, top : top + frames, left : left + bins], dk


@pytest.mark.parametrize(
    ("shape", "taps", "stride", "dilation", "channels"),
    [
        ((7, 6), (5, 3), 1, 2, (3, 4)),
        ((9, 4), (7, 1), 1, 1, (3, 2)),
        ((4, 9), (1, 7), 1, 1, (1, 3)),
        ((9, 5), (5, 5), 1, 4, (3, 2)),  # taps that never meet a frame
        ((6, 5), (2, 4), 1, 3, (2, 3)),
        ((5, 4), (3, 3), 1, 1, (4, 5)),
        ((1, 1), (3, 3), 1, 1, (2, 2)),
        ((6, 7), (5, 5), 1, 1, (3, 2)),
        ((6, 5), (3, 3), 1, 1, (1, 4)),
        ((7, 6), (3, 3), 2, 1, (3, 4)),
        ((6, 9), (3, 3), 3, 1, (2, 2)),
        # From here on many taps and a stride: all by XLA, or with few features in blocks.
        ((6, 5), (4, 4), 2, 1, (1, 9)),
        ((7, 6), (7, 7), 2, 1, (5, 8)),
        ((8, 5), (4, 4), 2, 1, (3, 2)),
        ((5, 7), (5, 4), 3, 1, (4, 2)),
        ((1, 2), (7, 5), 2, 1, (4, 2)),
        ((6, 5), (2, 2), 1, 1, (3, 4)),
        ((7, 5), (1, 1), 2, 1, (3, 4)),
        ((3, 4), (1, 1), 1, 1, (3, 4)),
        ((1, 1), (3, 3), 1, 1, (WIDE, WIDE)),
        ((3, 4), (3, 3), 1, 1, (WIDE, WIDE + 1)),
    ],
)
def test_value_and_gradients(shape, taps, stride, dilation, channels):
    rng = np.random.default_rng(taps[0])
    x = rng.normal(size=(2, *shape, channels[0]))
    kernel = rng.normal(size=(*taps, *channels)) / np.sqrt(channels[0])
    weight = rng.normal(size=(2, *(-(-side // stride) for side in shape), channels[1]))

    def value(x, kernel):
        y = conv2d.conv2d(x, kernel, stride, dilation)
        return jnp.sum(y * weight.astype(np.float32)), y

    arguments = x.astype(np.float32), kernel.astype(np.float32)
    (dx, dk), y = jax.jit(jax.grad(value, (0, 1), True))(*arguments)
    # Sums of up to 9 x 129 products of a deviation of about 1, in float32.
    truth = references(x, kernel, weight, stride, dilation)
    for found, expected in zip((y, dx, dk), truth, strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=5e-5)


def test_second_derivatives():
    """A Hessian times a vector, in both ways, against differences of gradients."""
    rng = np.random.default_rng(0)
    x, kernel, direction = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in ((1, 4, 3, 2), (3, 3, 2, 2), (3, 3, 2, 2))
    )

    def loss(kernel):
        return jnp.sum(jnp.tanh(conv2d.conv2d(jnp.tanh(conv2d.conv2d(x, kernel)), kernel)))

    slope = jax.jit(jax.grad(loss))
    product = jax.jit(jax.grad(lambda k: jnp.sum(jax.grad(loss)(k) * direction)))(kernel)
    step = 1e-2
    change = slope(kernel + step * direction) - slope(kernel - step * direction)
    np.testing.assert_allclose(product, change / (2 * step), rtol=0.02, atol=0.02)
    _, forward = jax.jvp(slope, (kernel,), (direction,))
    np.testing.assert_allclose(forward, product, rtol=1e-4, atol=1e-4)


def test_gradients_keep_the_input_only():
    """Not the sixteen tiles of a wide layer, which are four times as large."""
    x, kernel = jnp.ones((1, 2, 2, WIDE)), jnp.ones((3, 3, WIDE, WIDE))
    _, gradients = jax.vjp(lambda x, k: conv2d.conv2d(x, k), x, kernel)
    kept = sum(leaf.size for leaf in jax.tree.leaves(gradients))
    assert kept == x.size + kernel.size
