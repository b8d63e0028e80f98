"""A trained speaker network as a function from recordings to embeddings."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tqdm
from jaxtyping import Float, Int, Num

from common import cache, errors, parallel, trained
from common.audio import io, vad
from common.data import ark, indexing, pipeline, records, splits
from speaker import backend, data, evaluation
from speaker import task as speaker_task

Recording = io.PathLike | bytes | Num[np.ndarray, "t *c"]


@dataclasses.dataclass(frozen=True)
class Decision:
    """What the evaluation of a checkpoint left for deciding by its cosine scores.

    `calibration` is that of pairs of recordings, `voices` that of a recording and the mean of
    several; None where an earlier version evaluated, or on speakers of one recording. With a
    `cohort`, means of training speakers, they are those of normalised scores (AS-norm). `source`
    says in words where they were fitted.
    """

    calibration: backend.Calibration
    eer_threshold: float
    source: str
    voices: backend.Calibration | None = None
    cohort: Float[np.ndarray, "c d"] | None = None

    def scores(
        self, enrol: Float[np.ndarray, "m d"], test: Float[np.ndarray, "n d"]
    ) -> Float[np.ndarray, "m n"]:
        """What is calibrated, of every pair of rows."""
        cosines = backend.cosine_matrix(enrol, test)
        if self.cohort is None:
            return cosines
        index = np.indices(cosines.shape).reshape(2, -1)
        found = backend.as_norm(cosines.ravel(), enrol, test, *index, self.cohort)
        return found.reshape(cosines.shape)

    def ratios(
        self, scores: Float[np.ndarray, "n"], counts: Int[np.ndarray, "n"]
    ) -> Float[np.ndarray, "n"]:
        """Natural-log likelihood ratios of cosines with means of so many recordings."""
        pairs = self.calibration(scores)
        if self.voices is None:
            return pairs
        measures = backend.voice_measures(scores, counts)
        return np.where(counts == 1, pairs, self.voices(scores, measures))


def decision(said: Mapping[str, Any], source: str, cohort: Sequence[str] | None = None) -> Decision:
    """From what `evaluation.measure` left, and the cohort that it used, packed."""
    voices = None
    if "voices" in said:
        slope, offset, *weights = said["voices"]
        names = backend.VOICE_MEASURES
        voices = backend.Calibration(slope, offset, 0.5, names, tuple(weights))
    pairs = backend.Calibration(said["slope"], said["offset"], said["p_target"])
    means = evaluation.unpack(cohort) if cohort else None
    return Decision(pairs, said["eer_threshold"], source, voices, means)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two recordings: their score (`Decision.scores`; a cosine), the natural-log likelihood ratio
    that the calibration makes of it, and the probability of one speaker; None without one."""

    score: float
    ratio: float | None
    probability: float | None


@dataclasses.dataclass(frozen=True, eq=False)
class Embedded:
    """Embeddings f32[n, d] of the records at `places` of an index.

    Those at the places in `failed` have none; the values say why.
    """

    places: Int[np.ndarray, "n"]
    embeddings: Float[np.ndarray, "n d"]
    failed: Mapping[int, str]


@dataclasses.dataclass(frozen=True, eq=False)
class Pieces:
    """A source of equal pieces of recordings: `parts[i]` of them for the record at positions[i].

    Those of audio are samples at `sample_rate_hz`, read when they are asked for. With `speech`, the
    `vad.speech_stretches` of each record, they are equal parts of what these keep, and `counts`
    are those kept. Without, a recording of one piece is passed on as it is. Raises io.AudioError
    for a recording that can no longer be read.
    """

    source: records.Source
    positions: Int[np.ndarray, "n"]
    counts: Int[np.ndarray, "n"]  # samples or frames
    parts: Int[np.ndarray, "n"]
    sample_rate_hz: int
    channel: str | int
    speech: Sequence[Int[np.ndarray, "_ 2"]] | None = None

    @property
    def name(self) -> str:
        return self.source.name

    @functools.cached_property
    def owner(self) -> Int[np.ndarray, "p"]:
        """The record (place in `positions`) of every piece."""
        return np.repeat(np.arange(len(self.parts)), self.parts)

    @functools.cached_property
    def lengths(self) -> Int[np.ndarray, "p"]:
        """Samples or frames of every piece."""
        ends = [_cuts(int(count), int(parts)) for count, parts in zip(self.counts, self.parts)]
        return np.concatenate([np.diff(cuts) for cuts in ends])

    def __len__(self) -> int:
        return int(self.parts.sum())

    def __getitem__(self, piece: int) -> records.Record:
        place = int(self.owner[piece])
        record, parts = self.source[int(self.positions[place])], int(self.parts[place])
        number = piece - int(np.searchsorted(self.owner, place))
        if "features" in record:
            return record if parts == 1 else _frames(record, number, parts)
        if self.speech is None and parts == 1:
            return record
        whole = np.array([[0, self.counts[place]]])
        cut = _part(whole if self.speech is None else self.speech[place], number, parts)
        rate, first, end = self.sample_rate_hz, int(cut[0, 0]), int(cut[-1, 1])
        audio = records.load_record(
            record, rate, self.channel, start=first / rate, duration=(end - first) / rate
        )
        audio = np.concatenate([audio[a:b] for a, b in cut - first])
        return {"id": record["id"], "audio": audio, "sample_rate": rate}


