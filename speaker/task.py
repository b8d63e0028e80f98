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
from jaxtyping import Int

from common import errors, metrics, parallel, state, steps
from common.audio import augment
from common.data import splits
from common.nn import masking
from common.task import Batch, Metrics, Report
from speaker import (
    backend,
    bootstrap,
    calibration,
    data,
    detection,
    head,
    margin_schedules,
    model,
    trials,
)

log = logging.getLogger(__name__)

RESAMPLES = 200  # of the speakers, for the intervals


@dataclasses.dataclass(frozen=True)
class SpeakerTask(steps.OneLoss):
    """See `common.task.Task`. `train_split` is None when only a checkpoint is used."""

    config: Any
    workdir: pathlib.Path
    classes: tuple[str, ...]
    train_split: splits.Split | None
    eval_splits: Mapping[str, splits.Split]
    name: str = "speaker"
    work_metric: str = "audio_seconds"

    @property
    def best_metric(self) -> tuple[str, str, str]:
        return self.config.data.eval[0], "eer", "min"

    @property
    def _sequence(self) -> str:
        return data.sequence(self.config)[0]

    @functools.cached_property
    def model(self) -> model.SpeakerNet:
        return model.make_model(self.config, data.num_classes(self.config, self.classes))

    @functools.cached_property
    def sharded(self) -> tuple[str, ...]:
        # Without training the classes are not used, and any number of devices will do.
        return model.sharded(self.model) if self.train_split is not None else ()

    def init(self, key: jax.Array) -> state.Variables:
        return model.init(self.model, key)

    def adopt(
        self, fresh: state.Variables, found: state.Variables, meta: Mapping[str, Any]
    ) -> state.Variables:
        """The other run's encoder, and its head if the speakers are the same, else a new one.

        Without the speeds of that run, as in large-margin fine-tuning, the classes at speed 1 stay.
        """
        known, new = found["params"]["head"], fresh["params"]["head"]
        centers, classes = self.config.loss.sub_centers, self.model.num_classes
        speeds = list(self.config.augment.speeds)
        if (
            meta["speakers"] != data.digest(self.classes)
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
            "speakers": data.digest(self.classes),
            "classes": self.model.num_classes,
            "speeds": list(self.config.augment.speeds),
            "sub_centers": self.config.loss.sub_centers,
        }

    def check_checkpoint(self, meta: Mapping[str, Any]) -> None:
        if meta["speakers"] != data.digest(self.classes):
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
            for i, name in enumerate(("masks", "rir", *augment.ADDED))
        }
        if self._sequence == "audio":
            lengths = batch["audio_lengths"]
            inputs = augment.add_rooms_and_noise(inputs, lengths, batch, keys, settings)
        if not (settings.freq_masks or settings.time_masks):
            return inputs, None
        masks = augment.SpecAugmentConfig(
            freq_masks=settings.freq_masks,
            freq_width=settings.freq_width,
            time_masks=settings.time_masks,
            time_ratio=settings.time_ratio,
            time_width=settings.time_width,
        )
        return inputs, lambda x, lengths: augment.spec_augment(x, lengths, keys["masks"], masks)

    def loss(
        self, variables: state.Variables, batch: Batch, key: Any, step: Any, *, train: bool
    ) -> tuple[jax.Array, tuple[jax.Array, Metrics, state.Variables]]:
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
        total = metrics.ratio(found.loss, mask)
        sums = {
            "accuracy": metrics.ratio(found.correct.astype(jnp.float32), mask),
            "target_score": metrics.ratio(found.target, mask),
            "margin": metrics.ratio(jnp.broadcast_to(margin, mask.shape), mask),
            "audio_seconds": self._seconds(batch),
        }
        return total.total, (total.count, sums, new_state)

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

    @functools.cached_property
    def _eval_batches(self) -> dict[str, Any]:
        return {
            name: data.eval_batches(split, self.config) for name, split in self.eval_splits.items()
        }

    def eval_data(self) -> Mapping[str, Any]:
        return self._eval_batches

    @functools.cached_property
    def trials(self) -> dict[str, dict[str, trials.LocatedTrials]]:
        """What is compared in each evaluation split, by list and by places in its index."""
        settings = self.config.data
        lists = ((settings.eval, settings.trials), (settings.test, settings.test_trials))
        return {
            name: find_trials(
                split,
                ",".join(paths for names, paths in lists if name in names and paths),
                settings.max_trials,
                allow_unknown=settings.allow_unknown_trials,
            )
            for name, split in self.eval_splits.items()
        }

    def report(self, split: str, outputs: Sequence[Mapping[str, np.ndarray]]) -> Report:
        """EER and minDCF of the split's trials by the cosine of the embeddings.

        The figures of its first list stand under their own names, those of others after the list's.
        """
        positions = self.eval_splits[split].index.positions
        real = np.concatenate([batch["mask"] for batch in outputs])
        found = np.concatenate([batch["index"] for batch in outputs])[real]
        embeddings = np.zeros((len(positions), outputs[0]["embedding"].shape[1]), np.float32)
        scored = np.zeros(len(positions), bool)
        # In the order of the index, whatever the buckets and the devices made of it.
        places = np.searchsorted(positions, found)
        embeddings[places] = np.concatenate([batch["embedding"] for batch in outputs])[real]
        scored[places] = True
        speakers = np.asarray(self.eval_splits[split].speakers)
        scalars, lines, meta = {}, [], {}
        for number, (name, wanted) in enumerate(self.trials[split].items()):
            values, said, decision = _measure(embeddings, scored, wanted, speakers, RESAMPLES)
            lines += [f"{split} {name}{': ' if name else ''}{line}" for line in said]
            scalars |= {f"{name}_{key}" if number else key: v for key, v in values.items()}
            meta = meta or decision
        return Report(scalars, lines, meta=meta)


