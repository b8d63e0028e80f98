"""Extracts a voice from recordings with a trained network.

    python -m separation.enhance --workdir=runs/separation --enroll ann.wav --out=DIR FILES...

DIR gets <name>.wav of every file, one channel at the file's own rate and of its length. Files of
any format, rate and length. Without --enroll the loudest voice is extracted; with --self-enroll it
is then known by the first seconds in which it is heard alone, in all of the recording, or with
--stream in what follows. A file that cannot be used is named, the others go on, and the exit code
is 1.
"""

import logging
import pathlib
import sys
import time

from common import app, errors, files
from common.audio import io
from separation import enhancer

log = logging.getLogger(__name__)


def outputs(names: list[str], out: pathlib.Path) -> dict[str, pathlib.Path]:
    """Where each file's voice goes. UserError if two would go to one place."""
    found = {name: out / f"{files.safe_name(pathlib.Path(name).stem)}.wav" for name in names}
    places: dict[pathlib.Path, str] = {}
    for name, path in found.items():
        if path in places:
            raise errors.UserError(
                f"{io.printable(places[path])} and {io.printable(name)} would both become {path}: "
                "enhance them into two folders."
            )
        places[path] = name
    return found


def main() -> None:
    """The command line."""
    parser = app.parser("separation.enhance", __doc__)
    app.add_run(parser)
    parser.add_argument(
        "--enroll",
        metavar="FILE",
        action="append",
        help="a recording of the voice; may be repeated",
    )
    parser.add_argument(
        "--self-enroll", action="store_true", help="the loudest voice, known by its own sound"
    )
    parser.add_argument(
        "--stream", action="store_true", help="only by a network that streams; says how fast it is"
    )
    parser.add_argument(
        "--strength", type=float, default=1.0, help="0 (the mixture) to 1 (the voice; default)"
    )
    parser.add_argument("--out", required=True, type=pathlib.Path, metavar="DIR")
    parser.add_argument("files", nargs="+", metavar="FILE")
    args = parser.parse_args()

    def work() -> None:
        if not 0 <= args.strength <= 1:
            raise errors.UserError(f"--strength={args.strength:g} is not from 0 to 1.")
        if args.enroll and args.self_enroll:
            raise errors.UserError("--enroll or --self-enroll: give one of both.")
        places = outputs(args.files, args.out.expanduser())
        files.check_output(next(iter(places.values())))
        for path in places.values():
            files.check_kept(path, (*args.files, *(args.enroll or ())))
        network = enhancer.load(args.workdir, step=args.checkpoint)
        if args.stream:
            network.check_streams()
        cue = network.cue(args.enroll)
        failed, seconds, started = False, 0.0, time.perf_counter()
        for name, path in places.items():
            try:
                rate = io.probe(name).sample_rate_hz
                if rate < network.sample_rate_hz:
                    log.warning(
                        "%s: %d Hz, and the network was trained at %d Hz: without what is above "
                        "%d Hz the voice may be missed.",
                        *(io.printable(name), rate, network.sample_rate_hz, rate // 2),
                    )
                voice = network.extract(
                    *(name, rate, cue, args.strength),
                    self_enroll=args.self_enroll,
                    as_stream=args.stream,
                )
                io.write_wav(path, voice, rate)
                seconds += len(voice) / rate
                print(path, flush=True)
            except io.AudioError as error:
                failed = True
                print(f"separation.enhance: {error}", file=sys.stderr)
        if args.stream and seconds:
            taken = time.perf_counter() - started
            print(
                f"Algorithmic latency {network.latency_ms:g} ms; real-time factor "
                f"{taken / seconds:.3f} with reading, compiling and writing.",
                file=sys.stderr,
            )
        if failed:
            sys.exit(1)

    app.command("separation.enhance", work)


if __name__ == "__main__":
    main()
