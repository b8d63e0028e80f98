"""What a training run is at one step, and keys derived from (seed, stream, step)."""

import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Int, Key

from common import parts

Variables = dict[str, Any]


class TrainState(struct.PyTreeNode):
    """All that a step changes; replicated over devices, donated to the step.

    `step` counts optimizer updates. `params` and the optimizer's statistics are float32.
    `model_state` holds the other Linen collections (`{"batch_stats": ...}`). `ema` is the
    exponential moving average of `{"params", **model_state}`, or of parts of them, or None when it
    is switched off.
    """

    step: Any  # int32 scalar; also a ShapeDtypeStruct in templates
    params: Any
    model_state: Any
    opt_state: Any
    ema: Any

    @property
    def variables(self) -> Variables:
        """The variables as trained at this step."""
        return {"params": self.params, **self.model_state}

    @property
    def eval_variables(self) -> Variables:
        """The variables to evaluate and export: averaged where there is an average."""
        return self.variables if self.ema is None else parts.replace(self.variables, self.ema)


def create(
    variables: Variables,
    tx: optax.GradientTransformation,
    *,
    ema: bool,
    averaged: Sequence[str] = (),
) -> TrainState:
    """The state at step 0. `averaged`: paths in the collections ("generator"); () means all."""
    average = {name: parts.select(tree, averaged) for name, tree in variables.items()}
    if ema and not average["params"]:
        raise ValueError(f"no parameter lies under any of {averaged}: there is nothing to average")
    average = {name: tree for name, tree in average.items() if tree}
    variables = dict(variables)
    params = variables.pop("params")
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state=variables,
        opt_state=tx.init(params),
        ema=average if ema else None,
    )


def update_ema(average: Variables, new: Variables, decay: float, step: Int[Array, ""]) -> Variables:
    """`average` moved towards its part of `new`.

    Early steps use (1 + step) / (10 + step) so that the random start is forgotten (as in
    TensorFlow's ExponentialMovingAverage with num_updates).
    """
    rate = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    new = parts.like(new, average)
    return jax.tree.map(lambda a, n: rate * a + (1.0 - rate) * n, average, new)


def stream_key(seed: int, name: str, step: int | Int[Array, ""]) -> Key[Array, ""]:
    """The key of stream `name` at `step`. Derived, never carried: a resumed run draws the same."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
    return jax.random.fold_in(key, step)
