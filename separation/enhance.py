"""Extracts a voice from recordings with a trained network.

    python -m separation.enhance --workdir=runs/separation --enroll ann.wav --out=DIR FILES...

DIR gets <name>.wav of every file, one channel at the file's own rate and of its length. Files of
any format, rate and length. Without --enroll the loudest voice is extracted. A file that cannot be
used is named, the others go on, and the exit code is 1.
"""

import argparse
import pathlib
import sys

from common import app, errors, files
from common.audio import io
from separation import enhancer


def outputs(names: list[str], out: pathlib.Path) -> dict[str, pathlib.Path]:
    """Where each file's voice goes. UserError if two would go to one place, or one over itself."""
    found = {name: out / f"{files.safe_name(pathlib.Path(name).stem)}.wav" for name in names}
    places: dict[pathlib.Path, str] = {}
    for name, path in found.items():
        if path in places:
            raise errors.UserError(
                f"{io.printable(places[path])} and {io.printable(name)} would both become {path}: "
                "enhance them into two folders."
            )
        if path.exists() and pathlib.Path(name).exists() and path.samefile(name):
            raise errors.UserError(
                f"{path} would be replaced by its own voice: name another --out."
            )
        places[path] = name
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m separation.enhance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="of a training run")
    parser.add_argument("--checkpoint", type=int, help="step; default: the best on the dev set")
    parser.add_argument("--enroll", metavar="FILE", help="a recording of the voice")
    parser.add_argument("--out", required=True, type=pathlib.Path, metavar="DIR")
    parser.add_argument("files", nargs="+", metavar="FILE")
    args = parser.parse_args()

    def work() -> None:
        places = outputs(args.files, args.out.expanduser())
        files.check_output(next(iter(places.values())))
        network = enhancer.load(args.workdir, step=args.checkpoint)
        cue = network.cue(args.enroll)
        failed = False
        for name, path in places.items():
            try:
                rate = io.probe(name).sample_rate_hz
                io.write_wav(path, network.extract(name, rate, cue), rate)
                print(path, flush=True)
            except io.AudioError as error:
                failed = True
                print(f"separation.enhance: {error}", file=sys.stderr)
        if failed:
            sys.exit(1)

    app.command("separation.enhance", work)


if __name__ == "__main__":
    main()
