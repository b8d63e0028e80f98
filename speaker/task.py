"""The speaker task: what the trainer needs to train, evaluate and report a `SpeakerNet`."""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from common import errors, metrics, optim, parallel, state, steps
from common.audio import augment
from common.data import splits
from common.nn import masking
from common.task import Batch, Metrics, Report
from speaker import backend, data, detection, margin_schedules, model, trials


@dataclasses.dataclass(frozen=True)
class SpeakerTask:
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

    @functools.cached_property
    def model(self) -> model.SpeakerNet:
        return model.make_model(self.config, len(self.classes))

    @functools.cached_property
    def optimizer(self) -> tuple[Any, optim.Schedule]:
        return optim.make_optimizer(self.config.optimizer, self.config.total_steps)

    @functools.cached_property
    def train_step(self) -> steps.Step:
        config = self.config
        return steps.supervised(
            self.loss,
            self.optimizer[0],
            accumulate=config.accumulate,
            ema_decay=config.ema_decay,
        )

    def init(self, key: jax.Array) -> state.Variables:
        return model.init(self.model, key)

    def create_state(self, variables: state.Variables) -> state.TrainState:
        return state.create(variables, self.optimizer[0], ema=self.config.ema_decay > 0)

    def checkpoint_meta(self) -> dict[str, str]:
        return {"speakers": data.digest(self.classes)}

    def check_checkpoint(self, meta: Mapping[str, Any]) -> None:
        if meta["speakers"] != data.digest(self.classes):
            raise errors.UserError(
                f"The checkpoint was trained on other speakers than the {len(self.classes)} of "
                f"{self.workdir}. Use the data of then, or another --workdir."
            )

    def _distortions(self, batch: Batch, key: Any) -> tuple[jax.Array, Any]:
        """Audio of training rows, distorted, and what else is to happen inside the model."""
        settings = self.config.augment
        audio, lengths = batch["audio"], batch["audio_lengths"]
        keys = {
            name: parallel.row_keys(jax.random.fold_in(key, i), batch["row"])
            for i, name in enumerate(("masks", "rir", "noise"))
        }
        audio = augment.add_rooms_and_noise(audio, lengths, batch, keys, settings)
        if not (settings.freq_masks or settings.time_masks):
            return audio, None
        masks = augment.SpecAugmentConfig(
            freq_masks=settings.freq_masks,
            freq_width=settings.freq_width,
            time_masks=settings.time_masks,
            time_ratio=settings.time_ratio,
            time_width=settings.time_width,
        )
        return audio, lambda x, lengths: augment.spec_augment(x, lengths, keys["masks"], masks)

    def loss(
        self, variables: state.Variables, batch: Batch, key: Any, step: Any, *, train: bool
    ) -> tuple[jax.Array, tuple[jax.Array, Metrics, state.Variables]]:
        settings, mask = self.config.loss, batch["mask"]
        audio, distort, margin = batch["audio"], None, jnp.float32(settings.margin)
        if train:
            audio, distort = self._distortions(batch, key)
            margin = margin_schedules.margin_at(
                step,
                final=settings.margin,
                start_step=settings.margin_start_step,
                end_step=settings.margin_end_step,
                growth=settings.growth,
            )
        found, new_state = self.model.apply(
            variables,
            audio,
            batch["audio_lengths"],
            batch["label"],
            margin,
            train=train,
            mask=mask,
            distort=distort,
            mutable=[name for name in variables if name != "params"],
        )
        total = metrics.ratio(found.loss, mask)
        sums = {
            "accuracy": metrics.ratio(found.correct.astype(jnp.float32), mask),
            "target_cosine": metrics.ratio(found.target, mask),
            "margin": metrics.ratio(jnp.broadcast_to(margin, mask.shape), mask),
            "audio_seconds": self._seconds(batch),
        }
        return total.total, (total.count, sums, new_state)

    def _seconds(self, batch: Batch) -> metrics.Ratio:
        samples = masking.fold_row_mask(batch["audio_lengths"], batch["mask"])
        seconds = jnp.sum(samples.astype(jnp.float32)) / self.config.data.sample_rate_hz
        return metrics.Ratio(seconds, jnp.ones(()))

    def eval_step(
        self, variables: state.Variables, batch: Batch
    ) -> tuple[Metrics, Mapping[str, jax.Array]]:
        embeddings = self.model.apply(
            variables,
            batch["audio"],
            batch["audio_lengths"],
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

    def report(self, split: str, outputs: Sequence[Mapping[str, np.ndarray]]) -> Report:
        """EER and minDCF of the split's trials by the cosine of the embeddings."""
        real = np.concatenate([batch["mask"] for batch in outputs])
        places = np.concatenate([batch["index"] for batch in outputs])[real]
        embeddings = np.concatenate([batch["embedding"] for batch in outputs])[real]
        source = self.eval_splits[split].source
        found = [source[int(i)] for i in places]
        settings = self.config.data
        if settings.trials:
            ids = [record["id"] for record in found]
            located = trials.locate(trials.read_trials(settings.trials), ids, ids)
            pairs = located.enrol_index, located.test_index, located.is_target
        else:
            speakers = [record.get("speaker", "") for record in found]
            pairs = all_pairs(speakers, settings.max_trials)
        scores = backend.cosine_trials(embeddings, embeddings, pairs[0], pairs[1])
        summary = detection.summarise(scores, pairs[2])
        return Report(summary.flat(), [f"{split} {detection.describe(summary)}"])

    def schedule(self, step: int) -> float:
        return float(self.optimizer[1](step))


def all_pairs(
    speakers: Sequence[str], most: int
) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"], Bool[np.ndarray, "n"]]:
    """Trials from all pairs of recordings: places of both sides, and whether the speaker is one.

    All target pairs and, if that is more than `most`, as many of the others at equal distances as
    make `most` together.
    """
    pairs = np.array(list(itertools.combinations(range(len(speakers)), 2)), np.int64).reshape(-1, 2)
    _, number = np.unique(np.asarray(speakers), return_inverse=True)
    target = number[pairs[:, 0]] == number[pairs[:, 1]]
    others = np.flatnonzero(~target)
    room = max(1, most - int(target.sum()))
    if len(others) > room:
        others = others[np.linspace(0, len(others) - 1, room).round().astype(int)]
    kept = np.sort(np.concatenate([np.flatnonzero(target), others]))
    return pairs[kept, 0], pairs[kept, 1], target[kept]


def make_task(config: Any, workdir: pathlib.Path, mode: str) -> SpeakerTask:
    """The task of a config. `mode`: "train", "evaluate" (no training data), "use" (no data)."""
    training = None
    if mode == "train":
        (workdir / "rejected.tsv").unlink(missing_ok=True)
        training = splits.open_split(config, config.data.train, workdir, require_text=False)
    names = () if mode == "use" else config.data.eval
    evaluation = {
        name: splits.open_split(config, (name,), workdir, require_text=False) for name in names
    }
    return SpeakerTask(config, workdir, data.classes(training, workdir), training, evaluation)


def close(task: SpeakerTask, workdir: pathlib.Path, reports: Mapping[str, Report]) -> None:
    """The last words of a run: error rates, and where things lie."""
    for report in reports.values():
        print("\n".join(report.lines))
    if task.config.data.kind == "embedded":
        print("These are synthetic voices: the figures say nothing about real speech.")
    print(f"Checkpoints: {workdir / 'checkpoints'}   curves: {workdir / 'metrics.jsonl'}")
