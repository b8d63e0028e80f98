"""Transcribes one voice out of several: VoiceFilter-Lite in front of a recogniser.

    python -m separation.transcribe --workdir=runs/lite --recogniser=runs/quickstart
        --enroll=ann.wav meeting.wav

--workdir is a run of configs/separation/lite.py, --recogniser one of asr.main that has the same
features. Files, folders, standard input, cutting and formats are those of `python -m
asr.transcribe`. No sound is made: the recogniser is given the filtered features. A run's
config.suppression says how strong suppression is and when.
"""

import functools

from asr import load as load_recogniser
from asr import transcribe as asr_transcribe
from common import app
from separation.lite import filtering


def main() -> None:
    """The command line."""
    parser = app.parser("separation.transcribe", __doc__)
    app.add_run(parser)
    parser.add_argument(
        "--recogniser", metavar="DIR", required=True, help="a work directory of asr.main"
    )
    parser.add_argument(
        "--enroll",
        metavar="FILE",
        action="append",
        required=True,
        help="a recording of the voice; may be repeated",
    )
    asr_transcribe.add_arguments(parser)
    args = parser.parse_args()

    def load() -> tuple:
        found = filtering.load(args.workdir, step=args.checkpoint)
        recogniser = load_recogniser(args.recogniser, split_seconds=args.split_seconds)
        found.check(recogniser)
        features_of = functools.partial(found.features_of, cue=found.cue(args.enroll))
        return recogniser, functools.partial(recogniser.many, features_of=features_of)

    command = "separation.transcribe"
    app.command(command, lambda: asr_transcribe.write(command, args, load))


if __name__ == "__main__":
    main()
