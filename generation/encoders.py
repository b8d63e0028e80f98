"""Networks that a GAN needs beside it: an encoder of voices, and a net that judges."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from common import metrics, parallel, state
from common.audio import frontend
from common.data import classes as classes_lib
from common.task import Batch, Metrics, Report
from generation import images, judging, matcher, model, paired, voice, voice2face
from speaker import metrics as speaker_metrics


class VoiceTask(paired.PairedTask):
    """An encoder of voices learns to tell the training people apart, by a linear layer on it.

    Wen et al. (2019), section 3.3: plain cross-entropy. Evaluated by the error rate of verifying
    people who were not in training.
    """

    @property
    def best_metric(self) -> tuple[str, str, str]:
        return next(iter(self.config.data.eval), ""), "eer", "min"

    @functools.cached_property
    def _encoder(self) -> voice.VoiceEncoder:
        return voice.make_encoder(self.config, parallel.AXIS)

    @functools.cached_property
    def _front_end(self) -> frontend.LogMelConfig:
        return voice.front_end(self.config)

    def init(self, key: jax.Array) -> state.Variables:
        first, second = jax.random.split(key)
        found = voice.init_encoder(self._encoder, first, self.config.features.num_mels)
        shape = self.config.voice.size, len(self.classes)
        # As for a unit vector on one side: logits of deviation 1 at the start.
        variables = {name: {voice.ENCODER: tree} for name, tree in found.items()}
        variables["params"]["people"] = jax.random.normal(second, shape)
        return variables

    def loss(
        self, variables: state.Variables, batch: Batch, key: Any, step: Any, *, train: bool
    ) -> tuple[dict[str, metrics.Term], tuple[Metrics, state.Variables]]:
        """Cross-entropy of who speaks."""
        del step
        mask = batch["mask"]
        lengths = paired.lengths_of(batch["audio"])
        if train:
            most = batch["audio"].shape[1]
            lengths = jnp.full(lengths.shape, model.heard_samples(self.config, key, most))
        lengths = jnp.where(mask, lengths, 0)
        features, frames = frontend.log_mel(batch["audio"], lengths, self._front_end)
        own = {name: tree[voice.ENCODER] for name, tree in variables.items()}
        found, new = self._encoder.apply(
            own, features, frames, train=train, mutable=["batch_stats"]
        )
        logits = found @ variables["params"]["people"]
        right = jnp.argmax(logits, axis=1) == batch["label"]
        losses = voice2face.identity_loss(logits, batch["label"])
        sums = {"accuracy": metrics.ratio(right, mask), "pictures": self._work(batch)}
        terms = {"speaker_loss": metrics.Term(*metrics.ratio(losses, mask))}
        return terms, (sums, {name: {voice.ENCODER: tree} for name, tree in new.items()})

    def eval_step(
        self, variables: state.Variables, batch: Batch
    ) -> tuple[Metrics, Mapping[str, Any]]:
        """Vectors of two recordings of each row's person."""
        own = {name: tree[voice.ENCODER] for name, tree in variables.items()}

        def embedded(audio: jax.Array) -> jax.Array:
            lengths = paired.lengths_of(audio)
            return voice.embed(self._encoder, own, audio, lengths, self._front_end)

        outputs = {name: batch[name] for name in ("person", "turn")}
        outputs |= {"one": embedded(batch["audio"]), "other": embedded(batch["probe"])}
        return {"pictures": self._work(batch)}, outputs

    def report(
        self,
        split: str,
        outputs: Sequence[Mapping[str, np.ndarray]],
        examples: Sequence[Mapping[str, np.ndarray]] = (),
    ) -> Report:
        """EER of all pairs of recordings of one turn."""
        del examples
        seats = judging.seated(outputs, ("one", "other"))
        people = np.arange(len(seats["one"][0]))
        same = people[:, None] == people[None, :]
        scores = [one @ other.T for one, other in zip(seats["one"], seats["other"])]
        targets = np.broadcast_to(same, (len(scores), *same.shape)).ravel()
        curve = speaker_metrics.error_curve(np.stack(scores).ravel().astype(np.float64), targets)
        eer = speaker_metrics.eer(curve)
        line = f"{split} EER {100 * eer:.1f} % of {len(people)} people's voices"
        return Report({"eer": eer}, [line], over=self.parts[split].identity)

    def checkpoint_meta(self) -> dict[str, Any]:
        return {"kind": "voice", "people": classes_lib.digest(self.classes)}

    def check_checkpoint(self, meta: Mapping[str, Any]) -> None:
        judging.check_kind(meta, "voice", self.workdir)


