"""Batches of mixtures: drawn anew in training, a fixed list of them in evaluation."""

import dataclasses
import logging
import pathlib
from typing import Any

import jax
import numpy as np

from common import errors, parallel, sections
from common.data import buckets, pipeline, speech, splits
from separation import fixed, mixing, modes, sight
from separation import surroundings as surroundings_lib

log = logging.getLogger(__name__)

# What has a frame for each 40 ms of a mixture; the last two in evaluation alone.
FILMED = tuple(
    f"{whose}mouth{what}" for whose in ("", "other_", "strange_") for what in ("", "_seen")
)


def surroundings(config: Any, workdir: pathlib.Path) -> surroundings_lib.Surroundings | None:
    """The noise and the rooms of `config.augment`; None where it has none."""
    companions = splits.companions(config, workdir)
    if not companions:
        return None
    ratios = {name: tuple(config.augment[name].snr_db) for name in companions if name != "rir"}
    for name, (low, high) in ratios.items():
        if low > high:
            raise errors.UserError(
                f"config.augment.{name}.snr_db={(low, high)}: give the least and the most."
            )
    return surroundings_lib.Surroundings(companions, ratios, config.data.sample_rate_hz)


def mixtures(
    split: splits.Split,
    config: Any,
    around: surroundings_lib.Surroundings | None,
    *,
    train: bool,
) -> mixing.Mixtures:
    """The mixtures of a split: one for each recording, in evaluation at most so many."""
    data, rate = config.data, config.data.sample_rate_hz
    labels = np.unique(splits.speakers_of(split), return_inverse=True)[1].astype(np.int32)
    seen = sight.films_of(split.source, config) if sight.wanted(config) else None
    crops = speech.SpeechCrops(
        *(split.source, split.index, labels, rate),
        channel=splits.channel(data),
        grain=seen.grain if seen else 1,
    )
    places = np.arange(len(split.index))
    if not train and 0 < data.max_eval_mixtures < len(places):
        # Evenly over the recordings, which most sources sort by speaker.
        places = np.linspace(0, len(places) - 1, data.max_eval_mixtures).round().astype(int)
    seconds = data.crop_seconds if train else data.max_eval_seconds
    return mixing.Mixtures(
        crops,
        places,
        sections.build(mixing.MixingConfig, config.mixing),
        round(seconds * rate),
        round(data.enrolment_seconds * rate),
        config.seed,
        around,
        speeds=tuple(config.augment.speeds) if train else (1.0,),
        num_speakers=int(labels.max()) + 1,
        films=seen,
        keeps_late=config.model.kind == "lite",
        shortest=round(config.mixing.shortest_seconds * rate) if train else 0,
    )


def evaluated(
    split: splits.Split, config: Any, around: surroundings_lib.Surroundings | None
) -> mixing.Mixtures | fixed.ListSplit:
    """What is evaluated of a split: a list as it is, mixtures of others."""
    if isinstance(split, fixed.ListSplit):
        return split
    return mixtures(split, config, around, train=False)


def train_batches(
    split: splits.Split,
    config: Any,
    around: surroundings_lib.Surroundings | None,
    *,
    num_workers: int | None = None,
) -> Any:
    """The endless stream of `batch_rows` mixtures; an epoch has each recording as target once.

    Each mixture has two enrolments: see `extraction.of_both`. `num_workers`: not the config's.
    """
    data, found = config.data, mixtures(split, config, around, train=True)
    again = config.model.kind == "visualvoice"
    found = dataclasses.replace(found, paired=not again, again=again)
    parallel.check_rows(config)
    least = config.mixing.shortest_seconds
    log.info(
        "%s: %d speakers; batches of %d x %s%.1f s.",
        *(split.name, len(set(split.speakers)), data.batch_rows),
        *(f"{least:.1f} to " if least else "", data.crop_seconds),
    )
    lengths = {"sources": found.num_samples, "enrolment": found.num_enrolment}
    if not again:
        lengths["other_enrolment"] = found.num_enrolment
    if found.films:
        frames = found.films.frames(found.num_samples)
        lengths |= dict.fromkeys(FILMED[: 4 if found.num_voices > 1 else 2], frames)
    if found.films and again:
        frames = found.films.frames(found.num_enrolment)
        lengths |= dict.fromkeys(("enrolment_mouth", "enrolment_mouth_seen"), frames)
    return pipeline.train_batches(
        found,
        (buckets.Bucket(data.batch_rows, lengths),),
        {name: np.full(len(found), most) for name, most in lengths.items()},
        seed=config.seed,
        num_workers=data.num_workers if num_workers is None else num_workers,
        max_failed_share=data.max_bad_share,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def full(
    split: splits.Split, config: Any, around: surroundings_lib.Surroundings | None
) -> modes.Full:
    """What is evaluated of a split, for all modes."""
    speakers = np.array(split.speakers)
    labels = np.where(speakers == "", -1, np.unique(speakers, return_inverse=True)[1])
    rate = config.data.sample_rate_hz
    return modes.Full(
        evaluated(split, config, around),
        speech.SpeechCrops(
            *(split.source, split.index, labels.astype(np.int32), rate),
            channel=splits.channel(config.data),
        ),
        "noisy" in modes.table(config),
        tuple(config.mixing.enrolment_snr_db),
        config.seed,
        around,
    )


def eval_batches(
    split: splits.Split,
    config: Any,
    around: surroundings_lib.Surroundings | None,
    *,
    in_full: bool = False,
) -> Any:
    """Every mixture once, in length buckets; the same mixtures whatever the devices.

    `in_full`: with what all modes take.
    """
    data, found = config.data, evaluated(split, config, around)
    enrolments = np.full(len(found), found.num_enrolment)
    sizes = {"sources": found.lengths, "enrolment": enrolments}
    if sight.wanted(config):
        frames = np.array([found.films.frames(int(n)) for n in found.lengths])
        other = FILMED[2:4] if found.num_voices == 1 else ()
        sizes |= {name: frames for name in FILMED if name not in other}
    if in_full and "noisy" in modes.table(config):
        sizes["disturbed"] = enrolments
    shapes = buckets.choose_buckets(
        sizes,
        primary="sources",
        num_buckets=data.num_buckets,
        max_total=max(
            round(data.eval_batch_seconds * data.sample_rate_hz),
            found.num_samples * jax.device_count(),
        ),
        rows_multiple_of=jax.device_count(),
    )
    return pipeline.eval_batches(
        full(split, config, around) if in_full else found,
        shapes,
        sizes,
        num_workers=data.num_workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
