"""Sets of embeddings on disk: Kaldi archives, Kaldi text, NumPy, PyTorch; who speaks in which.

Rows are written in the order of their ids sorted by bytes, as Kaldi's tools expect.
"""

import contextlib
import importlib.util
import logging
import math
import os
import pathlib
import shutil
from collections.abc import Iterator, Sequence

import kaldi_native_io
import numpy as np
from jaxtyping import Float

from common import errors
from common.data import ark, tables
from speaker import storage

log = logging.getLogger(__name__)

FORMATS = ("ark", "txt", "npz", "pt")
_STEM = "embeddings"
UTT2SPK = "utt2spk"
UTT2DUR = "utt2dur"


class VectorError(errors.UserError, ValueError):
    """Embeddings that cannot be written or read; the message names file and id."""


def check(kind: str, ids: Sequence[str], speakers: Sequence[str] = ()) -> None:
    """Raises VectorError when a set of these ids cannot be written in a format of FORMATS.

    To be called before hours of work: PyTorch may be missing, an id or a speaker may not fit the
    format. Speakers that are empty are not written and so not looked at.
    """
    if kind not in FORMATS:
        raise VectorError(f"format {kind!r} is unknown; choose one of {', '.join(FORMATS)}.")
    if kind == "pt" and importlib.util.find_spec("torch") is None:
        raise VectorError(
            "format pt needs PyTorch, which is not installed. Install it (pip install torch) or "
            "choose npz, ark or txt."
        )
    spaced = [name for name in ids if not _one_word(name)]
    if spaced and kind in ("ark", "txt"):
        raise VectorError(
            f"{len(spaced)} ids are empty or no single word, first {spaced[0]!r}, which Kaldi's "
            "files cannot hold. Choose format npz or rename."
        )
    several = [name for name in speakers if name and not _one_word(name)]
    if several and kind in ("ark", "txt"):
        raise VectorError(
            f"{len(several)} recordings have speakers of several words, first {several[0]!r}, "
            "which utt2spk cannot hold. Rename them in the data, or choose format npz and do "
            "without utt2spk."
        )
    if len(set(ids)) != len(ids):
        raise VectorError(f"the id {_repeated(ids)!r} comes twice. Ids must be unique.")


def write(
    folder: pathlib.Path | str,
    kind: str,
    ids: Sequence[str],
    embeddings: Float[np.ndarray, "n d"],
    speakers: Sequence[str] | None = None,
    seconds: Sequence[float] | None = None,
) -> pathlib.Path:
    """Writes embeddings.<kind> into `folder`, and utt2spk and utt2dur if given; the file's path.

    ark: Kaldi's binary float vectors, with an embeddings.scp of absolute paths; txt: the same as
    text, one `id  [ x y z ]` a line, digits enough to give the same floats; npz: arrays `ids` and
    `embeddings`; pt: a dict from id to tensor, saved by PyTorch. Tables that cannot hold the ids or
    speakers of an npz or pt (several words) are left out with a warning.

    Everything is first written into a hidden folder inside `folder` and then renamed, so a failure
    leaves an earlier set as it was. Raises VectorError as `check` does, for values that are not
    finite and when the disk refuses.
    """
    check(kind, ids, speakers or ())
    embeddings = np.asarray(embeddings, np.float32)
    if any(part is not None and len(part) != len(ids) for part in (embeddings, speakers, seconds)):
        raise ValueError(f"{len(ids)} ids need as many embeddings, speakers and durations")
    _check_finite(folder, ids, embeddings)
    order = sorted(range(len(ids)), key=lambda i: os.fsencode(ids[i]))
    durations = None if seconds is None else [f"{value:.6g}" for value in seconds]
    tables = {}
    for name, values in ((UTT2SPK, speakers), (UTT2DUR, durations)):
        lines = None if values is None else _table_lines(name, ids, values, order)
        if lines is not None:
            tables[name] = lines
    ids, embeddings = [ids[i] for i in order], embeddings[order]
    folder = pathlib.Path(folder).expanduser().resolve()
    hidden = folder / f".{_STEM}.{os.getpid()}.tmp"
    try:
        hidden.mkdir(parents=True)
        _WRITERS[kind](hidden / f"{_STEM}.{kind}", ids, embeddings)
        if kind == "ark":
            _write_scp(hidden / f"{_STEM}.ark", folder / f"{_STEM}.ark", ids)
        for name, lines in tables.items():
            (hidden / name).write_text(lines, "utf-8")
        # What says which rows there are goes first and comes last.
        for name in (*((f"{_STEM}.scp",) if kind == "ark" else ()), UTT2SPK, UTT2DUR):
            (folder / name).unlink(missing_ok=True)
        for name in (f"{_STEM}.{kind}", f"{_STEM}.scp", UTT2SPK, UTT2DUR):
            if (hidden / name).exists():
                (hidden / name).replace(folder / name)
    except OSError as error:
        raise VectorError(
            f"{folder}: the embeddings cannot be written ({error.strerror or error}). Free space "
            "or choose another folder."
        ) from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    return folder / f"{_STEM}.{kind}"


