"""A trained speaker network as a function from recordings to embeddings."""

import dataclasses
import functools
import hashlib
import json
import logging
import math
import os
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
import tqdm
from jaxtyping import Float, Int

from common import checkpoint, parallel, trainer, workdir
from common.audio import io
from common.data import records, splits
from speaker import calibration, data
from speaker import task as speaker_task

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Decision:
    """What the evaluation of a checkpoint left for deciding by its cosine scores.

    `source` says in words where it was fitted.
    """

    calibration: calibration.Calibration
    eer_threshold: float
    source: str


@dataclasses.dataclass(frozen=True, eq=False)
class Embedded:
    """Embeddings f32[n, d] of the records at `places` of an index; `failed` ones have none."""

    places: Int[np.ndarray, "n"]
    embeddings: Float[np.ndarray, "n d"]
    failed: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Pieces:
    """A source of equal stretches of recordings: `parts[i]` of them for the record at positions[i].

    Its records hold samples at `sample_rate_hz`, read when they are asked for; a recording of one
    piece is passed on as it is.
    """

    source: records.Source
    positions: Int[np.ndarray, "n"]
    seconds: Float[np.ndarray, "n"]
    parts: Int[np.ndarray, "n"]
    sample_rate_hz: int
    channel: str | int

    @property
    def name(self) -> str:
        return self.source.name

    @functools.cached_property
    def owner(self) -> Int[np.ndarray, "p"]:
        """The record (place in `positions`) of every piece."""
        return np.repeat(np.arange(len(self.parts)), self.parts)

    @property
    def lengths(self) -> Float[np.ndarray, "p"]:
        """Seconds of every piece."""
        return (self.seconds / self.parts)[self.owner]

    def __len__(self) -> int:
        return int(self.parts.sum())

    def __getitem__(self, piece: int) -> records.Record:
        place = int(np.searchsorted(self._ends, piece, side="right"))
        record = self.source[int(self.positions[place])]
        if self.parts[place] == 1:
            return record
        length = float(self.seconds[place]) / int(self.parts[place])
        number = piece - int(self._ends[place] - self.parts[place])
        audio = io.load_audio(
            record["audio"],
            sample_rate_hz=self.sample_rate_hz,
            channel=self.channel,
            source_rate_hz=record.get("sample_rate"),
            start=number * length,
            duration=length,
        )
        return {"id": record["id"], "audio": audio, "sample_rate": self.sample_rate_hz}

    @functools.cached_property
    def _ends(self) -> Int[np.ndarray, "n"]:
        return np.cumsum(self.parts)


