"""Products in bfloat16: values and gradients against those of the rounded factors."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.nn import products


@pytest.fixture(scope="module")
def factors():
    rng = np.random.default_rng(0)
    shapes = (3, 5, 40), (40, 24), (3, 5, 24)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def rounded(x):
    return np.asarray(x.astype(jnp.bfloat16), np.float64)


def test_value_and_gradients_are_sums_of_rounded_factors(factors):
    x, kernel, g = factors
    dense = nn.Dense(24, use_bias=False, dot_general=products.dot_general("bfloat16"))
    y, pull = jax.vjp(lambda x, k: dense.apply({"params": {"kernel": k}}, x), x, kernel)
    dx, dk = pull(g)
    expected = (
        (y, rounded(x) @ rounded(kernel)),
        (dx, rounded(g) @ rounded(kernel).T),
        (dk, np.einsum("blc,bld->cd", rounded(x), rounded(g))),
    )
    for found, exact in expected:
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5)


def test_it_has_second_derivatives(factors):
    """Forward over reverse of |x k|^2 / 2: the Hessian times v is x'(x v), but for 8 bits."""
    x, kernel, _ = factors
    dense = products.dot_general("bfloat16")

    def loss(kernel):
        return 0.5 * jnp.sum(jnp.square(dense(x, kernel, (((2,), (0,)), ((), ())))))

    v = kernel[::-1]
    _, product = jax.jvp(jax.grad(loss), (kernel,), (v,))
    rows = np.float64(x).reshape(-1, 40)
    exact = rows.T @ (rows @ np.float64(v))
    assert np.linalg.norm(product - exact) < 0.01 * np.linalg.norm(exact)


def test_under_vmap_it_is_the_same(factors):
    x, kernel, _ = factors
    layer = nn.Dense(24, use_bias=False, dot_general=products.dot_general("bfloat16"))
    apply = functools.partial(layer.apply, {"params": {"kernel": kernel}})
    np.testing.assert_allclose(jax.vmap(apply)(x), apply(x), rtol=1e-6)


def test_float32_is_left_to_flax_and_other_products_are_refused(factors):
    x, kernel, _ = factors
    assert products.dot_general("float32") is None
    with pytest.raises(ValueError, match="linear layer"):
        products.dot_general("bfloat16")(x, kernel, (((0,), (0,)), ((), ())))