def read(path: pathlib.Path | str) -> tuple[tuple[str, ...], Float[np.ndarray, "n d"]]:
    """(ids, embeddings) of an .npz, .ark, .scp or .txt file, or of a folder that `write` filled.

    Archives may be binary or text, of floats or doubles. Raises VectorError: missing, damaged or
    cut off, no rows, rows of different dimension, repeated ids, values that are not finite.
    """
    path = _file_of(pathlib.Path(path).expanduser())
    if not path.exists():
        raise VectorError(f"{path}: no such file. Check the path, or extract it first.")
    if path.suffix not in _READERS:
        raise VectorError(
            f"{path}: the suffix of a set of embeddings says its form, one of "
            f"{', '.join(_READERS)}; embeddings.pt is read by PyTorch only."
        )
    try:
        ids, rows = _READERS[path.suffix](path)
    except OSError as error:
        reason = f"{path}: cannot be read ({error.strerror or error})"
        raise VectorError(f"{reason}. Check the path, or extract it first.") from error
    if not len(ids):
        raise VectorError(f"{path} holds no embeddings. Extract them again.")
    if len(set(ids)) != len(ids):
        raise VectorError(f"{path}: the id {_repeated(ids)!r} comes twice. Ids must be unique.")
    sizes = [len(row) for row in rows]
    if sizes[0] == 0 or len(set(sizes)) > 1:
        odd = next((i for i, size in enumerate(sizes) if size != sizes[0] or not size), 0)
        raise VectorError(
            f"{path}: the embedding of {ids[odd]!r} has {sizes[odd]} dimensions, the first has "
            f"{sizes[0]}. Do not mix the embeddings of several networks."
        )
    embeddings = np.asarray(rows, np.float32)
    _check_finite(path, ids, embeddings)
    return tuple(ids), embeddings


def read_speakers(path: pathlib.Path | str) -> dict[str, str]:
    """Id -> speaker from Kaldi's utt2spk: `utterance speaker` lines. Raises VectorError."""
    return _read_table(pathlib.Path(path).expanduser(), "speaker")


def read_durations(path: pathlib.Path | str) -> dict[str, float]:
    """Id -> seconds from Kaldi's utt2dur: `utterance seconds` lines. Raises VectorError."""
    path = pathlib.Path(path).expanduser()
    found = {}
    for name, text in _read_table(path, "duration").items():
        try:
            found[name] = float(text)
        except ValueError:
            found[name] = math.nan
        if not 0 < found[name] < math.inf:
            raise VectorError(
                f"{path}: the duration of {name!r} is {text!r}; a positive number of seconds is "
                "expected. Correct it."
            )
    return found