class MatcherTask(paired.PairedTask):
    """A net learns which face belongs to which voice (`matcher.contrast`)."""

    @property
    def best_metric(self) -> tuple[str, str, str]:
        return next(iter(self.config.data.eval), ""), "match_2", "max"

    @functools.cached_property
    def net(self) -> matcher.Matcher:
        return model.make_matcher(self.config)

    @functools.cached_property
    def front_end(self) -> frontend.LogMelConfig:
        return voice.front_end(self.config)

    def init(self, key: jax.Array) -> state.Variables:
        picture = self.config.picture
        frames = model.shape(64, self.config.features.num_mels)
        pictures = model.shape(picture.size, picture.size, picture.channels)
        return dict(self.net.lazy_init(key, frames, jnp.full((1,), 64, jnp.int32), pictures))

    def _vectors(
        self, variables: state.Variables, audio: jax.Array, pictures: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        heard = frontend.log_mel(audio, paired.lengths_of(audio), self.front_end)
        return self.net.apply(variables, *heard, pictures)

    def loss(
        self, variables: state.Variables, batch: Batch, key: Any, step: Any, *, train: bool
    ) -> tuple[dict[str, metrics.Term], tuple[Metrics, state.Variables]]:
        """InfoNCE in both directions, over the global batch."""
        del step
        mask, faces = batch["mask"], images.to_values(batch["face"])
        if train:
            keys = parallel.row_keys(key, batch["row"])
            faces = matcher.augmented(faces, keys, self.net.config.colour)
        voices, faces, scale = self._vectors(variables, batch["audio"], faces)
        found, right = matcher.contrast(voices, faces, scale, batch["label"], mask)
        sums = {
            "accuracy": metrics.ratio(right, mask),
            "scale": metrics.gauge(scale),
            "pictures": self._work(batch),
        }
        return {"contrast": metrics.Term(*metrics.ratio(found, mask))}, (sums, {})

    def eval_step(
        self, variables: state.Variables, batch: Batch
    ) -> tuple[Metrics, Mapping[str, Any]]:
        """Vectors of the rows' voices and faces."""
        faces = images.to_values(batch["face"])
        voices, faces, _ = self._vectors(variables, batch["audio"], faces)
        outputs = {name: batch[name] for name in ("person", "turn")}
        return {"pictures": self._work(batch)}, {**outputs, "voice": voices, "real": faces}

    def report(
        self,
        split: str,
        outputs: Sequence[Mapping[str, np.ndarray]],
        examples: Sequence[Mapping[str, np.ndarray]] = (),
    ) -> Report:
        """Matching of real faces."""
        del examples
        seats = judging.seated(outputs, ("person", "voice", "real"))
        known = self.genders_of(split)
        found = judging.matched(seats["voice"], seats["real"])
        numbers, lines = judging.scalars(found), [f"{split} real faces: {judging.describe(found)}"]
        own = [known[person] for person in seats["person"][0]]
        alike = judging.matched(seats["voice"], seats["real"], own)
        if alike.values:
            numbers |= judging.scalars(alike, "same_gender_")
            lines.append(f"{split} real faces, same gender: {judging.describe(alike)}")
        return Report(numbers, lines, over=self.parts[split].identity)

    def checkpoint_meta(self) -> dict[str, Any]:
        return {"kind": "matcher", "people": classes_lib.digest(self.classes)}

    def check_checkpoint(self, meta: Mapping[str, Any]) -> None:
        judging.check_kind(meta, "matcher", self.workdir)
