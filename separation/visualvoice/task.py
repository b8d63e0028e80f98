"""VisualVoice as a task: the losses of three clips, and extraction of whom one sees."""

import functools
import logging
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from common import errors, metrics, parallel, sections, state
from common.task import Batch, Metrics
from separation import extraction, films, modes, sight
from separation import metrics as separation_metrics
from separation.visualvoice import config as config_lib
from separation.visualvoice import losses, network, pictures

log = logging.getLogger(__name__)


class VisualVoiceTask(extraction.SeparationTask):
    """See `extraction.SeparationTask`. Of a training mixture the enrolment is the clip A2."""

    classes = ()

    def prepare(self) -> None:
        if self.around is not None and not self.sizes.enhancement:
            raise errors.UserError(
                f"config.augment.{next(iter(self.around.companions))}: VisualVoice of two voices "
                "is trained on the voices alone, and would not hear it. Give it in evaluations "
                "only, or train one voice in noise (config.model.visualvoice.enhancement=True)."
            )
        ratios = tuple(self.config.mixing.snr_db)
        if ratios != (0.0, 0.0) and not self.sizes.enhancement:
            log.info(
                "config.mixing.snr_db=%s is of evaluations: in training both voices are equally "
                "loud, as published.",
                ratios,
            )
        if self.sizes.enhancement:
            log.info(
                "The snr_db of config.augment are of evaluations: in training noise has %g times "
                "the amplitude of the voice.",
                self.sizes.other_weight,
            )
        data = self.config.data
        if data.crop_seconds != data.enrolment_seconds:
            log.warning(
                "config.data.crop_seconds=%g, enrolment_seconds=%g: VisualVoice trains on two "
                "clips of a person, both as long as the shorter one. Give both.",
                *(data.crop_seconds, data.enrolment_seconds),
            )
        super().prepare()

    @functools.cached_property
    def sizes(self) -> config_lib.VisualVoiceConfig:
        return make_sizes(self.config)

    @functools.cached_property
    def model(self) -> network.VisualVoice:
        return network.VisualVoice(self.sizes)

    @functools.cached_property
    def _weights(self) -> losses.LossConfig:
        return sections.build(losses.LossConfig, self.config.loss.visualvoice)

    def init(self, key: Key[Array, ""]) -> state.Variables:
        """Fresh variables, of shapes alone: the network itself is not compiled for them."""
        people, samples = self.sizes.together if self.sizes.cue_size else 1, 8000
        frames = -(-samples // (self.sizes.sample_rate_hz // films.FRAMES_PER_SECOND))
        mouth = (1, people, frames, pictures.MOUTH_SIZE, pictures.MOUTH_SIZE)
        shapes = [
            jax.ShapeDtypeStruct((1, samples), jnp.float32),
            jax.ShapeDtypeStruct((1,), jnp.int32),
            jax.ShapeDtypeStruct(mouth, jnp.float32),
            jax.ShapeDtypeStruct((1, people, frames), jnp.bool_),
            jax.ShapeDtypeStruct((1, people, 1, *films.FACE), jnp.float32),
            jax.ShapeDtypeStruct((1, people, 1), jnp.bool_),
        ]
        return dict(self.model.lazy_init(key, *shapes, train=False))

    def adopt(
        self, fresh: state.Variables, found: state.Variables, meta: Mapping[str, Any]
    ) -> state.Variables:
        """The networks that fit, of lips, faces and voices too; the others begin anew, by name.

        Raises UserError where none does.
        """
        del meta

        def shapes(variables: state.Variables, part: str) -> Any:
            return {n: jax.tree.map(jnp.shape, tree.get(part)) for n, tree in variables.items()}

        parts = list(fresh["params"])
        fit = [part for part in parts if shapes(fresh, part) == shapes(found, part)]
        if not fit:
            raise errors.UserError(
                f"config.init_from: that run has none of this one's networks ({', '.join(parts)}) "
                "in the same sizes."
            )
        if len(fit) < len(parts):
            others = ", ".join(part for part in parts if part not in fit)
            log.info("That run has no such networks, or others: these begin anew: %s.", others)
        return {
            name: {part: (found if part in fit else fresh)[name][part] for part in tree}
            for name, tree in fresh.items()
        }

    def loss(
        self, variables: state.Variables, batch: Batch, key: Any, step: Any, *, train: bool
    ) -> tuple[dict[str, metrics.Term], tuple[Metrics, state.Variables]]:
        del step
        keys = parallel.row_keys(jax.random.key(0) if key is None else key, batch["row"])
        sources = batch["sources"]
        clips = [sources[:, :, 0], batch["enrolment"], sources[:, :, 1]]
        lengths = jnp.minimum(batch["sources_lengths"], batch["enrolment_lengths"])
        least = min(clip.shape[1] for clip in clips)
        audio = jnp.stack([clip[:, :least] for clip in clips], axis=1)
        frames = -(-least // (self.sizes.sample_rate_hz // films.FRAMES_PER_SECOND))
        mouth = mouth_seen = face = face_seen = None
        drawn = keys if train else None
        if self.sizes.lip:
            names = ("", "enrolment_", "other_")[: 2 if self.sizes.enhancement else 3]
            mouth, mouth_seen = self._mouths(batch, names, frames, drawn)
        if self.sizes.face:
            face, face_seen = self._faces(batch, ("", "other_")[: self.sizes.voices], drawn)
        terms, new_state = self.model.apply(
            variables,
            audio,
            lengths,
            batch["mask"],
            *(mouth, mouth_seen, face, face_seen),
            keys,
            self._weights,
            train=train,
            method=losses.terms,
            mutable=[name for name in variables if name != "params"],
        )
        return terms, ({"audio_seconds": self._seconds(batch)}, new_state)

    def _mouths(
        self, batch: Batch, names: tuple[str, ...], frames: int | None, keys: Any
    ) -> tuple[Array, Array]:
        """(mouths [b, n, v, 88, 88], which there are) of several clips; each cut in a way of its
        own."""
        found, there = [], []
        for i, name in enumerate(names):
            own = None if keys is None else _folded(keys, 10 + i)
            found.append(pictures.mouths(batch[f"{name}mouth"][:, :frames], own))
            seen = batch.get(f"{name}mouth_seen", batch["mouth_seen"])
            there.append(seen[:, :frames])
        return jnp.stack(found, axis=1), jnp.stack(there, axis=1)

    def _faces(self, batch: Batch, names: tuple[str, ...], keys: Any) -> tuple[Array, Array]:
        """(portraits [b, n, k, 224, 224, 3], which there are) of several people."""
        found, there = [], []
        for i, name in enumerate(names):
            own = None if keys is None else _folded(keys, 20 + i)
            found.append(pictures.faces(batch[f"{name}face"], own))
            there.append(batch[f"{name}face_seen"])
        return jnp.stack(found, axis=1), jnp.stack(there, axis=1)

    def extracted(
        self,
        variables: state.Variables,
        batch: Batch,
        mixture: Float[Array, "b t"],
        lengths: Int[Array, "b"],
        name: str,
    ) -> Float[Array, "b t"]:
        """See `extraction.SeparationTask`. Of two voices without any cue that nearer to the target:
        their order is not the network's to know."""
        sizes, mode = self.sizes, modes.table(self.config)[name]
        mouth = mouth_seen = face = face_seen = None
        whose = modes.SHOWN.get(name, "")
        people = (whose,)
        if sizes.context:
            people = ("other_", "") if whose == "other_" else (whose, "other_")
        if sizes.lip:
            mouth, mouth_seen = self._mouths(batch, people, None, None)
            mouth_seen &= "lips" in mode.shows
        if sizes.face:
            # Nobody strange has a face here: the lips alone are shuffled.
            people = tuple("" if who == "strange_" else who for who in people)
            face, face_seen = self._faces(batch, people, None)
            face_seen &= "face" in mode.shows
        shown = (mouth, mouth_seen, face, face_seen)
        voices = self.model.apply(variables, mixture, lengths, *shown, train=False)
        if sizes.cue_size or voices.shape[1] == 1:
            return voices[:, 0]
        ratios = [
            separation_metrics.batched_si_sdr(voices[:, i], batch["sources"][:, :, 0], lengths)
            for i in (0, 1)
        ]
        return jnp.where((ratios[1] > ratios[0])[:, None], voices[:, 1], voices[:, 0])


def make_sizes(config: Any) -> config_lib.VisualVoiceConfig:
    """Those of a config. Raises UserError for settings that do not go together."""
    rate, model = config.data.sample_rate_hz, config.model
    try:
        sizes = sections.build(
            config_lib.VisualVoiceConfig,
            model.visualvoice,
            sample_rate_hz=rate,
            axis_name=parallel.AXIS,
        )
    except ValueError as error:
        raise errors.UserError(f"config.model.visualvoice: {error}") from error
    step_ms = config_lib.VIDEO_FRAME * sizes.hop_ms
    if sizes.lip and step_ms * films.FRAMES_PER_SECOND != 1000:
        raise errors.UserError(
            f"config.model.visualvoice.hop_ms={sizes.hop_ms:g}: {config_lib.VIDEO_FRAME} hops "
            f"would be {step_ms:g} ms, but they are beside one picture of the lips, "
            f"{1000 / films.FRAMES_PER_SECOND:g} ms."
        )
    sections.build(sight.SightConfig, config.sight)
    mixing, others = config.mixing, 0 if sizes.enhancement else 1
    wrong = {
        "absent": (mixing.absent, 0.0),
        "overlap": (tuple(mixing.overlap), (1.0, 1.0)),
        "noisy_enrolment": (mixing.noisy_enrolment, 0.0),
        "interferers": (tuple(mixing.interferers), (others, others)),
    }
    for name, (found, needed) in wrong.items():
        if found != needed:
            raise errors.UserError(
                f"config.mixing.{name}={found}, but VisualVoice is trained on mixtures of "
                f"{'a whole clip and noise' if sizes.enhancement else 'two whole clips'}: {needed}."
            )
    return sizes


def _folded(keys: Key[Array, "b"], number: int) -> Key[Array, "b"]:
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)
