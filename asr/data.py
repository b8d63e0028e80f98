"""From a config to batches: sources, the index of usable recordings, labels, buckets."""

import dataclasses
import functools
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from asr import tokenizer as tokenizer_lib
from common import errors
from common.data import buckets, clips, embedded, librispeech, manifest, pipeline, records, tfds

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Split:
    """The usable records of one named part of the data."""

    name: str
    source: records.Source
    index: records.Index

    @functools.cached_property
    def texts(self) -> list[str]:
        """Transcripts of the usable records, as they stand in the source."""
        return [self.source[int(i)]["text"] for i in self.index.positions]


def open_source(data: Any, names: Sequence[str]) -> records.Source:
    """The source that `config.data` describes, restricted to the subsets `names`."""
    if data.kind == "embedded":
        settings = embedded.CorpusSettings(hours=data.hours, eval_hours=data.eval_hours)
        if len(names) != 1:
            raise errors.UserError(
                f"config.data names the splits {tuple(names)} together; the embedded corpus gives "
                "one at a time: train, dev or test."
            )
        return embedded.EmbeddedCorpus(names[0], settings)
    if not data.root:
        raise errors.UserError(
            f"config.data.root is empty: set --config.data.root=... to the data of kind "
            f"{data.kind!r} (see the docstring of the config)."
        )
    root = pathlib.Path(data.root).expanduser()
    if data.kind == "librispeech":
        return librispeech.read_tree(root, list(names))
    if data.kind == "manifest":
        where = {data.split_column: list(names)}
        return manifest.read_manifest(root, root=data.audio_root or None, where=where)
    if data.kind == "tfds":
        return tfds.TfdsSource(root, "+".join(names))
    raise errors.UserError(
        f"config.data.kind={data.kind!r} is unknown; choose embedded, librispeech, "
        "manifest or tfds."
    )


def open_split(config: Any, names: Sequence[str], workdir: pathlib.Path) -> Split:
    """Opens and validates a part of the data; what is unusable goes to DIR/rejected.tsv."""
    data = config.data
    name = "+".join(names)
    source = open_source(data, names)
    index = records.build_index(
        source,
        cache=workdir / "index.json",
        rejected_tsv=workdir / "rejected.tsv",
        min_seconds=data.min_seconds,
        max_seconds=data.max_seconds,
        require_text=True,
        max_bad_share=data.max_bad_share,
        num_workers=os.cpu_count() or 1,
        progress=jax.process_index() == 0,
    )
    hours = float(index.seconds.sum()) / 3600
    log.info("%s: %d recordings, %.2f hours.", name, len(index), hours)
    return Split(name, source, index)


def companions(config: Any, workdir: pathlib.Path) -> dict[str, pipeline.Companion]:
    """Noise and room responses of `config.augment`, validated like any other recording."""
    rate, found = config.data.sample_rate_hz, {}
    for name in ("noise", "rir"):
        settings = config.augment[name]
        if not settings.root:
            continue
        source = clips.read_folder(settings.root)
        index = records.build_index(
            source,
            cache=workdir / "index.json",
            rejected_tsv=workdir / "rejected.tsv",
            min_seconds=0.01,
            max_seconds=1e9,
            require_text=False,
            max_bad_share=config.data.max_bad_share,
            num_workers=os.cpu_count() or 1,
            progress=jax.process_index() == 0,
        )
        length = round(settings.max_seconds * rate) if name == "rir" else None
        drawn = clips.Clips(source, index, rate, crop=name == "noise")
        found[name] = pipeline.Companion(drawn, length)
    return found


def channel(data: Any) -> str | int:
    """`config.data.channel`: "mean" or a channel number."""
    return int(data.channel) if str(data.channel).isdigit() else data.channel


def batches(
    split: Split,
    tokenizer: tokenizer_lib.Tokenizer,
    config: Any,
    *,
    train: bool,
    beside: Mapping[str, pipeline.Companion] | None = None,
) -> Any:
    """The grain dataset of a split: endless and shuffled to train, each record once otherwise.

    `beside` is what training rows draw at random (`companions`).
    Recordings whose labels cannot be aligned by CTC (more labels than frames) stay in: the loss
    counts them.
    """
    data = config.data
    labels = [tokenizer.encode(text) for text in split.texts]
    coverage = tokenizer.coverage(split.texts)
    if coverage.message:
        log.warning("%s: %s", split.name, coverage.message)
    samples = np.ceil(split.index.seconds.astype(np.float64) * data.sample_rate_hz).astype(np.int64)
    sizes = {
        "audio": samples + 1,  # seconds are float32: one sample more is always enough
        "labels": np.asarray([max(1, len(row)) for row in labels], np.int64),
    }
    # A program more for evaluation is worth its compilation only if many recordings use it.
    most = len(split.index) if train else max(1, len(split.index) // 200)
    shapes = buckets.choose_buckets(
        sizes,
        primary="audio",
        num_buckets=min(data.num_buckets, most),
        max_total=int(data.batch_seconds * data.sample_rate_hz),
        rows_multiple_of=jax.device_count() * (config.accumulate if train else 1),
    )
    log.info(
        "%s: batches of %s; %.1f %% padding.",
        split.name,
        ", ".join(f"{b.rows} x {b.lengths['audio'] / data.sample_rate_hz:.1f} s" for b in shapes),
        100 * buckets.padding_share(shapes, sizes, "audio"),
    )
    examples = records.SpeechExamples(
        split.source,
        split.index.positions,
        sample_rate_hz=data.sample_rate_hz,
        channel=channel(data),
        encode=tokenizer.encode,
    )
    share = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    if train:
        return pipeline.train_batches(
            examples,
            shapes,
            sizes,
            seed=config.seed,
            num_workers=data.num_workers,
            companions=beside,
            **share,
        )
    return pipeline.eval_batches(examples, shapes, sizes, num_workers=data.num_workers, **share)
