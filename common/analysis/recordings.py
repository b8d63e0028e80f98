"""The recordings that an attribution is of: files, or the first of a split, as one batch."""

import dataclasses
import itertools
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from common import errors
from common.analysis import explaining, objective
from common.audio import io
from common.data import clips, pipeline, splits
from common.task import Batch, Explained

log = logging.getLogger(__name__)

_GENDERS = ("f", "m")


@dataclasses.dataclass(frozen=True)
class Chosen:
    """A batch on the host, the real rows first, padded to the devices; `about` the real rows.

    `failed` says of files that could not be read why.
    """

    batch: dict[str, np.ndarray]
    about: Sequence[Mapping[str, Any]]
    failed: Sequence[str] = ()


def of_files(task: Explained, config: Any, names: Sequence[str], most_seconds: float) -> Chosen:
    """Audio files, and those below folders; the others go on where one cannot be read."""
    failed: list[str] = []
    audio, about = [], []
    for name in clips.named_files(names, failed.append):
        try:
            samples = load(config, name, most_seconds)
        except (io.AudioError, OSError) as error:
            log.warning("%s", error)
            failed.append(str(error))
            continue
        audio.append(samples)
        about.append({"id": os.path.basename(name), "text": "", "speaker": "", "gender": ""})  # noqa: PTH119 - a name of any bytes
    if not audio:
        raise errors.UserError("; ".join(failed) or "--files names no recording.")
    return Chosen(dict(task.recordings(audio)), about, failed)


def load(config: Any, name: str, most_seconds: float) -> np.ndarray:
    """The samples of a file at the network's rate. Raises io.AudioError."""
    channel = splits.channel(config.data)
    rate = config.data.sample_rate_hz
    samples = io.load_audio(name, sample_rate_hz=rate, channel=channel)
    if len(samples) > most_seconds * rate:
        raise io.AudioError(name, too_long(len(samples) / rate, most_seconds))
    if "silent" in io.check_audio(samples):
        raise io.AudioError(name, f"silent: {io.silence(channel)}")
    if len(samples) < config.data.min_seconds * rate:
        raise io.AudioError(name, f"too short: {len(samples) / rate:.3f} s")
    return samples


def too_long(seconds: float, most_seconds: float) -> str:
    """What to say and to do of a recording that may not fit the memory."""
    return (
        f"lasts {seconds:.1f} s, and activations of more than {most_seconds:g} s may not fit the "
        "memory: cut it, or raise --max_seconds"
    )


def of_split(
    task: Explained,
    split: str,
    count: int,
    config: Any,
    most_seconds: float,
    *,
    voices: bool = False,
) -> Chosen:
    """The first recordings that a split's batches give (shorter ones come first).

    With `voices` half of them women's and half men's, where the data tell.
    """
    if count < 1:
        raise errors.UserError(f"--n={count}: explain one recording at least.")
    split, batches = objective.evaluation_split(task, split)
    rows: list[tuple[dict[str, np.ndarray], Mapping[str, Any]]] = []
    others: list[tuple[dict[str, np.ndarray], Mapping[str, Any]]] = []
    taken = dict.fromkeys(_GENDERS, 0)
    with pipeline.opened(batches) as iterator:
        for batch in iterator:
            batch = {name: np.asarray(array) for name, array in batch.items()}
            for row in np.flatnonzero(batch["mask"]):
                written = task.about(split, int(batch["index"][row]))
                one = {name: array[row] for name, array in batch.items()}, written
                gender = str(written.get("gender", ""))[:1].lower() if voices else ""
                if gender in taken:
                    taken[gender] += 1
                enough = taken.get(gender, 0) > -(-count // 2)
                (others if enough else rows).append(one)
            if len(rows) >= count:
                break
    if not rows:
        raise errors.UserError(f"--split={split} holds not one recording.")
    rows, about = zip(*(rows + others)[:count])
    longest, rate = _longest(rows), config.data.sample_rate_hz
    if longest > most_seconds * rate:
        raise errors.UserError(f"{split}: a recording {too_long(longest / rate, most_seconds)}.")
    return Chosen(stacked(rows), about)


def _longest(rows: Sequence[Mapping[str, Any]]) -> int:
    names = [name for name in ("audio_lengths", "sources_lengths") if name in rows[0]]
    return max((int(row[name]) for row in rows for name in names), default=0)


def stacked(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Rows of several batches as one, padded with zeros to the longest."""
    found = {}
    for name in rows[0]:
        arrays = [np.asarray(row[name]) for row in rows]
        shape = np.max([array.shape for array in arrays], axis=0).astype(int)
        found[name] = np.zeros((len(rows), *shape), arrays[0].dtype)
        for row, array in enumerate(arrays):
            found[name][(row, *map(slice, array.shape))] = array
    return explaining.trim(found)


def padded(batch: Batch, devices: int) -> dict[str, np.ndarray]:
    """With rows that are not real (copies of the last one) up to a multiple of the devices."""
    rows = len(batch["mask"])
    more = -rows % devices
    take = np.minimum(np.arange(rows + more), rows - 1)
    found = {name: np.asarray(array)[take] for name, array in batch.items()}
    found["mask"] = found["mask"] & (np.arange(rows + more) < rows)
    return found


def names(about: Iterable[Mapping[str, Any]]) -> list[str]:
    """A name for each recording; of two alike the later one has a number."""
    found: list[str] = []
    for row in about:
        plain = str(row["id"])
        candidates = itertools.chain([plain], (f"{plain}-{n}" for n in itertools.count(2)))
        found.append(next(name for name in candidates if name not in found))
    return found