def _measure(
    embeddings: np.ndarray,
    scored: np.ndarray,
    wanted: trials.LocatedTrials,
    speakers: np.ndarray,
    num_resamples: int,
) -> tuple[dict[str, float], list[str], dict[str, Any]]:
    """Figures of one list, what to say of them, and what to keep for later decisions."""
    both = scored[wanted.enrol_index] & scored[wanted.test_index]
    enrol, test = wanted.enrol_index[both], wanted.test_index[both]
    scores = backend.cosine_trials(embeddings, embeddings, enrol, test)
    target = wanted.is_target[both]
    summary, bounds = detection.summarise(scores, target), {}
    # A list may compare recordings whose speakers nobody wrote down.
    if _agrees(speakers, enrol, test, target):
        drawn = bootstrap.resample(
            scores, target, speakers[enrol], speakers[test], num_resamples=num_resamples
        )
        bounds = bootstrap.intervals(drawn)
    lines = [detection.describe(summary, bounds)]
    if not both.all():
        lines.append(f"{int((~both).sum())} trials left out: unreadable recordings")
    scalars = summary.flat()
    if bounds:
        scalars["eer_low"], scalars["eer_high"] = bounds["eer"]
    return scalars, lines, _decision(scores, target)


def _decision(scores: np.ndarray, target: np.ndarray) -> dict[str, Any]:
    """What `verify` needs to decide by these scores, kept with the checkpoint."""
    try:
        fitted = calibration.fit(scores, target)
    except (calibration.CalibrationError, detection.ScoreError) as error:
        log.info("The scores cannot be calibrated: %s", error)
        return {}
    return {
        "slope": fitted.slope,
        "offset": fitted.offset,
        "p_target": fitted.p_target,
        "eer_threshold": detection.eer_threshold(detection.error_curve(scores, target)),
        "trials": len(scores),
    }


def _agrees(speakers: np.ndarray, enrol: np.ndarray, test: np.ndarray, target: np.ndarray) -> bool:
    """Whether all speakers are known and the labels of the trials follow from them."""
    return bool(speakers.all() and ((speakers[enrol] == speakers[test]) == target).all())


def find_trials(
    split: splits.Split, lists: str, most: int, *, allow_unknown: bool = False
) -> dict[str, trials.LocatedTrials]:
    """The trials of each list (paths with commas between) by its name; without any, `most` of all
    pairs under "".

    UserError when there is nothing to measure, or for recordings that are not there unless
    `allow_unknown`: then their trials are left out, counted in the log.
    """
    paths = [pathlib.Path(part.strip()).expanduser() for part in lists.split(",") if part.strip()]
    found = {path.stem: _listed(split, path, allow_unknown) for path in paths}
    speakers = np.asarray(split.speakers)
    if len(found) < len(paths):
        raise errors.UserError(f"{lists}: two trial lists of one name; give them different names.")
    for name, located in (found or {"": all_pairs(data.speakers_of(split), most)}).items():
        found[name] = located
        if not _agrees(speakers, located.enrol_index, located.test_index, located.is_target):
            log.warning(
                "%s: the labels of the trials are not those of the speakers that the data name "
                "(or it names none): no intervals by speaker.",
                name,
            )
        if located.is_target.all() or not located.is_target.any():
            raise errors.UserError(
                f"{split.source.name}: {int(located.is_target.sum())} of {len(located.is_target)} "
                "trials are target trials, and error rates need both kinds: two speakers at least, "
                "one of them with two recordings."
            )
    return found


