"""Talking faces that lie in files: looked at only where a picture is asked for.

`Mouths` and `Portraits` stand in records as arrays do (len, shape, dtype, [...], np.asarray) and
are paths at the same time: they pickle as such, and an index costs no reading of pictures.
"""

import dataclasses
import os
import pathlib
import threading
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import UInt8

from common import files
from common.audio import io
from common.data import facts, indexing, records
from common.data.embedded import visemes

MOUTH_SIZE, FACE_SIZE = 96, 224
_BLOCK = 25  # pictures a block of the file: a second
# NumPy reads headers with `ast`, which fails in threads (Python 3.11, gh-106905).
_HEADERS = threading.Lock()
_UNEQUAL = 5  # pictures by which mouth and sound may differ in length


def _h5py() -> Any:
    import h5py  # takes half a second, and few commands need it

    return h5py


class MouthWriter:
    """Writes mouths picture by picture, as VisualVoice has them: HDF5, `data` uint8[n, 96, 96].

    The file is open while a second of pictures is written, and closed between: however many people
    a film has, the system's limit of open files is not met.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        shape = (MOUTH_SIZE, MOUTH_SIZE)
        with _h5py().File(path, "w") as file:
            file.create_dataset(
                "data",
                (0, *shape),
                np.uint8,
                maxshape=(None, *shape),
                chunks=(_BLOCK, *shape),
                compression="gzip",
                compression_opts=4,
                shuffle=False,
            )
        self._waiting: list[np.ndarray] = []

    def __enter__(self) -> "MouthWriter":
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self.flush()

    def add(self, mouth: UInt8[np.ndarray, "96 96"]) -> None:
        """The next picture."""
        self._waiting.append(mouth)
        if len(self._waiting) == _BLOCK:
            self.flush()

    def flush(self) -> None:
        """Writes what waits, which is less than a second."""
        if self._waiting:
            with _h5py().File(self._path, "r+") as file:
                data = file["data"]
                count = len(data)
                data.resize(count + len(self._waiting), axis=0)
                data[count:] = np.stack(self._waiting)
            self._waiting = []


@dataclasses.dataclass(frozen=True)
class Mouths:
    """The mouth of a recording, uint8[n, 96, 96]: `data` of an HDF5 file (also NPZ, or an NPY).

    Frame k belongs to the samples from 640 k to 640 (k + 1) of the record at 16 kHz. Reading raises
    OSError for what is missing or damaged and ValueError for pictures of another kind.
    """

    path: str
    dtype = np.dtype(np.uint8)
    ndim = 3

    def __fspath__(self) -> str:
        return self.path

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the file, which is opened for it."""
        return self._read(None)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> UInt8[np.ndarray, "..."]:
        first, rest = (key[0], key[1:]) if isinstance(key, tuple) else (key, ())
        if first is Ellipsis:
            return np.asarray(self)[key]
        if isinstance(first, slice) and first.step in (None, 1):
            return self._read(first)[(slice(None), *rest)]
        count = len(self)
        places = np.arange(count)[first]  # as an array takes them: masks, negative numbers, ...
        if not places.size:
            return np.empty((*places.shape, MOUTH_SIZE, MOUTH_SIZE), np.uint8)[(..., *rest)]
        low, high = int(places.min()), int(places.max()) + 1
        found = self._read(slice(low, high))[places - low]
        return found[(*(slice(None),) * places.ndim, *rest)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self._read(slice(None)), dtype)

    def _read(self, part: slice | None) -> Any:
        """Some pictures, or with None the shape of all."""
        if self.path.endswith((".npz", ".npy")):
            return self._taken(_loaded(self.path), part)
        h5py = _h5py()
        try:
            with h5py.File(self.path, "r") as file:
                if "data" not in file:
                    names = ", ".join(file) or "none"
                    raise ValueError(f"{self.path} has no data set 'data' (there are: {names})")
                return self._taken(file["data"], part)
        except OSError as error:
            if pathlib.Path(self.path).is_file():  # h5py's messages have several clauses
                raise OSError(f"{self.path} is no HDF5 file, or damaged or cut off") from error
            raise

    def _taken(self, stored: Any, part: slice | None) -> Any:
        shape = tuple(stored.shape)
        if len(shape) != 3 or shape[1:] != (MOUTH_SIZE, MOUTH_SIZE) or stored.dtype != np.uint8:
            size = " x ".join(map(str, shape))
            raise ValueError(f"{self.path}: {stored.dtype} of {size}, not uint8 of n x 96 x 96")
        return shape if part is None else np.asarray(stored[part])


