"""Convolutions of any number of axes, channels last, with gradients that are fast inside loops.

XLA:CPU is fast at a convolution if its axes come in one order (batch, space, channels; space,
inputs, outputs). It brings others into that order in the outermost program alone: inside of a loop
(accumulated gradients, Hessians, attributions) the gradients that JAX derives take 8 to 50 times
as long (benchmarks/looped.py). Here they are written in that order, and are the same to the bit.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Pairs = tuple[tuple[int, int], ...]


def plain(
    x: Float[Array, "b *l c"],
    kernel: Float[Array, "*k c d"],
    strides: Sequence[int],
    padding: Pairs,
    dilations: Sequence[int],
    precision: Any = None,
) -> Float[Array, "b *n d"]:
    """y[b, i] = sum_k x[b, i stride + k dilation - before] kernel[k] for each axis, zeros outside.

    `padding`: zeros before and after, for each axis.
    """
    return _ordered(x, kernel, strides, padding, rhs_dilation=dilations, precision=precision)


def _ordered(x: Array, kernel: Array, strides: Sequence[int], padding: Any, **kept: Any) -> Array:
    space = "DHW"[-(x.ndim - 2) :]
    numbers = (f"N{space}C", f"{space}IO", f"N{space}C")
    return jax.lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=numbers, **kept
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def convolution(
    x: Float[Array, "b *l c"],
    kernel: Float[Array, "*k c d"],
    strides: tuple[int, ...],
    padding: Pairs,
    dilations: tuple[int, ...],
    precision: Any = None,
) -> Float[Array, "b *n d"]:
    """`plain`, whose gradients are those below on a CPU. Its second derivatives are JAX's own."""
    return plain(x, kernel, strides, padding, dilations, precision)


def _forward(x, kernel, strides, padding, dilations, precision):
    return plain(x, kernel, strides, padding, dilations, precision), (x, kernel)


def _backward(strides, padding, dilations, precision, residuals, dy):
    how = (strides, padding, dilations, precision)

    def written(x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
        taps = kernel.shape[:-2]
        return input_gradient(x.shape, kernel, dy, *how), kernel_gradient(x, dy, taps, *how)

    def derived(x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
        of_x = jax.linear_transpose(lambda x: plain(x, kernel, *how), x)
        of_kernel = jax.linear_transpose(lambda kernel: plain(x, kernel, *how), kernel)
        return *of_x(dy), *of_kernel(dy)

    return jax.lax.platform_dependent(*residuals, dy, cpu=written, default=derived)


convolution.defvjp(_forward, _backward)


def input_gradient(
    shape: Sequence[int],
    kernel: Float[Array, "*k c d"],
    dy: Float[Array, "b *n d"],
    strides: Sequence[int],
    padding: Pairs,
    dilations: Sequence[int],
    precision: Any = None,
) -> Float[Array, "b *l c"]:
    """Of `plain`, for x of a shape: a correlation of dy, zeros between, with the kernel turned."""
    around = []
    axes = zip(shape[1:-1], kernel.shape, dy.shape[1:], strides, padding, dilations)
    for size, taps, outputs, stride, (before, _), dilation in axes:
        last = (outputs - 1) * stride  # where the last output's first tap lies
        around.append(((taps - 1) * dilation - before, size - 1 + before - last))
    turned = jnp.flip(kernel, range(kernel.ndim - 2)).swapaxes(-1, -2)
    kept = {"lhs_dilation": strides, "rhs_dilation": dilations, "precision": precision}
    return _ordered(dy, turned, (1,) * len(around), around, **kept)


def kernel_gradient(
    x: Float[Array, "b *l c"],
    dy: Float[Array, "b *n d"],
    taps: Sequence[int],
    strides: Sequence[int],
    padding: Pairs,
    dilations: Sequence[int],
    precision: Any = None,
) -> Float[Array, "*k c d"]:
    """Of `plain`: a correlation of x with dy, channels as rows and rows as channels."""
    around, used = [], [slice(None)]
    axes = zip(x.shape[1:-1], taps, dy.shape[1:], strides, padding, dilations)
    for size, count, outputs, stride, (before, _), dilation in axes:
        seen = (count - 1) * dilation + (outputs - 1) * stride + 1 - before
        used.append(slice(min(size, seen)))
        around.append((before, max(0, seen - size)))
    rows = x[tuple(used)].swapaxes(0, -1)
    columns = jnp.moveaxis(dy, 0, -2)
    kept = {"rhs_dilation": strides, "precision": precision}
    return jnp.moveaxis(_ordered(rows, columns, dilations, around, **kept), 0, -2)
