"""The voice of each person in a film, by a network that sees them.

    python -m separation.separate_video --workdir=runs/vv --input film.mp4 --out=DIR
        [--faces=CSV] [--min_seconds=1] [--checkpoint=STEP]

DIR gets, for every person of each film,

    NAME~1.wav, NAME~2.wav, ...   the voice, 16 kHz, as long as the film's sound (NAME.wav where
                                  one person is in view)
    NAME~1.mp4, ...               the film with that voice alone (pictures as they are; as H.264
                                  where an MP4 cannot hold them)
    sheet-01.png                  who is who: portraits and mouths of all; LOOK at it
    rejected.tsv                  the films and stretches that were not separated, and why
    audio/, mouths/, faces/       what was heard and seen, as separation.prepare_video leaves it

Films of any length in constant memory, and any number of people (a network with context: two). A
person who leaves the picture and comes back is another one. Films that cannot be used, or in whose
place in DIR an output would come, are named, the others go on, and the exit code is 1.
"""

import contextlib
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import soundfile

from common import app, errors, files, trained
from common.audio import io
from common.data import records, stored_faces
from common.video import frames, listing, muxing, preparing, sheet
from separation import films, prepare_video, task, watching

_PAGES = 20  # of contact sheets


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
    """Writes everybody's voice, a WAV of floats as long as the sound; all of them or none."""
    with soundfile.SoundFile(sound_path) as sound, contextlib.ExitStack() as stack:
        rate = sound.samplerate

        def read(start: int, count: int) -> np.ndarray:
            sound.seek(start)
            return sound.read(count, dtype="float32")

        temporary = [stack.enter_context(files.replacing(path)) for path in paths]
        for path in temporary:
            soundfile.SoundFile(path, "w", rate, 1, "FLOAT", format="WAV").close()
        for piece in watcher.voices(read, len(sound), people):
            # One file is open at a time, or a film of many shots meets the system's limit.
            for path, audio in zip(temporary, piece, strict=True):
                with soundfile.SoundFile(path, "r+") as voice:
                    voice.seek(0, soundfile.SEEK_END)
                    voice.write(audio)


def run(args: Any) -> bool:
    """Does what the command line says; whether all films were separated."""
    out = args.out.expanduser().resolve()
    files.check_output(out / "rejected.tsv")
    chosen, refused = prepare_video.find(args.inputs)
    count = len(chosen) + len(refused)
    network = trained.load(task.PACKAGE, args.workdir, step=args.checkpoint)
    watcher = watching.Watcher(network.task, network.variables)
    if watcher.sample_rate_hz != preparing.SAMPLE_RATE_HZ:
        raise errors.UserError(
            f"The network of {args.workdir} is of {watcher.sample_rate_hz} Hz, and films are "
            f"separated at {preparing.SAMPLE_RATE_HZ}: train one with "
            f"config.data.sample_rate_hz={preparing.SAMPLE_RATE_HZ}."
        )
    all_rows, done = [], 0
    inputs = [film.path for film in chosen]
    with prepare_video.opened(args, out, len(chosen)) as preparer:
        try:
            for film in chosen:
                made = preparer(film)
                refused += prepare_video.refused_of(film, made)
                rows = prepare_video.rows_of(film, made)
                if not rows:
                    continue
                try:
                    for path in _separated(watcher, film, rows, out, inputs):
                        print(path, flush=True)
                except (frames.FilmError, io.AudioError, OSError, ValueError) as error:
                    reason = getattr(error, "reason", str(error))
                    refused.append(records.Rejected(film.name, film.path, reason))
                    continue
                all_rows += rows
                done += 1
        finally:  # of the films before one that ends the command, as a full disk does
            prepare_video.write_rejected(out, refused)
        sheets = sheet.write_sheets(out, all_rows, _PAGES) if all_rows else []
    print(f"{len(all_rows)} people in {done} of {count} films.")
    if said := prepare_video.warning(all_rows):
        print(said)
    if refused:
        print(f"Not separated:\n{prepare_video.report(refused, out)}", file=sys.stderr)
    if sheets:
        print(f"Look at {out / sheets[0]}: who is who.")
    return done == count


def _separated(
    watcher: watching.Watcher,
    film: listing.Film,
    rows: Sequence[Mapping[str, Any]],
    out: pathlib.Path,
    inputs: Sequence[str],
) -> Iterator[pathlib.Path]:
    """Makes the voices and films of the people of a film; the paths as they are there.

    Raises frames.FilmError for one that would replace one of the `inputs`.
    """
    people = people_of(out, rows)
    try:
        watcher.check_number(len(people))
    except errors.UserError as error:
        raise frames.FilmError(film.path, f"number of people ({error})") from error
    wavs = [out / f"{person.name}.wav" for person in people]
    for wav in wavs:  # films in DIR itself must not be replaced by what is made of them
        try:
            files.check_kept(wav.with_suffix(".mp4"), inputs)
        except errors.UserError as error:
            raise frames.FilmError(film.path, f"output in the place of a film ({error})") from error
    separate(watcher, out / rows[0]["audio"], people, wavs)
    zero = frames.sound_start(film.path)
    for wav in wavs:
        muxing.with_sound(film.path, wav, wav.with_suffix(".mp4"), zero=zero)
        yield from (wav, wav.with_suffix(".mp4"))


def _parser() -> Any:
    parser = app.parser("separation.separate_video", __doc__)
    app.add_run(parser)
    parser.add_argument("--input", required=True, nargs="+", metavar="FILM|FOLDER", dest="inputs")
    parser.add_argument("--out", required=True, type=pathlib.Path, metavar="DIR")
    prepare_video.add_looks(parser, seconds=1.0)
    return parser


def main() -> None:
    """The command line."""
    args = _parser().parse_args()

    def work() -> None:
        if not run(args):
            sys.exit(1)

    app.command("separation.separate_video", work)


if __name__ == "__main__":
    main()
