"""Cuts mouths and portraits out of films: from any video to what an audio-visual model reads.

    python -m separation.prepare_video film.mp4 clips/ list.tsv --out=DIR
        [--faces=CSV] [--root=FOLDER] [--speakers=folder] [--jobs=N]

Inputs are films, folders of them, and lists (TSV, CSV, JSON) with a column `video` and, if they are
known, id (or clip), speaker, gender, text and split. DIR gets

    manifest.tsv   a line for each person in view: audio, offset, duration, mouth, face, ...
    rejected.tsv   the films and stretches that were not taken, and why
    sheet-*.png    portraits and mouths of all on a few pages: LOOK at them before training
    audio/ mouths/ faces/   16 kHz FLAC; HDF5 `data` uint8[n, 96, 96], 25 a second; PNG of 224 x 224
    films/         what was made of each film: a second start goes on where the first one ended

`common.data.prepared_films.PreparedFilms(DIR)` reads it. Faces are found by OpenCV (frontal ones;
pip install 'opencv-python-headless>=4.14,<5'), or are those of --faces, a table of another tool
(common/video/face_tables.py). A person who leaves the picture or a cut ends a track; each track of
--min_seconds is a record. Where several are in view (column `others`, which also counts those who
were not taken) nobody knows from the pictures alone whose voice it is, so that trainings leave them
out (config.data.several_in_view=True takes them); `motion`, the grey levels by which the middle of
the mouth's crop changes from picture to picture, is near 0 for closed lips and for a frozen
picture.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import json
import logging
import math
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tqdm

from common import app, errors, files, workdir
from common.audio import io
from common.data import prepared_films, records
from common.data.embedded import visemes
from common.video import face_tables, finding, frames, listing, preparing, sheet

log = logging.getLogger(__name__)

_VERSION = 3  # raise it whenever the same film gives other files
_TABLES = 2  # or this one, where it does so by the same table of faces
_COLUMNS = (
    *("id", "audio", "offset", "duration", "mouth", "face", "portraits", "frames"),
    *(*listing.KNOWN, "film", "person", "others", "found", "held", "motion", "face_px"),
)
_PAGES = 20  # of contact sheets
_STILL = 0.5  # grey levels of `motion`: GRID's people have 1.7 and more
_WAITING = 4  # films a job that wait for their turn


@dataclasses.dataclass(frozen=True)
class Preparer:
    """Makes the files of films below `out`, or finds that they are made."""

    out: pathlib.Path
    settings: preparing.Settings
    cascade: finding.Cascade | None
    tables: face_tables.FaceTables | None

    def __call__(self, film: listing.Film) -> dict[str, Any]:
        """What was made of a film: `people`, `refused` stretches, or the `problem` it has."""
        note = self.out / "films" / f"{film.name}.json"
        identity = self._identity(film)
        if note.is_file():
            done = json.loads(note.read_text("utf-8"))
            if done["identity"] == identity and self._whole(done):
                return done
        finder, problem = self.cascade, ""
        people: dict[str, Any] = {"people": [], "refused": []}
        try:
            if self.tables is not None:
                finder = self.tables.of(film.path)
            made = preparing.prepare(film.path, film.name, self.out, finder, self.settings)
            people = dataclasses.asdict(made)
        except (frames.FilmError, io.AudioError) as error:
            problem = _reason(error)
            if problem == "no face" and self.tables is not None and not len(finder):
                problem += f" (no line of it in {self.tables.file_of(film.path).name})"
        except records.DataError as error:  # a folder of tables has one for each film
            problem = f"faces ({error})"
        except errors.UserError:
            raise
        except Exception as error:  # whatever its reason, it is one film that cannot be had
            log.warning("%s", io.printable(film.path), exc_info=error)
            problem = f"failed ({type(error).__name__}: {error})"
        found = {**people, "problem": problem, "identity": identity, "film": film.path}
        files.write_text(note, json.dumps(found) + "\n")
        return found

    def _whole(self, done: Mapping[str, Any]) -> bool:
        """Whether what was made is there; what a disk did not give may be there now."""
        paths = (person[name] for person in done["people"] for name in ("audio", "mouth", "face"))
        again = done["problem"].startswith(("unreadable", "missing", "failed"))
        return not again and all((self.out / path).is_file() for path in paths)

    def _identity(self, film: listing.Film) -> dict[str, Any]:
        """Changes when other files would be made of a film."""
        paths = [pathlib.Path(film.path).absolute()]
        if self.tables is not None:
            paths.append(self.tables.file_of(film.path))
        seen = []
        for path in paths:
            with contextlib.suppress(OSError):
                status = path.stat()
                seen += [status.st_size, status.st_mtime_ns]
        return {"film": str(paths[0]), "seen": seen}


def _reason(error: errors.UserError) -> str:
    if isinstance(error, frames.FilmError):
        return error.reason
    return f"sound: {error.reason}"


def _identity(args: Any, settings: preparing.Settings) -> dict[str, Any]:
    """What all films of a folder have in common."""
    finder: dict[str, Any] = {"finder": "haar", "every": args.every, "least": args.min_face}
    if args.faces is not None:
        path = pathlib.Path(args.faces).expanduser()
        finder = {"finder": str(path.absolute()), "tables": _TABLES}
    return {"version": _VERSION, **finder, **dataclasses.asdict(settings)}


def _check_same(out: pathlib.Path, identity: Mapping[str, Any]) -> None:
    path = out / "films.json"
    then = json.loads(path.read_text("utf-8")) if path.is_file() else identity
    if other := sorted(n for n in {*then, *identity} if then.get(n) != identity.get(n)):
        raise errors.UserError(
            f"{out} holds films prepared in another way; what differs: {', '.join(other)}. Go on "
            "with the settings of then, or choose another --out."
        )
    files.write_text(path, json.dumps(identity) + "\n")


def prepare(films: Sequence[listing.Film], preparer: Preparer, jobs: int) -> list[dict[str, Any]]:
    """What was made of each film, by so many threads: decoding and finding leave the GIL."""
    found = []
    with (
        concurrent.futures.ThreadPoolExecutor(jobs) as pool,
        tqdm.tqdm(total=len(films), desc="preparing", unit="film") as bar,
    ):
        waiting: collections.deque[concurrent.futures.Future] = collections.deque()
        try:
            for film in films:
                waiting.append(pool.submit(preparer, film))
                waiting[-1].add_done_callback(lambda _: bar.update())
                if len(waiting) > _WAITING * jobs:
                    found.append(waiting.popleft().result())
            while waiting:
                found.append(waiting.popleft().result())
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return found


def rows_of(film: listing.Film, made: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The lines of the manifest of a film. What a list says of it is true of its only person."""
    rows = []
    for person in made["people"]:
        row = {**person, "film": film.path}
        known = film.known if len(made["people"]) == 1 else {"split": film.known.get("split", "")}
        row |= {name: known.get(name, "") for name in listing.KNOWN}
        row["speaker"] = row["speaker"] or person["id"]
        rows.append(row)
    return rows


