"""The voice of each person in a film, by a network that sees them.

    python -m separation.separate_video --workdir=runs/vv --input film.mp4 --out=DIR
        [--faces=CSV] [--min_seconds=2.56] [--checkpoint=STEP]

DIR gets, for every person of each film,

    NAME~1.wav, NAME~2.wav, ...   the voice, 16 kHz, as long as the film's sound
    NAME~1.mp4, ...               the film with that voice alone
    sheet-1.png                   who is who: portraits and mouths of all; LOOK at it
    manifest.tsv, mouths/, ...    what was seen, as separation.prepare_video leaves it

Films of any length in constant memory, and any number of people (a network with context: two). A
person who leaves the picture and comes back is another one. Films that cannot be used are named,
the others go on, and the exit code is 1.
"""

import logging
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import soundfile

from common import app, files, trained
from common.audio import io
from common.data import stored_faces
from common.video import frames, muxing
from separation import films, prepare_video, task, watching

log = logging.getLogger(__name__)


def people_of(out: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> list[watching.Person]:
    """Those of a film that was prepared in `out`."""
    return [
        watching.Person(
            row["id"],
            stored_faces.Mouths(str(out / row["mouth"])),
            round(row["offset"] * films.FRAMES_PER_SECOND),
            stored_faces.Portraits(str(out / row["face"]), int(row["portraits"])),
        )
        for row in rows
    ]


def separate(
    watcher: watching.Watcher,
    sound_path: pathlib.Path,
    people: Sequence[watching.Person],
    paths: Sequence[pathlib.Path],
) -> None:
    """Writes everybody's voice, a WAV of floats as long as the sound; none is left half done."""
    with soundfile.SoundFile(sound_path) as sound:
        rate = sound.samplerate

        def read(start: int, count: int) -> np.ndarray:
            sound.seek(start)
            return sound.read(count, dtype="float32")

        with files.replacing_all(paths) as temporary:
            voices = [
                soundfile.SoundFile(path, "w", rate, 1, "FLOAT", format="WAV") for path in temporary
            ]
            try:
                for piece in watcher.voices(read, len(sound), people):
                    for voice, audio in zip(voices, piece):
                        voice.write(audio)
            finally:
                for voice in voices:
                    voice.close()


def _parser() -> Any:
    parser = app.parser("separation.separate_video", __doc__)
    app.add_run(parser)
    parser.add_argument("--input", required=True, nargs="+", metavar="FILM|FOLDER", dest="inputs")
    prepare_video.add_options(parser)
    return parser


def run(args: Any) -> bool:
    """Does what the command line says; whether all films were separated."""
    out = args.out.expanduser().resolve()
    found = trained.load(task.PACKAGE, args.workdir, step=args.checkpoint)
    watcher = watching.Watcher(found.task, found.variables)
    made = prepare_video.run(args)
    failed = made.rejected > 0
    for name, rows in made.films.items():
        film = rows[0]["film"]
        people = people_of(out, rows)
        wavs = [out / f"{files.safe_name(person.name)}.wav" for person in people]
        try:
            separate(watcher, out / rows[0]["audio"], people, wavs)
            zero = frames.sound_start(film)
            for wav in wavs:
                muxing.with_sound(film, wav, wav.with_suffix(".mp4"), zero=zero)
                print(f"{wav}  {wav.with_suffix('.mp4').name}", flush=True)
        except (frames.FilmError, io.AudioError, OSError, ValueError) as error:
            failed = True
            print(f"separation.separate_video: {io.printable(name)}: {error}", file=sys.stderr)
    return not failed


def main() -> None:
    """The command line."""
    args = _parser().parse_args()

    def work() -> None:
        if not run(args):
            sys.exit(1)

    app.command("separation.separate_video", work)


if __name__ == "__main__":
    main()
