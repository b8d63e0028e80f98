"""Products with the Hessian of a task's loss, against differences of its gradient."""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from common import parallel
from common.analysis import curvature, double, objective

STEP = 1e-8  # in double precision: so small that it passes no kink of the many ReLUs


def gaps(task, batch) -> tuple[float, float]:
    """|Hv - (g(x + step v) - g(x - step v)) / 2 step| / |Hv| for v along the gradient g, and what
    is not symmetric, |u'Hv - v'Hu| / |u'Hv|, for a direction u of random signs.

    x is beside the initial point, where biases of 0 are on the kinks themselves.
    """
    variables = jax.jit(task.init)(jax.random.key(0))
    data = objective.collect([batch], parallel.make_mesh(jax.devices()[:1]))
    goal = objective.Objective(task, 0, 0)
    vector, unravel = ravel_pytree(variables["params"])
    vector += 0.02 * jax.random.normal(jax.random.key(1), vector.shape)

    def flat(vector, variables, data):
        return curvature.Flat(goal, {**variables, "params": unravel(vector)}, data)

    def gradient(vector, variables, data):
        return curvature.gradient(flat(vector, variables, data))[1]

    def product(v, vector, variables, data):
        return curvature.hessian(flat(vector, variables, data))(v)

    with jax.enable_x64(True):
        slope, bend = (jax.jit(double.in_double(fn)) for fn in (gradient, product))
        vector, given = vector.astype(jnp.float64), (variables, data)
        v = slope(vector, *given)
        v = v / jnp.linalg.norm(v)
        u = jax.random.rademacher(jax.random.key(2), v.shape, v.dtype)
        bent, other = bend(v, vector, *given), bend(u, vector, *given)
        ahead, behind = (slope(vector + sign * STEP * v, *given) for sign in (1, -1))
        wanted = (ahead - behind) / (2 * STEP)
        assert float(jnp.linalg.norm(bent)) > 0
        gap = jnp.linalg.norm(bent - wanted) / jnp.linalg.norm(bent)
        return float(gap), float(jnp.abs(u @ bent - v @ other) / jnp.abs(u @ bent))