def _listed(split: splits.Split, path: pathlib.Path, allow_unknown: bool) -> trials.LocatedTrials:
    """The trials of a list, which names records by their ids or, as VoxCeleb's, by their files."""
    listed = trials.read_trials(path)
    wanted = {*listed.enrol_ids, *listed.test_ids}
    names = max(split.ids, split.paths, key=lambda names: len(wanted.intersection(names)))
    try:
        return trials.locate(listed, names, names, allow_unknown=allow_unknown)
    except trials.UnknownIdsError as error:
        raise errors.UserError(
            f"{error} Here: rejected.tsv in the work directory says what is left out of the data; "
            "--config.data.allow_unknown_trials goes on without those trials."
        ) from error


def all_pairs(speakers: Sequence[str], most: int) -> trials.LocatedTrials:
    """Trials from all pairs of n recordings, at most `most`, in time and memory of that order.

    Half of them at most are target pairs; where a kind has more than its room, pairs at equal
    distances in the list of all of its kind are taken.
    """
    _, number = np.unique(np.asarray(speakers), return_inverse=True)
    order = np.argsort(number, kind="stable")
    counts = np.bincount(number)
    n, starts = len(speakers), np.cumsum(counts) - counts
    # Pairs of one speaker, numbered speaker by speaker; of all recordings, numbered row by row.
    per_speaker = counts * (counts - 1) // 2
    ends = np.cumsum(per_speaker)
    targets, every = int(ends[-1]), n * (n - 1) // 2
    chosen = _spread(targets, max(most // 2, most - (every - targets)))
    speaker = np.searchsorted(ends, chosen, side="right")
    first, second = _unrank(chosen - (ends - per_speaker)[speaker])
    left, right = order[starts[speaker] + first], order[starts[speaker] + second]
    # Some of all pairs are target pairs again: those are dropped.
    i, j = _unrank(_spread(every, max(most - len(chosen), 0) * every // max(every - targets, 1)))
    other = number[i] != number[j]
    left, right = np.concatenate([left, i[other]]), np.concatenate([right, j[other]])
    target = np.arange(len(left)) < len(chosen)
    return trials.LocatedTrials(
        np.minimum(left, right), np.maximum(left, right), target, np.arange(len(left)), ()
    )


def _spread(count: int, most: int) -> Int[np.ndarray, "k"]:
    """0 to count - 1, or `most` of them at equal distances."""
    return np.arange(count) if count <= most else np.arange(most, dtype=np.int64) * count // most


def _unrank(k: Int[np.ndarray, "k"]) -> tuple[Int[np.ndarray, "k"], Int[np.ndarray, "k"]]:
    """The k-th pair (i, j), i < j, in the order (0, 1), (0, 2), (1, 2), (0, 3), ..."""
    j = ((1 + np.sqrt(1 + 8 * k.astype(np.float64))) / 2).astype(np.int64)
    j -= j * (j - 1) // 2 > k  # where the root was rounded up
    j += (j + 1) * j // 2 <= k
    return k - j * (j - 1) // 2, j


def make_task(config: Any, workdir: pathlib.Path, mode: str) -> SpeakerTask:
    """The task of a config. `mode`: "train", "evaluate" (no training data), "use" (no data)."""
    data.sequence(config)  # settings that exclude each other are said before the data are read
    training = None
    if mode == "train":
        (workdir / "rejected.tsv").unlink(missing_ok=True)
        training = splits.open_split(config, config.data.train, workdir, require_text=False)
    names = {"train": config.data.eval, "evaluate": (*config.data.eval, *config.data.test)}
    evaluation = {
        name: splits.open_split(config, name.split("+"), workdir, require_text=False)
        for name in names.get(mode, ())
    }
    task = SpeakerTask(config, workdir, data.classes(training, workdir), training, evaluation)
    _ = task.trials  # before the training, not at its first evaluation
    return task


def close(task: SpeakerTask, workdir: pathlib.Path, reports: Mapping[str, Report]) -> None:
    """The last words of a run: error rates, and where things lie."""
    for report in reports.values():
        print("\n".join(report.lines))
    if task.config.data.kind == "embedded":
        print("These are synthetic voices: the figures say nothing about real speech.")
    print(f"Checkpoints: {workdir / 'checkpoints'}   curves: {workdir / 'metrics.jsonl'}")
