"""Reads the files of `torch.save` that hold arrays alone, without PyTorch.

Such a file is a zip archive: `<name>/data.pkl`, a pickle of dicts whose tensors name their
storages, and the bytes of each storage as `<name>/data/<key>`. A pickle may call any function by
its name. Of these only what rebuilds a dict and a tensor is known here: reading runs nothing else.
"""

import collections
import io
import pathlib
import pickle
import zipfile
from collections.abc import Sequence
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


class TorchFileError(errors.UserError):
    """A file that cannot be read, or holds something else than arrays."""


def read(path: pathlib.Path | str) -> Any:
    """What `torch.save` wrote: dicts of arrays, numbers and texts.

    Raises TorchFileError: no such file, damaged, of PyTorch before 1.6, or holding other objects.
    """
    path = pathlib.Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return _load(archive, path)
    except OSError as error:
        raise TorchFileError(f"{path} cannot be read ({error.strerror or error}).") from error
    except zipfile.BadZipFile as error:
        raise TorchFileError(
            f"{path} is no file of torch.save, damaged, or older than PyTorch 1.6 ({error}). "
            "Download it again; an old one is written anew by PyTorch: "
            "torch.save(torch.load(PATH, map_location='cpu'), NEW)."
        ) from error
    except (pickle.UnpicklingError, EOFError, KeyError, IndexError, TypeError, ValueError) as error:
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
    return _Unpickler(archive, folder).load()


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{folder}data.pkl")))
        self._archive, self._folder = archive, folder

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is not read")

    def persistent_load(self, pid: Sequence[Any]) -> np.ndarray:
        _, dtype, key, _, _ = pid
        return np.frombuffer(self._archive.read(f"{self._folder}data/{key}"), dtype)


def _tensor(
    storage: np.ndarray,
    offset: int,
    shape: Sequence[int],
    strides: Sequence[int],
    requires_grad: bool,
    hooks: Any,
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
