"""Batches of speech with labels, in length buckets."""

import logging
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from asr import tokenizer as tokenizer_lib
from common.data import buckets, examples, pipeline, speech, splits

log = logging.getLogger(__name__)

_VERSIONS = 8  # of the silence around a recording; epochs take them in turn


def batches(
    split: splits.Split,
    tokenizer: tokenizer_lib.Tokenizer,
    config: Any,
    *,
    train: bool,
    beside: Mapping[str, examples.Companion] | None = None,
) -> Any:
    """The grain dataset of a split: endless and shuffled to train, each record once otherwise.

    `beside` is what training rows draw at random (`splits.companions`). Each recording is trained
    on at every one of `config.augment.speeds`, all of them shuffled together, with silence around
    it that is another one in each of `_VERSIONS` epochs.
    Recordings whose labels cannot be aligned by CTC (more labels than frames) stay in: the loss
    counts them.
    """
    data, silent = config.data, config.augment.silence
    speeds = tuple(config.augment.speeds) or (1.0,) if train else (1.0,)
    versions = _VERSIONS if train and silent.probability > 0 else 1
    labels = [tokenizer.encode(text) for text in split.texts]
    coverage = tokenizer.coverage(split.texts)
    if coverage.message:
        log.warning("%s: %s", split.name, coverage.message)
    sizes = {
        "audio": np.tile(speech.played_lengths(split.index.lengths, speeds), versions),
        "labels": np.tile([max(1, len(row)) for row in labels], len(speeds) * versions),
    }
    silence = None
    if versions > 1:
        silence = speech.draw_silence(
            len(sizes["audio"]),
            seed=config.seed,
            probability=silent.probability,
            max_samples=round(silent.seconds * data.sample_rate_hz),
        )
        sizes["audio"] = sizes["audio"] + silence.sum(axis=1)
    most, limit = len(split.index), int(data.batch_seconds * data.sample_rate_hz)
    if not train:
        longest = int(split.index.lengths.max(initial=0))
        # A program more for evaluation is worth its compilation only if many recordings use it, or
        # if some are longer than any to train on, which the others are not to be padded to.
        most = max(1, most // 200) + (longest > data.max_seconds * data.sample_rate_hz)
        # The longest is evaluated too, alone on each device if need be.
        limit = max(limit, longest * jax.device_count())
    options = {"primary": "audio", "num_buckets": min(data.num_buckets, most), "max_total": limit}
    if train:
        devices = {"devices": jax.device_count(), "accumulate": config.accumulate}
        shapes = buckets.choose_for_devices(sizes, **devices, versions=versions, **options)
    else:  # no row more than there are recordings, or devices
        shapes = buckets.choose_buckets(sizes, rows_multiple_of=jax.device_count(), **options)
    log.info(
        "%s: batches of %s; %.1f %% padding.",
        split.name,
        ", ".join(f"{b.rows} x {b.lengths['audio'] / data.sample_rate_hz:.1f} s" for b in shapes),
        100 * buckets.padding_share(shapes, sizes, "audio"),
    )
    spoken = speech.SpeechExamples(
        split.source,
        split.index.positions,
        sample_rate_hz=data.sample_rate_hz,
        channel=splits.channel(data),
        encode=tokenizer.encode,
        speeds=speeds,
        silence=silence,
    )
    share = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    if train:
        return pipeline.train_batches(
            examples.WithCompanions(spoken, beside or {}),
            shapes,
            sizes,
            seed=config.seed,
            versions=versions,
            num_workers=data.num_workers,
            # A recording counts once.
            max_failed_share=data.max_bad_share / (len(speeds) * versions),
            **share,
        )
    return pipeline.eval_batches(spoken, shapes, sizes, num_workers=data.num_workers, **share)
