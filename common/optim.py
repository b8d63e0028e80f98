"""Optimizers and learning-rate schedules by name; steps count optimizer updates."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import optax
from flax import traverse_util
from jaxtyping import Array
from ml_collections import ConfigDict

from common import errors, parallel, parts

Schedule = Callable[[Any], Any]


class Optimizer(NamedTuple):
    """A gradient transformation and its learning rates, step -> rate, by their names in the log."""

    tx: optax.GradientTransformation
    schedules: Mapping[str, Schedule]


class Group(NamedTuple):
    """Parameters with an optimizer of their own: its settings, their paths, its updates a step."""

    config: ConfigDict
    of: tuple[str, ...]
    updates: int = 1


def default_config() -> ConfigDict:
    """All optimizer settings with their defaults."""
    return ConfigDict(
        {
            "name": "adam",  # adam (decoupled weight decay if it is > 0), sgd
            "schedule": "cosine",  # noam, cosine, exponential, steps, constant
            "learning_rate": 1e-3,  # the peak, at the end of the warm-up
            "warmup_steps": 1000,
            "final_ratio": 0.01,  # cosine, exponential: last over peak learning rate
            # (("head", 0.5),): the rate of parameters under "head" is half of that of the others;
            # (("head", 0.5, 1000),): and 0 in the first 1000 steps.
            "rate_factors": (),
            "boundaries": (),  # steps: where the rate is multiplied by `factor`
            "factor": 0.5,
            "b1": 0.9,
            "b2": 0.98,
            "eps": 1e-9,
            "momentum": 0.9,  # sgd
            "nesterov": False,  # sgd
            # On matrices only, not on biases and norms; adam: decoupled, sgd: in the gradient.
            "weight_decay": 0.0,
            "clip_norm": 0.0,  # global gradient norm; 0 = no clipping
        }
    )


def make_schedule(config: ConfigDict, total_steps: int) -> Schedule:
    """step -> learning rate.

    noam: linear warm-up to the peak, then proportional to step^-0.5 (Vaswani et al. 2017, eq. 3,
    scaled so that the peak is `learning_rate`). cosine: linear warm-up, then half a cosine down to
    `final_ratio` of the peak at `total_steps`. exponential: falls by the same factor at every step,
    to `final_ratio` of the peak at `total_steps`; warming up, times the share of the warm-up that
    has passed (wespeaker). steps: warm-up, then times `factor` at a boundary.
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
    if config.schedule == "exponential":

        def exponential(step: Any) -> Any:
            step = jnp.asarray(step, jnp.float32)
            ramp = jnp.minimum(step / warmup, 1.0)
            return peak * ramp * config.final_ratio ** (step / total_steps)

        return exponential
    if config.schedule in ("steps", "constant"):
        bounds = config.boundaries if config.schedule == "steps" else ()
        decay = optax.piecewise_constant_schedule(
            peak, {max(0, int(b) - warmup): config.factor for b in bounds}
        )
        return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), decay], [warmup])
    raise errors.UserError(
        f"optimizer.schedule={config.schedule!r} is unknown; choose noam, cosine, exponential, "
        "steps, constant."
    )


def _is_matrix(params: Any) -> Any:
    return jax.tree.map(lambda p: p.ndim > 1, params)


def global_norm(tree: Any, sharded: Sequence[str] = ()) -> Array:
    """Euclidean length of all leaves together; inside the mapped axis if some are `sharded`."""
    leaves = {parallel.ROWS: [], parallel.REPLICATED: []}
    for spec, leaf in zip(
        jax.tree.leaves(parallel.specs(tree, sharded)), jax.tree.leaves(tree), strict=True
    ):
        leaves[spec].append(leaf.astype(jnp.float32))
    # As one vector, see `make_optimizer`.
    square = jnp.sum(jnp.square(jax.flatten_util.ravel_pytree(leaves[parallel.REPLICATED])[0]))
    if sharded:
        split = sum(jnp.sum(jnp.square(leaf)) for leaf in leaves[parallel.ROWS])
        square += jax.lax.psum(split, parallel.AXIS)
    return jnp.sqrt(square)


