"""Boxes and landmarks of faces in a CSV of another tool (OpenFace, MediaPipe, RetinaFace, ...).

A line is a face in a picture, with the columns, in capitals or not,
  film       file, film, video, name or path; compared by name, with or without suffix. Not needed
             where the table is of one film.
  when       time, timestamp or seconds since the first picture; or frame, counted from 0
  box        x, y, w, h | left, top, width, height | x1, y1, x2, y2 | left, top, right, bottom |
             xmin, ymin, xmax, ymax, in pixels of the upright picture
  landmarks  x_0, y_0, x_1, ... (or x0, y0, ...) of 68 points (iBUG's order, as OpenFace and dlib
             have them: 48 to 67 are the mouth) or of 5 (eyes, tip of the nose, corners of the
             mouth); without a box, one is made of them
  person     person, face_id, track or id; optional: otherwise faces are followed by their overlap
  success    0: no face was found, the line is skipped; optional
Others mean nothing here.

Landmarks frame by frame, as users of face_alignment and dlib keep them, of one film: NPY, an array
[frames, 68 or 5, 2 or 3] with NaN where there is no face, or [frames, faces, 68 or 5, 2 or 3]; or
JSON, a list with an entry a frame (null, the points, or a list of faces), or an object of such
entries by the number of the frame, from 0.
"""

import contextlib
import csv
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from common.audio import io
from common.data import records, tables
from common.data.embedded.visemes import FRAMES_PER_SECOND
from common.video import finding, frames
from common.video.frames import Picture

_FILM = ("file", "film", "video", "name", "path", "filename")
_TIME = ("time", "timestamp", "seconds")
_PERSON = ("person", "face_id", "track", "track_id", "id")
_SIZED = (("x", "y", "w", "h"), ("left", "top", "width", "height"), ("x", "y", "width", "height"))
_CORNERS = (("x1", "y1", "x2", "y2"), ("left", "top", "right", "bottom"))
_CORNERS += (("xmin", "ymin", "xmax", "ymax"),)
_POINTS = (68, 5)  # of a face
_SUFFIXES = (".csv", ".npy", ".json")
_SHOWN = 20  # columns in a message: OpenFace has 714
_NEAR_SECONDS = 0.0205  # half a picture of 25 a second


class FaceTable:
    """The faces of one film as a table says, a `finding.Finder`.

    Lines are at times, or at frames; the film has `rate_hz` frames a second.
    """

    step = 1

    def __init__(self, by_time: bool, rate_hz: float = FRAMES_PER_SECOND) -> None:
        self._by_time, self._rate_hz = by_time, rate_hz
        self._faces: dict[float, list[finding.Face]] = {}
        self._times: np.ndarray | None = None
        self._asked = -1  # the frame of the picture before

    def at_rate(self, rate_hz: float) -> "FaceTable":
        """The same faces, to be asked for in a film of so many frames a second."""
        found = FaceTable(self._by_time, rate_hz)
        found._faces = self._faces
        return found

    @property
    def every(self) -> float:
        """The pictures from one line to the next, as a rule: some tools look at every eighth.

        There are 25 a second, but those of a frame that is held, as in films of fewer, count once:
        its line is found in all of them.
        """
        if len(self._faces) < 2:
            return 1.0
        apart = float(np.median(np.diff(sorted(self._faces))))
        seconds = apart if self._by_time else apart / self._rate_hz
        return max(1.0, seconds * min(self._rate_hz, FRAMES_PER_SECOND))

    def __len__(self) -> int:
        return sum(map(len, self._faces.values()))

    def put(self, when: float, face: finding.Face) -> None:
        """Another line."""
        self._faces.setdefault(when, []).append(face)
        self._times = None

    def find(self, picture: Picture) -> list[finding.Face]:
        """The faces in a picture; to be asked for in the order of the film.

        A film of more than 25 frames a second has some that no picture is of: their lines are taken
        for the next one.
        """
        if not self._by_time:
            least = picture.index - math.ceil(self._rate_hz / FRAMES_PER_SECOND) + 1
            after = self._asked + 1 if self._asked < picture.index else picture.index
            self._asked = picture.index
            since = range(picture.index, max(least, after) - 1, -1)
            return next((self._faces[k] for k in since if k in self._faces), [])
        if self._times is None:
            self._times = np.array(sorted(self._faces))
        if not len(self._times):
            return []
        nearest = float(self._times[np.abs(self._times - picture.seconds).argmin()])
        near = abs(nearest - picture.seconds) <= _NEAR_SECONDS
        return self._faces[nearest] if near else []


