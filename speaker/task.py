"""The speaker task: what the trainer needs to train, evaluate and report a `SpeakerNet`."""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from common import errors, files, metrics, package, parallel, sections, state, steps
from common.audio import augment
from common.data import classes as classes_lib
from common.data import records, speech, splits
from common.nn import masking
from common.task import Batch, Metrics, Report
from speaker import backend, data, evaluation, head, margin_schedules, model, targets, trials
from speaker import settings as settings_lib

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class SpeakerTask(splits.SplitTask, steps.SupervisedTask):
    """See `common.task.Task`. `parts` are the splits of the data by name."""

    config: Any
    workdir: pathlib.Path
    parts: Mapping  # of splits.Split; a checker of its values would open them
    name: str = "speaker"
    work_metric: str = "audio_seconds"

    @functools.cached_property
    def classes(self) -> tuple[str, ...]:
        """The training speakers, from the work directory, where the first training puts them."""
        return classes_lib.read(self.workdir)

    def prepare(self) -> None:
        classes_lib.write(self.train_split, self.workdir)
        self.eval_data()

    @property
    def best_metric(self) -> tuple[str, str, str]:
        return next(iter(self.config.data.eval), ""), "eer", "min"

    @property
    def _sequence(self) -> str:
        return data.sequence(self.config)[0]

    @functools.cached_property
    def model(self) -> model.SpeakerNet:
        speeds = tuple(self.config.augment.speeds)
        return model.make_model(self.config, classes_lib.count(self.classes, speeds))

    @functools.cached_property
    def sharded(self) -> tuple[str, ...]:
        return model.sharded(self.model)

    @functools.cached_property
    def explanation(self) -> targets.Explanation:
        return targets.Explanation(self)

    def recordings(self, audio: Sequence[np.ndarray]) -> Batch:
        if self._sequence != "audio":
            raise errors.UserError(
                "The network hears features that the data hold: explain recordings of a --split, "
                "without --files and --against."
            )
        return speech.batch_of(audio)

    def init(self, key: jax.Array) -> state.Variables:
        return model.init(self.model, key)

    def adopt(
        self, fresh: state.Variables, found: state.Variables, meta: Mapping[str, Any]
    ) -> state.Variables:
        """The other run's encoder, and its head if the speakers are the same, else a new one.

        Without the speeds of that run, as in large-margin fine-tuning, the classes at speed 1 stay.
        """
        # A network converted from elsewhere (speaker/wespeaker.py) has no head.
        known, new = found["params"].get("head", {}), fresh["params"]["head"]
        centers, classes = self.config.loss.sub_centers, self.model.num_classes
        speeds = list(self.config.augment.speeds)
        if (
            meta["speakers"] != classes_lib.digest(self.classes)
            or meta["sub_centers"] != centers
            or meta["classes"] < classes
            or meta["speeds"][: len(speeds)] != speeds
        ):
            log.info("That run had other speakers, speeds or centers: new class weights.")
            known = {}
        adopted = head.adopt(self.model.loss, classes, new, known)
        kept = {name: tree for name, tree in found.items() if name in fresh}
        return {**fresh, **kept, "params": {**found["params"], "head": adopted}}

    def checkpoint_meta(self) -> dict[str, Any]:
        return {
            "speakers": classes_lib.digest(self.classes),
            "classes": self.model.num_classes,
            "speeds": list(self.config.augment.speeds),
            "sub_centers": self.config.loss.sub_centers,
        }

    def check_checkpoint(self, meta: Mapping[str, Any]) -> None:
        if meta["speakers"] != classes_lib.digest(self.classes):
            raise errors.UserError(
                f"The checkpoint was trained on other speakers than the {len(self.classes)} of "
                f"{self.workdir}. Use the data of then, or another --workdir."
            )
        speeds = list(self.config.augment.speeds)
        if meta.get("speeds") != speeds:
            raise errors.UserError(
                f"The checkpoint was trained with config.augment.speeds={meta.get('speeds')}, not "
                f"{speeds}: each is a class of every speaker. Use those, or another --workdir (and "
                "config.init_from)."
            )

    def _distortions(self, batch: Batch, key: Any) -> tuple[jax.Array, Any]:
        """Audio of training rows, distorted, and what else is to happen inside the model.

        Features that the data hold stay as they are here.
        """
        settings, inputs = self.config.augment, batch[self._sequence]
        keys = {
            name: parallel.row_keys(jax.random.fold_in(key, i), batch["row"])
            for i, name in enumerate(("masks", *augment.ADDED))
        }
        if self._sequence == "audio":
            lengths = batch["audio_lengths"]
            inputs = augment.add_rooms_and_noise(inputs, lengths, batch, keys, settings)
        if not (settings.freq_masks or settings.time_masks):
            return inputs, None
        masks = sections.build(augment.SpecAugmentConfig, settings)
        return inputs, lambda x, lengths: augment.spec_augment(x, lengths, keys["masks"], masks)

    def loss(
        self, variables: state.Variables, batch: Batch, key: Any, step: Any, *, train: bool
    ) -> tuple[dict[str, metrics.Term], tuple[Metrics, state.Variables]]:
        settings, mask = self.config.loss, batch["mask"]
        inputs, distort = batch[self._sequence], None
        margin, scale = jnp.float32(settings.margin), jnp.float32(settings.scale)
        if train:
            inputs, distort = self._distortions(batch, key)
            at = functools.partial(
                margin_schedules.margin_at,
                step,
                start_step=settings.margin_start_step,
                end_step=settings.margin_end_step,
            )
            margin = at(final=settings.margin, growth=settings.growth)
            if settings.start_scale:
                scale = at(final=settings.scale, initial=settings.start_scale, growth="linear")
        found, new_state = self.model.apply(
            variables,
            inputs,
            batch[f"{self._sequence}_lengths"],
            batch["label"],
            margin,
            scale,
            train=train,
            mask=mask,
            distort=distort,
            mutable=[name for name in variables if name != "params"],
        )
        terms = {"speaker_loss": metrics.Term(*metrics.ratio(found.loss, mask))}
        sums = {
            "accuracy": metrics.ratio(found.correct.astype(jnp.float32), mask),
            "target_score": metrics.ratio(found.target, mask),
            "margin": metrics.ratio(jnp.broadcast_to(margin, mask.shape), mask),
            "audio_seconds": self._seconds(batch),
        }
        return terms, (sums, new_state)

    def _seconds(self, batch: Batch) -> metrics.Ratio:
        name, rate = data.sequence(self.config)
        lengths = masking.fold_row_mask(batch[f"{name}_lengths"], batch["mask"])
        seconds = jnp.sum(lengths.astype(jnp.float32)) / rate
        return metrics.Ratio(seconds, jnp.ones(()))

    def eval_step(
        self, variables: state.Variables, batch: Batch
    ) -> tuple[Metrics, Mapping[str, jax.Array]]:
        embeddings = self.model.apply(
            variables,
            batch[self._sequence],
            batch[f"{self._sequence}_lengths"],
            train=False,
            mask=batch["mask"],
            method="embed",
        )
        return {"audio_seconds": self._seconds(batch)}, {"embedding": embeddings}

    def train_data(self) -> Any:
        return data.train_batches(self.train_split, self.classes, self.config, self.workdir)

    def eval_batches(self, split: str) -> Any:
        self.trials(split)  # what is wrong with them is said before the work begins
        return data.eval_batches(self.parts[split], self.config)

    @functools.cached_property
    def _trials(self) -> dict[str, dict[str, trials.LocatedTrials]]:
        return {}

    def trials(self, split: str) -> dict[str, trials.LocatedTrials]:
        """What is compared in a split, by list and by places in its index."""
        if split not in self._trials:
            settings = self.config.data
            lists = ((settings.eval, settings.trials), (settings.test, settings.test_trials))
            self._trials[split] = evaluation.find_trials(
                self.parts[split],
                ",".join(paths for names, paths in lists if split in names and paths),
                settings.max_trials,
                allow_unknown=settings.allow_unknown_trials,
            )
        return self._trials[split]

    def eval_data(self, *, test: bool = False) -> dict[str, Any]:
        """Evaluation batches by split; before them those of the cohort, if there is to be one."""
        found = super().eval_data(test=test)
        if not (found and self.config.data.cohort):
            return found
        if evaluation.COHORT not in self._made:
            self._made[evaluation.COHORT] = data.eval_batches(self._cohort_split, self.config)
        return {evaluation.COHORT: self._made[evaluation.COHORT], **found}

    @functools.cached_property
    def _cohort_split(self) -> splits.Split:
        split, most = self.train_split, self.config.data.cohort
        if most < 2:
            raise errors.UserError(f"config.data.cohort={most}: name two speakers at least, or 0.")
        places = evaluation.cohort_places(np.array(splits.speakers_of(split)), most)
        index = records.Index(
            split.index.positions[places], split.index.lengths[places], split.index.rate_hz
        )
        return splits.Split(evaluation.COHORT, split.source, index)

    @functools.cached_property
    def _cohort(self) -> dict[str, np.ndarray]:
        return {}  # "means" of its speakers by the network that is being evaluated

    def _report_cohort(self, embeddings: np.ndarray, scored: np.ndarray) -> Report:
        rows = backend.length_normalise(embeddings[scored])
        speakers = np.array(self._cohort_split.speakers)[scored]
        _, means, _ = backend.speaker_means(rows, speakers)
        self._cohort["means"] = means = means.astype(np.float32)
        return Report({}, meta={"means": evaluation.pack(means)})

    def report(
        self,
        split: str,
        outputs: Sequence[Mapping[str, np.ndarray]],
        examples: Sequence[Mapping[str, np.ndarray]] = (),
    ) -> Report:
        """EER and minDCF of the split's trials by the cosine of the embeddings.

        The figures of its first list stand under their own names, those of others after the list's.
        """
        part = self._cohort_split if split == evaluation.COHORT else self.parts[split]
        positions = part.index.positions
        real = np.concatenate([batch["mask"] for batch in outputs])
        found = np.concatenate([batch["index"] for batch in outputs])[real]
        embeddings = np.zeros((len(positions), outputs[0]["embedding"].shape[1]), np.float32)
        scored = np.zeros(len(positions), bool)
        # In the order of the index, whatever the buckets and the devices made of it.
        places = np.searchsorted(positions, found)
        embeddings[places] = np.concatenate([batch["embedding"] for batch in outputs])[real]
        scored[places] = True
        if split == evaluation.COHORT:
            return self._report_cohort(embeddings, scored)
        speakers, cohort = np.asarray(part.speakers), self._cohort.get("means")
        scalars, lines, meta, listed, ids = {}, [], {}, {}, part.ids
        for number, (name, wanted) in enumerate(self.trials(split).items()):
            measured = evaluation.measure(embeddings, scored, wanted, speakers, cohort)
            lines += [f"{split} {name}{': ' if name else ''}{line}" for line in measured.lines]
            values = measured.scalars.items()
            scalars |= {f"{name}_{key}" if number else key: value for key, value in values}
            meta = meta or measured.decision
            file = files.safe_name(f"{split}.{name}" if name else split)
            listed[f"{file}.scores"] = evaluation.as_text(wanted, measured, ids)
        return Report(scalars, lines, meta=meta, files=listed, over=part.identity)


def make_task(config: Any, workdir: pathlib.Path) -> SpeakerTask:
    """The task of a config. Settings that exclude each other, or want a package that is not there,
    are said; no data are opened."""
    data.sequence(config)
    data.detector(config)
    return SpeakerTask(config, workdir, splits.Splits(config, workdir, require_text=False))


def close(task: SpeakerTask, workdir: pathlib.Path, reports: Mapping[str, Report]) -> None:
    """The last words of a run: error rates, and where things lie."""
    for report in reports.values():
        print("\n".join(report.lines))
    if task.config.data.kind in splits.EMBEDDED:
        print("These are synthetic voices: the figures say nothing about real speech.")
    if reports:
        print(f"  figures and scores: {workdir / 'results'}")
    print(f"Checkpoints: {workdir / 'checkpoints'}   curves: {workdir / 'metrics.jsonl'}")


PACKAGE = package.Package(
    "speaker",
    settings_lib.default_config,
    make_task,
    close,
    fixed=(
        *("data.sample_rate_hz", "data.train"),
        *("data.crop_seconds", "data.sampler", "data.batch_rows"),  # of no use without training
    ),
)