def _clip(most: float, sharded: Sequence[str]) -> optax.GradientTransformation:
    """Scales the gradients down to a global norm of `most`, that of all devices' shares."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        factor = most / jnp.maximum(global_norm(updates, sharded), most)
        if sharded:
            return jax.tree.map(lambda g: g * factor, updates), state
        vector, unravel = jax.flatten_util.ravel_pytree(updates)
        return unravel(vector * factor), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def make_optimizer(
    config: ConfigDict, total_steps: int, sharded: Sequence[str] = (), *, updates: int = 1
) -> Optimizer:
    """The optimizer of all parameters and its `learning_rate`; `sharded` as in `parallel.specs`.

    With `updates` > 1, so many follow each other in a step and have its learning rate.
    """
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
        decay = optax.add_decayed_weights(config.weight_decay, mask=_is_matrix)
        steps.insert(len(steps) - (config.name == "sgd"), decay)
    steps.append(optax.scale_by_learning_rate(lambda count: schedule(count // updates)))
    if config.rate_factors:
        steps.append(_scale_parts(tuple(config.rate_factors), updates))
    return Optimizer(optax.chain(*steps), {"learning_rate": schedule})


def make_optimizers(
    groups: Mapping[str, Group],
    total_steps: int,
    sharded: Sequence[str] = (),
) -> Optimizer:
    """An optimizer for each named group of parameters, and `learning_rate_<name>` of each.

    Takes gradients of some groups only, too: the other groups' moments and schedules stay as they
    are. Raises UserError at init for a parameter that is not of one group.
    """
    made = {
        name: make_optimizer(group.config, total_steps, sharded, updates=group.updates)
        for name, group in groups.items()
    }

    def of(name: str, tree: Any) -> Any:
        return parts.select(tree, groups[name].of)

    def init(params: Any) -> dict[str, Any]:
        whose = {path: [] for path in traverse_util.flatten_dict(params, sep="/")}
        for name in groups:
            for path in traverse_util.flatten_dict(of(name, params), sep="/"):
                whose[path].append(name)
        for path, names in whose.items():
            if len(names) != 1:
                raise errors.UserError(
                    f"The parameter {path} is in {len(names)} groups of the optimizers "
                    f"({', '.join(names) or 'none'}), and must be in one of {', '.join(groups)}."
                )
        return {name: made[name].tx.init(of(name, params)) for name in groups}

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        found, state = {}, dict(state)
        for name in groups:
            if own := of(name, updates):
                moved, state[name] = made[name].tx.update(own, state[name], parts.like(params, own))
                found = parts.replace(found, moved)
        return found, state

    return Optimizer(
        optax.GradientTransformation(init, update),
        {f"learning_rate_{name}": made[name].schedules["learning_rate"] for name in groups},
    )


class _Count(NamedTuple):
    """Updates so far."""

    count: Any


def _scale_parts(
    factors: tuple[tuple[Any, ...], ...], updates_per_step: int
) -> optax.GradientTransformation:
    """Scales the updates of parameters by the factor of the first prefix that their path has.

    (prefix, factor), or (prefix, factor, first step): before it the factor is 0.
    """
    late = any(len(entry) > 2 and entry[2] > 0 for entry in factors)

    def factor(path: Any, update: Any, step: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator="/") + "/"
        for prefix, scale, *first in factors:
            if name.startswith(f"{prefix}/"):
                if late and first:
                    scale = jnp.where(step < first[0], 0.0, scale).astype(update.dtype)
                return update * scale
        return update

    def init(params: Any) -> Any:
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        names = [jax.tree_util.keystr(path, simple=True, separator="/") + "/" for path in paths]
        for prefix, *_ in factors:
            if not any(name.startswith(f"{prefix}/") for name in names):
                raise errors.UserError(
                    f"optimizer.rate_factors: no parameter lies under {prefix!r}; there are "
                    f"{', '.join(sorted({name.split('/')[0] for name in names}))}."
                )
        return _Count(jnp.zeros((), jnp.int32)) if late else optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        step = state.count // updates_per_step if late else 0
        scaled = jax.tree_util.tree_map_with_path(
            lambda path, update: factor(path, update, step), updates
        )
        return scaled, _Count(optax.safe_increment(state.count)) if late else state

    return optax.GradientTransformation(init, update)
