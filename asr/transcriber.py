"""A trained recogniser as a function from recordings to text: `asr.load`."""

import dataclasses
import math
import pathlib
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Float, Num

from asr import task as asr_task
from asr import tokenizer
from common import parallel, trained
from common.audio import io
from common.data import splits

LENGTHS_SECONDS = (4.0, 8.0, 16.0, 32.0)  # one compilation each
BATCH_SECONDS = 64.0


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

    @property
    def confidence(self) -> float:
        """The geometric mean of the tokens' probabilities, not calibrated; NaN without any."""
        if not self.tokens:
            return math.nan
        return float(np.exp(np.mean(np.log(np.maximum(self.probabilities, 1e-30)))))


def cut_points(
    audio: Float[np.ndarray, "t"], sample_rate_hz: int, max_seconds: float
) -> list[tuple[int, int]]:
    """Pieces of at most `max_seconds` that cover `audio`, cut where 0.2 s are quietest.

    Each cut is sought in the second half of the longest piece possible.
    """
    longest, window = int(max_seconds * sample_rate_hz), int(0.2 * sample_rate_hz)
    pieces, start = [], 0
    while len(audio) - start > longest:
        lower = start + longest // 2
        stretch = np.square(audio[lower : start + longest].astype(np.float64))
        sums = np.cumsum(np.concatenate([[0.0], stretch]))
        energy = sums[window:] - sums[:-window]
        cut = lower + int(np.argmin(energy)) + window // 2
        pieces.append((start, cut))
        start = cut
    return [*pieces, (start, len(audio))]


def _batches(pieces: Sequence[np.ndarray], rate: int, devices: int) -> Iterator[dict]:
    """Pieces grouped by length into few static shapes; `index` is the piece's number."""
    sizes = [int(seconds * rate) for seconds in LENGTHS_SECONDS]
    chosen = np.searchsorted(sizes, [len(piece) for piece in pieces])
    for bucket, size in enumerate(sizes):
        rows = max(1, int(BATCH_SECONDS * rate) // size // devices) * devices
        members = np.flatnonzero(chosen == bucket)
        for first in range(0, len(members), rows):
            index = members[first : first + rows]
            audio = np.zeros((rows, size), np.float32)
            lengths = np.zeros(rows, np.int32)
            for row, i in enumerate(index):
                audio[row, : len(pieces[i])] = pieces[i]
                lengths[row] = len(pieces[i])
            yield {
                "audio": audio,
                "audio_lengths": lengths,
                "labels": np.zeros((rows, 1), np.int32),
                "labels_lengths": np.zeros(rows, np.int32),
                "mask": np.arange(rows) < len(index),
                "index": np.pad(index.astype(np.int32), (0, rows - len(index)), constant_values=-1),
            }


class Transcriber:
    """A trained recogniser. Recordings of any length are cut where they are quietest.

    `transcriber(path)`, `transcriber(bytes_of_a_file)` or `transcriber(samples, rate)` gives the
    `Transcript` of one recording; `many` those of several, which is faster.
    """

    def __init__(self, found: trained.Trained) -> None:
        self._found, self._task = found, found.task
        self.sample_rate_hz = found.config.data.sample_rate_hz
        self.channel = splits.channel(found.config.data)
        reduction = self._task.model.encoder_config.reduction
        self._seconds_a_frame = found.config.features.hop_ms / 1000 * reduction

    def __call__(
        self, recording: io.PathLike | bytes | Num[np.ndarray, "t *d"], rate: int | None = None
    ) -> Transcript:
        """`rate` (Hz) goes with samples. Raises io.AudioError."""
        return self.many([self.load(recording, rate)])[0]

    def load(
        self, recording: io.PathLike | bytes | Num[np.ndarray, "t *d"], rate: int | None = None
    ) -> Float[np.ndarray, "t"]:
        """The samples of a recording at the model's rate; raises io.AudioError."""
        return io.load_audio(
            recording,
            sample_rate_hz=self.sample_rate_hz,
            channel=self.channel,
            source_rate_hz=rate,
        )

    def many(self, recordings: Sequence[Float[np.ndarray, "_"]]) -> list[Transcript]:
        """The transcripts of several recordings at the model's rate, in their order.

        Digital silence has no words in it, and is not shown to the network.
        """
        rate, found = self.sample_rate_hz, self._found
        pieces, starts, owner = [], [], []
        for number, audio in enumerate(recordings):
            for start, end in cut_points(audio, rate, LENGTHS_SECONDS[-1]):
                if audio[start:end].any():
                    pieces.append(audio[start:end])
                    starts.append(start / rate)
                    owner.append(number)
        said: dict[int, tuple[str, list[int], list[float], list[float]]] = {}
        for batch in _batches(pieces, rate, jax.device_count()):
            _, out = found.eval_step(found.variables, parallel.global_batch(batch, found.mesh))
            out = jax.device_get(out)
            for row, text in enumerate(self._task.texts(out)):
                if (i := int(batch["index"][row])) >= 0:
                    count = int(out["lengths"][row])
                    times = starts[i] + self._seconds_a_frame * out["frames"][row, :count]
                    probabilities = np.exp(out["token_log_probs"][row, :count].astype(np.float64))
                    ids = out["tokens"][row, :count].tolist()
                    said[i] = text, ids, times.tolist(), probabilities.tolist()
        names = list(self._task.tokenizer.pieces)
        names[tokenizer.UNKNOWN_ID] = tokenizer.UNKNOWN_SURFACE
        transcripts = []
        for number, audio in enumerate(recordings):
            parts = [said[i] for i, whose in enumerate(owner) if whose == number]
            texts, ids, times, probabilities = zip(*parts) if parts else ((), (), (), ())
            transcripts.append(
                Transcript(
                    text=" ".join(filter(None, texts)),
                    seconds=len(audio) / rate,
                    tokens=tuple(names[token] for part in ids for token in part),
                    times=tuple(time for part in times for time in part),
                    probabilities=tuple(p for part in probabilities for p in part),
                )
            )
        return transcripts


def load(workdir: io.PathLike, *, step: int | None = None) -> Transcriber:
    """The recogniser that a training left in `workdir`: its best checkpoint, or that of `step`.

    Raises UserError: no work directory of a recogniser, or no such checkpoint.
    """
    return Transcriber(trained.load(asr_task.PACKAGE, pathlib.Path(workdir), step=step))