def beside(path: pathlib.Path | str, table: str) -> pathlib.Path | None:
    """The table (UTT2SPK, UTT2DUR) in the folder of a set, or of its file; None without one."""
    path = pathlib.Path(path).expanduser()
    found = (path if path.is_dir() else path.parent) / table
    return found if found.is_file() else None


def _read_table(path: pathlib.Path, what: str) -> dict[str, str]:
    """Utterance -> one word."""
    found, differing = tables.read_pairs(path, what, VectorError)
    for name, number in differing.items():
        raise VectorError(
            f"{path}, line {number}: utterance {name!r} had the {what} {found[name]!r} on an "
            "earlier line and has another one here. Remove the wrong one."
        )
    for name, value in found.items():
        if len(value.split()) != 1:
            raise VectorError(f"{path}: the {what} of {name!r} is {value[:100]!r}, not one word.")
    return found


def _file_of(path: pathlib.Path) -> pathlib.Path:
    """The set that a folder holds; other paths as they are."""
    if not path.is_dir():
        return path
    found = [path / f"{_STEM}.{kind}" for kind in FORMATS]
    found = [file for file in found if file.exists()]
    if len(found) != 1:
        said = f"holds {', '.join(file.name for file in found)}: name one of them"
        raise VectorError(f"{path} {said if found else 'holds no embeddings: extract them first'}.")
    return found[0]


def _check_finite(path, ids, embeddings):
    bad = ~np.isfinite(embeddings).all(1)
    if bad.any():
        raise VectorError(
            f"{path}: {np.count_nonzero(bad)} of {len(bad)} embeddings hold NaN or infinity, first "
            f"that of {ids[int(np.argmax(bad))]!r}. Look at its recording and at the network."
        )


def _one_word(name: str) -> bool:
    # Names of files may be bytes that are no text: surrogates.
    return name.isprintable() and name.split() == [name]


def _repeated(ids: Sequence[str]) -> str:
    seen: set[str] = set()
    return next(name for name in ids if name in seen or seen.add(name))


def _table_lines(
    name: str, ids: Sequence[str], values: Sequence[str], order: Sequence[int]
) -> str | None:
    """A table of Kaldi; None, and a warning, for words that it cannot hold."""
    bad = [word for pair in zip(ids, values) for word in pair if not _one_word(word)]
    if bad:
        log.warning(
            "No %s is written: %d ids or speakers are empty or no single word, first %r.",
            *(name, len(bad), bad[0]),
        )
        return None
    return "".join(f"{ids[i]} {values[i]}\n" for i in order)


def _write_ark(path, ids, embeddings):
    # Not `ark,scp:`, which would take a comma in the path for the end of it.
    with kaldi_native_io.FloatVectorWriter(f"ark:{path}") as writer:
        for name, row in zip(ids, embeddings):
            writer.write(name, row)


def _write_scp(path, final, ids):
    """The table of an archive, which is read back: the library does not report a full disk."""
    with path.open("rb") as file:
        found = [(name, offset) for name, offset, _ in _archive(path, file)]
    if [name for name, _ in found] != list(ids):
        raise VectorError(f"{path}: {len(found)} of {len(ids)} embeddings arrived. Is it full?")
    lines = [f"{name} {final}:{offset}\n" for name, offset in found]
    path.with_suffix(".scp").write_text("".join(lines), "utf-8")


def _write_txt(path, ids, embeddings):
    with path.open("w", encoding="utf-8") as file:
        for name, row in zip(ids, embeddings):
            # Nine digits tell all floats apart.
            file.write(f"{name}  [ {' '.join(f'{x:.9g}' for x in row)} ]\n")


def _write_npz(path, ids, embeddings):
    np.savez(path, ids=np.asarray(ids), embeddings=embeddings)


def _write_pt(path, ids, embeddings):
    import torch

    torch.save({name: torch.from_numpy(row.copy()) for name, row in zip(ids, embeddings)}, path)


