"""Transposed convolutions against JAX's own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.nn import conv_transpose2d

NUMBERS = ("NHWC", "HWIO", "NHWC")


def drawn(taps: int, size: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """A picture of 3 channels and a kernel to 2."""
    of_x, of_kernel = jax.random.split(jax.random.key(taps))
    x = jax.random.normal(of_x, (2, *size, 3))
    return x, jax.random.normal(of_kernel, (taps, taps, 3, 2))


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(("taps", "stride"), [(4, 1), (4, 2), (5, 1), (5, 2), (2, 3), (3, 3)])
def test_it_is_the_transposed_convolution(taps, stride, padding):
    for size in ((1, 1), (3, 5)):
        x, kernel = drawn(taps, size)
        strides = (stride, stride)
        wanted = jax.lax.conv_transpose(x, kernel, strides, padding, dimension_numbers=NUMBERS)
        found = conv_transpose2d.conv_transpose2d(x, kernel, stride, padding)
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_gradients():
    x, kernel = drawn(4, (3, 5))
    weights = jax.random.normal(jax.random.key(0), (2, 6, 10, 2))

    def of(function):
        return jax.grad(lambda x, kernel: jnp.sum(weights * function(x, kernel)), (0, 1))

    def wanted(x, kernel):
        return jax.lax.conv_transpose(x, kernel, (2, 2), "SAME", dimension_numbers=NUMBERS)

    for one, other in zip(
        of(conv_transpose2d.conv_transpose2d)(x, kernel), of(wanted)(x, kernel), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_its_parameters_are_those_of_flax():
    x, _ = drawn(4, (3, 5))
    own = conv_transpose2d.ConvTranspose2D(2)
    flax = nn.ConvTranspose(2, (4, 4), (2, 2))
    variables = flax.init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, variables, own.init(jax.random.key(0), x))
    np.testing.assert_allclose(own.apply(variables, x), flax.apply(variables, x), atol=1e-5)


def test_half_precision_is_kept():
    x, kernel = (value.astype(jnp.bfloat16) for value in drawn(4, (3, 5)))
    assert conv_transpose2d.conv_transpose2d(x, kernel).dtype == jnp.bfloat16
