"""Margins as traced functions of the optimizer step: a schedule does not recompile."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from common import errors


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
    """
    if growth not in ("exponential", "linear"):
        raise errors.UserError(f"growth={growth!r} is unknown; choose exponential, linear.")
    if end_step < start_step:
        raise errors.UserError(f"The margin's end_step={end_step} is before {start_step=}.")
    step = jnp.asarray(step, jnp.float32)
    part = jnp.clip((step - start_step) / max(end_step - start_step, 1), 0.0, 1.0)
    way = part if growth == "linear" else 1.0 - jnp.exp(math.log(1e-3) * part)
    return jnp.where(step >= end_step, final, initial + (final - initial) * way)


def sphereface_margin(
    step: Int[Array, ""] | int, *, start: float = 1000.0, rate: float = 0.12, least: float = 5.0
) -> Float[Array, ""]:
    """m = 1 / (1 + lambda), lambda = max(least, start / (1 + rate step)): the annealing of the code
    of Liu et al. 2017, for `MarginConfig.kind` sphereface."""
    step = jnp.asarray(step, jnp.float32)
    return 1.0 / (1.0 + jnp.maximum(least, start / (1.0 + rate * step)))
