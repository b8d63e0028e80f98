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
from ml_collections import ConfigDict

from common import checkpoint, errors, parallel, trainer, workdir
from common.audio import io, vad
from common.data import ark, records, splits
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

    Those of audio are samples at `sample_rate_hz`, read when they are asked for; `without_pauses`
    they are equal parts of what `vad.keep_speech` keeps. A recording of one piece is passed on as
    it is. Raises io.AudioError for a recording that can no longer be read or holds no speech.
    """

    source: records.Source
    positions: Int[np.ndarray, "n"]
    seconds: Float[np.ndarray, "n"]
    parts: Int[np.ndarray, "n"]
    sample_rate_hz: int
    channel: str | int
    without_pauses: bool = False

    @property
    def name(self) -> str:
        return self.source.name

    @functools.cached_property
    def owner(self) -> Int[np.ndarray, "p"]:
        """The record (place in `positions`) of every piece."""
        return np.repeat(np.arange(len(self.parts)), self.parts)

    @functools.cached_property
    def lengths(self) -> Float[np.ndarray, "p"]:
        """Seconds of every piece, pauses included."""
        return (self.seconds / self.parts)[self.owner]

    @functools.cached_property
    def _ends(self) -> Int[np.ndarray, "n"]:
        return np.cumsum(self.parts)

    def __len__(self) -> int:
        return int(self.parts.sum())

    def __getitem__(self, piece: int) -> records.Record:
        place = int(self.owner[piece])
        record, parts = self.source[int(self.positions[place])], int(self.parts[place])
        number = piece - int(self._ends[place] - parts)
        if "features" in record:
            return record if parts == 1 else _frames(record, number, parts)
        if parts == 1 and not self.without_pauses:
            return record
        how = (self.sample_rate_hz, self.channel)
        if self.without_pauses:
            audio = keep_speech(
                records.load_record(record, *how), self.sample_rate_hz, record["id"]
            )
            start, end = (len(audio) * n // parts for n in (number, number + 1))
            audio = audio[start:end]
        else:
            length = float(self.seconds[place]) / parts
            audio = records.load_record(record, *how, start=number * length, duration=length)
        return {"id": record["id"], "audio": audio, "sample_rate": self.sample_rate_hz}


def keep_speech(
    audio: Float[np.ndarray, "t"], sample_rate_hz: int, name: str
) -> Float[np.ndarray, "k"]:
    """`vad.keep_speech`; raises io.AudioError when it keeps nothing."""
    kept = vad.keep_speech(audio, sample_rate_hz)
    if not len(kept):
        raise io.AudioError(name, "no speech in it, says config.data.vad=energy")
    return kept


def _frames(record: records.Record, number: int, parts: int) -> records.Record:
    """Part `number` of the frames of a record, as rows of its archive entry."""
    entry = record["features"]
    count, _ = ark.matrix_shape(entry)
    first = entry.rows[0] if entry.rows else 0
    start, end = (count * n // parts for n in (number, number + 1))
    rows = (first + start, first + end - 1)  # both included, as in Kaldi
    cut = dataclasses.replace(entry, rows=rows)
    return {"id": record["id"], "features": cut, "hop_ms": record["hop_ms"]}


class Embedder:
    """The network of a work directory: its checkpoint of `step`, by default the best.

    A recording longer than `config.data.max_eval_seconds` is cut into the fewest equal pieces that
    are no longer, and gets the mean of their embeddings. That is the average weighted by length of
    Kaldi's extractor (which cuts 100 s pieces and a rest), without a short rest. Training evaluates
    such recordings by their first seconds only. Features with the decisions of a vad.scp are not
    cut.

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
        self._variables, self._meta = loader.load_variables(self._mesh, step=step)
        self._task.check_checkpoint(self._meta)
        self._eval_step = trainer.make_eval_step(self._task, self.config, self._mesh)
        weights = json.dumps(self._meta["fingerprint"], sort_keys=True)
        self.network = hashlib.sha256(weights.encode()).hexdigest()[:16]
        self.step = int(self._meta["step"])

    @property
    def takes_features(self) -> bool:
        """Whether the network was trained on features that the data hold, not on recordings."""
        return data.sequence(self.config)[0] == "features"

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
            feature_size=self.config.features.num_mels if self.takes_features else None,
        )
        return splits.Split(source.name, source, index)

    def load(self, path: str) -> Float[np.ndarray, "t"]:
        """The samples of one file at the network's rate.

        Raises io.AudioError for a file that is unreadable, silent or too short, pauses left out if
        the network is used to that.
        """
        settings = self.config.data
        if self.takes_features:
            raise errors.UserError(
                f"The network of {self.folder} takes features that were computed elsewhere "
                "(config.features.kind=given), not audio files. Use speaker.extract and "
                "speaker.score on Kaldi folders."
            )
        rate = settings.sample_rate_hz
        audio = io.load_audio(path, sample_rate_hz=rate, channel=splits.channel(settings))
        if "silent" in io.check_audio(audio):
            raise io.AudioError(path, "silent: every sample is zero")
        if settings.vad == "energy":
            audio = keep_speech(audio, rate, path)
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
        return self._embed(split, without_pauses=False, few_shapes=True).embeddings

    def __call__(self, split: splits.Split, *, progress: bool = False) -> Embedded:
        """Embeddings of the usable records of a split, in its order.

        A recording that can no longer be read, or holds no speech, is named in a warning and is
        among `failed`; raises io.AudioError if that is so for a whole batch of them.
        """
        pauses = self.config.data.vad == "energy"
        return self._embed(split, without_pauses=pauses, few_shapes=False, progress=progress)

    def _embed(
        self,
        split: splits.Split,
        *,
        without_pauses: bool,
        few_shapes: bool,
        progress: bool = False,
    ) -> Embedded:
        """`few_shapes` pads to lengths from a short list, so that what was compiled for a few files
        is found again for the next."""
        settings, index = self.config.data, split.index
        most, seconds = settings.max_eval_seconds, index.seconds.astype(np.float64)
        if self.takes_features and settings.vad == "kaldi":
            most = max(most, math.ceil(seconds.max()))
        pieces = Pieces(
            split.source,
            index.positions,
            seconds,
            np.maximum(np.ceil(seconds / most).astype(np.int64), 1),
            settings.sample_rate_hz,
            splits.channel(settings),
            without_pauses,
        )
        lengths = pieces.lengths
        if few_shapes:  # the next power of the square root of two
            lengths = 2.0 ** (np.ceil(2 * np.log2(lengths)) / 2)
        stretches = splits.Split(
            split.name,
            pieces,
            records.Index(np.arange(len(pieces)), lengths.astype(np.float32), ()),
        )
        # The pieces have lost their pauses already.
        config = ConfigDict(self.config.to_dict())
        config.data.update({"vad": "none", "max_eval_seconds": float(most)})
        batches = data.eval_batches(stretches, workdir.freeze(config))
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
