"""Boxes and landmarks of faces in a CSV of another tool (OpenFace, MediaPipe, RetinaFace, ...).

A line is a face in a picture, with the columns, in capitals or not,
  film       file, film, video, name or path; compared by name, with or without suffix. Not needed
             where the table is of one film.
  when       time, timestamp or seconds since the first picture; or frame, counted from 0
  box        x, y, w, h | left, top, width, height | x1, y1, x2, y2 | left, top, right, bottom |
             xmin, ymin, xmax, ymax, in pixels of the upright picture
  landmarks  x_0, y_0, x_1, ... of 68 (iBUG's order, as OpenFace writes them) or of 5 points (eyes,
             tip of the nose, corners of the mouth); without a box, one is made of them
  person     person, face_id, track or id; optional: otherwise faces are followed by their overlap
  success    0: no face was found, the line is skipped; optional
Others mean nothing here.
"""

import csv
import math
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from common.audio import io
from common.data import records, tables
from common.data.embedded.visemes import FRAMES_PER_SECOND
from common.video import finding
from common.video.frames import Picture

_FILM = ("file", "film", "video", "name", "path", "filename")
_TIME = ("time", "timestamp", "seconds")
_PERSON = ("person", "face_id", "track", "track_id", "id")
_SIZED = (("x", "y", "w", "h"), ("left", "top", "width", "height"), ("x", "y", "width", "height"))
_CORNERS = (("x1", "y1", "x2", "y2"), ("left", "top", "right", "bottom"))
_CORNERS += (("xmin", "ymin", "xmax", "ymax"),)
_NEAR_SECONDS = 0.0205  # half a picture of 25 a second


class FaceTable:
    """The faces of one film as a table says, a `finding.Finder`."""

    step = 1

    def __init__(self, by_time: bool) -> None:
        self._by_time = by_time
        self._faces: dict[float, list[finding.Face]] = {}
        self._times: np.ndarray | None = None

    @property
    def every(self) -> int:
        """The pictures from one line to the next, as a rule: some tools look at every eighth."""
        if len(self._faces) < 2:
            return 1
        apart = float(np.median(np.diff(sorted(self._faces))))
        return max(1, round(apart * FRAMES_PER_SECOND if self._by_time else apart))

    def __len__(self) -> int:
        return sum(map(len, self._faces.values()))

    def put(self, when: float, face: finding.Face) -> None:
        """Another line."""
        self._faces.setdefault(when, []).append(face)
        self._times = None

    def find(self, picture: Picture) -> list[finding.Face]:
        """The faces in a picture."""
        if not self._by_time:
            return self._faces.get(picture.index, [])
        if self._times is None:
            self._times = np.array(sorted(self._faces))
        if not len(self._times):
            return []
        nearest = float(self._times[np.abs(self._times - picture.seconds).argmin()])
        near = abs(nearest - picture.seconds) <= _NEAR_SECONDS
        return self._faces[nearest] if near else []


class FaceTables:
    """The tables of many films: one CSV that names them, or a folder with one for each film.

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
        return table or found.get("") or FaceTable(False)

    def file_of(self, film: str | os.PathLike) -> pathlib.Path:
        """Where the faces of a film are, if they are anywhere."""
        folder = self._all is None
        return self._path / f"{pathlib.Path(film).stem}.csv" if folder else self._path

    @property
    def names_films(self) -> bool:
        """Whether it says of which film a line is; otherwise it is of one."""
        return self._all is None or "" not in self._all


def read(path: pathlib.Path) -> dict[str, FaceTable]:
    """The faces of each film by its path without suffix; "" where no column names films."""
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
        self._sized = self._all_of(_SIZED)
        self._corners = None if self._sized else self._all_of(_CORNERS)
        self._points = next((n for n in (68, 5) if self._has_points(n)), 0)
        if self._when is None or not (self._sized or self._corners or self._points):
            raise records.DataError(
                f"{path}: a table of faces has a column time or frame, and a box (x, y, w, h) or "
                f"landmarks (x_0, y_0, ... of 68 or 5); it has {', '.join(columns)}."
            )

    def _all_of(self, choices: Sequence[Sequence[str]]) -> Sequence[str] | None:
        return next((some for some in choices if all(n in self._columns for n in some)), None)

    def _has_points(self, count: int) -> bool:
        return all(f"{axis}_{k}" in self._columns for axis in "xy" for k in range(count))

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
            marks = np.array([[value(f"{axis}_{k}") for axis in "xy"] for k in range(self._points)])
        if self._sized:
            box = tuple(map(value, self._sized))
        elif self._corners:
            left, top, right, bottom = map(value, self._corners)
            box = (left, top, right - left, bottom - top)
        else:
            box = finding.box_of(marks)
        if box[2] <= 0 or box[3] <= 0:
            raise records.DataError(f"{self._path}, line {number}: the box is empty ({box}).")
        film = row[self._columns[self._film]].strip() if self._film else ""
        person = row[self._columns[self._person]].strip() if self._person else None
        return _stem(film), value(self._when), finding.Face(box, marks, person)
