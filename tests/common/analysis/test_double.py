"""Programs in single precision that are computed in double."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import errors
from common.analysis import double


def program(x, k):
    """Loops, a branch, additions in place, bits, and layers that say float32."""

    def body(carry, row):
        carry = jnp.tanh(carry * row).astype(jnp.float32) + 1 / jnp.float32(3)
        return carry, jnp.sum(carry)

    last, sums = jax.lax.scan(body, x[0], x)
    last = jax.lax.fori_loop(0, k, lambda i, y: jnp.sin(y) + sums[i], last)
    last = jax.lax.cond(k > 1, lambda y: jnp.exp(y), lambda y: y, last)
    last = last.at[jnp.array([0, 0, 1])].add(sums[:3])
    noise = jax.random.uniform(jax.random.key(0), last.shape, jnp.float32)
    spectrum = jnp.abs(jnp.fft.rfft(last + noise))
    return jax.nn.relu(spectrum) @ jnp.ones(spectrum.shape, jnp.float32)


def in_numpy(x, k):
    carry, sums = x[0], []
    for row in x:
        carry = np.tanh(carry * row) + 1 / 3
        sums.append(carry.sum())
    for i in range(k):
        carry = np.sin(carry) + sums[i]
    carry = np.exp(carry) if k > 1 else carry
    carry = carry + np.array([sums[0] + sums[1], sums[2], 0, 0])
    noise = np.asarray(jax.random.uniform(jax.random.key(0), (4,), jnp.float32), np.float64)
    return np.abs(np.fft.rfft(carry + noise)).sum()


def arguments():
    return np.random.default_rng(0).normal(size=(5, 4))


@pytest.mark.parametrize("k", [1, 3])
def test_a_program_with_loops_and_branches(k):
    x = arguments()
    with jax.enable_x64(True):
        found = jax.jit(double.in_double(program))(jnp.asarray(x), jnp.int32(k))
        assert found.dtype == jnp.float64
    assert float(found) == pytest.approx(in_numpy(x, k), rel=1e-14)
    single = float(program(jnp.asarray(x, jnp.float32), k))
    assert 1e-9 < abs(single / float(found) - 1) < 1e-4  # what it is for


def test_a_derivative_too():
    x = arguments()
    with jax.enable_x64(True):
        slope = double.in_double(jax.grad(lambda x: program(x, 3) + jnp.sum(x**2)))
        found = slope(jnp.asarray(x))
        step = np.zeros_like(x)
        step[2, 1] = 1e-6
    wanted = (in_numpy(x + step, 3) - in_numpy(x - step, 3)) / 2e-6 + 2 * x[2, 1]
    assert float(found[2, 1]) == pytest.approx(wanted, rel=1e-8)
    assert not jax.config.jax_enable_x64


def test_what_it_does_not_know_is_said():
    def odd(x):
        return jax.lax.reduce(x, jnp.float32(0), lambda a, b: jnp.sin(a) + b, (0,))

    with jax.enable_x64(True), pytest.raises(errors.UserError, match="double precision"):
        double.in_double(odd)(jnp.ones(3, jnp.float64))
