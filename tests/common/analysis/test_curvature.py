"""Curvature against closed forms, jax.hessian, and matrices whose spectrum is known."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from matfree import decomp
from scipy import stats

from common import metrics, parallel
from common.analysis import curvature, objective
from common.nn import marks
from tests.common import toy

N, D, C = 12, 3, 4  # rows of a batch, features, classes


def symmetric(values, seed=0):
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))
    return jnp.asarray((q * values) @ q.T, jnp.float32)


class Net(nn.Module):
    """Features to outputs through `hidden` tanh units, or none (a linear map)."""

    outputs: int
    hidden: int = 0

    @nn.compact
    def __call__(self, x):
        if self.hidden:
            x = jnp.tanh(nn.Dense(self.hidden)(x))
        return marks.Outputs()(nn.Dense(self.outputs, use_bias=False)(x))


@dataclasses.dataclass(frozen=True)
class NetTask(toy.ToyTask):
    """Rows of numbers, three batches of them with some that are not real."""

    kind: str = "squares"  # or logistic, softmax
    hidden: int = 0

    @property
    def net(self):
        return Net({"squares": 1, "logistic": 1, "softmax": C}[self.kind], self.hidden)

    def batches(self, count=3):
        rng = np.random.default_rng(5)
        return [
            {
                "x": rng.normal(size=(N, D)).astype(np.float32),
                "y": rng.normal(size=N).astype(np.float32),
                "label": rng.integers(C, size=N).astype(np.int32),
                "mask": np.arange(N) < N - k,
            }
            for k in range(count)
        ]

    def variables(self, scale=1.0):
        drawn = self.net.init(jax.random.key(2), jnp.zeros((1, D)))
        return jax.tree.map(lambda x: x * scale, drawn)

    def loss(self, variables, batch, key, step, *, train):
        z, mask = self.net.apply(variables, batch["x"]), batch["mask"]
        if self.kind == "squares":
            each = jnp.square(z[:, 0] - batch["y"])
        elif self.kind == "logistic":
            each = jax.nn.softplus(z[:, 0]) - (batch["label"] > 1) * z[:, 0]
        else:
            picked = jnp.take_along_axis(z, batch["label"][:, None], axis=1)[:, 0]
            each = jax.nn.logsumexp(z, axis=1) - picked
        return {"loss": metrics.Term(*metrics.ratio(each, mask))}, ({}, {})


def net_task(kind, hidden=0):
    return NetTask(toy.make_config(), kind=kind, hidden=hidden)


def flat_of(task, variables=None, count=3):
    data = objective.collect(task.batches(count), parallel.make_mesh(jax.devices()[:1]))
    goal = objective.Objective(task, 0, 0)
    return curvature.Flat(goal, task.variables() if variables is None else variables, data)


def matrix(product, size):
    return np.asarray(jax.jit(jax.vmap(product))(jnp.eye(size)), np.float64)


def rows(task, count=3):
    """All real rows' features in one array, in double precision, and their outputs."""
    some = task.batches(count)
    x = np.concatenate([b["x"][b["mask"]] for b in some]).astype(np.float64)
    kernel = np.float64(task.variables()["params"]["Dense_0"]["kernel"])
    return x, x @ kernel


def test_the_hessian_of_linear_regression():
    task = net_task("squares")
    x, _ = rows(task)
    found = matrix(curvature.hessian(flat_of(task)), D)
    np.testing.assert_allclose(found, 2 / len(x) * x.T @ x, rtol=1e-5, atol=1e-6)


def test_the_hessian_of_logistic_regression():
    task = net_task("logistic")
    x, z = rows(task)
    p = 1 / (1 + np.exp(-z[:, 0]))
    wanted = (x * (p * (1 - p))[:, None]).T @ x / len(x)
    np.testing.assert_allclose(matrix(curvature.hessian(flat_of(task)), D), wanted, atol=1e-6)


@pytest.mark.parametrize("make", [curvature.hessian, curvature.gauss_newton])
def test_softmax_regression_and_its_gauss_newton_matrix(make):
    """The network is linear: both are mean (diag p - pp') kron xx'."""
    task = net_task("softmax")
    x, z = rows(task)
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    wanted = np.zeros((D * C, D * C))
    for one, of in zip(x, p):  # kernel [d, c]: features outside, classes inside
        wanted += np.kron(np.outer(one, one), np.diag(of) - np.outer(of, of)) / len(x)
    np.testing.assert_allclose(matrix(make(flat_of(task)), D * C), wanted, atol=1e-6)


