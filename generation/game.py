"""The game of a GAN: what its two players lose in a step."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from common import metrics, parallel, parts, state
from common.task import Batch, Metrics
from generation import diff_augment, directions, losses, matcher, model, sides, voice2face
from speaker import margins

_WEIGHT_OF_WRONG = 0.5  # of each of the two kinds of what is not to be believed


@dataclasses.dataclass(frozen=True)
class Game:
    """By `config.loss`, inside the mapped axis. Both losses are those of a `steps.Player`."""

    config: Any
    networks: model.Networks
    direction: directions.Direction

    @functools.cached_property
    def _adversarial(self) -> losses.Adversarial:
        return losses.adversarial(self.config.loss.kind)

    def _noise(self, batch: Batch, key: Any) -> jax.Array:
        keys = parallel.row_keys(jax.random.fold_in(key, 1), batch["row"])
        return jax.vmap(lambda key: jax.random.normal(key, (self.networks.noise,)))(keys)

    def _judge(
        self, batch: Batch, key: Any, *, train: bool
    ) -> Callable[..., tuple[sides.Judged, state.Variables]]:
        """judge(variables, pictures, condition, number): what the discriminator says, and the
        variables with its new state. In training, pictures are changed, all of a row alike, and
        passes that move the state have numbers."""
        settings = self.config.loss
        seen = parallel.row_keys(jax.random.fold_in(key, 2), batch["row"])

        def judge(
            variables: state.Variables,
            pictures: jax.Array,
            condition: jax.Array,
            number: int | None,
        ) -> tuple[sides.Judged, state.Variables]:
            if train and settings.augment:
                pictures = diff_augment.augmented(
                    pictures, seen, settings.augment, settings.augment_strength
                )
            training = None if number is None else _training(batch, key, number)
            found, new = self.networks.judge(variables, pictures, condition, training)
            return found, parts.replace(variables, new)

        return judge

    def discriminator_loss(
        self, variables: state.Variables, batch: Batch, key: Any, step: Any, *, train: bool
    ) -> tuple[dict[str, metrics.Term], tuple[Metrics, state.Variables]]:
        """Real pictures against fakes, and against real ones with another's voice or face."""
        settings, mask, game = self.config.loss, batch["mask"], self._adversarial
        condition = self.direction.condition(variables, batch, key if train else None)
        noise = self._noise(batch, key)
        fake, _ = self.networks.play(variables, condition, noise, _training(batch, key, 0))
        real, labels = self.direction.real(variables, batch)
        judge = self._judge(batch, key, train=train)
        of_real, variables = judge(variables, real, condition, 1)
        of_fake, variables = judge(variables, fake, condition, 2)
        told = {"real": of_real.real, "fake": of_fake.real}
        if settings.wrong_pairs:
            of_wrong, variables = judge(
                variables, *self.direction.wrong(variables, batch, condition), 3
            )
            told["wrong"] = of_wrong.real
        new = model.state_of(variables, "discriminator")
        terms, sums = _judgements(game, told, mask)
        if settings.kind == "began":
            k = variables[losses.BALANCE]["k"]
            terms["fake_loss"] = terms["fake_loss"]._replace(weight=-k)
            k, convergence = self._balance(k, told, mask)
            sums = {"balance": metrics.gauge(k), "convergence": metrics.gauge(convergence)}
            new = {**new, losses.BALANCE: {"k": k}}
        found, more = self._who(of_real, labels, batch, "")
        terms, sums = {**terms, **found}, {**sums, **more}

        def logits(pictures: jax.Array) -> jax.Array:
            return judge(variables, pictures, condition, None)[0].real

        for name, gamma, seen in (("r1", settings.r1, real), ("r2", settings.r2, fake)):
            if gamma > 0:
                terms[name] = self._penalty(logits, seen, mask, step, gamma)
        return terms, (sums, new)

    def _who(
        self, judged: sides.Judged, labels: jax.Array, batch: Batch, prefix: str
    ) -> tuple[dict[str, metrics.Term], Metrics]:
        """Whose faces they are: among the training people, and by the voices of the batch."""
        settings, mask, terms, sums = self.config.loss, batch["mask"], {}, {}
        lost = None
        if judged.people is not None:
            lost = voice2face.identity_loss(judged.people, labels)
            right = jnp.argmax(judged.people, axis=1) == labels
        elif judged.centres is not None:
            margin, scale = settings.identity_margin, settings.identity_scale
            kind = margins.MarginConfig("am", margin, scale)
            lost, right, *_ = margins.margin_loss(
                kind, judged.face, judged.centres, labels, margin, scale, mask=mask
            )
        if lost is not None:
            ratio = metrics.ratio(lost, mask)
            terms[f"{prefix}identity_loss"] = metrics.Term(*ratio, settings.identity)
            sums[f"{prefix}identity_accuracy"] = metrics.ratio(right, mask)
        if settings.contrast > 0:
            scale = 1.0 / settings.contrast_temperature
            lost, right = matcher.contrast(judged.voice, judged.face, scale, batch["label"], mask)
            ratio = metrics.ratio(lost, mask)
            terms[f"{prefix}contrast_loss"] = metrics.Term(*ratio, settings.contrast)
            sums[f"{prefix}contrast_accuracy"] = metrics.ratio(right, mask)
        return terms, sums

    def _balance(
        self, k: jax.Array, told: Mapping[str, jax.Array], mask: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """BEGAN's next k and its convergence, by the errors of all devices' rows."""
        settings = self.config.loss
        sums = {name: metrics.ratio(lost, mask) for name, lost in told.items()}
        mean = {
            name: jax.lax.stop_gradient(found.total / metrics.at_least_one(found.count))
            for name, found in metrics.psum(sums, parallel.AXIS).items()
        }
        rate = settings.began_rate / self.config.accumulate  # k moves with every micro-batch
        return losses.balanced(k, mean["real"], mean["fake"], settings.began_gamma, rate)

    def _penalty(
        self,
        logits: Callable[[jax.Array], jax.Array],
        seen: jax.Array,
        mask: jax.Array,
        step: Any,
        gamma: float,
    ) -> metrics.Term:
        """At every `r1_every`-th step, when it is worth so many (Karras et al. 2020, B)."""
        every = self.config.loss.r1_every
        due = step % every == 0

        def penalty() -> jax.Array:
            return metrics.ratio(losses.gradient_penalty(logits, seen), mask).total

        total = jax.lax.cond(due, penalty, lambda: jnp.float32(0))
        # In the log it is the mean over all steps, those without it too.
        count = jnp.sum(mask, dtype=jnp.float32)
        return metrics.Term(total, count, 0.5 * gamma * every)

    def generator_loss(
        self, variables: state.Variables, batch: Batch, key: Any, step: Any, *, train: bool
    ) -> tuple[dict[str, metrics.Term], tuple[Metrics, state.Variables]]:
        """What is not taken for real, and not for the right person's."""
        del step
        if "row" not in batch:  # outside of a training step
            rows = batch["mask"].shape[0]
            batch = {**batch, "row": parallel.row_numbers(rows)}
        mask, game = batch["mask"], self._adversarial
        condition = self.direction.condition(variables, batch, key if train else None)
        training = _training(batch, key, 0) if train else None
        fake, new = self.networks.play(variables, condition, self._noise(batch, key), training)
        judge = self._judge(batch, key, train=train)
        judged, variables = judge(variables, fake, condition, 1 if train else None)
        logits = judged.real
        if game.relative:
            real, _ = self.direction.real(variables, batch)
            logits -= judge(variables, real, condition, 2 if train else None)[0].real
        terms = {"fooled_loss": metrics.Term(*metrics.ratio(game.fooled(logits), mask))}
        sums: Metrics = {}
        if train:  # the labels of an evaluation are of other people
            found, more = self._who(judged, batch["label"], batch, "fake_")
            terms, sums = {**terms, **found}, {**sums, **more}
        return terms, (sums, new)


def _training(batch: Batch, key: Any, number: int) -> sides.Training:
    """For one network's pass in a step."""
    keys = parallel.row_keys(jax.random.fold_in(key, 3 + number), batch["row"])
    return sides.Training(batch["mask"], keys)


def _judgements(
    game: losses.Adversarial, told: Mapping[str, jax.Array], mask: jax.Array
) -> tuple[dict[str, metrics.Term], Metrics]:
    """The discriminator's terms, and how often it takes pictures for real.

    Where the game is relative, for more real than the row's real one.
    """
    against = told["real"] if game.relative else jnp.zeros_like(told["real"])
    share = _WEIGHT_OF_WRONG if "wrong" in told else 1.0
    terms, sums = {}, {}
    for name, logits in told.items():
        if name == "real" and game.relative:
            continue
        above = logits - against
        lost = (game.real if name == "real" else game.fake)(above)
        weight = 1.0 if name == "real" else share
        terms[f"{name}_loss"] = metrics.Term(*metrics.ratio(lost, mask), weight)
        sums[f"believed_{name}"] = metrics.ratio(above > 0, mask)
    return terms, sums
