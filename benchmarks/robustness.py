"""How a trained recogniser bears silence, noise and long recordings.

    python -m benchmarks.robustness --workdir=runs/quickstart [--split=dev]

WER of a part of the data by `asr.load`: as it is, with 0.3 s of zeros before, with white noise at
20 dB, and with the recordings of each speaker joined to one; ratios are to the first.
"""

import argparse
import pathlib
import tempfile

import numpy as np

from asr import task as asr_task
from asr import transcriber, wer
from common import app, trained
from common.data import records, splits


def white_noise(audio: np.ndarray, snr_db: float, rng: np.random.Generator) -> np.ndarray:
    """Audio with white noise so many dB below its mean power."""
    deviation = np.sqrt(np.mean(np.square(audio, dtype=np.float64)) * 10 ** (-snr_db / 10))
    return audio + (deviation * rng.standard_normal(len(audio))).astype(np.float32)


def joined(audio: list, texts: list[str], speakers: list[str]) -> tuple[list, list[str]]:
    """One recording and one text a speaker, in the order of the data."""
    members: dict[str, list[int]] = {}
    for i, speaker in enumerate(speakers):
        members.setdefault(speaker, []).append(i)
    groups = members.values()
    return (
        [np.concatenate([audio[i] for i in group]) for group in groups],
        [" ".join(texts[i] for i in group) for group in groups],
    )


def main() -> None:
    """Prints one line a condition."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.robustness", description=__doc__)
    parser.add_argument("--workdir", required=True, type=pathlib.Path)
    parser.add_argument("--split", default="dev")
    args = parser.parse_args()
    app.command("benchmarks.robustness", lambda: measure(args.workdir, args.split))


def measure(workdir: pathlib.Path, name: str) -> None:
    """See the module."""
    found = trained.load(asr_task.PACKAGE, workdir)
    transcribe, config = transcriber.Transcriber(found), found.config
    rate, channel = config.data.sample_rate_hz, splits.channel(config.data)
    with tempfile.TemporaryDirectory() as folder:  # for rejected.tsv
        split = splits.open_split(
            config, name.split("+"), pathlib.Path(folder), require_text=True, whole=True
        )
    audio = [
        records.load_record(split.source[int(i)], rate, channel) for i in split.index.positions
    ]
    texts = [found.task.tokenizer.normalize(text) for text in split.texts]
    rng = np.random.default_rng(0)
    zeros = np.zeros(round(0.3 * rate), np.float32)
    conditions = {
        "as it is": (audio, texts),
        "0.3 s of zeros before": ([np.concatenate([zeros, x]) for x in audio], texts),
        "white noise, 20 dB": ([white_noise(x, 20.0, rng) for x in audio], texts),
        "joined by speaker": joined(audio, texts, split.speakers),
        "joined to one": joined(audio, texts, [""] * len(audio)),
    }
    first = None
    for condition, (recordings, references) in conditions.items():
        said = transcribe.many(recordings)
        scores = [
            wer.score(str(i), reference, one.text)
            for i, (reference, one) in enumerate(zip(references, said))
        ]
        counts = wer.total(scores)
        first = counts.rate if first is None else first
        ratio = counts.rate / first if first else float("nan")
        print(f"{wer.describe(f'{condition}: WER', counts)}  ratio {ratio:.2f}", flush=True)


if __name__ == "__main__":
    main()
