"""Gradients of convolutions: JAX's own, and written so that a CPU is fast at them in a loop too."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.nn import adjoints, conv, conv2d

# Axes, taps, stride, zeros around, dilation, of each axis.
LAYERS = {
    "time": [(23, 5, 1, (2, 2), 1)],
    "causal, dilated": [(23, 3, 1, (4, 0), 2)],
    "stride that leaves some unseen": [(24, 3, 5, (0, 0), 1)],
    "stride and dilation": [(23, 4, 3, (1, 5), 2)],
    "picture": [(11, 7, 2, (3, 3), 1), (9, 4, 2, (1, 2), 1)],
    "film": [(6, 3, 1, (1, 1), 1), (7, 5, 2, (2, 2), 1), (8, 2, 2, (0, 0), 1)],
}


def how(layer):
    _, _, strides, padding, dilations = zip(*LAYERS[layer])
    return strides, padding, dilations


def given(layer):
    sizes, taps = ([axis[i] for axis in LAYERS[layer]] for i in (0, 1))
    keys = jax.random.split(jax.random.key(1))
    return jax.random.normal(keys[0], (2, *sizes, 3)), jax.random.normal(keys[1], (*taps, 3, 5))


@pytest.mark.parametrize("layer", LAYERS)
def test_gradients_are_those_that_jax_derives(layer):
    def slopes(fn, x, kernel):
        return jax.grad(lambda *both: jnp.sum(jnp.sin(fn(*both, *how(layer)))), (0, 1))(x, kernel)

    x, kernel = given(layer)
    ours = jax.jit(functools.partial(slopes, adjoints.convolution))(x, kernel)
    theirs = jax.jit(functools.partial(slopes, adjoints.plain))(x, kernel)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), ours, theirs)


def test_second_derivatives_are_those_that_jax_derives():
    x, kernel = given("picture")
    moved = jnp.cos(kernel)

    def loss(fn, kernel):
        return jnp.sum(jnp.sin(fn(x, kernel, *how("picture"))))

    def bent(fn):
        slope = jax.grad(functools.partial(loss, fn))
        forward = jax.jvp(slope, (kernel,), (moved,))[1]
        return forward, jax.grad(lambda k: jnp.vdot(slope(k), moved))(kernel)

    theirs = jax.jit(lambda: bent(adjoints.plain))()[0]
    for ours in jax.jit(lambda: bent(adjoints.convolution))():
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-3)


def orders(fn, *shapes):
    """The orders of axes of all convolutions in a program, as lowered for a CPU."""
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    text = jax.jit(fn).trace(*args).lower(lowering_platforms=("cpu",)).as_text()
    return re.findall(r"dim_numbers = (\[.*\]x\[.*\]->\[.*\]), window", text)


def test_every_convolution_of_a_gradient_has_the_order_that_is_fast_in_a_loop():
    layer = conv.Conv(8, 5, stride=2)

    def in_time(x, kernel):
        return layer.apply({"params": {"kernel": kernel}}, x, jnp.full((2,), 40))[0]

    def in_loop(fn):
        slope = jax.grad(lambda x, kernel: jnp.sum(jnp.sin(fn(x, kernel))), (0, 1))
        return lambda xs, kernel: jax.lax.map(lambda x: slope(x, kernel), xs)

    found = orders(in_loop(in_time), (3, 2, 40, 4), (5, 4, 8))
    assert found == 3 * ["[b, 0, f]x[0, i, o]->[b, 0, f]"]
    fast = {"[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]", "[b, 0, f]x[0, i, o]->[b, 0, f]"}
    for taps, stride, channels in [
        (3, 1, 4),
        (3, 2, 4),
        (4, 2, 4),
        (7, 2, 1),
        (7, 2, 4),
        (5, 1, 4),
    ]:
        layer_2d = functools.partial(conv2d.conv2d, stride=stride)
        found = orders(in_loop(layer_2d), (3, 2, 16, 12, channels), (taps, taps, channels, 8))
        assert len(found) >= 2, (taps, stride)
        assert fast >= {*found}, (taps, stride)