def test_a_tanh_net_against_jax_hessian_in_double_precision():
    task = net_task("softmax", hidden=5)
    before = jax.config.jax_enable_x64
    with jax.enable_x64(True):
        flat = flat_of(task)
        double = [
            jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, tree)
            for tree in (flat.variables, flat.data)
        ]
        flat = curvature.Flat(flat.objective, *double)
        vector, unravel = ravel_pytree(flat.variables["params"])

        def loss(vector):
            return flat.objective({"params": unravel(vector)}, flat.data)

        wanted = np.asarray(jax.jit(jax.hessian(loss))(vector))
        eye = jnp.eye(vector.size, dtype=jnp.float64)
        found = np.asarray(jax.jit(jax.vmap(curvature.hessian(flat)))(eye))
        np.testing.assert_allclose(found, wanted, atol=1e-6)  # metrics.ratio sums in float32
        value, slope = curvature.gradient(flat)
        assert float(value) == pytest.approx(float(loss(vector)), rel=1e-6)
        np.testing.assert_allclose(slope, jax.grad(loss)(vector), atol=1e-6)
    assert jax.config.jax_enable_x64 == before


def test_gauss_newton_by_brute_force():
    task = net_task("softmax", hidden=5)
    flat = flat_of(task)
    vector = flat.vector
    unravel = ravel_pytree(flat.variables["params"])[1]
    wanted = np.zeros((vector.size, vector.size))
    count = sum(int(batch["mask"].sum()) for batch in task.batches())
    for batch in task.batches():
        x = jnp.asarray(batch["x"][batch["mask"]])

        def logits(vector, x=x):
            return task.net.apply({"params": unravel(vector)}, x)

        jacobian = np.asarray(jax.jacrev(logits)(vector), np.float64)
        p = np.asarray(jax.nn.softmax(logits(vector)), np.float64)
        for j, of in zip(jacobian, p):
            wanted += j.T @ (np.diag(of) - np.outer(of, of)) @ j / count
    found = matrix(curvature.gauss_newton(flat), vector.size)
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    assert np.linalg.eigvalsh(found).min() > -1e-6
    both = matrix(curvature.hessian(flat), vector.size)
    assert np.abs(both - found).max() > 1e-3


def test_many_batches_are_one_large_batch():
    task = net_task("softmax", hidden=5)
    large = {
        name: np.concatenate([batch[name] for batch in task.batches()])
        for name in task.batches()[0]
    }
    mesh = parallel.make_mesh(jax.devices()[:1])
    flat = flat_of(task)
    whole = flat._replace(data=objective.collect([large], mesh))
    v = jax.random.normal(jax.random.key(0), flat.vector.shape)
    for make in (curvature.hessian, curvature.gauss_newton):
        products = [jax.jit(make(one))(v) for one in (flat, whole)]
        np.testing.assert_allclose(*products, rtol=2e-5, atol=1e-6)


def test_a_product_holds_one_batch_at_a_time():
    task = net_task("softmax", hidden=64)

    def memory(count):
        flat = flat_of(task, count=count)

        def product(variables, data, v):
            return curvature.hessian(curvature.Flat(flat.objective, variables, data))(v)

        traced = jax.jit(product).lower(flat.variables, flat.data, flat.vector)
        return traced.compile().memory_analysis().temp_size_in_bytes

    assert memory(16) < 1.2 * memory(2)


def test_all_eigenvalues_from_as_many_steps():
    values = np.array([5.0, 3, 1.5, 0.5, -0.2, -2])
    a = symmetric(values)
    found = curvature.ends(lambda v: a @ v, jnp.ones(6), steps=6, top=3)
    np.testing.assert_allclose(found.values, values, atol=1e-4)
    for value, vector in zip(found.values, found.vectors):
        np.testing.assert_allclose(a @ vector, value * vector, atol=1e-3)
        assert float(jnp.linalg.norm(vector)) == pytest.approx(1, rel=1e-5)


def test_ends_of_a_large_spectrum_and_their_residuals():
    values = np.concatenate([[40.0, 25, 12], np.linspace(-1, 1, 294), [-3, -8, -20]])
    a = symmetric(values)
    start = curvature.signs(jax.random.key(0), 300, jnp.float32)
    found = curvature.ends(lambda v: a @ v, start, steps=30, top=2)
    np.testing.assert_allclose(found.values, (40, 25, -8, -20), rtol=1e-4)
    assert np.all(found.residuals < 1e-2)
    few = curvature.ends(lambda v: a @ v, start, steps=6, top=2)
    for value, vector, residual in zip(*few):
        gap = float(jnp.linalg.norm(a @ vector - value * vector))
        assert gap == pytest.approx(float(residual), rel=1e-2, abs=1e-3)
    with pytest.raises(ValueError, match="2 x 4 eigenvalues of 6 steps"):
        curvature.ends(lambda v: a @ v, start, steps=6, top=4)


