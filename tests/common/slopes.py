"""Products with the Hessian of a task's loss, against differences of its gradient."""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from common import parallel
from common.analysis import curvature, objective


def gaps(task, variables, batch, step: float) -> tuple[float, float]:
    """|Hv - (g(x + step v) - g(x - step v)) / 2 step| / |Hv| for v along the gradient, and what is
    not symmetric: |u'Hv - v'Hu| / |Hv| for a random unit vector u."""
    data = objective.collect([batch], parallel.make_mesh(jax.devices()[:1]))
    goal = objective.Objective(task, 0, 0)

    @jax.jit
    def slope(params):
        moved = {**variables, "params": params}
        return curvature.gradient(curvature.Flat(goal, moved, data))[1]

    @jax.jit
    def product(v):
        return curvature.hessian(curvature.Flat(goal, variables, data))(v)

    vector, unravel = ravel_pytree(variables["params"])
    v = slope(variables["params"])
    v = v / jnp.linalg.norm(v)
    u = jax.random.normal(jax.random.key(0), v.shape)
    u = u / jnp.linalg.norm(u)
    bent, other = product(v), product(u)
    size = float(jnp.linalg.norm(bent))
    wanted = (slope(unravel(vector + step * v)) - slope(unravel(vector - step * v))) / (2 * step)
    assert size > 0
    return float(jnp.linalg.norm(bent - wanted)) / size, abs(float(u @ bent - v @ other)) / size
