"""Draws faces of a voice, makes voices of a face, or says a recording in the voice of a face.

    python -m generation.sample --workdir=runs/faces --voice=a.wav --out=grid.png --n=10
    python -m generation.sample --workdir=runs/faces --voice=a.wav --voice=b.wav --out=grid.png
    python -m generation.sample --workdir=runs/faces --interpolate a.wav b.wav --out=film.mp4
    python -m generation.sample --workdir=runs/voices --face=a.jpg --out=voice.wav --n=3
    python -m generation.sample --workdir=runs/revoice --face=a.jpg --say=b.wav --out=voice.wav

A row of the grid is a voice, a column a draw of chance, the same one for all voices. --interpolate
writes a film (MP4, and a GIF beside it) of the faces between two voices. Recordings of any format,
rate and length; of a network of classes (config.voice.kind) their names, --voice=cat, and of one
that draws from noise alone no --voice. A face is a guess: a voice tells little of how somebody
looks.

--face, for a network that makes voices (configs/generation/face2voice.py), writes --n sounds of a
little more than a second, which say nothing: voice.wav, or voice-1.wav, voice-2.wav, ... These are
guesses, too.

--say, for a network that changes voices (configs/generation/revoice.py), writes the words of a
recording of any length in the voice of --face, or of the recording --voice, as long and as loud as
it was. It may be repeated: voice-1.wav, voice-2.wav, ... One that cannot be heard is named and left
out, the others go on, and the exit code is 1.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from common import app, errors, files
from common.analysis import video
from common.audio import io
from generation import images, voice_changer, voice_maker
from generation import maker as maker_lib

_FPS = 12


def write_grid(maker: maker_lib.FaceMaker, voices: Sequence[str | None], args) -> pathlib.Path:
    """The faces of voices as a PNG. Of several voices those that cannot be heard are named and left
    out; raises UserError where none is left."""
    rows = []
    for voice in voices:
        try:
            rows.append(maker(voice, count=args.n, seed=args.seed))
        except io.AudioError as error:
            if len(voices) == 1:
                raise
            print(f"generation.sample: left out: {error}", file=sys.stderr)
    if not rows:
        raise errors.UserError(f"none of the {len(voices)} voices can be heard: there is no face.")
    images.write_png(args.out, images.sheet(rows))
    if len(rows) < len(voices):
        print(args.out)
        sys.exit(f"generation.sample: {len(rows)} of {len(voices)} voices are in {args.out}.")
    return args.out


def write_film(maker: maker_lib.FaceMaker, ends: Sequence[str], args) -> pathlib.Path:
    """The faces between two voices as a film."""
    faces = maker.between(*ends, frames=args.frames, seed=args.seed)
    return video.write(images.frames(faces), args.out.with_suffix(""), fps=_FPS)[1]


def sound_files(out: pathlib.Path, count: int) -> list[pathlib.Path]:
    """The name of each sound: voice-1.wav, ... of several."""
    if count == 1:
        return [out]
    return [out.with_name(f"{out.stem}-{i + 1}{out.suffix}") for i in range(count)]


def write_sounds(args: argparse.Namespace) -> list[pathlib.Path]:
    """Voices of a face as WAV."""
    names = sound_files(args.out, args.n)
    for name in names:
        files.check_output(name)
    maker = voice_maker.load(args.workdir, step=args.checkpoint)
    for name, sound in zip(names, maker.voice(args.face, args.n, args.seed)):
        io.write_wav(name, sound, maker.sample_rate_hz)
    return names


def write_said(args: argparse.Namespace) -> list[pathlib.Path]:
    """Recordings in another voice as WAV; exit code 1 where one could not be heard."""
    names = sound_files(args.out, len(args.say))
    for name in names:
        files.check_output(name)
        files.check_kept(name, (*args.say, *(args.voice or ())))
    changer = voice_changer.load(args.workdir, step=args.checkpoint)
    who = changer.seen(args.face) if args.face else changer.heard(args.voice[0])
    written = []
    for name, source in zip(names, args.say):
        try:
            said = changer.say(source, who, args.seed)
        except io.AudioError as error:
            if len(names) == 1:
                raise
            print(f"generation.sample: left out: {error}", file=sys.stderr)
            continue
        io.write_wav(name, said, changer.sample_rate_hz)
        written.append(name)
        print(name, flush=True)
    if len(written) < len(names):
        sys.exit(f"generation.sample: {len(written)} of {len(names)} recordings were said.")
    return written


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = app.parser("generation.sample", __doc__)
    app.add_run(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--voice", action="append", metavar="FILE", help="may be repeated")
    what.add_argument("--interpolate", nargs=2, metavar="FILE", help="the two ends of a film")
    what.add_argument("--face", metavar="FILE", help="a picture, to make voices of")
    parser.add_argument(
        "--say", action="append", metavar="FILE", help="words for the voice; may be repeated"
    )
    parser.add_argument("--n", type=int, help="faces of each voice (10), or voices of a face (1)")
    parser.add_argument("--frames", type=int, help="of a film (36)")
    parser.add_argument("--seed", type=int, default=0, help="of chance (0)")
    parser.add_argument("--out", required=True, type=pathlib.Path, metavar="FILE")
    args = parser.parse_args(argv)

    def work() -> None:
        if args.say and (args.n is not None or bool(args.face) == (len(args.voice or ()) == 1)):
            raise errors.UserError(
                "--say goes with --face or one --voice, whose voice it is to be, and without --n "
                "and --interpolate."
            )
        if args.interpolate and args.n is not None:
            raise errors.UserError("--n is of --voice and --face: a film has --frames pictures.")
        if args.frames is not None and not args.interpolate:
            raise errors.UserError("--frames is of the film of --interpolate.")
        if args.n is None:
            args.n = 1 if args.face else 10
        if args.frames is None:
            args.frames = 36
        if args.n < 1 or args.frames < 2:
            raise errors.UserError("--n has to be 1 at least, and --frames 2.")
        maker_lib.check_seed(args.seed)
        wanted = ".wav" if args.face or args.say else ".mp4" if args.interpolate else ".png"
        if args.out.suffix.lower() != wanted:
            raise errors.UserError(f"--out={args.out}: give a name that ends in {wanted}.")
        files.check_output(args.out)
        if args.say:
            write_said(args)
            return
        if args.face:
            print(*write_sounds(args), sep="\n")
            return
        files.check_kept(args.out, args.voice or args.interpolate or ())
        maker = maker_lib.load(args.workdir, step=args.checkpoint)
        write = write_film if args.interpolate else write_grid
        print(write(maker, args.interpolate or args.voice or [None], args))

    app.command("generation.sample", work)


if __name__ == "__main__":
    main()
