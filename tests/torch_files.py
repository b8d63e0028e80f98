"""Files as torch.save writes them: names of views of one storage of float32."""

import pathlib
import pickle
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

REBUILD = "torch._utils\n_rebuild_tensor_v2"


def _integers(values: Any) -> str:
    return "(" + "".join(f"I{value}\n" for value in values) + "t"


def view(shape: Any, strides: Any = None, offset: int = 0) -> tuple[Any, Any, int]:
    """What a tensor shows of the storage; without `strides` one element after another."""
    if strides is None:
        strides = [int(np.prod(shape[k + 1 :])) for k in range(len(shape))]
    return shape, strides, offset


def _pickled(views: Mapping[str, tuple[Any, Any, int]], count: int, call: str) -> bytes:
    storage = f"(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI{count}\ntQ"
    more = "" if call.endswith("_tensor") else "I00\nN"
    entries = [
        f"S'{name}'\nc{call}\n({storage}I{offset}\n{_integers(shape)}{_integers(strides)}{more}tRs"
        for name, (shape, strides, offset) in views.items()
    ]
    return "".join(["(d", *entries, "."]).encode()


def save(
    path: pathlib.Path,
    views: Mapping[str, tuple[Any, Any, int]],
    storage: np.ndarray,
    call: str = REBUILD,
    **others: str,
) -> pathlib.Path:
    """A file of PyTorch 1.6 and later; `others` are further or other entries of the archive."""
    files = {
        "net/data.pkl": _pickled(views, storage.size, call),
        "net/byteorder": "little",
        "net/data/0": storage.astype("<f4").tobytes(),
        **others,
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def save_old(
    path: pathlib.Path,
    views: Mapping[str, tuple[Any, Any, int]],
    storage: np.ndarray,
    call: str = REBUILD,
    machine: Mapping[str, Any] | None = None,
) -> pathlib.Path:
    """A file as before PyTorch 1.6."""
    begin = (0x1950A86A20F9469CFC6C, 1001, machine or {"little_endian": True})
    parts = [pickle.dumps(part, 2) for part in begin]
    parts += [_pickled(views, storage.size, call), pickle.dumps(["0"], 2)]
    parts += [storage.size.to_bytes(8, "little"), storage.astype("<f4").tobytes()]
    path.write_bytes(b"".join(parts))
    return path