def test_the_steps_are_those_of_another_lanczos():
    """matfree's, which is an Arnoldi iteration with two passes of Gram and Schmidt."""
    a = symmetric(np.concatenate([10.0 ** np.linspace(2, -2, 40), np.linspace(-1, 1, 160)]))
    start = curvature.signs(jax.random.key(0), 200, jnp.float32)
    ours = curvature._tridiagonal(lambda v: a @ v, start, 60)
    theirs = decomp.tridiag_sym(60, reortho="full")(lambda v: a @ v, start)
    np.testing.assert_allclose(ours.basis @ ours.basis.T, np.eye(60), atol=1e-5)
    exact = np.linalg.eigvalsh(theirs.J_small)
    small = np.diag(ours.diagonal) + np.diag(ours.below[:-1], 1) + np.diag(ours.below[:-1], -1)
    np.testing.assert_allclose(np.linalg.eigvalsh(small)[-8:], exact[-8:], rtol=1e-5)
    rest = a @ ours.basis[-1] - ours.diagonal[-1] * ours.basis[-1]
    rest -= ours.below[-2] * ours.basis[-2]
    np.testing.assert_allclose(ours.below[-1], jnp.linalg.norm(rest), rtol=1e-3)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize(
    ("values", "block"),
    [
        (np.ones(40), 40),
        (np.zeros(40), 40),
        (np.repeat([5.0, 3, 0], [1, 2, 37]), 40),
        (np.linspace(-1, 4, 40), 1),
        (np.linspace(-1, 4, 40), 3),
        (np.linspace(-1, 4, 40), 8),
    ],
)
def test_a_start_in_few_directions(values, block, double):
    """Blocks of few parameters, low rank, the identity: rounding error is no further direction."""
    mask = np.float32(np.arange(40) < block)
    with jax.enable_x64(double):
        a = symmetric(values).astype(jnp.float64 if double else jnp.float32)
        v = jnp.asarray(mask, a.dtype)

        def product(x):
            return v * (a @ (v * x))

        start = v * curvature.signs(jax.random.key(0), 40, a.dtype)
        found = curvature.ends(product, start, steps=12, top=1)
        probe = curvature.quadrature(product, keys(2), 40, steps=12, dtype=a.dtype)
        found, probe, a = jax.device_get((found, probe, a))
    exact = np.linalg.eigvalsh(np.float64(a)[:block, :block])
    close = 1e-5 * max(1, np.abs(values).max())
    assert float(found.values[0]) == pytest.approx(exact.max(), abs=close)
    assert exact.min() - close < float(found.values[-1]) < exact.max() + close
    assert float(found.residuals.max()) < close
    np.testing.assert_allclose(probe.weights.sum(1), 1, rtol=1e-4)
    bounds = min(exact.min(), 0), max(exact.max(), 0)  # what is not in the block has the value 0
    assert probe.nodes.min() > bounds[0] - close
    assert probe.nodes.max() < bounds[1] + close


def test_where_there_are_fewer_nodes_than_steps_one_in_the_middle_comes_again():
    """Neither end is said twice, and the trace is that of the probes."""
    a = symmetric(np.array([7.0, 5, 1, 1, 1, 1, 1, -2]))
    probe = curvature.quadrature(lambda v: a @ v, keys(3), 8, steps=8)
    for nodes in probe.nodes:
        np.testing.assert_allclose(nodes[:2], (-2, 1), atol=1e-4)
        np.testing.assert_allclose(nodes[-2:], (5, 7), atol=1e-4)
        assert np.all(np.diff(nodes) >= 0)
    outer = curvature.outer(probe, 2)
    np.testing.assert_allclose(outer.values, (7, 5, -2, 1), atol=1e-4)
    each = [float(v @ a @ v) for v in (curvature.signs(k, 8, jnp.float32) for k in keys(3))]
    assert curvature.trace(probe, 8)[0] == pytest.approx(np.mean(each), rel=1e-4)


def test_negative_curvature_of_a_saddle():
    """A tanh net at 0: every gradient through the hidden layer vanishes, the point is a saddle."""
    task = net_task("squares", hidden=4)
    flat = flat_of(task, task.variables(scale=0.0))
    _, slope = curvature.gradient(flat)
    exact = np.linalg.eigvalsh(matrix(curvature.hessian(flat), flat.vector.size))
    start = curvature.signs(jax.random.key(1), flat.vector.size, jnp.float32)
    found = curvature.ends(curvature.hessian(flat), start, steps=10, top=1)
    assert exact.min() < -1e-2
    assert float(found.values[-1]) == pytest.approx(exact.min(), rel=1e-3)
    assert float(jnp.linalg.norm(slope)) < 1e-6


def keys(count):
    return jax.random.split(jax.random.key(3), count)


