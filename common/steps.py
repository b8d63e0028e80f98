"""Train steps, written for one device inside the mapped axis `parallel.AXIS`.

Every step is made of `gradients` and `apply`; see `supervised`, the shortest.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

from common import metrics, optim, parallel, parts, state

# loss(variables, batch, key, step, train=True) -> (terms, (metrics, new model state))
LossFn = Callable[..., tuple[Mapping[str, metrics.Term], tuple[metrics.Metrics, state.Variables]]]
Step = Callable[[state.TrainState, Any, Key[Array, ""]], tuple[state.TrainState, metrics.Metrics]]


class SupervisedTask:
    """What tasks with one loss have in common; they add `config`, `loss` and the data.

    Attributes:
        averaged: paths of what `config.ema_decay` averages ("generator"); () means all.
    """

    config: Any
    loss: LossFn
    check_checkpoint: Callable[[Mapping[str, Any]], None]
    sharded: tuple[str, ...] = ()
    averaged: tuple[str, ...] = ()
    num_examples: int = 0

    @functools.cached_property
    def optimizer(self) -> optim.Optimizer:
        return optim.make_optimizer(self.config.optimizer, self.config.total_steps, self.sharded)

    @functools.cached_property
    def train_step(self) -> Step:
        return supervised(
            self.loss,
            self.optimizer.tx,
            accumulate=self.config.accumulate,
            ema_decay=self.config.ema_decay,
            sharded=self.sharded,
        )

    def create_state(self, variables: state.Variables) -> state.TrainState:
        ema = self.config.ema_decay > 0
        return state.create(variables, self.optimizer.tx, ema=ema, averaged=self.averaged)

    def adopt(
        self, fresh: state.Variables, found: state.Variables, meta: Mapping[str, Any]
    ) -> state.Variables:
        del fresh
        self.check_checkpoint(meta)
        return found

    def keep(self, split: str, outputs: Mapping[str, Any]) -> Mapping[str, Any]:
        del split
        return outputs

    def schedule(self, step: int) -> dict[str, float]:
        return {name: float(at(step)) for name, at in self.optimizer.schedules.items()}


def gradients(
    loss: LossFn,
    variables: state.Variables,
    batch: Any,
    key: Key[Array, ""],
    step: Any,
    *,
    of: Sequence[str] = (),
    accumulate: int = 1,
    sharded: Sequence[str] = (),
) -> tuple[Any, state.Variables, dict[str, metrics.Ratio]]:
    """(gradients, new model state, sums for the log) of a loss, the same on every device.

    The loss gives terms (`metrics.Term`) that are sums over this device's real rows. Each is
    divided by its count in the global batch, so the result depends on neither the number of devices
    nor that of micro-batches. Collections that it does not return stay as they were.

    With `accumulate` > 1 micro-batch m takes the rows m, m + a, m + 2a, ..., which is the same set
    of global rows on any number of devices. `of`: paths of the parameters whose gradients are
    wanted, the others being constants; () means all.

    Parameters named in `sharded` (`parallel.specs`) lie over the devices: the loss sees a share of
    their rows, of which its gradient must be complete, all devices' rows of the batch included.
    """
    model_state = {name: tree for name, tree in variables.items() if name != "params"}
    params = variables["params"]
    wanted = parts.select(params, of)

    def counts_of(terms: Any) -> dict[str, Array]:
        return {name: jax.lax.stop_gradient(jnp.float32(t.count)) for name, t in terms.items()}

    def value(wanted: Any, model_state: Any, batch: Any, counts: Any = None) -> Any:
        whole = {**model_state, "params": parts.replace(params, wanted)}
        terms, (sums, new) = loss(whole, batch, key, step, train=True)
        if counts is None:
            counts = jax.lax.psum(counts_of(terms), parallel.AXIS)
        total = sum(
            term.weight * term.total / metrics.at_least_one(counts[name])
            for name, term in terms.items()
        )
        named = {name: metrics.Ratio(term.total, term.count) for name, term in terms.items()}
        after = parts.replace(model_state, new)
        if jax.tree.structure(after) != jax.tree.structure(model_state):
            raise ValueError(
                f"The loss returned state that is not in the model's at init: {sorted(new)} beside "
                f"{sorted(model_state)}. No checkpoint would have it."
            )
        return total, (after, (total, named, dict(sums)))

    value_and_grad = jax.value_and_grad(value, has_aux=True)
    if accumulate == 1:
        (_, (model_state, sums)), grads = value_and_grad(wanted, model_state, batch)
    else:
        micro = _split(batch, accumulate)
        # All counts come before the first gradient. They follow from the batch alone: XLA drops the
        # rest of these passes (tests/common/test_steps.py counts what is left).
        counts = jax.lax.map(
            lambda batch: counts_of(loss(variables, batch, key, step, train=True)[0]), micro
        )
        counts = jax.lax.psum(jax.tree.map(jnp.sum, counts), parallel.AXIS)
        first = jax.tree.map(lambda x: x[0], micro)
        shapes = jax.eval_shape(value_and_grad, wanted, model_state, first, counts)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes[1], shapes[0][1][1]))

        def body(carry: Any, batch: Any) -> tuple[Any, None]:
            added, model_state = carry
            (_, (model_state, sums)), grads = value_and_grad(wanted, model_state, batch, counts)
            return (jax.tree.map(jnp.add, added, (grads, sums)), model_state), None

        ((grads, sums), model_state), _ = jax.lax.scan(body, (zeros, model_state), micro)

    grads, (total, named, sums) = _over_devices(grads, sums, sharded)
    sums = {
        "loss": metrics.weighed(total, named),
        "grad_norm": metrics.gauge(optim.global_norm(grads, sharded)),
        **named,
        **sums,
    }
    return grads, model_state, sums


def _over_devices(grads: Any, sums: Any, sharded: Sequence[str]) -> tuple[Any, Any]:
    """The sums over all devices; gradients of `sharded` parameters are complete already.

    As one vector: a device waits for the others once, not once for every array.
    """
    split = [spec == parallel.ROWS for spec in jax.tree.leaves(parallel.specs(grads, sharded))]
    leaves, structure = jax.tree.flatten(grads)
    added = [leaf for leaf, own in zip(leaves, split) if not own]
    vector, unravel = jax.flatten_util.ravel_pytree((added, sums))
    added, sums = unravel(jax.lax.psum(vector, parallel.AXIS))
    added = iter(added)
    leaves = [leaf if own else next(added) for leaf, own in zip(leaves, split)]
    return jax.tree.unflatten(structure, leaves), sums


def _split(batch: Any, count: int) -> Any:
    """A batch as `count` of them, one after the other on a new first axis."""
    rows = batch["mask"].shape[0]
    if rows % count:
        raise ValueError(f"{rows} rows a device do not divide into {count} parts.")
    return jax.tree.map(
        lambda x: x.reshape(rows // count, count, *x.shape[1:]).swapaxes(0, 1), batch
    )


def _with_rows(batch: Any) -> Any:
    """The batch with `row`, the numbers in the global batch from which rows take their keys."""
    return {**batch, "row": parallel.row_numbers(batch["mask"].shape[0])}


def apply(
    tx: optax.GradientTransformation,
    train_state: state.TrainState,
    grads: Any,
    model_state: state.Variables,
) -> state.TrainState:
    """The state after an update by these gradients, of all parameters or of some (`optim`)."""
    params = parts.like(train_state.params, grads)
    updates, opt_state = tx.update(grads, train_state.opt_state, params)
    return train_state.replace(
        params=parts.replace(train_state.params, optax.apply_updates(params, updates)),
        model_state=model_state,
        opt_state=opt_state,
    )


def advance(train_state: state.TrainState, ema_decay: float) -> state.TrainState:
    """The state at the end of a step: the average has moved, if there is one, and the step."""
    ema, step = train_state.ema, train_state.step
    if ema is not None:
        ema = state.update_ema(ema, train_state.variables, ema_decay, step)
    return train_state.replace(step=step + 1, ema=ema)


def supervised(
    loss: LossFn,
    tx: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    ema_decay: float = 0.0,
    sharded: Sequence[str] = (),
) -> Step:
    """The step that lowers one loss; see `gradients`."""

    def train_step(
        train_state: state.TrainState, batch: Any, key: Key[Array, ""]
    ) -> tuple[state.TrainState, metrics.Metrics]:
        grads, model_state, sums = gradients(
            loss,
            train_state.variables,
            _with_rows(batch),
            key,
            train_state.step,
            accumulate=accumulate,
            sharded=sharded,
        )
        return advance(apply(tx, train_state, grads, model_state), ema_decay), sums

    return train_step


@dataclasses.dataclass(frozen=True)
class Player:
    """One side of an adversarial step: its loss, and the parameters that are to lower it.

    Attributes:
        name: of its sums in the log: `<name>_loss`, `<name>_grad_norm`.
        of: paths of its parameters ("discriminator"); the others are constants to it.
        updates: in a row, before the next player's. Number m of n takes the rows m, m + n, ...
    """

    name: str
    loss: LossFn
    of: tuple[str, ...]
    updates: int = 1


def adversarial(
    players: Sequence[Player],
    tx: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    ema_decay: float = 0.0,
    sharded: Sequence[str] = (),
) -> Step:
    """The step in which players update their parameters one after the other, on the same batch.

    Each sees what those before it have made of theirs (Goodfellow et al. 2014, algorithm 1: first
    the discriminator, then the generator). `tx` is that of `optim.make_optimizers`, with one group
    a player. In the log `loss` is that of the last player.
    """

    def train_step(
        train_state: state.TrainState, batch: Any, key: Key[Array, ""]
    ) -> tuple[state.TrainState, metrics.Metrics]:
        batch, said = _with_rows(batch), {}
        for number, player in enumerate(players):
            keys = jax.random.split(jax.random.fold_in(key, number), player.updates)

            def update(
                train_state: state.TrainState, drawn: Any, player: Player = player
            ) -> tuple[state.TrainState, Any]:
                batch, key = drawn
                grads, model_state, sums = gradients(
                    player.loss,
                    train_state.variables,
                    batch,
                    key,
                    train_state.step,
                    of=player.of,
                    accumulate=accumulate,
                    sharded=sharded,
                )
                return apply(tx, train_state, grads, model_state), sums

            if player.updates == 1:  # XLA:CPU's convolutions are many times slower within a loop
                train_state, sums = update(train_state, (batch, keys[0]))
            else:
                rows = _split(batch, player.updates)
                train_state, sums = jax.lax.scan(update, train_state, (rows, keys))
                sums = jax.tree.map(lambda x: jnp.sum(x, 0), sums)
            for name in ("loss", "grad_norm"):
                sums[f"{player.name}_{name}"] = sums[name]
            said |= sums
        return advance(train_state, ema_decay), said

    return train_step
