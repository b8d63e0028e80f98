"""Transcribes audio files with a trained recogniser.

    python -m asr.transcribe --workdir=runs/quickstart a.wav b.mp3 > transcripts.tsv

One line a file on stdout: file, seconds, transcript. Files of any length, format, sampling rate and
channel count; long ones are cut at their quietest points. A file that cannot be read gets one line
on stderr, the others go on, and the exit code is 1.
"""

import argparse
import logging
import pathlib
import sys
from collections.abc import Iterable, Iterator

from asr import transcriber
from common import app
from common.audio import io

log = logging.getLogger(__name__)


def _groups(
    files: Iterable[str], transcribe: transcriber.Transcriber, failed: list[str]
) -> Iterator[tuple]:
    """Loaded files in groups of about ten minutes of audio, so that memory stays bounded."""
    names, audio, total = [], [], 0.0
    for name in files:
        try:
            samples = transcribe.load(name)
        except (io.AudioError, OSError) as error:
            failed.append(name)
            print(f"asr.transcribe: {error}", file=sys.stderr)
            continue
        names.append(name)
        audio.append(samples)
        total += len(samples) / transcribe.sample_rate_hz
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
        transcribe = transcriber.load(args.workdir, step=args.checkpoint)
        failed: list[str] = []
        for names, audio in _groups(args.files, transcribe, failed):
            for name, samples, found in zip(names, audio, transcribe.many(audio)):
                if not samples.any():
                    log.warning("%s: silent, %s", name, io.silence(transcribe.channel))
                print(f"{name}\t{found.seconds:.2f}\t{found.text}", flush=True)
        if failed:
            sys.exit(1)

    app.command("asr.transcribe", work)


if __name__ == "__main__":
    main()
