"""Matrices and vectors in Kaldi archives, read whole or only some rows of them.

Binary matrices of floats and doubles are laid out row after row, so a few rows are a seek and one
read. Compressed and text ones are read whole, by kaldi-native-io.
"""

import dataclasses
import os
import re
import struct
from typing import BinaryIO

import kaldi_native_io
import numpy as np
from jaxtyping import Bool, Float

from common.audio import io

_RANGE = re.compile(r"(.*)\[(\d+:\d+|:)(?:,(\d+:\d+|:))?\]")
_OFFSET = re.compile(r"(.+):(\d+)")
# Kaldi's own tolerance: ranges are made from times, which round to a few frames more.
_ROWS_BEYOND = 3
_VECTOR_KINDS = {b"FV ": np.dtype("<f4"), b"DV ": np.dtype("<f8")}
_VECTOR_HEADER_BYTES = 2 + 3 + 1 + 4  # binary, kind, the size of the integer, and the integer


@dataclasses.dataclass(frozen=True)
class Entry:
    """One object of an archive: where it starts, and the rows and columns that are meant.

    Ranges are first and last, both included, as in Kaldi; None takes all.
    """

    path: str
    offset: int = 0
    rows: tuple[int, int] | None = None
    columns: tuple[int, int] | None = None

    def __str__(self) -> str:
        spans = [":" if s is None else f"{s[0]}:{s[1]}" for s in (self.rows, self.columns)]
        return f"{self.path}:{self.offset}" + (
            f"[{','.join(spans)}]" if self.rows or self.columns else ""
        )


def is_command(rxfilename: str) -> bool:
    """Whether Kaldi would run this line of an scp file in a shell. Nothing here does."""
    return rxfilename.endswith("|") or rxfilename.startswith("|")


def parse(rxfilename: str) -> Entry:
    """`path[:offset][[rows[,columns]]]` as in an scp file. Raises ValueError with the reason."""
    if is_command(rxfilename):
        raise ValueError("is a command, and commands are not run")
    rows = columns = None
    rest = rxfilename
    if rest.endswith("]"):
        if not (found := _RANGE.fullmatch(rest)):
            raise ValueError("has a range that is not [first:last] or [first:last,first:last]")
        rest, rows, columns = found[1], _span(found[2]), _span(found[3])
    found = _OFFSET.fullmatch(rest)
    path, offset = (found[1], int(found[2])) if found else (rest, 0)
    if path in ("", "-"):
        raise ValueError("names no file")
    return Entry(path, offset, rows, columns)


def matrix_shape(entry: Entry) -> tuple[int, int]:
    """(frames, dimensions) of what `entry` means: from the header where there is one.

    Raises io.AudioError.
    """
    with _open(entry) as file:
        head = _read_head(entry, file)
    shape = head.shape if head else _read_whole(entry).shape
    (first, end), (left, right) = _spans(entry, *shape)
    return end - first, right - left


def read_matrix(entry: Entry, start: int = 0, count: int | None = None) -> Float[np.ndarray, "l f"]:
    """Frames [start, start + count) of what `entry` means, or those of them that there are.

    Raises io.AudioError for what cannot be read, is empty, or holds NaN or infinity.
    """
    with _open(entry) as file:
        head = _read_head(entry, file)
        if head and head.dtype:
            first, end, columns = _wanted(entry, head.shape, start, count)
            width = head.shape[1]
            file.seek(first * width * head.dtype.itemsize, os.SEEK_CUR)
            data = _read_bytes(entry, file, (end - first) * width * head.dtype.itemsize)
            matrix = np.frombuffer(data, head.dtype).reshape(end - first, width)[:, columns]
        else:
            whole = _read_whole(entry)
            first, end, columns = _wanted(entry, whole.shape, start, count)
            matrix = whole[first:end, columns]
    with np.errstate(over="ignore"):  # a double beyond float32 becomes infinite: refused below
        matrix = np.ascontiguousarray(matrix, np.float32)
    if not np.isfinite(np.sum(matrix, dtype=np.float64)) and not np.isfinite(matrix).all():
        bad = np.count_nonzero(~np.isfinite(matrix))
        raise io.AudioError(entry, f"{bad} of {matrix.size} values are NaN or infinite")
    return matrix


def read_decisions(entry: Entry) -> Bool[np.ndarray, "l"]:
    """A vector of a `vad.scp`: which frames hold speech. Raises io.AudioError."""
    with _open(entry) as file:
        try:
            return read_vector(file) != 0.0
        except ValueError as error:
            raise io.AudioError(entry, f"cannot be read as a Kaldi vector: {error}") from error