def _cuts(count: int, parts: int) -> Int[np.ndarray, "p"]:
    """Where equal parts begin and end, one after the other."""
    return count * np.arange(parts + 1) // parts


def _part(stretches: Int[np.ndarray, "s 2"], number: int, parts: int) -> Int[np.ndarray, "r 2"]:
    """Part `number` of `parts` equal ones of the samples in `stretches`, as stretches."""
    ends = np.cumsum(stretches[:, 1] - stretches[:, 0])  # of the stretches, one after the other
    start, end = _cuts(int(ends[-1]), parts)[number : number + 2]
    shift = (stretches[:, 1] - ends)[:, None]
    cut = np.clip(stretches - shift, start, end) + shift
    return cut[cut[:, 0] < cut[:, 1]]


def _speech_seconds(
    stretches: Int[np.ndarray, "s 2"], sample_rate_hz: int, name: str, min_seconds: float
) -> float:
    """What is left of a recording; raises io.AudioError for less than `min_seconds`."""
    seconds = float((stretches[:, 1] - stretches[:, 0]).sum()) / sample_rate_hz
    if not seconds:
        raise io.AudioError(name, "no speech in it, says config.data.vad=energy")
    if seconds < min_seconds:
        raise io.AudioError(
            name, f"too short: {seconds:.3f} s of speech, the network wants {min_seconds:g} s"
        )
    return seconds


def _frames(record: records.Record, number: int, parts: int) -> records.Record:
    """Part `number` of the frames of a record, as rows of its archive entry."""
    entry = record["features"]
    count, _ = ark.matrix_shape(entry)
    first = entry.rows[0] if entry.rows else 0
    start, end = map(int, _cuts(count, parts)[number : number + 2])
    rows = (first + start, first + end - 1)  # both included, as in Kaldi
    cut = dataclasses.replace(entry, rows=rows)
    return {"id": record["id"], "features": cut, "hop_ms": record["hop_ms"]}


