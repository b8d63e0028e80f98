"""Counts of products and convolutions against what multiplying out gives."""

import jax
import jax.numpy as jnp
import pytest

from common import flops
from common.nn import conv


def of(fn, *shapes):
    return flops.count(jax.make_jaxpr(fn)(*(jnp.zeros(shape) for shape in shapes)))


def test_products_and_convolutions():
    assert of(lambda x, y: jnp.tanh(x @ y), (3, 4), (4, 5)) == 2 * 3 * 4 * 5
    assert of(lambda x, y: jnp.einsum("bij,bjk->bk", x, y), (2, 3, 4), (2, 4, 5)) == 2 * 2 * 4 * 5
    x, lengths = jnp.zeros((2, 64, 4)), jnp.array([64, 64])
    grouped = conv.DepthwiseConv(40, causal=True)
    variables = grouped.init(jax.random.key(0), x, lengths)
    traced = jax.make_jaxpr(lambda x: grouped.apply(variables, x, lengths))(x)
    assert flops.count(traced) == 2 * 2 * 64 * 4 * 40
    dense = conv.Conv(6, 3, stride=2)
    variables = dense.init(jax.random.key(0), x, lengths)

    def run(variables, x):
        return dense.apply(variables, x, lengths)[0].sum()

    cost = 2 * 2 * 32 * 6 * 3 * 4
    assert flops.count(jax.make_jaxpr(run)(variables, x)) == cost
    # Each of the two gradients is as dear as the value, up to the frames of padding.
    both = flops.count(jax.make_jaxpr(jax.grad(run, (0, 1)))(variables, x))
    assert both == pytest.approx(3 * cost, rel=0.02)


def test_loops_and_branches():
    def loop(x, w):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, length=7)[0]

    once = 2 * 3 * 4 * 4
    assert of(jax.jit(loop), (3, 4), (4, 4)) == 7 * once
    assert of(jax.checkpoint(loop), (3, 4), (4, 4)) == 7 * once

    def branch(x, w):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w)

    assert of(branch, (3, 4), (4, 4)) == 2 * once

    def unknown(x, w):
        return jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ w, x @ w)

    assert of(unknown, (3, 4), (4, 4)) == once

    def at_most(x, w):
        with flops.pieces(13, 2):
            return unknown(x, w)

    # 13 pieces at two a pass are six and a half of them.
    assert of(at_most, (3, 4), (4, 4)) == once + 13 * once // 2