def refused_of(film: listing.Film, made: Mapping[str, Any]) -> list[records.Rejected]:
    """What of a film was not taken."""
    if made["problem"]:
        return [records.Rejected(film.name, film.path, made["problem"])]
    return [
        records.Rejected(f"{film.name} {r['start']:.2f}-{r['end']:.2f} s", film.path, r["reason"])
        for r in made["refused"]
    ]


def write_tsv(path: pathlib.Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Writes a table, whole or not at all."""
    lines = ["\t".join(" ".join(str(value).split()) for value in row) for row in (header, *rows)]
    text = "\n".join(lines) + "\n"
    with files.replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "surrogateescape"))


def report(rejected: Sequence[records.Rejected], out: pathlib.Path) -> str:
    """Counts of what was rejected by reason, with the names of the first ones."""
    by_reason: dict[str, list[str]] = {}
    for one in rejected:
        by_reason.setdefault(one.reason.split(" (")[0], []).append(io.printable(one.id))
    lines = []
    for reason, names in sorted(by_reason.items(), key=lambda item: -len(item[1])):
        more = f", ... ({out / 'rejected.tsv'})" if len(names) > 5 else ""
        lines.append(f"  {len(names)} {reason}: {', '.join(names[:5])}{more}")
    return "\n".join(lines)


def warning(rows: Sequence[Mapping[str, Any]]) -> str:
    """Names those whose lips hardly move, which is no fault, but says little; "" without any."""
    still = [io.printable(row["id"]) for row in rows if float(row["motion"]) < _STILL]
    more = f", ... ({len(still)} in all)" if len(still) > 5 else ""
    names = f"{', '.join(still[:5])}{more}"
    return f"Lips that hardly move (closed, or a frozen picture): {names}." if still else ""


def add_looks(parser: Any, *, seconds: float) -> None:
    """The flags of how people are found: `preparer` reads them. `seconds`: in view, by default."""
    parser.add_argument(
        "--faces",
        metavar="CSV",
        help="boxes or landmarks of another tool (CSV, NPY, JSON: common/video/face_tables.py), or "
        "a folder of NAME.csv",
    )
    parser.add_argument(
        "--min_seconds", type=float, default=seconds, help=f"in view; default: {seconds:g}"
    )
    parser.add_argument("--portraits", type=int, default=5, help="of each person; default: 5")
    parser.add_argument(
        "--every", type=int, default=5, help="OpenCV looks at one picture in so many; default: 5"
    )
    parser.add_argument(
        "--min_face", type=float, default=0.12, help="of the picture's short side; default: 0.12"
    )


def _parser() -> Any:
    parser = app.parser("separation.prepare_video", __doc__)
    parser.add_argument("inputs", nargs="+", metavar="FILM|FOLDER|LIST")
    parser.add_argument("--out", required=True, type=pathlib.Path, metavar="DIR")
    parser.add_argument("--root", help="where paths in lists start; default: the list's folder")
    parser.add_argument(
        "--speakers",
        choices=("film", "folder"),
        default="film",
        help="who speaks where no list says it: another person in every film (default), or the one "
        "after whom the film's folder is called",
    )
    add_looks(parser, seconds=64 / visemes.FRAMES_PER_SECOND)
    cores = os.cpu_count() or 1
    parser.add_argument("--jobs", type=int, default=cores, help="films at once; default: cores")
    return parser


def _settings(args: Any) -> preparing.Settings:
    for name in ("portraits", "every"):
        if getattr(args, name) < 1:
            raise errors.UserError(f"--{name}={getattr(args, name)}: at least 1.")
    if not 0 < args.min_face < 1:
        raise errors.UserError(f"--min_face={args.min_face:g} is no share of the picture.")
    if not 0 < args.min_seconds < math.inf:
        raise errors.UserError(f"--min_seconds={args.min_seconds:g}: above 0.")
    count = round(args.min_seconds * visemes.FRAMES_PER_SECOND)
    if count < max(args.portraits, args.every):
        raise errors.UserError(
            f"--min_seconds={args.min_seconds:g} are {count} pictures: fewer than --portraits or "
            "--every."
        )
    return preparing.Settings(min_frames=count, portraits=args.portraits)


@contextlib.contextmanager
def opened(args: Any, out: pathlib.Path, films: int) -> Iterator[Preparer]:
    """What prepares so many films into the locked folder `out`, as `add_looks` says.

    Raises UserError for a folder whose films were prepared in another way.
    """
    settings, cascade, tables = _settings(args), None, None
    if args.faces is None:
        cascade = finding.Cascade(args.every, args.min_face)
    else:
        tables = face_tables.FaceTables(args.faces)
        if films > 1 and not tables.names_films:
            raise errors.UserError(
                f"{args.faces} has no column that names films, and there are {films} of them."
            )
    with workdir.Lock(out):
        for left in out.rglob(".*.tmp"):  # by one that was killed: we hold the lock
            left.unlink()
        _check_same(out, _identity(args, settings))
        yield Preparer(out, settings, cascade, tables)


def find(
    inputs: Sequence[str], root: str | None = None, speakers: str = "film"
) -> tuple[list[listing.Film], list[records.Rejected]]:
    """The films that inputs name, and what of them cannot be read. UserError: there is neither."""
    rejected: list[records.Rejected] = []
    films = listing.distinct(listing.find_films(inputs, root, speakers), rejected)
    if not films and not rejected:
        raise errors.UserError(f"No films in {', '.join(inputs)} ({', '.join(listing.SUFFIXES)}).")
    return films, rejected


def write_rejected(out: pathlib.Path, rejected: Sequence[records.Rejected]) -> None:
    """DIR/rejected.tsv: what was not taken, and why."""
    rows = [(one.id, one.path, one.reason) for one in rejected]
    write_tsv(out / "rejected.tsv", ("id", "path", "reason"), rows)


def run(args: Any) -> bool:
    """Does what the command line says; whether anything was prepared."""
    if args.jobs < 1:
        raise errors.UserError(f"--jobs={args.jobs}: at least 1.")
    out = args.out.expanduser().resolve()
    files.check_output(out / prepared_films.MANIFEST)
    films, rejected = find(args.inputs, args.root, args.speakers)
    with opened(args, out, len(films)) as preparer:
        made = prepare(films, preparer, args.jobs)
        rows = [row for film, one in zip(films, made) for row in rows_of(film, one)]
        rejected += [r for film, one in zip(films, made) for r in refused_of(film, one)]
        write_rejected(out, rejected)
        table = [[row[name] for name in _COLUMNS] for row in rows]
        write_tsv(out / prepared_films.MANIFEST, _COLUMNS, table)
        sheets = sheet.write_sheets(out, rows, _PAGES) if rows else []
    used = sum(bool(one["people"]) for one in made)
    hours = sum(row["duration"] for row in rows) / 3600
    print(f"{len(rows)} people in {used} of {len(films)} films, {hours:.3g} hours.")
    if several := sum(row["others"] > 0 for row in rows):
        print(
            f"{several} of them are in view together with others: trainings leave them out "
            "(config.data.several_in_view)."
        )
    if said := warning(rows):
        print(said)
    if rejected:
        print(f"{len(rejected)} films or stretches were not taken:")
        print(report(rejected, out))
    if sheets:
        more = f" and {len(sheets) - 1} more" if sheets[1:] else ""
        print(f"{out / prepared_films.MANIFEST}\nLook at {out / sheets[0]}{more}.")
    return bool(rows)


def main() -> None:
    """The command line."""
    args = _parser().parse_args()

    def work() -> None:
        if not run(args):
            sys.exit("separation.prepare_video: nothing was prepared: see above.")

    app.command("separation.prepare_video", work)


if __name__ == "__main__":
    main()