def test_weights_add_up_to_one_and_the_density_too():
    values = np.linspace(-2, 7, 60)
    a = symmetric(values)
    found = curvature.quadrature(lambda v: a @ v, keys(4), 60, steps=12)
    np.testing.assert_allclose(found.weights.sum(1), 1, rtol=1e-5)
    at = np.linspace(-6, 11, 4001)
    total = np.trapezoid(curvature.density(found, at, 0.3), at)
    assert total == pytest.approx(1, abs=1e-6)


def test_the_density_nears_the_spectrum_with_more_steps():
    """Wasserstein-1 between the exact spectrum and the quadrature of 16 probes."""
    values = np.concatenate([np.linspace(-1, 1, 150), np.linspace(5, 6, 50)])
    a = symmetric(values)
    gaps = []
    for steps in (2, 5, 20):
        found = curvature.quadrature(lambda v: a @ v, keys(16), 200, steps=steps)
        nodes, weights = (np.asarray(x, np.float64).ravel() for x in found[:2])
        gaps.append(stats.wasserstein_distance(values, nodes, v_weights=weights))
    assert gaps[0] > 2 * gaps[1] > 2 * gaps[2]
    assert gaps[2] < 0.05 * (values.max() - values.min())


def test_the_outermost_nodes_are_eigenvalues():
    values = np.concatenate([[40.0, 25, 12], np.linspace(-1, 1, 294), [-3, -8, -20]])
    a = symmetric(values)
    found = curvature.quadrature(lambda v: a @ v, keys(4), 300, steps=30)
    known = curvature.outer(found, 2)
    np.testing.assert_allclose(known.values, (40, 25, -20, -8), rtol=1e-4)
    assert np.all(known.residuals < 1e-2)


def test_the_trace_is_that_of_the_same_probes():
    values = np.linspace(-1, 3, 50)
    a = symmetric(values)
    found = curvature.quadrature(lambda v: a @ v, keys(16), 50, steps=8)
    each = []
    for key in keys(16):
        v = curvature.signs(key, 50, jnp.float32)
        each.append(float(v @ a @ v))
    mean, error = curvature.trace(found, 50)
    assert mean == pytest.approx(np.mean(each), rel=1e-4)
    assert error == pytest.approx(np.std(each, ddof=1) / 4, rel=1e-3)
    assert abs(mean - values.sum()) < 4 * error


def test_traces_of_blocks_add_up():
    task = net_task("softmax", hidden=5)
    flat = flat_of(task)
    masks = curvature.blocks(flat.variables["params"])
    assert list(masks) == ["Dense_0", "Dense_1"]
    np.testing.assert_array_equal(sum(masks.values()), 1)
    exact = np.diag(matrix(curvature.hessian(flat), flat.vector.size))
    v = curvature.signs(jax.random.key(0), flat.vector.size, jnp.float32)
    parts = np.asarray(v * curvature.hessian(flat)(v))
    assert sum(parts @ mask for mask in masks.values()) == pytest.approx(parts.sum(), rel=1e-5)
    assert sum(exact @ mask for mask in masks.values()) == pytest.approx(exact.sum())


def test_the_mark_changes_nothing():
    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(C, use_bias=False)(x)

    x = jnp.ones((2, D))
    marked, plain = (net.init(jax.random.key(0), x) for net in (Net(C), Plain()))
    assert jax.tree.structure(marked) == jax.tree.structure(plain)
    np.testing.assert_array_equal(Net(C).apply(marked, x), Plain().apply(plain, x))
    with marks.captured(marks.Outputs) as seen:
        y = Net(C).apply(marked, x)
    np.testing.assert_array_equal(seen[0], y)
    with marks.given(marks.Outputs, [jnp.zeros((2, C))]):
        assert not Net(C).apply(marked, x).any()


def test_a_hessian_product_of_the_toy_network_is_the_slope_of_the_gradient():
    task = toy.ToyTask(toy.make_config())
    variables = task.init(jax.random.key(3))
    mesh = parallel.make_mesh(jax.devices()[:1])
    data = objective.collect(task.eval_data()["dev"], mesh, repack=True)
    flat = curvature.Flat(objective.Objective(task, 0, 0), variables, data)
    unravel = ravel_pytree(variables["params"])[1]

    @jax.jit
    def slope(vector):
        moved = {**variables, "params": unravel(vector)}
        return curvature.gradient(flat._replace(variables=moved))[1]

    v = slope(flat.vector)
    v = v / jnp.linalg.norm(v)
    step = 1e-2
    wanted = (slope(flat.vector + step * v) - slope(flat.vector - step * v)) / (2 * step)
    found = jax.jit(curvature.hessian(flat))(v)
    np.testing.assert_allclose(found, wanted, atol=2e-3 * float(jnp.abs(found).max()))