def _loaded(path: str) -> np.ndarray:
    """The array of an NPY, or `data` of an NPZ. Raises OSError or ValueError."""
    kind = "NPZ" if path.endswith("z") else "NPY"
    with pathlib.Path(path).open("rb") as file, _HEADERS:
        try:
            stored = np.load(file)
            if kind == "NPZ" and "data" in stored:
                stored = stored["data"]
        except (ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
            raise OSError(f"{path} is no {kind} file of numbers, or damaged or cut off") from error
    if not isinstance(stored, np.ndarray):
        there = ", ".join(stored) or "none"
        raise ValueError(f"{path} has no array 'data' (there are: {there})")
    return stored


def write_portraits(path: pathlib.Path, pictures: UInt8[np.ndarray, "k h w 3"]) -> None:
    """Writes portraits side by side as a PNG, whole or not at all."""
    strip = np.concatenate(list(pictures), axis=1)
    with files.replacing(path) as temporary:
        PIL.Image.fromarray(strip).save(temporary, format="png")


@dataclasses.dataclass(frozen=True)
class Portraits:
    """Pictures of a face, uint8[k, 224, 224, 3]: a PNG of them side by side, or `count` spread over
    a film of that size or another.

    Reading raises OSError for what is missing or damaged.
    """

    path: str
    count: int
    dtype = np.dtype(np.uint8)
    ndim = 4

    def __fspath__(self) -> str:
        return self.path

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Known without opening the file."""
        return (self.count, FACE_SIZE, FACE_SIZE, 3)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: Any) -> UInt8[np.ndarray, "..."]:
        """Of a film the portraits that are asked for alone are decoded."""
        first, rest = (key[0], key[1:]) if isinstance(key, tuple) else (key, ())
        if first is Ellipsis or self._is_strip:
            return np.asarray(self)[key]
        places = np.arange(self.count)[first]  # as an array takes them
        shape = (FACE_SIZE, FACE_SIZE, 3)
        found = np.empty((0, *shape), np.uint8)
        if places.size:
            found = spread_frames(self.path, self.count, places.ravel().tolist())
        found = found.reshape(*places.shape, *shape)
        return found[(*(slice(None),) * places.ndim, *rest)]

    @property
    def _is_strip(self) -> bool:
        return self.path.lower().endswith(".png")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if not self._is_strip:
            return np.asarray(spread_frames(self.path, self.count), dtype)
        with PIL.Image.open(self.path) as image:
            strip = np.asarray(image.convert("RGB"))
        if strip.shape != (FACE_SIZE, FACE_SIZE * self.count, 3):
            height, width = strip.shape[:2]
            raise OSError(f"{self.path}: {width} x {height} pixels are not {self.count} portraits")
        return np.asarray(np.stack(np.split(strip, self.count, axis=1)), dtype)


def spread_frames(
    path: str | os.PathLike, count: int, parts: Sequence[int] | None = None
) -> UInt8[np.ndarray, "k 224 224 3"]:
    """Pictures in the middles of `count` equal parts of a film, or of some of these `parts`, each
    scaled to 224 x 224.

    Seeks, so that a long film costs no more than a short one. Raises OSError.
    """
    from common.video import frames

    try:
        images = frames.spread(path, count, range(count) if parts is None else parts)
    except frames.FilmError as error:
        raise OSError(str(error)) from error
    size = (FACE_SIZE, FACE_SIZE)
    return np.stack([np.asarray(image.resize(size), np.uint8) for image in images])


def inspect(record: records.Record, channel: str | int, max_seconds: float) -> facts.Fact:
    """`indexing.inspect_record` and a look at the mouth: its kind, and its length by the sound.

    For `indexing.build_index(inspect=...)`. Raises io.AudioError or OSError.
    """
    fact = indexing.inspect_record(record, channel, max_seconds)
    if fact.problem or not fact.whole:
        return fact
    try:
        there = len(record["video"])
    except ValueError as error:
        return facts.Fact(problem=f"wrong pictures ({error})")
    start = round(record.get("start", 0.0) * fact.rate_hz)
    count = fact.length - start
    if record.get("duration") is not None:
        count = min(count, round(record["duration"] * fact.rate_hz))
    wanted = visemes.num_frames(count, int(fact.rate_hz))
    if abs(there - wanted) > _UNEQUAL:
        name = os.fspath(record["video"])
        return facts.Fact(problem=f"wrong length ({name}: {there} pictures, the sound {wanted})")
    return fact


def missing(path: str, what: str) -> dict[str, str]:
    """What a record has in place of a file that is not there."""
    return {"problem": f"missing {what} ({io.printable(path)})"}
