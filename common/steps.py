"""Train steps, written for one device inside the mapped axis `parallel.AXIS`."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

from common import metrics, optim, parallel, state

LossFn = Callable[..., tuple[Array, tuple[Array, Any, state.Variables]]]
Step = Callable[[state.TrainState, Any, Key[Array, ""]], tuple[state.TrainState, Any]]


class OneLoss:
    """What tasks with one loss and one optimizer have in common; they add `config` and `loss`."""

    config: Any
    loss: LossFn
    check_checkpoint: Callable[[Mapping[str, Any]], None]
    sharded: tuple[str, ...] = ()

    @functools.cached_property
    def optimizer(self) -> tuple[optax.GradientTransformation, optim.Schedule]:
        return optim.make_optimizer(self.config.optimizer, self.config.total_steps, self.sharded)

    @functools.cached_property
    def train_step(self) -> Step:
        return supervised(
            self.loss,
            self.optimizer[0],
            accumulate=self.config.accumulate,
            ema_decay=self.config.ema_decay,
            sharded=self.sharded,
        )

    def create_state(self, variables: state.Variables) -> state.TrainState:
        return state.create(variables, self.optimizer[0], ema=self.config.ema_decay > 0)

    def adopt(
        self, fresh: state.Variables, found: state.Variables, meta: Mapping[str, Any]
    ) -> state.Variables:
        del fresh
        self.check_checkpoint(meta)
        return found

    def schedule(self, step: int) -> float:
        return float(self.optimizer[1](step))


def supervised(
    loss: LossFn,
    tx: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    ema_decay: float = 0.0,
    sharded: Sequence[str] = (),
) -> Step:
    """The step that lowers one loss.

    `loss(variables, batch, key, step, train=True)` returns the sum over this device's real rows and
    (count, metrics, new model state). Gradients of sums are added over micro-batches and devices
    and divided once by the global count, so the result depends on neither number.

    `batch["row"]` is added: the row's number in the global batch, from which random streams take
    their per-row keys. With `accumulate` > 1 micro-batch m takes the rows m, m + a, m + 2a, ...,
    which is the same set of global rows on any number of devices.

    Parameters named in `sharded` (`parallel.specs`) lie over the devices: the loss sees a share of
    their rows, of which its gradient must be complete, all devices' rows of the batch included.
    """

    def value_and_grad(params: Any, model_state: Any, batch: Any, key: Any, step: Any) -> Any:
        def value(params: Any) -> Any:
            return loss({"params": params, **model_state}, batch, key, step, train=True)

        (total, (count, sums, new_state)), grads = jax.value_and_grad(value, has_aux=True)(params)
        return grads, new_state, (total, count, sums)

    def train_step(
        train_state: state.TrainState, batch: Any, key: Key[Array, ""]
    ) -> tuple[state.TrainState, Any]:
        rows = batch["mask"].shape[0]
        batch = {**batch, "row": parallel.row_numbers(rows)}
        params, model_state, step = train_state.params, train_state.model_state, train_state.step
        if accumulate == 1:
            grads, model_state, sums = value_and_grad(params, model_state, batch, key, step)
        else:
            if rows % accumulate:
                raise ValueError(
                    f"{rows} rows a device do not divide into accumulate={accumulate} parts."
                )
            parts = jax.tree.map(
                lambda x: x.reshape(rows // accumulate, accumulate, *x.shape[1:]).swapaxes(0, 1),
                batch,
            )
            shapes = jax.eval_shape(
                value_and_grad, params, model_state, jax.tree.map(lambda x: x[0], parts), key, step
            )
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes[0], shapes[2]))

            def body(carry: Any, part: Any) -> tuple[Any, None]:
                added, model_state = carry
                grads, model_state, sums = value_and_grad(params, model_state, part, key, step)
                return (jax.tree.map(jnp.add, added, (grads, sums)), model_state), None

            ((grads, sums), model_state), _ = jax.lax.scan(body, (zeros, model_state), parts)

        # As one vector: a device waits for the others once, not once for every array.
        split = [spec == parallel.ROWS for spec in jax.tree.leaves(parallel.specs(grads, sharded))]
        leaves, structure = jax.tree.flatten(grads)
        added = [leaf for leaf, own in zip(leaves, split) if not own]
        vector, unravel = jax.flatten_util.ravel_pytree((added, sums))
        added, (total, count, sums) = unravel(jax.lax.psum(vector, parallel.AXIS))
        added = iter(added)
        leaves = [leaf if own else next(added) for leaf, own in zip(leaves, split)]
        grads = jax.tree.unflatten(structure, leaves)
        divisor = jnp.maximum(count, 1.0)
        grads = jax.tree.map(lambda g: g / divisor, grads)
        updates, opt_state = tx.update(grads, train_state.opt_state, params)
        params = optax.apply_updates(params, updates)
        ema = train_state.ema
        if ema is not None:
            new = {"params": params, **model_state}
            ema = state.update_ema(ema, new, ema_decay, step)
        one = jnp.ones(())
        sums = {
            "loss": metrics.Ratio(total, count),
            "grad_norm": metrics.Ratio(optim.global_norm(grads, sharded), one),
            **sums,
        }
        new_state = train_state.replace(
            step=step + 1,
            params=params,
            model_state=model_state,
            opt_state=opt_state,
            ema=ema,
        )
        return new_state, sums

    return train_step