def read_vector(file: BinaryIO) -> Float[np.ndarray, "n"]:
    """The vector of floats or doubles at the file's position, which is then behind it.

    Binary, or text on one line. Own code: kaldi-native-io takes what is left of one that is cut
    off. Raises ValueError with the reason.
    """
    start = file.tell()
    header = file.read(_VECTOR_HEADER_BYTES)
    if header[:2] != b"\0B":
        file.seek(start)
        return _text_vector(file.readline())
    kind, width = header[2:5], header[5:6]
    if len(header) < _VECTOR_HEADER_BYTES:
        raise ValueError("it is cut off")
    if kind not in _VECTOR_KINDS or width != b"\4":
        found = kind.decode("ascii", "replace").strip()
        raise ValueError(f"it is no vector of floats but {found!r}")
    (size,) = struct.unpack("<i", header[6:])
    dtype = _VECTOR_KINDS[kind]
    # Read before it is believed: a damaged size may claim gigabytes.
    left = os.fstat(file.fileno()).st_size - file.tell()
    if not 0 <= size * dtype.itemsize <= left:
        raise ValueError(f"{size} values are stated and {left} bytes left")
    return np.frombuffer(file.read(size * dtype.itemsize), dtype).astype(np.float32)


def _text_vector(line: bytes) -> Float[np.ndarray, "n"]:
    match = re.fullmatch(rb"\s*\[([^\[\]]*)\]\s*", line)
    if not match:
        raise ValueError("`[ x y z ]` on one line is expected")
    return np.array([float(x) for x in match.group(1).split()], np.float32)


@dataclasses.dataclass(frozen=True)
class _Head:
    """Shape of a binary matrix; `dtype` None: compressed."""

    shape: tuple[int, int]
    dtype: np.dtype | None


def _open(entry: Entry) -> BinaryIO:
    """The archive at the entry's offset."""
    try:
        file = open(entry.path, "rb")  # noqa: SIM115, PTH123 - the caller closes it
    except OSError as error:
        raise io.AudioError(entry, f"cannot be opened ({error.strerror})") from error
    file.seek(entry.offset)
    return file


def _read_head(entry: Entry, file: BinaryIO) -> _Head | None:
    """The header of a binary matrix, `file` then being at its data; None for a text matrix."""
    if file.read(2) != b"\0B":
        return None
    token = b""
    while not token.endswith(b" "):
        token += _read_bytes(entry, file, 1)
        if len(token) > 4:
            break
    if token in (b"FM ", b"DM "):
        # Each size comes with its own width in bytes.
        four, rows, four_too, columns = struct.unpack("<bibi", _read_bytes(entry, file, 10))
        dtype = np.dtype("<f4" if token == b"FM " else "<f8")
        good, smallest = four == four_too == 4, dtype.itemsize * rows * columns
    elif token in (b"CM ", b"CM2 ", b"CM3 "):
        # The least value and the range, by which the numbers are scaled, come first.
        _, _, rows, columns = struct.unpack("<ffii", _read_bytes(entry, file, 16))
        dtype, good = None, True
        smallest = rows * columns * (2 if token == b"CM2 " else 1)
        smallest += 8 * columns if token == b"CM " else 0
    else:
        raise io.AudioError(entry, f"cannot be read as a Kaldi matrix (it begins {token!r})")
    if not good or rows < 0 or columns < 0:
        raise io.AudioError(entry, "cannot be read as a Kaldi matrix (its header is damaged)")
    # Before anything of the stated size is allocated.
    there = os.fstat(file.fileno()).st_size - file.tell()
    if there < smallest:
        raise io.AudioError(
            entry, f"truncated: {there} of {smallest} bytes of a {rows} x {columns} matrix"
        )
    return _Head((rows, columns), dtype)


def _read_bytes(entry: Entry, file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise io.AudioError(entry, f"truncated: {len(data)} of {count} bytes")
    return data


def _read_whole(entry: Entry) -> Float[np.ndarray, "l f"]:
    """The matrix without its ranges. kaldi-native-io is never given more than a plain file."""
    try:
        return kaldi_native_io.FloatMatrix.read(f"{entry.path}:{entry.offset}").numpy()
    except RuntimeError as error:
        # The last line of its report, without its place in the stream.
        line = str(error).strip().rpartition("\n")[2].partition("File position")[0]
        reason = line.removeprefix("[E] ").strip(" .")
        raise io.AudioError(entry, f"cannot be read as a Kaldi matrix ({reason})") from error


def _wanted(
    entry: Entry, shape: tuple[int, int], start: int, count: int | None
) -> tuple[int, int, slice]:
    """First row, end and columns in the stored matrix of frames [start, start + count)."""
    (first, end), (left, right) = _spans(entry, *shape)
    begin = first + start
    if count is not None:
        end = min(end, begin + count)
    if begin >= end or left == right:
        reason = f"start={start} lies past the end" if start else "empty: no frames"
        raise io.AudioError(entry, reason)
    return begin, end, slice(left, right)


def _spans(entry: Entry, rows: int, columns: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Half-open ranges of rows and columns."""
    ranges = []
    for name, span, size, beyond in (
        ("rows", entry.rows, rows, _ROWS_BEYOND),
        ("columns", entry.columns, columns, 0),
    ):
        first, last = span or (0, size - 1)
        if span and not (first <= last < size + beyond and first < size):
            raise io.AudioError(entry, f"{name} {first}:{last} of a {rows} x {columns} matrix")
        ranges.append((first, min(last + 1, size)))
    return ranges[0], ranges[1]


def _span(text: str | None) -> tuple[int, int] | None:
    if text in (None, ":"):
        return None
    first, _, last = text.partition(":")
    return int(first), int(last)
