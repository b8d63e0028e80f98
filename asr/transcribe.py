"""Transcribes audio files with a trained recogniser.

    python -m asr.transcribe --workdir=runs/quickstart a.wav b.mp3 > transcripts.tsv

One line a file on stdout: file, seconds, transcript. Files of any length, format, sampling rate and
channel count; long ones are cut at their quietest points. A file that cannot be read gets one line
on stderr, the others go on, and the exit code is 1.
"""

import argparse
import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Float

from asr import task as asr_task
from common import app, checkpoint, evaluation, parallel, workdir
from common.audio import io
from common.data import splits

LENGTHS_SECONDS = (4.0, 8.0, 16.0, 32.0)  # one compilation each
BATCH_SECONDS = 64.0


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
    """A trained recogniser as a function from samples to text."""

    def __init__(self, folder: pathlib.Path, step: int | None = None) -> None:
        self._config = workdir.load_config(folder, "asr")
        self._task = asr_task.make_task(self._config, folder, "use")
        self._mesh = parallel.make_mesh()
        _, _, mode = self._task.best_metric
        loader = checkpoint.Checkpointer(folder / "checkpoints", best_mode=mode, read_only=True)
        self._variables, meta = loader.load_variables(self._mesh, step=step)
        self._task.check_checkpoint(meta)
        self._step = evaluation.make_eval_step(self._task, self._config, self._mesh)
        self.sample_rate_hz = self._config.data.sample_rate_hz

    def load(self, path: str) -> Float[np.ndarray, "t"]:
        """The samples of a file at the model's rate; raises io.AudioError."""
        channel = splits.channel(self._config.data)
        return io.load_audio(path, sample_rate_hz=self.sample_rate_hz, channel=channel)

    def __call__(self, recordings: Sequence[Float[np.ndarray, "t"]]) -> list[str]:
        """One text a recording."""
        pieces, owner = [], []
        for number, audio in enumerate(recordings):
            for start, end in cut_points(audio, self.sample_rate_hz, LENGTHS_SECONDS[-1]):
                pieces.append(audio[start:end])
                owner.append(number)
        found: dict[int, str] = {}
        for batch in _batches(pieces, self.sample_rate_hz, jax.device_count()):
            _, out = self._step(self._variables, parallel.global_batch(batch, self._mesh))
            texts = self._task.texts(jax.device_get(out))
            found.update((i, text) for i, text in zip(batch["index"].tolist(), texts) if i >= 0)
        texts = [[] for _ in recordings]
        for i, number in enumerate(owner):
            texts[number].append(found[i])
        return [" ".join(filter(None, parts)) for parts in texts]


def _groups(files: Iterable[str], transcriber: Transcriber, failed: list[str]) -> Iterator[tuple]:
    """Loaded files in groups of about ten minutes of audio, so that memory stays bounded."""
    names, audio, total = [], [], 0.0
    for name in files:
        try:
            samples = transcriber.load(name)
        except (io.AudioError, OSError) as error:
            failed.append(name)
            print(f"asr.transcribe: {error}", file=sys.stderr)
            continue
        names.append(name)
        audio.append(samples)
        total += len(samples) / transcriber.sample_rate_hz
        if total > 600:
            yield names, audio
            names, audio, total = [], [], 0.0
    if names:
        yield names, audio


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m asr.transcribe",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="of a training run")
    parser.add_argument("--checkpoint", type=int, help="step; default: the best on the dev set")
    parser.add_argument("files", nargs="+", metavar="FILE")
    args = parser.parse_args()

    def work() -> None:
        transcriber = Transcriber(args.workdir.expanduser().resolve(), args.checkpoint)
        failed: list[str] = []
        for names, audio in _groups(args.files, transcriber, failed):
            for name, samples, text in zip(names, audio, transcriber(audio)):
                seconds = len(samples) / transcriber.sample_rate_hz
                print(f"{name}\t{seconds:.2f}\t{text}", flush=True)
        if failed:
            sys.exit(1)

    app.command("asr.transcribe", work)


if __name__ == "__main__":
    main()