class FaceTables:
    """The tables of many films: one CSV that names them, or a folder with one for each film
    (NAME.csv, NAME.npy or NAME.json).

    Raises records.DataError: no such file, missing columns, a line that holds no number.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self._path = pathlib.Path(path).expanduser()
        self._all: dict[str, FaceTable] | None = None
        if not self._path.exists():
            raise records.DataError(f"There is no table or folder {self._path} of faces.")
        if self._path.is_file():
            self._all = read(self._path)

    def of(self, film: str | os.PathLike) -> FaceTable:
        """The faces of a film; an empty table where none is named so. Raises DataError."""
        film = pathlib.Path(film)
        if self._all is None:
            own = self.file_of(film)
            found = read(own) if own.is_file() else {}
        else:
            found = self._all
        parts = _stem(str(film)).split("/")
        # The longest part of the path that the table uses: several folders may hold a 00001.mp4.
        names = ["/".join(parts[k:]) for k in range(len(parts))]
        table = next((found[name] for name in names if name in found), None)
        table = table or found.get("") or FaceTable(False)
        if not len(table):
            return table
        with contextlib.suppress(frames.FilmError):  # it is said when the film is looked at
            return table.at_rate(frames.rate(film))
        return table

    def file_of(self, film: str | os.PathLike) -> pathlib.Path:
        """Where the faces of a film are, if they are anywhere."""
        if self._all is not None:
            return self._path
        paths = [self._path / f"{pathlib.Path(film).stem}{suffix}" for suffix in _SUFFIXES]
        return next((path for path in paths if path.is_file()), paths[0])

    @property
    def names_films(self) -> bool:
        """Whether it says of which film a line is; otherwise it is of one."""
        return self._all is None or "" not in self._all


def read(path: pathlib.Path) -> dict[str, FaceTable]:
    """The faces of each film by its path without suffix; "" where no column names films."""
    if path.suffix.lower() in _SUFFIXES[1:]:
        return {"": _by_frame(path)}
    rows = csv.reader(tables.read_lines(path))
    header = [name.strip().lower() for name in next(rows, [])]
    columns = {name: place for place, name in reversed([*enumerate(header)])}
    reader = _Reader(path, columns, len(header))
    found: dict[str, FaceTable] = {}
    for number, row in enumerate(rows, start=2):
        if row and (line := reader.line(number, row)) is not None:
            film, when, face = line
            found.setdefault(film, FaceTable(reader.by_time)).put(when, face)
    return found


def _by_frame(path: pathlib.Path) -> FaceTable:
    """The landmarks of an NPY or a JSON."""
    found = FaceTable(False)
    for number, entry in _entries(path):
        try:
            points = np.asarray([] if entry is None else entry, np.float64)
        except (TypeError, ValueError):
            points = np.empty(1)
        if points.ndim == 2 and points.size:
            points = points[None]
        if points.size and (points.ndim != 3 or points.shape[1] not in _POINTS
                            or points.shape[2] not in (2, 3)):  # fmt: skip
            raise records.DataError(
                f"{path}, frame {number}: it holds no landmarks of faces, each of 68 or 5 points "
                f"of 2 or 3 numbers, but {' x '.join(map(str, points.shape))} numbers."
            )
        for face in points[..., :2] if points.size else ():
            if np.isfinite(face).all():
                found.put(float(number), finding.Face(_box(face, f"{path}, frame {number}"), face))
    return found


def _entries(path: pathlib.Path) -> Iterable[tuple[int, Any]]:
    """(number of a frame, what it holds)"""
    try:
        if path.suffix.lower() == ".npy":
            with path.open("rb") as file:
                stored = np.load(file)
        else:
            stored = json.loads(tables.read_text(path))
        if isinstance(stored, dict):
            return [(int(number), entry) for number, entry in stored.items()]
        return list(enumerate(stored))
    except (OSError, ValueError, TypeError) as error:
        raise records.DataError(
            f"{path} cannot be read as landmarks frame by frame ({error}): save an array [frames, "
            "68, 2] with NaN where there is no face (NPY without pickled objects), or a list "
            "(JSON) with null there."
        ) from error


def _box(points: np.ndarray, where: str) -> tuple[float, float, float, float]:
    box = finding.box_of(points)
    if box[2] <= 0:
        raise records.DataError(f"{where}: the eyes lie in one place ({box}).")
    return box


def _stem(film: str) -> str:
    """The path of a film without its suffix."""
    film = pathlib.PurePath(film).as_posix() if film else ""
    suffix = pathlib.PurePosixPath(film).suffix
    return film.removesuffix(suffix) if suffix.lower() in io.SUFFIXES else film


class _Reader:
    """What the columns of a table mean."""

    def __init__(self, path: pathlib.Path, columns: Mapping[str, int], width: int) -> None:
        self._path, self._columns, self._width = path, columns, width
        self._film = next((name for name in _FILM if name in columns), None)
        time = next((name for name in _TIME if name in columns), None)
        self.by_time = time is not None
        self._when = time or ("frame" if "frame" in columns else None)
        self._person = next((name for name in _PERSON if name in columns), None)
        forms = ((n, form) for n in _POINTS for form in ("{}_{}", "{}{}"))
        self._points, self._form = next((one for one in forms if self._has_points(*one)), (0, ""))
        self._sized = self._all_of(_SIZED)
        # Of points that are called x1, y1, ... two are no corners of a box.
        corners = _CORNERS if self._form != "{}{}" else _CORNERS[1:]
        self._corners = None if self._sized else self._all_of(corners)
        if self._when is None or not (self._sized or self._corners or self._points):
            there = sorted(columns, key=columns.get)
            more = f", ... ({len(there)} in all)" if len(there) > _SHOWN else ""
            raise records.DataError(
                f"{path}: a table of faces has a column {', '.join(_TIME)} or frame, and a box (x, "
                "y, w, h) or landmarks (x_0, y_0, ... x_67, y_67 as OpenFace, or 5 points); it has "
                f"{', '.join(there[:_SHOWN])}{more}."
            )

    def _all_of(self, choices: Sequence[Sequence[str]]) -> Sequence[str] | None:
        return next((some for some in choices if all(n in self._columns for n in some)), None)

    def _has_points(self, count: int, form: str) -> bool:
        return all(form.format(axis, k) in self._columns for axis in "xy" for k in range(count))

    def line(self, number: int, row: Sequence[str]) -> tuple[str, float, finding.Face] | None:
        """(film, when, face) of a line; None where it says that there is no face."""
        if len(row) != self._width:
            raise records.DataError(
                f"{self._path}, line {number}: {len(row)} fields, but the header has "
                f"{self._width}. Repair the line."
            )

        def value(name: str) -> float:
            text = row[self._columns[name]].strip()
            try:
                found = float(text)
            except ValueError:
                found = math.nan
            if not math.isfinite(found):
                raise records.DataError(
                    f"{self._path}, line {number}: {name} is {text!r}, which is no number."
                )
            return found

        if "success" in self._columns and not value("success"):
            return None
        marks = None
        if self._points:
            form, count = self._form, self._points
            marks = np.array([[value(form.format(a, k)) for a in "xy"] for k in range(count)])
        if self._sized:
            box = tuple(map(value, self._sized))
        elif self._corners:
            left, top, right, bottom = map(value, self._corners)
            box = (left, top, right - left, bottom - top)
        else:
            box = _box(marks, f"{self._path}, line {number}")
        if box[2] <= 0 or box[3] <= 0:
            raise records.DataError(f"{self._path}, line {number}: the box is empty ({box}).")
        film = row[self._columns[self._film]].strip() if self._film else ""
        person = row[self._columns[self._person]].strip() if self._person else None
        return _stem(film), value(self._when), finding.Face(box, marks, person)