_WRITERS = {"ark": _write_ark, "txt": _write_txt, "npz": _write_npz, "pt": _write_pt}


def _read_npz(path):
    if not path.is_file():
        raise VectorError(f"{path}: no such file. Check the path, or extract it first.")
    found = storage.load_arrays(path, ("ids", "embeddings"), kind="set of embeddings")
    ids, rows = found["ids"], found["embeddings"]
    if rows.ndim != 2 or ids.shape != rows.shape[:1] or rows.dtype.kind != "f":
        raise VectorError(
            f"{path}: ids {ids.shape} and embeddings {rows.shape} of {rows.dtype} do not belong "
            "together; [n] and floats [n, d] are expected."
        )
    return [str(name) for name in ids], rows


def _read_archive(path):
    with path.open("rb") as file:
        entries = [(name, row) for name, _, row in _archive(path, file)]
    table = path.with_suffix(".scp")
    if path.name == f"{_STEM}.ark" and table.exists():
        # An archive cut off between two vectors is otherwise whole.
        listed = sum(1 for line in table.read_bytes().splitlines() if line.strip())
        if listed != len(entries):
            raise VectorError(
                f"{path} holds {len(entries)} embeddings, but {table.name} lists {listed}: it is "
                "cut off or of another extraction. Extract again."
            )
    return [name for name, _ in entries], [row for _, row in entries]


def _read_scp(path):
    """Own reader: the library would run an entry that ends in `|` as a shell command."""
    ids, rows = [], []
    with contextlib.ExitStack() as stack:
        opened, current = None, None
        for number, line in enumerate(tables.read_lines(path, VectorError), start=1):
            if not line.strip():
                continue
            name, *place = line.split(maxsplit=1)
            file_name, _, offset = "".join(place).strip().rpartition(":")
            if not file_name or not offset.isdigit():
                raise VectorError(
                    f"{path}:{number}: `{line[:100]}` is not `id archive:offset`. Correct the line."
                )
            if file_name != current:
                stack.close()
                try:
                    opened = stack.enter_context(pathlib.Path(file_name).open("rb"))
                except OSError as error:
                    raise VectorError(
                        f"{path}:{number}: the archive {file_name} cannot be read "
                        f"({error.strerror}). Was it moved? Read the archive itself instead."
                    ) from error
                current = file_name
            opened.seek(int(offset))
            ids.append(name)
            rows.append(_vector(f"{file_name}:{offset}", name, opened))
    return ids, rows


_READERS = {".npz": _read_npz, ".ark": _read_archive, ".txt": _read_archive, ".scp": _read_scp}


def _archive(path, file) -> Iterator[tuple[str, int, np.ndarray]]:
    """(id, place of its vector, vector) of a Kaldi archive, binary or text."""
    while True:
        name = bytearray()
        # A text vector may be followed by blank lines.
        while (byte := file.read(1)) and not (byte in b" \t" or (byte in b"\r\n" and name)):
            name += byte.strip()
            if len(name) > 10_000:
                break
        if not byte and not name:
            return
        try:
            text = name.decode("utf-8")
        except UnicodeDecodeError:
            text = ""
        if not text or len(name) > 10_000:
            raise VectorError(f"{path} is no Kaldi archive of vectors, or damaged. Check the path.")
        if not byte or byte not in b" \t":
            raise _damaged(path, text, "no vector follows its id")
        offset = file.tell()
        yield text, offset, _vector(path, text, file)


def _vector(path, name: str, file) -> np.ndarray:
    """The vector at the file's position, which is then behind it."""
    try:
        return ark.read_vector(file)
    except ValueError as error:
        raise _damaged(path, name, f"{error}") from error


def _damaged(path, name: str, reason: str) -> VectorError:
    return VectorError(
        f"{path}: the embedding of {name!r} cannot be read: {reason}. Extract again."
    )
