"""A trained recogniser as a function from recordings to text: `asr.load`."""

import dataclasses
import logging
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Float, Num

from asr import segments, tokenizer
from asr import task as asr_task
from common import errors, parallel, trained
from common.audio import frontend, io
from common.data import splits

log = logging.getLogger(__name__)

LENGTHS_SECONDS = (4.0, 8.0, 16.0, segments.LONGEST_SECONDS)  # each with few numbers of rows
BATCH_SECONDS = 64.0  # at most
# Pieces of recordings -> their log-mel features [l, f].
FeaturesOf = Callable[[Sequence[Float[np.ndarray, "_"]]], Sequence[Float[np.ndarray, "_ f"]]]


@dataclasses.dataclass(frozen=True)
class Segment:
    """What was said from `start` to `end`, in seconds of the recording.

    Segments of a recording are the pieces that were recognised one by one (`asr.segments`), or
    words. `confidence` is the geometric mean of the tokens' probabilities, not calibrated; NaN
    without any.
    """

    start: float
    end: float
    text: str
    confidence: float


@dataclasses.dataclass(frozen=True)
class Transcript:
    """What was said in one recording of `seconds`.

    `tokens[i]` (a character or a piece of a word) came out `times[i]` seconds after the start, the
    start of its encoder frame, with the probability `probabilities[i]`, all choices before it being
    given.
    """

    text: str
    seconds: float
    tokens: tuple[str, ...]
    times: tuple[float, ...]
    probabilities: tuple[float, ...]
    segments: tuple[Segment, ...]

    @property
    def confidence(self) -> float:
        """The geometric mean of the tokens' probabilities, not calibrated; NaN without any."""
        return _geometric_mean(self.probabilities)

    @property
    def words(self) -> tuple[Segment, ...]:
        """Each word, from its first token to the next word's first or the end of its segment."""
        groups: list[list[int]] = []
        for i, token in enumerate(self.tokens):
            spoken = token.lstrip("▁ ")
            if not groups or spoken != token or self._begins(i):
                groups.append([])
            if spoken:
                groups[-1].append(i)
        groups = [group for group in groups if group]
        found = []
        for group, following in zip(groups, [*groups[1:], None]):
            start = self.times[group[0]]
            end = next((s.end for s in self.segments if s.start <= start < s.end), self.seconds)
            if following is not None:
                end = min(end, self.times[following[0]])
            text = "".join(self.tokens[i].lstrip("▁ ") for i in group)
            sure = _geometric_mean([self.probabilities[i] for i in group])
            found.append(Segment(start, end, text, sure))
        return tuple(found)

    def _begins(self, i: int) -> bool:
        """Whether a segment begins between token i - 1 and token i."""
        return any(self.times[i - 1] < s.start <= self.times[i] for s in self.segments)


def _geometric_mean(probabilities: Sequence[float]) -> float:
    if not len(probabilities):
        return math.nan
    return float(np.exp(np.mean(np.log(np.maximum(probabilities, 1e-30)))))