class Embedder:
    """The network of a work directory: its checkpoint of `step`, by default the best.

    A recording longer than `config.data.max_eval_seconds` is cut into the fewest equal pieces that
    are no longer, and gets the mean of their embeddings. That is the average weighted by length of
    Kaldi's extractor (which cuts 100 s pieces and a rest), without a short rest. Training evaluates
    such recordings by their first seconds only.

    `network` tells one set of weights from every other.
    """

    def __init__(self, folder: pathlib.Path | str, step: int | None = None) -> None:
        self.folder = pathlib.Path(folder).expanduser().resolve()
        self.config = workdir.load_config(self.folder, "speaker")
        self._task = speaker_task.make_task(self.config, self.folder, "use")
        self._mesh = parallel.make_mesh()
        self._split, _, mode = self._task.best_metric
        directory = self.folder / "checkpoints"
        loader = checkpoint.Checkpointer(directory, best_mode=mode, read_only=True)
        self._variables, self._meta = loader.load_variables(
            self._mesh, step=step, sharded=self._task.sharded
        )
        self._task.check_checkpoint(self._meta)
        self._eval_step = trainer.make_eval_step(self._task, self.config, self._mesh)
        weights = json.dumps(self._meta["fingerprint"], sort_keys=True)
        self.network = hashlib.sha256(weights.encode()).hexdigest()[:16]
        self.step = int(self._meta["step"])

    @property
    def decision(self) -> Decision | None:
        """How to decide by the cosine of two embeddings; None if no evaluation could tell."""
        said = self._meta.get("report", {}).get(self._split)
        if not said:
            return None
        fitted = calibration.Calibration(said["slope"], said["offset"], said["p_target"])
        source = f"{said['trials']} trials of the split {self._split!r} at step "
        source += str(self._meta["evaluated"])
        if self._meta["evaluated"] != self.step:
            source += f", not at step {self.step} itself"
        return Decision(fitted, said["eer_threshold"], source)

    def open(self, source: records.Source, folder: pathlib.Path) -> splits.Split:
        """Validates the recordings of a source; what is unusable goes to folder/rejected.tsv.

        Raises records.DataError when none is usable.
        """
        (folder / "rejected.tsv").unlink(missing_ok=True)
        index = records.build_index(
            source,
            cache=folder / "index.json",
            rejected_tsv=folder / "rejected.tsv",
            min_seconds=self.config.data.min_seconds,
            max_seconds=math.inf,
            require_text=False,
            max_bad_share=1.0,
            num_workers=os.cpu_count() or 1,
            progress=True,
        )
        return splits.Split(source.name, source, index)

    def load(self, path: str) -> Float[np.ndarray, "t"]:
        """The samples of one file at the network's rate.

        Raises io.AudioError for a file that is unreadable, silent or too short.
        """
        settings = self.config.data
        rate = settings.sample_rate_hz
        audio = io.load_audio(path, sample_rate_hz=rate, channel=splits.channel(settings))
        if "silent" in io.check_audio(audio):
            raise io.AudioError(path, "silent: every sample is zero")
        if len(audio) < settings.min_seconds * rate:
            raise io.AudioError(
                path,
                f"too short: {len(audio) / rate:.3f} s, the network of {self.folder} wants "
                f"{settings.min_seconds:g} s",
            )
        return audio

    def embed_files(self, paths: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """Embeddings of a few files, in their order. Raises io.AudioError as `load` does."""
        rate = self.config.data.sample_rate_hz
        audio = [self.load(path) for path in paths]
        rows = tuple(
            {"id": str(i), "audio": samples, "sample_rate": rate} for i, samples in enumerate(audio)
        )
        seconds = np.array([len(samples) / rate for samples in audio], np.float32)
        index = records.Index(np.arange(len(rows)), seconds, ())
        split = splits.Split("files", records.RecordList("files", rows), index)
        return self(split, few_shapes=True).embeddings

    def __call__(
        self, split: splits.Split, *, few_shapes: bool = False, progress: bool = False
    ) -> Embedded:
        """Embeddings of the usable records of a split, in its order.

        `few_shapes` pads to lengths from a short list, so that what was compiled for a few files
        is found again for the next. A recording that can no longer be read is named in a warning
        and among `failed`.
        """
        settings = self.config.data
        index = split.index
        parts = np.ceil(index.seconds / np.float64(settings.max_eval_seconds)).astype(np.int64)
        pieces = Pieces(
            split.source,
            index.positions,
            index.seconds.astype(np.float64),
            np.maximum(parts, 1),
            settings.sample_rate_hz,
            splits.channel(settings),
        )
        lengths = pieces.lengths
        if few_shapes:  # the next power of the square root of two
            lengths = 2.0 ** (np.ceil(2 * np.log2(lengths)) / 2)
        seconds = lengths.astype(np.float32)
        stretches = splits.Split(
            split.name, pieces, records.Index(np.arange(len(pieces)), seconds, ())
        )
        batches = data.eval_batches(stretches, self.config)
        found, embeddings = self._run(batches, len(pieces), progress)
        sums = np.zeros((len(index), embeddings.shape[1]))
        owner = pieces.owner[found]
        np.add.at(sums, owner, embeddings.astype(np.float64))
        whole = np.bincount(owner, minlength=len(index)) == pieces.parts
        means = sums[whole] / pieces.parts[whole, None]
        failed = tuple(np.flatnonzero(~whole).tolist())
        return Embedded(np.flatnonzero(whole), means.astype(np.float32), failed)

    def _run(self, batches, count, progress) -> tuple[np.ndarray, np.ndarray]:
        """(numbers of the pieces, their embeddings), one batch behind the device."""
        found, pending = [], None
        with tqdm.tqdm(total=count, desc="embedding", unit="piece", disable=not progress) as bar:

            def collect(rows) -> None:
                rows = jax.device_get(rows)
                real = rows["mask"]
                found.append((rows["index"][real], rows["embedding"][real]))
                bar.update(int(real.sum()))

            for batch in batches:
                _, rows = self._eval_step(self._variables, parallel.global_batch(batch, self._mesh))
                if pending is not None:
                    collect(pending)
                pending = rows
            collect(pending)
        numbers, embeddings = zip(*found)
        return np.concatenate(numbers), np.concatenate(embeddings)
