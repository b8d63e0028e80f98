"""Optimizers and learning-rate schedules by name; steps count optimizer updates."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array
from ml_collections import ConfigDict

from common import errors, parallel

Schedule = Callable[[Any], Any]


def default_config() -> ConfigDict:
    """All optimizer settings with their defaults."""
    return ConfigDict(
        {
            "name": "adam",  # adam (decoupled weight decay if it is > 0), sgd
            "schedule": "cosine",  # noam, cosine, steps, constant
            "learning_rate": 1e-3,  # the peak, at the end of the warm-up
            "warmup_steps": 1000,
            "final_ratio": 0.01,  # cosine: last over peak learning rate
            "boundaries": (),  # steps: where the rate is multiplied by `factor`
            "factor": 0.5,
            "b1": 0.9,
            "b2": 0.98,
            "eps": 1e-9,
            "momentum": 0.9,  # sgd
            "nesterov": False,  # sgd
            "weight_decay": 0.0,  # decoupled; on matrices only, not on biases and norms
            "clip_norm": 0.0,  # global gradient norm; 0 = no clipping
        }
    )


def make_schedule(config: ConfigDict, total_steps: int) -> Schedule:
    """step -> learning rate.

    noam: linear warm-up to the peak, then proportional to step^-0.5 (Vaswani et al. 2017, eq. 3,
    scaled so that the peak is `learning_rate`). cosine: linear warm-up, then half a cosine down to
    `final_ratio` of the peak at `total_steps`. steps: warm-up, then times `factor` at a boundary.
    """
    peak, warmup = config.learning_rate, max(1, config.warmup_steps)
    if config.schedule == "noam":

        def noam(step: Any) -> Any:
            step = jnp.asarray(step, jnp.float32) + 1.0
            return peak * jnp.minimum(step / warmup, jnp.sqrt(warmup / step))

        return noam
    if config.schedule == "cosine":
        if warmup >= total_steps:
            raise errors.UserError(
                f"optimizer.warmup_steps={warmup} leaves nothing of total_steps={total_steps}; "
                "lower the one or raise the other."
            )
        return optax.warmup_cosine_decay_schedule(
            0.0, peak, warmup, total_steps, end_value=peak * config.final_ratio
        )
    if config.schedule in ("steps", "constant"):
        bounds = config.boundaries if config.schedule == "steps" else ()
        decay = optax.piecewise_constant_schedule(
            peak, {max(0, int(b) - warmup): config.factor for b in bounds}
        )
        return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), decay], [warmup])
    raise errors.UserError(
        f"optimizer.schedule={config.schedule!r} is unknown; choose noam, cosine, steps, constant."
    )


def _is_matrix(params: Any) -> Any:
    return jax.tree.map(lambda p: p.ndim > 1, params)


def global_norm(tree: Any, sharded: Sequence[str] = ()) -> Array:
    """Euclidean length of all leaves together; inside the mapped axis if some are `sharded`."""
    parts = {spec: jnp.zeros(()) for spec in (parallel.ROWS, parallel.REPLICATED)}
    for spec, leaf in zip(
        jax.tree.leaves(parallel.specs(tree, sharded)), jax.tree.leaves(tree), strict=True
    ):
        parts[spec] += jnp.sum(jnp.square(leaf.astype(jnp.float32)))
    split = parts[parallel.ROWS]
    if sharded:
        split = jax.lax.psum(split, parallel.AXIS)
    return jnp.sqrt(split + parts[parallel.REPLICATED])


def _clip(most: float, sharded: Sequence[str]) -> optax.GradientTransformation:
    """Scales the gradients down to a global norm of `most`, that of all devices' shares."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        factor = most / jnp.maximum(global_norm(updates, sharded), most)
        return jax.tree.map(lambda g: g * factor, updates), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def make_optimizer(
    config: ConfigDict, total_steps: int, sharded: Sequence[str] = ()
) -> tuple[optax.GradientTransformation, Schedule]:
    """The gradient transformation and its schedule; `sharded` as in `parallel.specs`."""
    schedule = make_schedule(config, total_steps)
    steps = []
    if config.clip_norm > 0:
        steps.append(_clip(config.clip_norm, sharded))
    if config.name == "adam":
        moments = optax.scale_by_adam(config.b1, config.b2, config.eps)
    elif config.name == "sgd":
        moments = optax.trace(config.momentum, nesterov=config.nesterov)
    else:
        raise errors.UserError(f"optimizer.name={config.name!r} is unknown; choose adam or sgd.")
    # On one vector of all parameters: a hundred small arrays cost a hundred small programs, a fifth
    # of the quickstart's compilation.
    if sharded:

        def kinds(params: Any) -> Any:
            split = parallel.specs(params, sharded)
            return jax.tree.map(lambda spec: "rows" if spec == parallel.ROWS else "whole", split)

        steps.append(optax.partition({"whole": optax.flatten(moments), "rows": moments}, kinds))
    else:
        steps.append(optax.flatten(moments))
    if config.weight_decay > 0:
        steps.append(optax.add_decayed_weights(config.weight_decay, mask=_is_matrix))
    steps.append(optax.scale_by_learning_rate(schedule))
    return optax.chain(*steps), schedule
