"""What attributions of a recogniser explain: encoder channels, transcripts, tokens, words."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from asr import alignment, ctc, decode, transducer
from common import errors, state
from common.data import speech
from common.nn import masking
from common.task import Batch, Input, Part, Target

END = "</s>"  # that no label follows


def features_name(config: Any) -> str:
    """What comes out of the front end."""
    return "features" if config.features.kind == "learned" else "log_mel"


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The inputs and targets of an `AsrTask`."""

    task: Any

    @property
    def features(self) -> str:
        return features_name(self.task.config)

    @functools.cached_property
    def inputs(self) -> dict[str, Input]:
        """The front end's output, and the waveform."""
        config = self.task.config
        hop, rate = config.features.hop_ms / 1000, config.data.sample_rate_hz
        front = {"log_mel": "log-mel spectrum", "features": "output of the learned filter bank"}
        return {
            self.features: Input(
                f"the {front[self.features]} after normalisation", hop, self._read_features
            ),
            "waveform": Input("samples", 1 / rate, _read_waveform),
        }

    @functools.cached_property
    def targets(self) -> dict[str, Target]:
        """The transcript's probability first; those of the heads that there are."""
        model = self.task.model
        heads = ("transducer", "ctc")
        main = model.loss
        found = {
            "transcript": Target(
                f"log-probability of the transcript ({main}), or of the hypothesis without one",
                lambda *args: self._transcript(main, *args),
                self._choose(main),
                self._words,
            )
        }
        if main == heads[0] and model.ctc:
            found["ctc_transcript"] = Target(
                "the same by the CTC head",
                lambda *args: self._transcript("ctc", *args),
                self._choose("ctc"),
                self._words,
            )
        found["tokens"] = Target(
            "log-probability of each token given those before; they add up to the transcript's",
            lambda *args: self._tokens(main, *args),
            self._choose(main),
            self._token_parts,
        )
        found["words"] = Target(
            "the tokens of each word together", self._word_scores, self._choose_words, self._words
        )
        found["channel"] = Target(
            "an encoder channel summed over time: the one with the largest norm",
            self._channel,
            self._strongest,
            self._words,
            self._numbered,
        )
        return found

    def _read_features(self, variables: state.Variables, batch: Batch) -> tuple:
        def read(audio: Array) -> tuple[Array, Array]:
            args = audio, batch["audio_lengths"]
            options = {"train": False, "mask": batch["mask"], "method": "features"}
            return self.task.model.apply(variables, *args, **options)

        values, lengths = read(batch["audio"])
        return values, lengths, read(jnp.zeros_like(batch["audio"]))[0]

    def _encoded(
        self, variables: state.Variables, batch: Batch, given: Mapping[str, Array]
    ) -> tuple[Float[Array, "b n d"], Array]:
        features = given.get(self.features)
        distort = None
        if features is not None:
            distort = lambda _, lengths: masking.zero_padding(features, lengths)  # noqa: E731
        return self.task.model.apply(
            variables,
            given.get("waveform", batch["audio"]),
            batch["audio_lengths"],
            train=False,
            mask=batch["mask"],
            distort=distort,
            method="encode",
        )

    def _heads(self, variables: state.Variables, batch: Batch, given: Mapping[str, Array]) -> tuple:
        encoded, lengths = self._encoded(variables, batch, given)
        heads = self.task.model.apply(variables, encoded, batch["labels"], method="heads")
        return (lengths, *heads)

    def _choose(self, head: str) -> Callable[[state.Variables, Batch], dict[str, Array]]:
        """Labels (hypotheses where there are no others), and what aligns them."""

        def choose(variables: state.Variables, batch: Batch) -> dict[str, Array]:
            labels, sizes = batch["labels"], batch["labels_lengths"]
            found = self._hypotheses(head, variables, batch)
            width = max(labels.shape[1], found["tokens"].shape[1])
            both = [_widened(x, width) for x in (labels, found["tokens"])]
            without = (sizes == 0)[:, None]
            batch = {
                **batch,
                "labels": jnp.where(without, both[1], both[0]),
                "labels_lengths": masking.fold_row_mask(
                    jnp.where(sizes == 0, found["lengths"], sizes), batch["mask"]
                ),
            }
            return {name: batch[name] for name in ("labels", "labels_lengths")} | self._lattice(
                head, variables, batch
            )

        return choose

    def _hypotheses(self, head: str, variables: state.Variables, batch: Batch) -> dict[str, Array]:
        """Those of the head itself: CTC cannot align everything that a transducer says."""
        if head == self.task.model.loss:
            return dict(self.task.eval_step(variables, batch)[1])
        encoded, lengths = self._encoded(variables, batch, {})
        _, logits = self.task.model.apply(variables, encoded, batch["labels"], method="heads")
        return decode.ctc_greedy(logits, lengths)._asdict()

    def _lattice(self, head: str, variables: state.Variables, batch: Batch) -> dict[str, Array]:
        lengths, joint, logits = self._heads(variables, batch, {})
        if head == "ctc":
            return {"frames": lengths, "log_probs": jax.nn.log_softmax(logits)}
        blank, label = alignment.transducer_arcs(joint, batch["labels"])
        return {"frames": lengths, "log_blank": blank, "log_label": label}

    def _transcript(
        self, head: str, variables: state.Variables, batch: Batch, given: Mapping[str, Array]
    ) -> Float[Array, "b 1"]:
        lengths, joint, logits = self._heads(variables, batch, given)
        sizes = masking.fold_row_mask(batch["labels_lengths"], batch["mask"])
        if head == "ctc":
            return -ctc.ctc_loss(logits, lengths, batch["labels"], sizes).loss[:, None]
        options = {"dtype": self.task.model.dtype}
        return -transducer.rnnt_loss(*joint, batch["labels"], lengths, sizes, **options)[:, None]

    def _tokens(
        self, head: str, variables: state.Variables, batch: Batch, given: Mapping[str, Array]
    ) -> Float[Array, "b n"]:
        lengths, joint, logits = self._heads(variables, batch, given)
        sizes = masking.fold_row_mask(batch["labels_lengths"], batch["mask"])
        if head == "ctc":
            scores = jax.nn.log_softmax(logits)
            found = alignment.ctc_prefixes(scores, batch["labels"], lengths, sizes)
        else:
            arcs = alignment.transducer_arcs(joint, batch["labels"])
            found = alignment.transducer_prefixes(*arcs, lengths, sizes)
        return alignment.differences(*found, sizes)

    def _word_scores(
        self, variables: state.Variables, batch: Batch, given: Mapping[str, Array]
    ) -> Float[Array, "b n"]:
        scores = self._tokens(self.task.model.loss, variables, batch, given)
        sizes = masking.fold_row_mask(batch["labels_lengths"], batch["mask"])
        places = jnp.arange(batch["words"].shape[1])
        at = batch["token_words"][:, :, None] == places[None, None]
        at &= (jnp.arange(scores.shape[1])[None] <= sizes[:, None])[:, :, None]
        return jnp.einsum("bu,bun->bn", scores, at.astype(scores.dtype), precision="highest")

    def _choose_words(self, variables: state.Variables, batch: Batch) -> dict[str, Array]:
        """The word of every token, the end behind the last one; `words` is as wide as they are."""
        found = self._choose(self.task.model.loss)(variables, batch)
        labels, sizes = found["labels"], found["labels_lengths"]
        begins = self._begins(jnp)[labels].at[:, 0].set(False)
        number = jnp.pad(jnp.cumsum(begins, axis=1), ((0, 0), (0, 1)))
        last = jnp.take_along_axis(number, jnp.maximum(sizes - 1, 0)[:, None], axis=1)
        count = jnp.where(sizes[:, None] > 0, last + 1, 0)
        at_end = jnp.arange(number.shape[1])[None] == sizes[:, None]
        words = {
            "token_words": jnp.where(at_end, count, number).astype(jnp.int32),
            "token_words_lengths": jnp.maximum(sizes, 1) + 1,  # as wide as the scores
            "words": jnp.zeros(number.shape, bool),
            "words_lengths": (count[:, 0] + 1).astype(jnp.int32),
        }
        return {**found, **words}

    def _begins(self, numpy: Any) -> Any:
        """Of each piece, whether a new word begins with it."""
        tokens = self.task.tokenizer
        return numpy.asarray([piece.startswith(("▁", " ")) for piece in tokens.pieces])

    def _strongest(self, variables: state.Variables, batch: Batch) -> dict[str, Array]:
        encoded, lengths = self._encoded(variables, batch, {})
        energy = jnp.sum(jnp.square(masking.zero_padding(encoded, lengths)), axis=1)
        channel = jnp.argmax(energy, axis=1).astype(jnp.int32)
        return {**self._choose(self.task.model.loss)(variables, batch), "channel": channel}

    def _channel(
        self, variables: state.Variables, batch: Batch, given: Mapping[str, Array]
    ) -> Float[Array, "b 1"]:
        encoded, lengths = self._encoded(variables, batch, given)
        sums = jnp.sum(masking.zero_padding(encoded, lengths), axis=1)
        return jnp.take_along_axis(sums, batch["channel"][:, None], axis=1)

    def _numbered(self, number: int) -> Target:
        channels = self.task.model.encoder_config.blocks[-1].channels
        if number >= channels:
            raise errors.UserError(
                f"--target=channel:{number}: the encoder has the channels 0 to {channels - 1}."
            )

        def choose(variables: state.Variables, batch: Batch) -> dict[str, Array]:
            found = self._choose(self.task.model.loss)(variables, batch)
            return {**found, "channel": jnp.full(batch["mask"].shape, number, jnp.int32)}

        says = f"encoder channel {number} summed over time"
        return Target(says, self._channel, choose, self._words)

    def _spans(self, row: Mapping[str, Any]) -> np.ndarray:
        """Seconds [u, 2] of every label."""
        count, frames = int(row["labels_lengths"]), int(row["frames"])
        labels = row["labels"][:count]
        second = self.task.config.features.hop_ms / 1000
        second *= self.task.model.encoder_config.reduction
        if not count:
            return np.zeros((0, 2))
        if "log_probs" in row:
            try:
                return second * alignment.ctc_path(row["log_probs"][:frames], labels)
            except ValueError as error:
                raise errors.UserError(
                    f"A recording cannot be explained by CTC: {error}. Leave it out."
                ) from error
        blank, label = row["log_blank"][:frames, : count + 1], row["log_label"][:frames, :count]
        first = alignment.transducer_path(blank, label)
        return second * np.stack([first, first + 1], axis=1)

    def _end(self, row: Mapping[str, Any]) -> Part:
        seconds = float(row["audio_lengths"]) / self.task.config.data.sample_rate_hz
        return Part(END, seconds, seconds)

    def _token_parts(self, row: Mapping[str, Any]) -> Sequence[Part]:
        pieces = self.task.tokenizer.pieces
        spans = self._spans(row)
        found = [
            Part(pieces[int(token)].replace("▁", " "), *map(float, span))
            for token, span in zip(row["labels"], spans)
        ]
        return (*found, self._end(row))

    def _words(self, row: Mapping[str, Any]) -> Sequence[Part]:
        begins, spans, groups = self._begins(np), self._spans(row), []
        for i in range(len(spans)):
            if not groups or begins[row["labels"][i]]:
                groups.append([])
            groups[-1].append(i)
        found = []
        for group in groups:
            # A space that a word begins with is not spoken.
            text = self.task.tokenizer.decode(row["labels"][group])
            heard = [i for i in group if self.task.tokenizer.decode([row["labels"][i]])] or group
            found.append(Part(text, float(spans[heard[0], 0]), float(spans[heard[-1], 1])))
        return (*found, self._end(row))


def _widened(x: Array, width: int) -> Array:
    return jnp.pad(x, ((0, 0), (0, width - x.shape[1])))


def _read_waveform(variables: state.Variables, batch: Batch) -> tuple[Array, Array, Array]:
    del variables
    lengths = masking.fold_row_mask(batch["audio_lengths"], batch["mask"])
    audio = masking.zero_padding(batch["audio"], lengths)
    return audio, lengths, jnp.zeros_like(audio)


def batch_of(audio: Sequence[Float[np.ndarray, "_"]]) -> dict[str, np.ndarray]:
    """Recordings without a transcript."""
    rows = len(audio)
    labels = {"labels": np.zeros((rows, 1), np.int32), "labels_lengths": np.zeros(rows, np.int32)}
    return speech.batch_of(audio) | labels
