"""Batches of crops with speaker labels to train, whole recordings in buckets to evaluate."""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from common import errors, parallel
from common.audio import augment, vad
from common.data import buckets, classes, examples, pipeline, speech, splits

log = logging.getLogger(__name__)


def sequence(config: Any) -> tuple[str, float]:
    """What the recordings are made of, and how many of it make a second: ("audio", 16000.0).

    ("features", 100.0) where the data hold features. UserError for settings that exclude each
    other.
    """
    features = config.features
    vads = {"log_mel": ("none", *vad.DETECTORS), "given": ("none", "kaldi")}
    if features.kind not in vads:
        raise errors.UserError(
            f"config.features.kind={features.kind!r} is unknown; choose log_mel or given."
        )
    if config.data.vad not in vads[features.kind]:
        raise errors.UserError(
            f"config.data.vad={config.data.vad!r}: with config.features.kind={features.kind} "
            f"choose one of {', '.join(vads[features.kind])}."
        )
    if features.kind == "log_mel":
        return "audio", float(config.data.sample_rate_hz)
    if features.hop_ms <= 0:
        raise errors.UserError(f"config.features.hop_ms={features.hop_ms} must be positive.")
    settings = config.augment
    of_waves = [f"{name}.root" for name in ("rir", *augment.ADDED) if settings[name].get("root")]
    of_waves += ["rir.t60_seconds"] if len(settings.rir.t60_seconds) else []
    of_waves += ["hiss.probability"] if settings.hiss.probability > 0 else []
    of_waves += ["speeds"] if len(settings.speeds) > 1 else []
    if of_waves:
        raise errors.UserError(
            f"config.augment.{', '.join(of_waves)}: these change waveforms, but with "
            "config.features.kind=given there are none. Leave them out (masks of SpecAugment "
            "work), or train from recordings."
        )
    return "features", 1000.0 / features.hop_ms


def detector(config: Any) -> vad.Detector | None:
    """What finds the pauses that are cut out of recordings; None leaves them in."""
    kind = vad.DETECTORS.get(config.data.vad)
    return kind() if kind else None


def _crops(
    split: splits.Split,
    targets: Int[np.ndarray, "n"],
    config: Any,
    *,
    num_speakers: int = 0,
    without_pauses: bool = True,
) -> speech.SpeechCrops | speech.FeatureCrops:
    """Recordings of a split. `without_pauses`: if the config says so."""
    if sequence(config)[0] == "features":
        return speech.FeatureCrops(split.source, split.index, targets)
    return speech.SpeechCrops(
        *(split.source, split.index, targets, config.data.sample_rate_hz),
        channel=splits.channel(config.data),
        speeds=tuple(config.augment.speeds) if num_speakers else (1.0,),
        num_speakers=num_speakers,
        detector=detector(config) if without_pauses else None,
    )


@dataclasses.dataclass(frozen=True)
class BySpeaker:
    """Crops of recordings drawn at random within each speaker, all speakers equally often.

    Element i is of speaker i modulo their number; there are as many as recordings, rounded up to
    the same number of each speaker.
    """

    crops: speech.SpeechCrops | speech.FeatureCrops

    @functools.cached_property
    def _members(self) -> tuple[np.ndarray, ...]:
        order = np.argsort(self.crops.labels, kind="stable")
        bounds = np.flatnonzero(np.diff(self.crops.labels[order])) + 1
        return tuple(np.split(order, bounds))

    @property
    def identity(self) -> Mapping[str, str]:
        """That of the crops, and the way they are drawn."""
        return {**self.crops.identity, "sampler": "speaker"}

    def __len__(self) -> int:
        speakers = len(self._members)
        return -(-len(self.crops) // speakers) * speakers

    def draw(
        self, i: int, rng: np.random.Generator | None, lengths: Mapping[str, int]
    ) -> dict[str, Any]:
        """A crop of a recording of speaker i; consumes one number of `rng` more than `crops`."""
        members = self._members[i % len(self._members)]
        place = 0.0 if rng is None else rng.random()
        return self.crops.draw(int(members[int(place * len(members))]), rng, lengths)


def train_batches(
    split: splits.Split, names: tuple[str, ...], config: Any, workdir: pathlib.Path
) -> Any:
    """The endless stream of `batch_rows` crops, drawn as `config.data.sampler` says."""
    data = config.data
    name, rate = sequence(config)
    crop = round(data.crop_seconds * rate)
    shape = buckets.Bucket(data.batch_rows, {name: crop})
    parallel.check_rows(config)
    targets = classes.labels(split, names)
    counts = np.bincount(targets, minlength=len(names))
    log.info(
        "%s: %d speakers, %d to %d recordings each; batches of %d x %.1f s.",
        *(split.name, len(names), counts.min(), counts.max(), data.batch_rows, crop / rate),
    )
    if (counts == 1).any():
        log.warning("%d speakers have one recording only.", int((counts == 1).sum()))
    crops = _crops(split, targets, config, num_speakers=len(names))
    sizes = np.minimum(split.index.lengths, crop)
    if data.sampler == "speaker":
        crops = BySpeaker(crops)
        sizes = np.full(len(crops), crop)
    elif data.sampler != "utterance":
        raise errors.UserError(
            f"config.data.sampler={data.sampler!r} is unknown; choose utterance or speaker."
        )
    return pipeline.train_batches(
        examples.WithCompanions(crops, splits.companions(config, workdir)),
        (shape,),
        {name: sizes},
        seed=config.seed,
        num_workers=data.num_workers,
        max_failed_share=data.max_bad_share,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def eval_batches(
    split: splits.Split,
    config: Any,
    *,
    max_length: int | None = None,
    cut: bool = False,
    num_workers: int | None = None,
) -> Any:
    """Every recording once, in length buckets: the first `max_length` samples or frames, by default
    the seconds of the config. `cut`: what `config.data.vad` leaves out is left out already.
    `num_workers`: not the config's."""
    data = config.data
    name, rate = sequence(config)
    most = round(data.max_eval_seconds * rate) if max_length is None else max_length
    sizes = {name: np.minimum(split.index.lengths, most)}
    shapes = buckets.choose_buckets(
        sizes,
        primary=name,
        num_buckets=data.num_buckets,
        max_total=max(round(data.eval_batch_seconds * rate), most * jax.device_count()),
        rows_multiple_of=jax.device_count(),
    )
    unlabelled = np.full(len(split.index), -1, np.int32)
    return pipeline.eval_batches(
        _crops(split, unlabelled, config, without_pauses=not cut),
        shapes,
        sizes,
        num_workers=data.num_workers if num_workers is None else num_workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
