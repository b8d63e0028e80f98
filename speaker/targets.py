"""What attributions of a speaker network explain: a class of its training, a trial's cosine."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from common import state
from common.nn import masking
from common.task import Batch, Input, Part, Target
from speaker import data, margins

FRONT = {"log_mel": "log-mel spectrum", "given": "features of the data"}


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The inputs and targets of a `SpeakerTask`."""

    task: Any

    @property
    def _front(self) -> str:
        return "log_mel" if self.task.config.features.kind == "log_mel" else "features"

    @property
    def _sequence(self) -> str:
        return data.sequence(self.task.config)[0]

    @functools.cached_property
    def inputs(self) -> dict[str, Input]:
        """The front end's output; the waveform too, where there is one."""
        config = self.task.config
        says = f"the {FRONT[config.features.kind]} after normalisation"
        found = {self._front: Input(says, config.features.hop_ms / 1000, self._read_features)}
        if self._sequence == "audio":
            rate = config.data.sample_rate_hz
            found["waveform"] = Input("samples", 1 / rate, self._read_waveform)
        return found

    @functools.cached_property
    def targets(self) -> dict[str, Target]:
        """The class first; a network that was converted (speaker/wespeaker.py) has none."""
        speaker = Target(
            "score of the training speaker that it resembles most (without margin)",
            self._class_score,
            self._choose_class,
            self._name,
        )
        cosine = Target(
            "cosine of its embedding with that of the recording of --against",
            self._cosine,
            self._embed_other,
            needs="against",
        )
        classes = {"speaker": speaker} if self.task.model.num_classes > 1 else {}
        return {**classes, "cosine": cosine}

    def _embed(
        self, variables: state.Variables, batch: Batch, given: Mapping[str, Array]
    ) -> Float[Array, "b d"]:
        features, distort = given.get(self._front), None
        if features is not None:
            distort = lambda _, lengths: masking.zero_padding(features, lengths)  # noqa: E731
        return self.task.model.apply(
            variables,
            given.get("waveform", batch[self._sequence]),
            batch[f"{self._sequence}_lengths"],
            train=False,
            mask=batch["mask"],
            distort=distort,
            method="embed",
        )

    def _scores(
        self, variables: state.Variables, batch: Batch, given: Mapping[str, Array]
    ) -> Float[Array, "b c"]:
        """Cosines with all classes, or logits; sharded or not, all weights are here."""
        embeddings, head = self._embed(variables, batch, given), variables["params"]["head"]
        loss, classes = self.task.model.loss, self.task.model.num_classes
        bias = head["bias"][:classes] if loss.bias == "class" else None
        weights = head["weights"][: classes * loss.sub_centers]
        return margins.class_scores(loss, embeddings, weights, loss.scale, bias)

    def _class_score(
        self, variables: state.Variables, batch: Batch, given: Mapping[str, Array]
    ) -> Float[Array, "b 1"]:
        return jnp.take_along_axis(
            self._scores(variables, batch, given), batch["class"][:, None], axis=1
        )

    def _choose_class(self, variables: state.Variables, batch: Batch) -> dict[str, Array]:
        best = jnp.argmax(self._scores(variables, batch, {}), axis=1)
        return {"class": best.astype(jnp.int32)}

    def _name(self, row: Mapping[str, Any]) -> Sequence[Part]:
        """The speaker over the whole recording; speeds of one speaker are classes of their own."""
        number, count = int(row["class"]), len(self.task.classes)
        name, rate = data.sequence(self.task.config)
        speeds = tuple(self.task.config.augment.speeds)
        text = self.task.classes[number % count]
        if number >= count:
            text += f" x {speeds[number // count]:g}"
        return (Part(text, 0.0, float(row[f"{name}_lengths"]) / rate),)

    def _embed_other(self, variables: state.Variables, batch: Batch) -> dict[str, Array]:
        other = {
            self._sequence: batch["against"],
            f"{self._sequence}_lengths": batch["against_lengths"],
            "mask": batch["mask"],
        }
        return {"against_embedding": self._embed(variables, other, {})}

    def _cosine(
        self, variables: state.Variables, batch: Batch, given: Mapping[str, Array]
    ) -> Float[Array, "b 1"]:
        own = margins.unit_vectors(self._embed(variables, batch, given))
        other = margins.unit_vectors(batch["against_embedding"])
        return jnp.sum(own * other, axis=1, keepdims=True)

    def _read_features(self, variables: state.Variables, batch: Batch) -> tuple:
        def read(inputs: Array) -> tuple[Array, Array]:
            options = {"train": False, "mask": batch["mask"], "method": "features"}
            lengths = batch[f"{self._sequence}_lengths"]
            return self.task.model.apply(variables, inputs, lengths, **options)

        inputs = batch[self._sequence]
        values, lengths = read(inputs)
        if self._sequence == "features":  # without a front end there is no silence: the mean
            return values, lengths, jnp.zeros_like(values)
        return values, lengths, read(jnp.zeros_like(inputs))[0]

    def _read_waveform(self, variables: state.Variables, batch: Batch) -> tuple:
        del variables
        lengths = masking.fold_row_mask(batch["audio_lengths"], batch["mask"])
        audio = masking.zero_padding(batch["audio"], lengths)
        return audio, lengths, jnp.zeros_like(audio)
