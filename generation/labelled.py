"""Pictures with classes in place of people: CIFAR-10 and MNIST as they are published, or by tfds.

cifar10: the folder cifar-10-batches-py, one above it, or cifar-10-python.tar.gz (Krizhevsky 2009).
mnist: the four idx files, packed (.gz) or not (LeCun et al. 1998); Fashion-MNIST has the same form.
Either may be a data set of pictures and labels prepared by tfds in ArrayRecord files.
"""

import dataclasses
import functools
import gzip
import hashlib
import io
import pathlib
import pickle
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from common import errors
from common.data import archives, records, splits, tfds
from generation import images

FORMS = {"cifar10": images.Form(32, 3), "mnist": images.Form(28, 1)}
KINDS = tuple(FORMS)
PARTS = ("train", "test")
_BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
_META = "batches.meta"
_IDX = {"train": "train", "test": "t10k"}


class Pictures(NamedTuple):
    """All of a part: bytes, the class of each, and what the classes are called."""

    pictures: UInt8[np.ndarray, "n h w c"]
    labels: Int[np.ndarray, "n"]
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A part of such a data set as a source of records: `id`, `face` (uint8[1, h, w, 3 or 1]) and
    `speaker`, the class.

    It pickles as a path and is read when it is first asked. Raises records.DataError.
    """

    kind: str
    root: str
    part: str

    @property
    def name(self) -> str:
        return f"{self.root} ({self.part})"

    @property
    def mirrored(self) -> bool:
        """Whether a picture that is turned round is one, too: no digit is."""
        return self.kind != "mnist"

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)

    @functools.cached_property
    def held(self) -> Pictures:
        """All that is in it: 184 MB of CIFAR-10."""
        root = pathlib.Path(self.root).expanduser()
        if not self.root or not root.exists():
            raise records.DataError(
                f"config.faces.root={self.root!r}: there is no such folder or archive of "
                f"config.faces.kind={self.kind}."
            )
        levels = ("", "*/", "*/*/", "*/*/*/")
        if any(True for level in levels for _ in root.glob(f"{level}dataset_info.json")):
            return _read_tfds(root, self.part)
        if self.part not in PARTS:
            raise records.DataError(
                f"{root} has no part {self.part!r}: it has {' and '.join(PARTS)}."
            )
        return {"cifar10": _read_cifar10, "mnist": _read_mnist}[self.kind](root, self.part)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Changes with the pictures and their classes."""
        digest = hashlib.sha256(repr((self.held.names, self.held.pictures.shape)).encode())
        digest.update(self.held.labels.tobytes())
        digest.update(np.ascontiguousarray(self.held.pictures))
        return digest.hexdigest()[:32]

    def __len__(self) -> int:
        return len(self.held.labels)

    def __getitem__(self, position: int) -> records.Record:
        face, label = self.held.pictures[position], int(self.held.labels[position])
        name = self.held.names[label]
        return {"id": f"{self.part}-{position:05d}", "face": face[None], "speaker": name}


@dataclasses.dataclass(frozen=True)
class ClassFaces:
    """The pictures of classes, as the faces of the `people` who stand for them in their order."""

    source: Labelled
    people: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def fingerprint(self) -> str:
        return f"{self.source.fingerprint} {self.people}"

    @property
    def mirrored(self) -> bool:
        return self.source.mirrored

    @functools.cached_property
    def _places(self) -> dict[str, Int[np.ndarray, "n"]]:
        labels = self.source.held.labels
        return {person: np.flatnonzero(labels == k) for k, person in enumerate(self.people)}

    def count(self, person: str) -> int:
        return len(self._places[person])

    def __call__(self, person: str, number: int) -> UInt8[np.ndarray, "h w 3"]:
        face = self.source.held.pictures[self._places[person][number]]
        return np.broadcast_to(face, (*face.shape[:2], 3))


class Parts(Mapping[str, splits.Split]):
    """The parts of a data set of pictures without recordings (`config.data.kind=none`)."""

    def __init__(self, config: Any) -> None:
        self._config = config
        self._open: dict[str, splits.Split] = {}

    def __getitem__(self, name: str) -> splits.Split:
        if name not in self._open:
            source = Labelled(self._config.faces.kind, self._config.faces.root, name)
            index = records.Index(np.arange(len(source)), np.ones(len(source), np.int64), 1)
            self._open[name] = splits.Split(name, source, index)
        return self._open[name]

    def __iter__(self) -> Iterator[str]:
        data = self._config.data
        return iter(dict.fromkeys(("+".join(data.train), *data.eval, *data.test)))

    def __len__(self) -> int:
        return len(list(iter(self)))


def of_classes(source: Labelled, speakers: Sequence[str]) -> ClassFaces:
    """The classes in their order as the faces of the first speakers; the others have none.

    Raises UserError where there are fewer speakers than classes.
    """
    classes = source.held.names
    if len(speakers) < len(classes):
        raise errors.UserError(
            f"{source.name} has {len(classes)} classes, for each of which somebody has to speak, "
            f"and there are {len(speakers)} speakers: take recordings of more, or none "
            "(config.data.kind=none)."
        )
    return ClassFaces(source, tuple(speakers[: len(classes)]))


