"""The separation task: what the trainer needs to train, evaluate and report a `SeparationNet`."""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from common import errors, metrics, parallel, pictures, sections, state, steps
from common import workdir as workdir_lib
from common.data import classes as classes_lib
from common.data import splits
from common.nn import masking
from common.task import Batch, Metrics, Report
from separation import (
    cue,
    data,
    evaluation,
    fixed,
    judges,
    losses,
    mixing,
    model,
    modes,
    self_enrolment,
    sight,
    signals,
    surroundings,
    targets,
    voice,
)
from separation import lists as lists_lib
from separation import metrics as separation_metrics

log = logging.getLogger(__name__)

_SHOWN_DB = 70.0  # of spectrograms, below the loudest bin


@dataclasses.dataclass(frozen=True)
class SeparationTask(splits.SplitTask, steps.SupervisedTask):
    """See `common.task.Task`. `parts` are the splits of the data by name."""

    config: Any
    workdir: pathlib.Path
    parts: Mapping  # of splits.Split; a checker of its values would open them
    name: str = "separation"
    work_metric: str = "audio_seconds"
    num_examples: int = 3  # mixtures with what was made of them, for the writers

    def prepare(self) -> None:
        classes_lib.write(self.train_split, self.workdir)
        if self.known_voice and not workdir_lib.has_checkpoints(self.workdir):
            voice.keep_settings(self.config.cue.workdir, self.workdir)
        # What cannot be mixed is said before the work begins.
        data.mixtures(self.train_split, self.config, self.around, train=True)
        self.eval_data()

    @property
    def best_metric(self) -> tuple[str, str, str]:
        return next(iter(self.eval_names(test=False)), ""), "si_sdri_median", "max"

    @functools.cached_property
    def classes(self) -> tuple[str, ...]:
        """The training speakers, if the network is to tell them apart."""
        return classes_lib.read(self.workdir) if self.config.loss.speaker else ()

    @functools.cached_property
    def model(self) -> model.SeparationNet:
        return model.make_model(self.config, self.num_classes, self.known_voice)

    @property
    def num_classes(self) -> int:
        """The training speakers at each of their speeds."""
        return classes_lib.count(self.classes, tuple(self.config.augment.speeds))

    @functools.cached_property
    def known_voice(self) -> voice.Voice | None:
        """The speaker network of `config.cue.workdir`."""
        folder, rate = self.config.cue.workdir, self.config.data.sample_rate_hz
        return voice.open_voice(folder, self.workdir, rate) if folder else None

    @functools.cached_property
    def _voice_variables(self) -> Mapping[str, Any] | None:
        """The trained ones; None where the checkpoints of this run have them."""
        if self.known_voice is None or workdir_lib.has_checkpoints(self.workdir):
            return None
        with jax.ensure_compile_time_eval():
            return jax.device_get(self.known_voice.trained())

    @functools.cached_property
    def around(self) -> surroundings.Surroundings | None:
        """The noise and the rooms of its mixtures."""
        return data.surroundings(self.config, self.workdir)

    @functools.cached_property
    def _loss(self) -> losses.LossConfig:
        return sections.build(losses.LossConfig, self.config.loss)

    @functools.cached_property
    def explanation(self) -> targets.Explanation:
        return targets.Explanation(self)

    def recordings(self, audio: Sequence[np.ndarray]) -> Batch:
        return targets.batch_of(audio)

    def about(self, split: str, index: int) -> Mapping[str, Any]:
        return self.part(split).written_at(index)

    def init(self, key: jax.Array) -> state.Variables:
        return self.with_voice(model.init(self.model, key))

    def with_voice(self, variables: state.Variables) -> state.Variables:
        """Fresh variables with the trained ones of a speaker network."""
        if self._voice_variables is not None:
            variables[cue.FROZEN] = {"cue_encoder": {"network": self._voice_variables}}
        return variables

    def adopt(
        self, fresh: state.Variables, found: state.Variables, meta: Mapping[str, Any]
    ) -> state.Variables:
        """The other run's network; what tells the training speakers apart only if they are its, and
        what makes cues only if it stands behind the same encoder. A speaker network is this run's.
        """
        params = {name: tree for name, tree in found["params"].items() if name != "speakers"}
        own = self.checkpoint_meta()
        if meta.get("cue", "") != own["cue"]:
            log.info("That run had cues of another encoder: this one's begins anew.")
            params["cue_encoder"] = fresh["params"]["cue_encoder"]
        if "speakers" in fresh["params"]:
            same = all(meta.get(name) == own[name] for name in ("speakers", "speeds"))
            same = same and "speakers" in found["params"]
            if not same:
                log.info("That run had other speakers: they are told apart anew.")
            params["speakers"] = (found if same else fresh)["params"]["speakers"]
        found = {name: tree for name, tree in found.items() if name != cue.FROZEN}
        frozen = {cue.FROZEN: fresh[cue.FROZEN]} if cue.FROZEN in fresh else {}
        return {**found, **frozen, "params": params}

    @property
    def averaged(self) -> tuple[str, ...]:
        """All but a speaker network, which does not move."""
        if self.known_voice is None:
            return ()
        return "extractor", "cue_encoder/cue", "null_cue", "speakers"

    def checkpoint_meta(self) -> dict[str, Any]:
        return {
            "speakers": classes_lib.digest(self.classes),
            "speeds": list(self.config.augment.speeds) if self.classes else [],
            "cue": self.config.cue.workdir,
        }

    def check_checkpoint(self, meta: Mapping[str, Any]) -> None:
        if meta["speakers"] != classes_lib.digest(self.classes):
            raise errors.UserError(
                f"The checkpoint was trained on other speakers than the {len(self.classes)} of "
                f"{self.workdir / classes_lib.FILE}: put the file of that run back."
            )
        if meta.get("cue", "") != self.config.cue.workdir:
            raise errors.UserError(
                f"The checkpoint was trained with config.cue.workdir={meta.get('cue', '')!r}, not "
                f"{self.config.cue.workdir!r}, and holds that network. Leave the setting as it was "
                "(the folder is no longer needed), or use another --workdir."
            )
        speeds = self.checkpoint_meta()["speeds"]
        then = meta.get("speeds", [1.0] if self.classes else [])
        if then != speeds:
            raise errors.UserError(
                f"The checkpoint was trained with config.augment.speeds={then}, not {speeds}: each "
                "is a class of every speaker. Use those, or another --workdir (and "
                "config.init_from)."
            )

    def _seconds(self, batch: Batch) -> metrics.Ratio:
        lengths = masking.fold_row_mask(batch["sources_lengths"], batch["mask"])
        seconds = jnp.sum(lengths.astype(jnp.float32)) / self.config.data.sample_rate_hz
        return metrics.Ratio(seconds, jnp.ones(()))

    def loss(
        self, variables: state.Variables, batch: Batch, key: Any, step: Any, *, train: bool
    ) -> tuple[dict[str, metrics.Term], tuple[Metrics, state.Variables]]:
        del step
        sums = {"audio_seconds": self._seconds(batch)}
        if train and "other_enrolment" in batch:
            batch = of_both(batch)
        mask = batch["mask"]
        lengths = masking.fold_row_mask(batch["sources_lengths"], mask)
        sources = masking.zero_padding(batch["sources"], lengths)
        batch = {**batch, "sources": sources}
        present, hidden = batch["present"], None
        wanted, seen, blind = jnp.zeros(mask.shape, jnp.int32), seen_in(batch), None
        if train and (self.config.cue.dropout or seen is not None):
            keys = parallel.row_keys(key, batch["row"])
            hidden = blind = jax.vmap(jax.random.uniform)(keys) < self.config.cue.dropout
        if train and seen is not None:
            seen = self._dropped(seen, key, batch["row"])
            blind = hidden & ~jnp.any(seen.mouth_seen, 1) & ~jnp.any(seen.face_seen, 1)
        if blind is not None:
            wanted = jnp.where(blind, loudest(voices(batch)), wanted)
            present = present | blind
        (estimate, logits), new_state = self.model.apply(
            variables,
            jnp.sum(sources, axis=2),
            lengths,
            batch["enrolment"],
            batch["enrolment_lengths"],
            train=train,
            mask=mask,
            hidden=hidden,
            seen=seen,
            mutable=[name for name in variables if name != "params"],
        )
        target = jnp.take_along_axis(sources, wanted[:, None, None], axis=2)[:, :, 0]
        terms = losses.terms(estimate, target, lengths, present & mask, self._loss)
        if logits is not None:
            weight = self._loss.speaker
            terms["speaker_loss"] = losses.speaker_term(logits, batch["speaker"], mask, weight)
        return terms, (sums, new_state)

    def _dropped(self, seen: sight.Seen, key: Any, rows: Any) -> sight.Seen:
        """What is shown in training: each cue may be missing. Those the network has not are."""
        config = self.config.sight
        keys = parallel.row_keys(jax.random.fold_in(key, 1), rows)
        coins = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys) < config.dropout
        return seen.without(coins[:, 0] | (not config.lips), coins[:, 1] | (not config.face))

    def extracted(
        self,
        variables: state.Variables,
        batch: Batch,
        mixture: Float[Array, "b t"],
        lengths: Int[Array, "b"],
        name: str,
    ) -> Float[Array, "b t"]:
        """The voices of mixtures as a mode of `modes.table` shows whose."""
        mode, seen = modes.table(self.config)[name], seen_in(batch, modes.SHOWN.get(name, ""))
        if seen is not None:
            seen = seen.without("lips" not in mode.shows, "face" not in mode.shows)
        sizes = batch["enrolment_lengths"]
        if "voice" not in mode.shows:
            sizes = jnp.zeros_like(sizes)
        return self.model.apply(
            variables,
            mixture,
            lengths,
            batch["enrolment"],
            sizes,
            train=False,
            mask=batch["mask"],
            seen=seen,
        )[0]

    def eval_step(
        self, variables: state.Variables, batch: Batch
    ) -> tuple[Metrics, Mapping[str, Any]]:
        """Measures of every mixture, extracted in the modes that the batch is for."""
        sources, mask = batch["sources"], batch["mask"]
        lengths = masking.fold_row_mask(batch["sources_lengths"], mask)
        mixture = jnp.sum(sources, axis=2)

        def ratios(signal: jax.Array) -> jax.Array:
            """SI-SDR against each source."""
            one = functools.partial(separation_metrics.batched_si_sdr, signal, lengths=lengths)
            return jnp.stack([one(target=sources[:, :, s]) for s in range(sources.shape[2])], 1)

        given = batch["enrolment"]
        found, table = {}, modes.table(self.config)
        for name in table:
            now = "full" in batch or name in modes.IN_TRAINING
            if now and name not in ("noisy", "self"):
                found[name] = self.extracted(variables, batch, mixture, lengths, name)

        def known_by(audio: jax.Array, sizes: jax.Array) -> jax.Array:
            shown = {**batch, "enrolment": audio, "enrolment_lengths": sizes}
            return self.extracted(variables, shown, mixture, lengths, "given")

        if "disturbed" in batch:
            found["noisy"] = known_by(batch["disturbed"], batch["disturbed_lengths"])
        if "full" in batch and "self" in table:
            rate = self.config.data.sample_rate_hz
            own, sizes = self_enrolment.enrolments(
                found["none"], mixture, lengths, rate, given.shape[1]
            )
            found["self"] = known_by(own, sizes)
        with_cue = found["given"]
        power = [jnp.sum(jnp.square(x), axis=1) for x in (with_cue, mixture)]
        outputs = {
            "mixture_si_sdr": ratios(mixture),
            **{f"{table[name].prefix}si_sdr": ratios(x) for name, x in found.items()},
            "loudest": loudest(voices(batch)),
            "level_db": 10 * (jnp.log10(power[0] + 1e-12) - jnp.log10(power[1] + 1e-12)),
            "seconds": lengths / self.config.data.sample_rate_hz,
            **{name: batch[name] for name in evaluation.GIVEN},
        }
        if "self" in found:
            outputs["own_seconds"] = sizes / self.config.data.sample_rate_hz
        if self.config.bss_eval:
            target = jnp.zeros_like(lengths)
            bss = separation_metrics.batched_bss_eval(with_cue, voices(batch), lengths, target)
            outputs |= bss._asdict()
        sounds = {"mixture": mixture, "target": sources[:, :, 0], "extracted": with_cue}
        outputs["examples"] = {**sounds, "lengths": lengths}
        if "full" in batch and self.judges:
            known = {"enrolment": given, "enrolment_lengths": batch["enrolment_lengths"]}
            outputs["sounds"] = {**sounds, **known, "lengths": lengths}
        return {"audio_seconds": self._seconds(batch)}, outputs

    @functools.cached_property
    def judges(self) -> judges.Judges:
        """Who is asked in a full evaluation; opened when it starts."""
        return judges.make(self.config.judges, self.config.data.sample_rate_hz)

    def keep(self, split: str, outputs: Mapping[str, Any]) -> Mapping[str, np.ndarray]:
        """The judges' figures in place of the sounds."""
        outputs = dict(outputs)
        if "sounds" not in outputs:
            return outputs
        sounds, part = outputs.pop("sounds"), self.part(split)
        real, rows, texts = np.flatnonzero(outputs["mask"]), [], []
        for i in real:
            count, known = int(sounds["lengths"][i]), int(sounds["enrolment_lengths"][i])
            row = {name: sounds[name][i, :count] for name in judges.SIGNALS}
            rows.append({**row, "enrolment": sounds["enrolment"][i, :known]})
            target = int(outputs["target_index"][i])
            whole = part.index.lengths[np.searchsorted(part.index.positions, target)]
            texts.append(part.written_at(target)["text"] if count >= whole else "")
        found = self.judges(rows, outputs["present"][real].tolist(), texts)
        for name, values in found.items():
            outputs[name] = np.zeros(len(outputs["mask"]), values.dtype)
            outputs[name][real] = values
        return outputs

    def train_data(self) -> Any:
        return data.train_batches(self.train_split, self.config, self.around)

    def eval_names(self, *, test: bool) -> tuple[str, ...]:
        settings = self.config.data
        names = (*settings.eval, *self.lists, *(settings.test if test else ()))
        return tuple(dict.fromkeys(names))

    @functools.cached_property
    def lists(self) -> Mapping[str, pathlib.Path]:
        """Fixed lists of mixtures by name."""
        return lists_lib.named(self.config.data.lists)

    @functools.cached_property
    def _opened(self) -> dict[str, fixed.ListSplit]:
        return {}  # lists by name, filled when they are asked for

    def part(self, name: str) -> splits.Split:
        """A split, or a list, by its name."""
        if name not in self.lists:
            return self.parts[name]
        if name not in self._opened:
            path = self.lists[name]
            self._opened[name] = fixed.open_list(name, path, self.config, self.workdir)
        return self._opened[name]

    def drawn(self, name: str) -> mixing.Mixtures | fixed.ListSplit:
        """What is evaluated of a part."""
        return data.evaluated(self.part(name), self.config, self.around)

    def eval_batches(self, split: str) -> Any:
        return data.eval_batches(self.part(split), self.config, self.around)

    def eval_data(self, *, test: bool = False) -> dict[str, Any]:
        """As that of other tasks; with `test` in all modes and with all measures."""
        if not test:
            return super().eval_data()
        around = self.around
        if self.judges:
            log.info("Judges: %s.", ", ".join(self.judges.names))
        return {
            name: data.eval_batches(self.part(name), self.config, around, in_full=True)
            for name in self.eval_names(test=True)
        }

    def report(
        self,
        split: str,
        outputs: Sequence[Mapping[str, np.ndarray]],
        examples: Sequence[Mapping[str, np.ndarray]] = (),
    ) -> Report:
        """SI-SDR improvement, failures and wrong speakers, with intervals over speakers.

        Pictures: mixture, target and what was extracted below each other.
        """
        part, rate = self.part(split), self.config.data.sample_rate_hz
        found = evaluation.summarise(split, outputs, part, modes.table(self.config))
        audio, images = {}, {}
        for number, example in enumerate(examples):
            sounds = {n: example[n][: int(example["lengths"])] for n in judges.SIGNALS}
            audio |= {f"{number}/{name}": (sound, rate) for name, sound in sounds.items()}
            shown = [sounds[n] for n in ("mixture", "target", "extracted")]
            levels = [signals.spectrogram_db(sound, rate) for sound in shown]
            least = max(level.max() for level in levels) - _SHOWN_DB
            images[f"{number}/spectrograms"] = pictures.stacked(
                [np.maximum(level, least) for level in levels]
            )
        over = repr(sorted(self.drawn(split).identity.items()))
        return dataclasses.replace(found, audio=audio, images=images, over=over)