def _batches(
    pieces: Sequence[np.ndarray], rate: float | int, devices: int, name: str = "audio"
) -> Iterator[dict]:
    """Pieces grouped by length into few static shapes; `index` is the piece's number.

    Rows are a power of two on each device: one or two short pieces do not cost what many do.
    `rate`: samples or frames a second of what is in the batches by `name`.
    """
    sizes = [math.ceil(seconds * rate) for seconds in LENGTHS_SECONDS]
    if pieces and (longest := max(map(len, pieces))) > sizes[-1]:
        raise ValueError(f"{longest / rate:.1f} s at once, and {LENGTHS_SECONDS[-1]:g} s may be")
    chosen = np.searchsorted(sizes, [len(piece) for piece in pieces])
    for bucket, size in enumerate(sizes):
        members = np.flatnonzero(chosen == bucket)
        most = max(1, int(BATCH_SECONDS * rate) // size // devices)
        wanted = -(-len(members) // devices)
        rows = min(most, 1 << max(0, wanted - 1).bit_length()) * devices
        for first in range(0, len(members), rows):
            index = members[first : first + rows]
            padded = np.zeros((rows, size, *pieces[0].shape[1:]), np.float32)
            lengths = np.zeros(rows, np.int32)
            for row, i in enumerate(index):
                padded[row, : len(pieces[i])] = pieces[i]
                lengths[row] = len(pieces[i])
            yield {
                name: padded,
                f"{name}_lengths": lengths,
                "labels": np.zeros((rows, 1), np.int32),
                "labels_lengths": np.zeros(rows, np.int32),
                "mask": np.arange(rows) < len(index),
                "index": np.pad(index.astype(np.int32), (0, rows - len(index)), constant_values=-1),
            }


class Transcriber:
    """A trained recogniser. Recordings beyond `split_seconds` are cut at pauses.

    `transcriber(path)`, `transcriber(bytes_of_a_file)` or `transcriber(samples, rate)` gives the
    `Transcript` of one recording; `many` those of several, which is faster.
    """

    def __init__(
        self, found: trained.Trained, split_seconds: float = segments.SPLIT_SECONDS
    ) -> None:
        if not 1 <= split_seconds <= segments.LONGEST_SECONDS:
            raise errors.UserError(
                f"split_seconds={split_seconds:g} is not from 1 to {segments.LONGEST_SECONDS:g}."
            )
        self._split_seconds = split_seconds
        self._found, self._task = found, found.task
        self.sample_rate_hz = found.config.data.sample_rate_hz
        self.channel = splits.channel(found.config.data)
        reduction = self._task.model.encoder_config.reduction
        # Without the sums of an evaluation: the losses are not even compiled.
        self._search, self._search_features = (
            parallel.data_parallel(
                search,
                found.mesh,
                in_specs=(parallel.REPLICATED, parallel.ROWS),
                out_specs=parallel.ROWS,
                kind=found.config.parallel,
            )
            for search in (lambda *x: self._task.eval_step(*x)[1], self._task.recognize)
        )
        self._seconds_a_frame = found.config.features.hop_ms / 1000 * reduction

    def __call__(
        self, recording: io.PathLike | bytes | Num[np.ndarray, "t *d"], rate: int | None = None
    ) -> Transcript:
        """`rate` (Hz) goes with samples. Raises io.AudioError."""
        return self.many([self.load(recording, rate)])[0]

    def load(
        self, recording: io.PathLike | bytes | Num[np.ndarray, "t *d"], rate: int | None = None
    ) -> Float[np.ndarray, "_"]:
        """The samples of a recording at the model's rate; raises io.AudioError."""
        return io.load_audio(
            recording,
            sample_rate_hz=self.sample_rate_hz,
            channel=self.channel,
            source_rate_hz=rate,
        )

    def normalize(self, text: str) -> str:
        """A reference as the texts were that the recogniser learned from, to score it by."""
        return self._task.tokenizer.normalize(text)

    @property
    def front_end(self) -> frontend.LogMelConfig:
        """What computes its features. Raises UserError where they were learned."""
        found = self._task.model.front_end
        if not isinstance(found, frontend.LogMelConfig):
            raise errors.UserError(
                f"{self._found.folder}: this recogniser learned its features from the waveform "
                "(config.features.kind=learned) and takes no others. Name one of kind log_mel."
            )
        return found

    def texts_of(self, features: Sequence[Float[np.ndarray, "_ f"]]) -> list[str]:
        """What was said, by features as `front_end` computes them, but not normalised.

        Each recording is recognised as a whole. Raises ValueError for more than 32 s of one.
        """
        texts = [""] * len(features)
        for batch, out in self._searched(features, "features"):
            for text, i in zip(self._task.texts(out), batch["index"]):
                if i >= 0:
                    texts[i] = text
        return texts

    def _searched(self, pieces: Sequence[np.ndarray], name: str) -> Iterator[tuple[dict, dict]]:
        """(batch, what was found in it) for all pieces: samples ("audio") or "features"."""
        rate, search = self.sample_rate_hz, self._search
        if name == "features":
            rate, search = rate / self.front_end.hop_size, self._search_features
        for batch in _batches(pieces, rate, jax.device_count(), name):
            placed = parallel.global_batch(batch, self._found.mesh)
            yield batch, jax.device_get(search(self._found.variables, placed))

    def many(
        self,
        recordings: Sequence[Float[np.ndarray, "_"]],
        features_of: FeaturesOf | None = None,
    ) -> list[Transcript]:
        """The transcripts of several recordings at the model's rate, in their order.

        What surely holds no speech (`asr.segments.split`) is not shown to the network.
        `features_of(pieces)` gives the features of each piece in place of the front end, as
        `texts_of` takes them.
        """
        rate = self.sample_rate_hz
        pieces, starts, owner = [], [], []
        for number, audio in enumerate(recordings):
            for start, end in segments.split(audio, rate, self._split_seconds):
                pieces.append(audio[start:end])
                starts.append(start / rate)
                owner.append(number)
        said: dict[int, tuple[str, list[int], list[float], list[float]]] = {}
        if features_of is None:
            searched = self._searched(pieces, "audio")
        else:
            searched = self._searched(features_of(pieces) if pieces else [], "features")
        for batch, out in searched:
            for row, text in enumerate(self._task.texts(out)):
                if (i := int(batch["index"][row])) >= 0:
                    count = int(out["lengths"][row])
                    if out["truncated"][row]:
                        log.warning(
                            "recording %d, from %.1f s: more than two labels a frame; the search "
                            "ended there, the rest is missing.", owner[i], starts[i],
                        )  # fmt: skip
                    times = starts[i] + self._seconds_a_frame * out["frames"][row, :count]
                    probabilities = np.exp(out["token_log_probs"][row, :count].astype(np.float64))
                    ids = out["tokens"][row, :count].tolist()
                    said[i] = text, ids, times.tolist(), probabilities.tolist()
        names = list(self._task.tokenizer.pieces)
        names[tokenizer.UNKNOWN_ID] = tokenizer.UNKNOWN_SURFACE
        transcripts = []
        for number, audio in enumerate(recordings):
            own = [i for i, whose in enumerate(owner) if whose == number]
            parts = [said[i] for i in own]
            texts, ids, times, probabilities = zip(*parts) if parts else ((), (), (), ())
            transcripts.append(
                Transcript(
                    text=" ".join(filter(None, texts)),
                    seconds=len(audio) / rate,
                    tokens=tuple(names[token] for part in ids for token in part),
                    times=tuple(time for part in times for time in part),
                    probabilities=tuple(p for part in probabilities for p in part),
                    segments=tuple(
                        Segment(
                            starts[i],
                            starts[i] + len(pieces[i]) / rate,
                            said[i][0],
                            _geometric_mean(said[i][3]),
                        )
                        for i in own
                    ),
                )
            )
        return transcripts


def load(
    workdir: io.PathLike,
    *,
    step: int | None = None,
    split_seconds: float = segments.SPLIT_SECONDS,
) -> Transcriber:
    """The recogniser that a training left in `workdir`: its best checkpoint, or that of `step`.

    Recordings longer than `split_seconds` are cut at every pause.

    Raises UserError: no work directory of a recogniser, or no such checkpoint.
    """
    found = trained.load(asr_task.PACKAGE, pathlib.Path(workdir), step=step)
    return Transcriber(found, split_seconds)
