"""Margins as traced functions of the optimizer step: a schedule does not recompile."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from common import errors

GROWTHS = ("exponential", "linear", "sphereface")


def margin_at(
    step: Int[Array, ""] | int,
    *,
    final: float,
    start_step: int,
    end_step: int,
    initial: float = 0.0,
    growth: str = "exponential",
) -> Float[Array, ""]:
    """The margin at an optimizer step: `initial` until start_step, `final` from end_step on.

    Between them, with r from 0 to 1: `linear`, or `exponential`, 1 - 0.001^r of the way (wespeaker
    v2: 0 to 0.2 over epochs 20 to 40), fast first and 0.999 of the way at the end.

    `sphereface` is the annealing of Liu et al.'s code for the kind of that name, a margin of
    1 / (1 + lambda) with lambda = max(1 / final - 1, 1000 / (1 + 0.12 (step - start_step))); their
    least lambda of 5 is a `final` of 1/6. It knows no end_step.
    """
    if growth not in GROWTHS:
        raise errors.UserError(f"growth={growth!r} is unknown; choose {', '.join(GROWTHS)}.")
    if growth == "sphereface":
        if not 0 < final <= 1:
            raise errors.UserError(
                f"growth='sphereface' ends above 0 and at most at 1, not {final}."
            )
        passed = jnp.maximum(jnp.asarray(step, jnp.float32) - start_step, 0.0)
        return 1.0 / (1.0 + jnp.maximum(1.0 / final - 1.0, 1000.0 / (1.0 + 0.12 * passed)))
    if end_step < start_step:
        raise errors.UserError(f"The margin's end_step={end_step} is before {start_step=}.")
    step = jnp.asarray(step, jnp.float32)
    part = jnp.clip((step - start_step) / max(end_step - start_step, 1), 0.0, 1.0)
    way = part if growth == "linear" else 1.0 - jnp.exp(math.log(1e-3) * part)
    return jnp.where(step >= end_step, final, initial + (final - initial) * way)
