"""Reads the files of `torch.save` that hold arrays alone, without PyTorch.

Such a file is a zip archive: `<name>/data.pkl`, a pickle of dicts whose tensors name their
storages, and the bytes of each storage as `<name>/data/<key>`. Before PyTorch 1.6, and in published
files that are to be read by it, five pickles follow each other (a number, the version, the machine,
the dicts, the keys of the storages), and then each storage's length and bytes. A pickle may call
any function by its name. Of these only what rebuilds a dict and a tensor is known here: reading
runs nothing else.
"""

import collections
import io
import pathlib
import pickle
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from common import errors

_STORAGES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
}
_DAMAGED = (
    *(pickle.UnpicklingError, EOFError),
    *(AttributeError, KeyError, IndexError, TypeError, ValueError),
)
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001  # of files before PyTorch 1.6


class TorchFileError(errors.UserError):
    """A file that cannot be read, or holds something else than arrays."""


def read(path: pathlib.Path | str) -> Any:
    """What `torch.save` wrote: dicts of arrays, numbers and texts.

    Raises TorchFileError: no such file, damaged, of the first PyTorches, or other objects in it.
    """
    path = pathlib.Path(path)
    try:
        with path.open("rb") as file:
            if file.read(2) == pickle.PROTO + b"\2":
                file.seek(0)
                return _load_old(file, path)
        with zipfile.ZipFile(path) as archive:
            return _load(archive, path)
    except OSError as error:
        raise TorchFileError(f"{path} cannot be read ({error.strerror or error}).") from error
    except zipfile.BadZipFile as error:
        raise TorchFileError(
            f"{path} is no file of torch.save, damaged, or of the first PyTorches ({error}). "
            "Download it again; an old one is written anew by PyTorch: "
            "torch.save(torch.load(PATH, map_location='cpu'), NEW)."
        ) from error
    except _DAMAGED as error:
        raise TorchFileError(
            f"{path} does not hold arrays alone, or is damaged: {error}"
        ) from error


def _load(archive: zipfile.ZipFile, path: pathlib.Path) -> Any:
    names = [name for name in archive.namelist() if name.count("/") == 1]
    pickles = [name for name in names if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise TorchFileError(f"{path} is no file of torch.save: there is no data.pkl, or several.")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
        raise TorchFileError(f"{path} was written on a big-endian machine, which is not read.")

    def storage(dtype: str, key: str, count: int) -> np.ndarray:
        del count
        return np.frombuffer(archive.read(f"{folder}data/{key}"), dtype)

    return _Unpickler(io.BytesIO(archive.read(f"{folder}data.pkl")), storage).load()


def _load_old(file: io.BufferedIOBase, path: pathlib.Path) -> Any:
    """The dicts are read twice: what their tensors show comes behind them."""

    def nothing(*_: Any) -> np.ndarray:
        raise pickle.UnpicklingError("there is a storage where none should be")

    if [_Unpickler(file, nothing).load() for _ in range(2)] != [_MAGIC, _VERSION]:
        raise pickle.UnpicklingError("it does not begin as files of torch.save do")
    if not _Unpickler(file, nothing).load().get("little_endian", True):
        raise TorchFileError(f"{path} was written on a big-endian machine, which is not read.")
    start, size = file.tell(), path.stat().st_size
    named: dict[str, np.ndarray] = {}

    def empty(dtype: str, key: str, count: int) -> np.ndarray:
        if not 0 <= count * np.dtype(dtype).itemsize <= size:
            raise ValueError("a storage is larger than the file")
        return named.setdefault(key, np.zeros(count, dtype))

    _Unpickler(file, empty).load()
    for key in _Unpickler(file, nothing).load():
        storage = named[key]
        count = int.from_bytes(file.read(8), "little")
        content = file.read(storage.nbytes)
        if count != storage.size or len(content) < storage.nbytes:
            raise ValueError(f"it is cut short, or storage {key} has another length")
        named[key] = np.frombuffer(content, storage.dtype)
    file.seek(start)
    return _Unpickler(file, lambda dtype, key, count: named[key]).load()


class _Unpickler(pickle.Unpickler):
    """`storage(dtype, key, count)` gives what tensors show."""

    def __init__(
        self, file: io.BufferedIOBase, storage: Callable[[str, str, int], np.ndarray]
    ) -> None:
        super().__init__(file)
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not read")
        return _KNOWN[module, name]

    def persistent_load(self, pid: Sequence[Any]) -> np.ndarray:
        _, dtype, key, _, count, *view = pid
        if any(view):
            raise pickle.UnpicklingError("a storage is a part of another, which is not read")
        return self._storage(dtype, key, count)


def _tensor(
    storage: np.ndarray,
    offset: int,
    shape: Sequence[int],
    strides: Sequence[int],
    requires_grad: bool = False,
    hooks: Any = None,
    metadata: Any = None,
) -> np.ndarray:
    """A copy of the elements of a storage that a tensor shows."""
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if min((offset, *shape, *strides)) < 0 or (0 not in shape and last >= storage.size):
        raise ValueError("a tensor reaches beyond its storage")
    if 0 in shape:
        return np.zeros(shape, storage.dtype)
    steps = [stride * storage.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps).copy()


_KNOWN: Mapping[tuple[str, str], Callable] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
}