class Embedder:
    """The network of a work directory: its checkpoint of `step`, by default the best.

    A recording longer than `config.data.max_eval_seconds` is cut into the fewest equal pieces that
    are no longer, and gets the mean of their embeddings. That is the average weighted by length of
    Kaldi's extractor (which cuts 100 s pieces and a rest), without a short rest. Training evaluates
    such recordings by their first seconds only. Pauses are cut out before. Features with the
    decisions of a vad.scp are not cut.

    `network` tells one set of weights from every other.
    """

    def __init__(self, folder: pathlib.Path | str, step: int | None = None) -> None:
        self._found = trained.load(speaker_task.PACKAGE, folder, step=step)
        self.folder, self.config = self._found.folder, self._found.config
        self.step = self._found.step
        weights = json.dumps(self._found.meta["fingerprint"], sort_keys=True)
        self.network = hashlib.sha256(weights.encode()).hexdigest()[:16]

    @property
    def takes_features(self) -> bool:
        """Whether the network was trained on features that the data hold, not on recordings."""
        return data.sequence(self.config)[0] == "features"

    @property
    def decision(self) -> Decision | None:
        """How to decide by the cosine of two embeddings; None if no evaluation could tell."""
        meta = self._found.meta
        split, *_ = self._found.task.best_metric
        said = meta.get("report", {}).get(split)
        if not said:
            return None
        source = f"{said['trials']} trials of the split {split!r} at step {meta['evaluated']}"
        if meta["evaluated"] != self.step:
            source += f", not at step {self.step} itself"
        cohort = meta["report"].get(evaluation.COHORT, {}).get("means")
        if cohort and meta["evaluated"] != self.step:
            return None  # another network's: no scores like those that were calibrated
        return decision(said, source, cohort)

    def open(self, source: records.Source, folder: pathlib.Path) -> splits.Split:
        """Validates the recordings of a source; what is unusable goes to folder/rejected.tsv.

        Raises records.DataError when none is usable.
        """
        if not (folder / "config.json").exists():  # that of a training stays
            (folder / "rejected.tsv").unlink(missing_ok=True)
        index = indexing.build_index(
            source,
            cache=cache.folder() / "index",
            rejected_tsv=folder / "rejected.tsv",
            sample_rate_hz=self.config.data.sample_rate_hz,
            channel=splits.channel(self.config.data),
            min_seconds=self.config.data.min_seconds,
            max_seconds=math.inf,
            require_text=False,
            max_bad_share=1.0,
            num_workers=os.cpu_count() or 1,
            progress=True,
            feature_size=self.config.features.num_mels if self.takes_features else None,
        )
        return splits.Split(source.name, source, index)

    def load(self, recording: Recording, rate: int | None = None) -> Float[np.ndarray, "_"]:
        """The samples of one recording at the network's rate; `rate` (Hz) goes with samples.

        Raises io.AudioError for one that is unreadable, silent or too short, pauses left out if
        the network is used to that.
        """
        path = recording if isinstance(recording, str | os.PathLike) else "the recording"
        settings = self.config.data
        if self.takes_features:
            raise errors.UserError(
                f"The network of {self.folder} takes features that were computed elsewhere "
                "(config.features.kind=given), not audio files. Use speaker.extract and "
                "speaker.score on Kaldi folders."
            )
        own = {"channel": splits.channel(settings), "source_rate_hz": rate}
        rate = settings.sample_rate_hz
        audio = io.load_audio(recording, sample_rate_hz=rate, **own)
        if "silent" in io.check_audio(audio):
            raise io.AudioError(path, f"silent: {io.silence(own['channel'])}")
        if detector := data.detector(self.config):
            stretches = vad.speech_stretches(audio, rate, detector)
            _speech_seconds(stretches, rate, path, settings.min_seconds)
            audio = np.concatenate([audio[start:end] for start, end in stretches])
        if len(audio) < settings.min_seconds * rate:
            raise io.AudioError(
                path,
                f"too short: {len(audio) / rate:.3f} s, the network of {self.folder} wants "
                f"{settings.min_seconds:g} s",
            )
        return audio

    def embed(self, recording: Recording, rate: int | None = None) -> Float[np.ndarray, "d"]:
        """The embedding of one recording: a file, its bytes, or samples with their `rate` (Hz).

        Raises io.AudioError as `load` does.
        """
        return self.embed_loaded([self.load(recording, rate)])[0]

    def compare(
        self, first: Recording, second: Recording, rate: int | None = None, *, prior: float = 0.5
    ) -> Comparison:
        """How alike two recordings are. Raises io.AudioError as `load` does."""
        left, right = self.embed_loaded([self.load(one, rate) for one in (first, second)])
        if self.decision is None:
            return Comparison(
                float(backend.cosine_matrix(left[None], right[None])[0, 0]), None, None
            )
        score = self.decision.scores(left[None], right[None])[0]
        ratio = self.decision.calibration(score)
        probability = backend.probability(ratio, prior)
        return Comparison(float(score[0]), float(ratio[0]), float(probability[0]))

    def embed_files(self, paths: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """Embeddings of a few files, in their order. Raises io.AudioError as `load` does."""
        return self.embed_loaded([self.load(path) for path in paths])

    def embed_loaded(self, audio: Sequence[Float[np.ndarray, "_"]]) -> Float[np.ndarray, "n d"]:
        """Embeddings of a few recordings as `load` gives them."""
        rate = self.config.data.sample_rate_hz
        rows = tuple(
            {"id": str(i), "audio": samples, "sample_rate": rate} for i, samples in enumerate(audio)
        )
        lengths = np.array([len(samples) for samples in audio])
        index = records.Index(np.arange(len(rows)), lengths, rate)
        split = splits.Split("files", records.RecordList("files", rows), index)
        return self._embed(split, few_shapes=True).embeddings

    def __call__(self, split: splits.Split, *, progress: bool = False) -> Embedded:
        """Embeddings of the usable records of a split, in its order.

        Recordings that can no longer be read, or hold too little speech, are among `failed`; raises
        io.AudioError if that is so for all of them, or for a whole batch that cannot be read.
        """
        detector = data.detector(self.config)
        if detector is None:
            return self._embed(split, progress=progress)
        stretches, failed = self._find_speech(split, detector, progress)
        usable = np.array([i for i in range(len(split.index)) if i not in failed])
        kept = [stretches[i] for i in usable]
        lengths = np.array([(s[:, 1] - s[:, 0]).sum() for s in kept])
        rate = self.config.data.sample_rate_hz
        index = records.Index(split.index.positions[usable], lengths, rate)
        found = self._embed(dataclasses.replace(split, index=index), speech=kept, progress=progress)
        failed |= {int(usable[i]): reason for i, reason in found.failed.items()}
        return Embedded(usable[found.places], found.embeddings, failed)

    def _find_speech(
        self, split: splits.Split, detector: vad.Detector, progress: bool
    ) -> tuple[list[Int[np.ndarray, "_ 2"]], dict[int, str]]:
        """The speech of every recording, found once; and why some cannot be used."""
        settings, failed = self.config.data, {}
        rate, channel = settings.sample_rate_hz, splits.channel(settings)

        def find(i: int) -> Int[np.ndarray, "s 2"]:
            record = split.source[int(split.index.positions[i])]
            try:
                audio = records.load_record(record, rate, channel)
                found = vad.speech_stretches(audio, rate, detector)
                _speech_seconds(found, rate, record["id"], settings.min_seconds)
            except io.AudioError as error:
                failed[i] = error.reason
                return np.zeros((0, 2), np.int32)
            return found.astype(np.int32)

        count = len(split.index)
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            results = pool.map(find, range(count))
            bar = tqdm.tqdm(
                results, total=count, desc="finding speech", unit="file", disable=not progress
            )
            stretches = list(bar)
        if len(failed) == count:
            raise io.AudioError(f"all {count} recordings of {split.source.name}", failed[0])
        return stretches, failed

    def _embed(
        self,
        split: splits.Split,
        *,
        speech: Sequence[Int[np.ndarray, "_ 2"]] | None = None,
        few_shapes: bool = False,
        progress: bool = False,
    ) -> Embedded:
        """`few_shapes` pads to lengths from a short list, so that what was compiled for a few files
        is found again for the next. These lie in memory, and no process is started to read them:
        in a script without `if __name__ == "__main__"` it would never end."""
        settings, index = self.config.data, split.index
        most = round(settings.max_eval_seconds * index.rate_hz)
        if self.takes_features and settings.vad == "kaldi":
            most = max(most, int(index.lengths.max()))
        pieces = Pieces(
            split.source,
            index.positions,
            index.lengths,
            np.maximum(-(-index.lengths // most), 1),
            settings.sample_rate_hz,
            splits.channel(settings),
            speech,
        )
        lengths = pieces.lengths
        if few_shapes:  # the next power of the square root of two, in seconds
            seconds = 2.0 ** (np.ceil(2 * np.log2(lengths / index.rate_hz)) / 2)
            lengths = np.ceil(seconds * index.rate_hz).astype(np.int64)
        places = np.arange(len(pieces))
        stretches = splits.Split(split.name, pieces, records.Index(places, lengths, index.rate_hz))
        batches = data.eval_batches(
            stretches,
            self.config,
            max_length=most,
            cut=True,
            num_workers=0 if few_shapes else None,
        )
        found, embeddings = self._run(batches, len(pieces), progress)
        sums = np.zeros((len(index), embeddings.shape[1]))
        owner = pieces.owner[found]
        np.add.at(sums, owner, embeddings.astype(np.float64))
        whole = np.bincount(owner, minlength=len(index)) == pieces.parts
        means = sums[whole] / pieces.parts[whole, None]
        reason = "it, or a piece of it, could no longer be read: see the warning above"
        failed = dict.fromkeys(np.flatnonzero(~whole).tolist(), reason)
        return Embedded(np.flatnonzero(whole), means.astype(np.float32), failed)

    def _run(self, batches, count, progress) -> tuple[np.ndarray, np.ndarray]:
        """(numbers of the pieces, their embeddings), one batch behind the device."""
        found, pending, run = [], None, self._found
        with (
            tqdm.tqdm(total=count, desc="embedding", unit="piece", disable=not progress) as bar,
            pipeline.opened(batches) as iterator,
        ):

            def collect(rows) -> None:
                rows = jax.device_get(rows)
                real = rows["mask"]
                found.append((rows["index"][real], rows["embedding"][real]))
                bar.update(int(real.sum()))

            for batch in iterator:
                batch = parallel.global_batch(batch, run.mesh)
                _, rows = run.eval_step(run.variables, batch)
                if pending is not None:
                    collect(pending)
                pending = rows
            collect(pending)
        numbers, embeddings = zip(*found)
        return np.concatenate(numbers), np.concatenate(embeddings)
