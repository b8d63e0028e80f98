"""Transcribes audio files with a trained recogniser.

    python -m asr.transcribe --workdir=runs/quickstart a.wav b.mp3 folder > transcripts.tsv
    ffmpeg -i a.mkv -f wav - | python -m asr.transcribe --workdir=runs/quickstart --format=srt -

Files of any length, format, sampling rate and channel count, folders (all audio files below), and
`-`: what comes through standard input. Long recordings are cut at pauses; what surely holds no
speech is left out. A file that cannot be read gets one line on stderr, the others go on, and the
exit code is 1. Formats on stdout:

  txt   one line a file: file, seconds, transcript
  tsv   one line a segment, with a header: file, start, end (seconds), confidence, text
  json  one object a line and file, with its segments and its words
  srt   subtitles of one file

The confidence is the geometric mean of the probabilities of the tokens; it is not calibrated.
"""

import argparse
import json
import logging
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from asr import segments, transcriber
from common import app, errors
from common.audio import io
from common.data import clips

log = logging.getLogger(__name__)


def _groups(
    files: Iterable[str], transcribe: transcriber.Transcriber, fail: Callable[[str], None]
) -> Iterator[tuple]:
    """Loaded files in groups of about ten minutes of audio, so that memory stays bounded."""
    names, audio, total = [], [], 0.0
    for name in files:
        try:
            samples = transcribe.load(sys.stdin.buffer.read() if name == "-" else name)
        except (io.AudioError, OSError) as error:
            where = "standard input: " if name == "-" else ""
            fail(f"{where}{error}")
            continue
        names.append(name)
        audio.append(samples)
        total += len(samples) / transcribe.sample_rate_hz
        if total > 600:
            yield names, audio
            names, audio, total = [], [], 0.0
    if names:
        yield names, audio


def as_txt(name: str, found: transcriber.Transcript) -> str:
    """One line."""
    return f"{name}\t{found.seconds:.2f}\t{found.text}\n"


def as_tsv(name: str, found: transcriber.Transcript) -> str:
    """One line a segment, those without words too; no confidence is an empty field."""
    lines = []
    for part in found.segments:
        sure = "" if math.isnan(part.confidence) else f"{part.confidence:.3f}"
        lines.append(f"{name}\t{part.start:.2f}\t{part.end:.2f}\t{sure}\t{part.text}\n")
    return "".join(lines)


def as_json(name: str, found: transcriber.Transcript) -> str:
    """One object; no confidence is null."""

    def listed(parts: Iterable[transcriber.Segment]) -> list[dict]:
        return [
            {
                "start": round(part.start, 3),
                "end": round(part.end, 3),
                "text": part.text,
                "confidence": _number(part.confidence),
            }
            for part in parts
        ]

    row = {
        "file": io.printable(name),
        "seconds": round(found.seconds, 3),
        "text": found.text,
        "confidence": _number(found.confidence),
        "segments": listed(found.segments),
        "words": listed(found.words),
    }
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def as_srt(name: str, found: transcriber.Transcript) -> str:
    """Numbered subtitles of the segments that have words."""
    del name
    spoken = [part for part in found.segments if part.text]
    return "".join(
        f"{i}\n{_clock(part.start)} --> {_clock(part.end)}\n{part.text}\n\n"
        for i, part in enumerate(spoken, start=1)
    )


FORMATS = {"txt": as_txt, "tsv": as_tsv, "json": as_json, "srt": as_srt}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)


def _clock(seconds: float) -> str:
    """`01:02:03,456`, as subtitles write a time."""
    milli = round(1000 * seconds)
    minutes, rest = divmod(milli, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d},{rest % 1000:03d}"


Many = Callable[[Sequence[Float[np.ndarray, "_"]]], Sequence[transcriber.Transcript]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to transcribe, and how it is written."""
    parser.add_argument("--format", choices=FORMATS, default="txt")
    parser.add_argument(
        "--split_seconds",
        type=float,
        default=segments.SPLIT_SECONDS,
        help="longer recordings are cut at pauses (default %(default)g)",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="or a folder, or - for stdin")


def write(
    command: str, args: Any, load: Callable[[], tuple[transcriber.Transcriber, Many]]
) -> None:
    """Transcribes the files of `add_arguments` to stdout; ends with 1 where one cannot be read.

    `load` gives the recogniser, and what makes transcripts of its recordings. It is called when the
    names of the files are known to be right. Raises UserError.
    """
    failed: list[str] = []

    def fail(message: str) -> None:
        failed.append(message)
        print(f"{command}: {message}", file=sys.stderr)

    if args.files.count("-") > 1:
        raise errors.UserError("Standard input (-) can be read once: name it once.")
    files = list(clips.named_files(args.files, fail))
    if args.format == "srt" and len(files) > 1:
        raise errors.UserError(
            f"--format=srt is for one file, and these are {len(files)}: give one, or take "
            "--format=tsv or json."
        )
    transcribe, many = load()
    if args.format == "tsv":
        print("file\tstart\tend\tconfidence\ttext", flush=True)
    for names, audio in _groups(files, transcribe, fail):
        for name, samples, found in zip(names, audio, many(audio)):
            if not samples.any():
                log.warning("%s: silent, %s", name, io.silence(transcribe.channel))
            print(FORMATS[args.format](name, found), end="", flush=True)
    if failed:
        sys.exit(1)


def main() -> None:
    """The command line."""
    parser = app.parser("asr.transcribe", __doc__)
    app.add_run(parser)
    add_arguments(parser)
    args = parser.parse_args()

    def load() -> tuple[transcriber.Transcriber, Many]:
        found = transcriber.load(
            args.workdir, step=args.checkpoint, split_seconds=args.split_seconds
        )
        return found, found.many

    app.command("asr.transcribe", lambda: write("asr.transcribe", args, load))


if __name__ == "__main__":
    main()