class _Unpickler(pickle.Unpickler):
    """Builds arrays, and nothing else: a pickle of unknown origin may call any function."""

    _REBUILD = np.empty(0, np.uint8).__reduce__()[0]
    _KNOWN = {  # noqa: RUF012 - never changed
        ("numpy.core.multiarray", "_reconstruct"): _REBUILD,
        ("numpy._core.multiarray", "_reconstruct"): _REBUILD,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (found := self._KNOWN.get((module, name))) is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no picture needs")
        return found


def _unpickled(content: bytes, name: str) -> dict[bytes, Any]:
    try:
        found = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # whatever the bytes make it do
        raise _damaged(name, str(error)) from error
    if not isinstance(found, dict):
        raise _damaged(name, f"it holds {type(found).__name__}")
    return {k.encode() if isinstance(k, str) else k: value for k, value in found.items()}


def _damaged(name: object, why: str) -> records.DataError:
    return records.DataError(f"{name} is damaged, or no file of this data set ({why}).")


def _read_cifar10(root: pathlib.Path, part: str) -> Pictures:
    """10,000 rows a file, each three planes of 32 x 32."""
    contents = _files(root, (*_BATCHES[part], _META))
    names = [_text(name) for name in _unpickled(*contents[_META]).get(b"label_names", ())]
    pictures, labels = [], []
    for batch in _BATCHES[part]:
        content, path = contents[batch]
        found = _unpickled(content, path)
        data, own = np.asarray(found.get(b"data", ())), np.asarray(found.get(b"labels", ()))
        if data.dtype != np.uint8 or data.shape != (len(own), 3 * 32 * 32) or not len(own):
            raise _damaged(path, f"{data.dtype} of {data.shape} beside {len(own)} labels")
        pictures.append(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels.append(own.astype(np.int32))
    return _checked(np.concatenate(pictures), np.concatenate(labels), names, root)


def _files(root: pathlib.Path, wanted: Sequence[str]) -> dict[str, tuple[bytes, str]]:
    """Content and place by name, of a folder or an archive. Raises DataError for those missing."""
    found = {}
    if root.is_dir():
        for name in wanted:
            path = next((p for p in (root / name, root / _FOLDER / name) if p.is_file()), None)
            if path is not None:
                found[name] = (path.read_bytes(), str(path))
    else:
        archive = archives.Archive(str(root), [root])
        for name, content in archive.members(lambda name: name.split("/")[-1] in wanted):
            found[name.split("/")[-1]] = (content, f"{root}: {name}")
    if missing := [name for name in wanted if name not in found]:
        raise records.DataError(
            f"{root} lacks {', '.join(missing)}: name the folder {_FOLDER}, one above it, or "
            "cifar-10-python.tar.gz."
        )
    return found


_FOLDER = "cifar-10-batches-py"


def _read_mnist(root: pathlib.Path, part: str) -> Pictures:
    pictures, labels = (
        _read_idx(_find_idx(root, f"{_IDX[part]}-{what}", dimensions), dimensions)
        for what, dimensions in (("images", 3), ("labels", 1))
    )
    if len(pictures) != len(labels):
        raise _damaged(root, f"{len(pictures)} pictures and {len(labels)} labels of {part}")
    return _checked(pictures[..., None], labels.astype(np.int32), list("0123456789"), root)


def _find_idx(root: pathlib.Path, stem: str, dimensions: int) -> pathlib.Path:
    """train-images-idx3-ubyte, with a dot in place of the hyphen, packed or not."""
    form = re.compile(rf"{stem}[-.]idx{dimensions}-ubyte(\.gz)?")
    inside = (root, root / "raw", root / "MNIST" / "raw")
    for folder in inside if root.is_dir() else ():
        if folder.is_dir():
            for path in sorted(folder.iterdir()):
                if form.fullmatch(path.name):
                    return path
    raise records.DataError(
        f"{root} lacks {stem}-idx{dimensions}-ubyte (or .gz): name the folder of the four files."
    )


def _read_idx(path: pathlib.Path, dimensions: int) -> UInt8[np.ndarray, "..."]:
    """Bytes behind a header of a magic number and the sizes, 32 bits each, the highest first."""
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, str(error)) from error
    start = 4 * (1 + dimensions)
    header = np.frombuffer(content[:start], ">i4") if len(content) >= start else np.zeros(1)
    if header[0] != 0x800 + dimensions or len(content) - start != np.prod(header[1:], dtype=int):
        raise _damaged(path, f"its {len(content)} bytes are not what the first ones say")
    return np.frombuffer(content, np.uint8, offset=start).reshape(header[1:])


def _read_tfds(root: pathlib.Path, part: str) -> Pictures:
    """`image` and `label` of every example."""
    examples = tfds.TfdsExamples(root, part)
    lacking = [name for name in ("image", "label") if name not in examples.features]
    if lacking:
        raise records.DataError(
            f"{examples.name} has no feature {' and no '.join(lacking)}; it has "
            f"{', '.join(examples.features)}."
        )
    rows = [examples[i] for i in range(len(examples))]
    shapes = {np.shape(row["image"]) for row in rows}
    if len(shapes) != 1:
        raise records.DataError(
            f"{examples.name} has pictures of {len(shapes)} sizes: all have to be of one."
        )
    names = getattr(examples.features["label"], "names", None)
    (shape,) = shapes
    if not names or len(shape) != 3 or shape[2] not in (1, 3):
        raise records.DataError(
            f"{examples.name}: pictures of {shape} with {len(names or ())} names of classes; it "
            "takes them in grey or RGB, and labels whose classes have names (ClassLabel)."
        )
    labels = np.array([row["label"] for row in rows], np.int32)
    return _checked(np.stack([row["image"] for row in rows]), labels, names, root)


def _checked(
    pictures: np.ndarray, labels: np.ndarray, names: Sequence[str], root: pathlib.Path
) -> Pictures:
    if len(names) < 2 or labels.min() < 0 or labels.max() >= len(names):
        raise _damaged(root, f"labels to {labels.max()} of {len(names)} classes")
    return Pictures(pictures, labels, tuple(names))


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
