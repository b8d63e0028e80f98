"""What is known of recordings: the cache of their validation, shared by all work directories.

A fact is found by a hash of what the recording is (its path, size, time of change, channel and
stretch), so one that changed is unknown again, and nothing needs to be forgotten. Recordings below
one folder share a file of columns: a run reads those of its own corpora only.
"""

import dataclasses
import hashlib
import logging
import pathlib
import threading
import zipfile
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from common import errors, files

log = logging.getLogger(__name__)

_VERSION = 1
_FOLDERS = 3  # above a recording: the subset in LibriSpeech, the folder wav in VoxCeleb
_COLUMNS = {"length": np.int64, "rate_hz": np.float64, "dimensions": np.int32, "whole": np.bool_}


@dataclasses.dataclass(frozen=True)
class Fact:
    """What was found in a recording: the same whatever the limits and the rate of a run.

    `length` counts the samples of the file, as far as they are known, or the frames of features;
    `rate_hz` says how many make a second. `whole` False: too long, so only its header was read.
    """

    length: int = 0
    rate_hz: float | int = 0
    problem: str = ""
    dimensions: int = 0  # of features
    whole: bool = True


class Key(NamedTuple):
    """Which recording, and which part of the cache holds what is known of it."""

    part: str
    digest: bytes


def key(place: str, *identity: object) -> Key:
    """The key of what lies at a path, as far as `identity` tells it from others."""
    part = place.rsplit("/", _FOLDERS)[0]
    text = repr((place, *identity)).encode("utf-8", "surrogatepass")
    # Never a zero at the end, which NumPy takes for padding.
    return Key(part or place, hashlib.blake2b(text, digest_size=15).digest() + b"\x01")


class Known:
    """The facts in a folder; None: of this process only."""

    def __init__(self, folder: pathlib.Path | None):
        self._folder = folder
        self._parts: dict[str, dict[str, np.ndarray]] = {}
        self._fresh: dict[str, dict[bytes, Fact]] = {}
        self._lock = threading.Lock()

    def find(self, keys: Sequence[Key | None]) -> list[Fact | None]:
        """What is known of each."""
        found: list[Fact | None] = [None] * len(keys)
        for part in {key.part for key in keys if key}:
            with self._lock:
                if part not in self._parts:
                    self._parts[part] = self._read(part)
            table = self._parts[part]
            if not len(table["key"]):
                continue
            places = [i for i, key in enumerate(keys) if key and key.part == part]
            wanted = np.array([keys[i].digest for i in places])
            rows = np.minimum(np.searchsorted(table["key"], wanted), len(table["key"]) - 1)
            same = table["key"][rows] == wanted
            for i, fact in zip(np.array(places)[same].tolist(), _rows(table, rows[same])):
                found[i] = fact
        return found

    def add(self, key: Key, fact: Fact) -> None:
        """Remembers a fact, on disk from `save` on."""
        with self._lock:
            self._fresh.setdefault(key.part, {})[key.digest] = fact

    def save(self) -> None:
        """Adds what is new to what other processes may have written meanwhile.

        A folder that cannot be written costs one warning, not the run.
        """
        if self._folder is None:
            return
        try:
            for part, facts in self._fresh.items():
                path = self._path(part)
                with files.locked(path):
                    _write(path, _merge(_table(facts), self._read(part)))
        except errors.UserError as error:
            log.warning("The next start validates again, nothing is remembered: %s", error)
        self._fresh = {}

    def _path(self, part: str) -> pathlib.Path:
        name = hashlib.sha256(part.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        return self._folder / f"{name}-{_VERSION}.npz"

    def _read(self, part: str) -> dict[str, np.ndarray]:
        """The columns of a part, by ascending key; none if its file is missing or damaged."""
        path = None if self._folder is None else self._path(part)
        try:
            if path is not None and path.exists():
                with path.open("rb") as file, np.load(file) as stored:
                    found = {name: stored[name] for name in _table({})}
                if len({len(found[name]) for name in ("key", "problem", *_COLUMNS)}) == 1:
                    return found
                raise ValueError("columns of several lengths")
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            log.warning("The index cache %s is unusable (%s) and is rebuilt", path, error)
        return _table({})


def _rows(table: dict[str, np.ndarray], rows: np.ndarray) -> Iterator[Fact]:
    columns = (table[name][rows].tolist() for name in ("problem", *_COLUMNS))
    for problem, length, rate, dimensions, whole in zip(*columns):
        rate = int(rate) if rate.is_integer() else rate
        yield Fact(length, rate, str(table["problems"][problem]), dimensions, whole)


def _table(facts: dict[bytes, Fact]) -> dict[str, np.ndarray]:
    """Columns by ascending key; "problem" counts in the list "problems"."""
    rows = [facts[digest] for digest in sorted(facts)]
    numbers: dict[str, int] = {"": 0}
    problem = [numbers.setdefault(row.problem, len(numbers)) for row in rows]
    return {
        "key": np.array(sorted(facts), "S16"),
        "problem": np.array(problem, np.int32),
        "problems": np.array(list(numbers)),
        **{
            name: np.array([getattr(row, name) for row in rows], kind)
            for name, kind in _COLUMNS.items()
        },
    }


def _merge(new: dict[str, np.ndarray], old: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The rows of both tables; of a key in both, the new one."""
    keys, first = np.unique(np.concatenate([new["key"], old["key"]]), return_index=True)
    problem = np.concatenate([new["problem"], old["problem"] + len(new["problems"])])[first]
    used, problem = np.unique(problem, return_inverse=True)
    problems = np.concatenate([new["problems"], old["problems"]])[used]
    both = {name: np.concatenate([new[name], old[name]])[first] for name in _COLUMNS}
    return {"key": keys, "problem": problem.astype(np.int32), "problems": problems, **both}


def _write(path: pathlib.Path, table: dict[str, np.ndarray]) -> None:
    with files.replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **table)