def of_both(batch: Batch) -> dict[str, jax.Array]:
    """Each mixture twice: first as it is, then with the first interferer as what is wanted."""
    sources = batch["sources"]
    other = {
        **batch,
        "sources": jnp.concatenate([sources[:, :, 1::-1], sources[:, :, 2:]], axis=2),
        "enrolment": batch["other_enrolment"],
        "enrolment_lengths": batch["other_enrolment_lengths"],
        "speaker": batch["other_speaker"],
        "present": jnp.ones_like(batch["present"]),
        "row": 2 * batch["row"] + 1,
    }
    if "other_mouth" in batch:
        other |= {name: batch[f"other_{name}"] for name in sight.Seen._fields}
    first = {**batch, "row": 2 * batch["row"]}
    return {name: jnp.concatenate([first[name], other[name]]) for name in batch}


def seen_in(batch: Batch, whose: str = "") -> sight.Seen | None:
    """What a batch shows of its targets, or of others; of somebody strange the mouth alone."""
    if "mouth" not in batch:
        return None
    fields = {name: batch.get(f"{whose}{name}", batch[name]) for name in sight.Seen._fields}
    return sight.Seen(**fields)


def voices(batch: Batch) -> jax.Array:
    """Of the sources those that are voices, the target first."""
    return batch["sources"][:, :, : 1 + batch["interferer_index"].shape[1]]


def loudest(sources: jax.Array) -> jax.Array:
    """The place of the voice with the most energy, of `sources` [b, t, s]."""
    return jnp.argmax(jnp.sum(jnp.square(sources), axis=1), axis=1).astype(jnp.int32)
