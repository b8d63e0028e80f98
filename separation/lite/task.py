"""The task of VoiceFilter-Lite: features of a mixture to those of a voice, and their recogniser."""

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from common import errors, metrics, parallel, pictures, sections, state
from common.nn import masking
from common.task import Batch, Metrics, Report
from separation import extraction, judges
from separation import losses as separation_losses
from separation.lite import evaluation, losses, network

log = logging.getLogger(__name__)


class Parts(NamedTuple):
    """Log-mel features [b, l, m] of a mixture, the target, the other voices (minus infinity where
    there are none); lengths [b]."""

    mixture: Array
    target: Array
    others: Array
    frames: Array


class Filtered(NamedTuple):
    """Features at the strength that adapts, and at full; logits and strengths [b, l]; what a stream
    remembers after them, where all rows have as many frames."""

    features: Array
    full: Array
    overlapped: Array
    strength: Array
    state: network.State


class LiteTask(extraction.SeparationTask):
    """See `extraction.SeparationTask`. A mixture is also evaluated alone, without other voices,
    because the network should do no harm there."""

    @property
    def best_metric(self) -> tuple[str, str, str]:
        return next(iter(self.eval_names(test=False)), ""), "feature_error", "min"

    @functools.cached_property
    def sizes(self) -> network.LiteConfig:
        return network.make_sizes(self.config)

    @functools.cached_property
    def model(self) -> network.LiteNet:
        return network.make_model(self.config, self.num_classes, self.known_voice)

    @functools.cached_property
    def _weights(self) -> losses.LiteLossConfig:
        return sections.build(losses.LiteLossConfig, self.config.loss.lite)

    @functools.cached_property
    def _suppression(self) -> network.SuppressionConfig:
        return sections.build(network.SuppressionConfig, self.config.suppression)

    @property
    def explanation(self) -> Any:
        """Raises UserError: what others attribute to is sound."""
        raise errors.UserError(
            "config.model.kind=lite gives features and no sound: there are no attributions of it."
        )

    @property
    def averaged(self) -> tuple[str, ...]:
        if self.known_voice is None:
            return ()
        return "extractor", "cue_encoder/cue", "speakers"

    def init(self, key: Key[Array, ""]) -> state.Variables:
        return self.with_voice(network.init(self.model, key))

    def parts_of(self, batch: Batch, alone: Any) -> Parts:
        """Of a batch; where `alone` ([b] or one for all), no other voice is in the mixture."""
        sources = batch["sources"]
        lengths = masking.fold_row_mask(batch["sources_lengths"], batch["mask"])
        others = jnp.sum(extraction.voices(batch)[:, :, 1:], axis=2)
        others = jnp.where(jnp.broadcast_to(alone, lengths.shape)[:, None], 0.0, others)
        noise = jnp.sum(sources[:, :, 1 + batch["interferer_index"].shape[1] :], axis=2)
        target = sources[:, :, 0]
        three = jnp.concatenate([target + others + noise, target, others])
        three = masking.zero_padding(three[..., None], jnp.tile(lengths, 3))[..., 0]
        x, frames = network.features(three, jnp.tile(lengths, 3), self.sizes)
        mixture, target, voices = jnp.split(x, 3)
        voices = jnp.where(jnp.any(others != 0, axis=1)[:, None, None], voices, -jnp.inf)
        return Parts(mixture, target, voices, frames[: len(lengths)])

    def filtered(
        self,
        variables: state.Variables,
        x: Float[Array, "b l m"],
        frames: Int[Array, "b"],
        cue: Float[Array, "b c"],
        state: network.State | None = None,
    ) -> Filtered:
        """Features as they are in use, of whole recordings, or with a `state` of what follows."""
        if state is None:
            state = network.initial_state(len(x), self.sizes)
        found = self.model.apply(variables, x, frames, cue, state.lstms, method="enhance")
        probabilities = jax.nn.sigmoid(found.overlapped)
        strength = network.strengths(probabilities, state.strength, self._suppression)
        features = network.suppressed(x, found.features, strength)
        after = network.State(found.after, strength[:, -1])
        return Filtered(features, found.features, found.overlapped, strength, after)

    def loss(
        self, variables: state.Variables, batch: Batch, key: Any, step: Any, *, train: bool
    ) -> tuple[dict[str, metrics.Term], tuple[Metrics, state.Variables]]:
        del step
        sums = {"audio_seconds": self._seconds(batch)}
        if train and "other_enrolment" in batch:
            batch = extraction.of_both(batch)
        mask, alone = batch["mask"], jnp.zeros((), bool)
        if train and self.sizes.alone:
            keys = parallel.row_keys(key, batch["row"])
            alone = jax.vmap(jax.random.uniform)(keys) < self.sizes.alone
        heard = self.parts_of(batch, alone)
        (features, logits, speakers), new_state = self.model.apply(
            variables,
            *(heard.mixture, heard.frames, batch["enrolment"], batch["enrolment_lengths"]),
            train=train,
            mask=mask,
            mutable=[name for name in variables if name != "params"],
        )
        wanted = losses.reachable(heard.target, heard.mixture, self.sizes.least_gain)
        overlapped = losses.active(heard.others, heard.mixture, heard.frames)
        terms = losses.terms(features, wanted, logits, overlapped, heard.frames, self._weights)
        if speakers is not None:
            weight = self.config.loss.speaker
            terms["speaker_loss"] = separation_losses.speaker_term(
                speakers, batch["speaker"], mask, weight
            )
        there = masking.length_mask(heard.frames, features.shape[1])
        sums["noise_type_accuracy"] = metrics.ratio((logits > 0) == overlapped, there)
        return terms, (sums, new_state)

    def eval_step(
        self, variables: state.Variables, batch: Batch
    ) -> tuple[Metrics, Mapping[str, Any]]:
        """Measures of every mixture, with the other voices and without."""
        given = batch["enrolment"], batch["enrolment_lengths"]
        known = self.model.apply(variables, *given, method="cue")
        outputs = {name: batch[name] for name in evaluation.GIVEN}
        lengths = masking.fold_row_mask(batch["sources_lengths"], batch["mask"])
        outputs["seconds"] = lengths / self.config.data.sample_rate_hz
        heard = {}
        for prefix in evaluation.CONDITIONS:
            parts = self.parts_of(batch, jnp.array(prefix == "alone_"))
            found = self.filtered(variables, parts.mixture, parts.frames, known)
            measured = evaluation.measures(parts, found, batch["present"])
            outputs |= {f"{prefix}{name}": values for name, values in measured.items()}
            heard |= {f"{prefix}mixture": parts.mixture, f"{prefix}extracted": found.features}
            heard |= {"target": parts.target, "lengths": parts.frames}
        outputs["examples"] = {n: heard[n] for n in (*judges.SIGNALS, "lengths")}
        if "full" in batch and self.judges:
            outputs["heard"] = heard
        return {"audio_seconds": self._seconds(batch)}, outputs

    @functools.cached_property
    def judges(self) -> judges.Judges:
        """The recogniser alone listens to features. Raises UserError where it has others."""
        recogniser = judges.recogniser(self.config.judges)
        if recogniser is not None:
            folder = f"config.judges.recogniser={self.config.judges.recogniser}"
            network.check_same(self.sizes, recogniser.front_end, folder)
        return judges.Judges(self.config.data.sample_rate_hz, {}, recogniser)

    def keep(self, split: str, outputs: Mapping[str, Any]) -> Mapping[str, np.ndarray]:
        """What the recogniser made of the features, in place of them."""
        outputs = dict(outputs)
        if "heard" not in outputs:
            return outputs
        heard = outputs.pop("heard")
        texts = {}
        for i in np.flatnonzero(outputs["mask"] & outputs["present"]):
            target, rate = int(outputs["target_index"][i]), self.config.data.sample_rate_hz
            part = self.part(split)
            whole = part.index.lengths[np.searchsorted(part.index.positions, target)]
            if round(float(outputs["seconds"][i]) * rate) >= whole:
                texts[int(i)] = part.written_at(target)["text"]
        return outputs | evaluation.transcribed(heard, texts, self.judges.recogniser)

    def report(
        self,
        split: str,
        outputs: Sequence[Mapping[str, np.ndarray]],
        examples: Sequence[Mapping[str, np.ndarray]] = (),
    ) -> Report:
        """Errors of features, the noise type and words, with intervals over speakers.

        Pictures: the features of mixture, target and what came out below each other.
        """
        found = evaluation.summarise(split, outputs, self.part(split))
        images = {}
        for number, example in enumerate(examples):
            count = int(example["lengths"])
            shown = [example[name][:count] for name in ("mixture", "target", "extracted")]
            images[f"{number}/features"] = pictures.stacked(shown)
        over = repr(sorted(self.drawn(split).identity.items()))
        return dataclasses.replace(found, images=images, over=over)
