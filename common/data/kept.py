"""Recordings kept in the cache as they are heard: decoded, resampled, without pauses, in 16 bits.

Reading a crop is then a copy out of a file that all processes share, whatever the recordings were.
One second takes 32 kB at 16 kHz.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import logging
import os
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np
import tqdm
from jaxtyping import Int, Int16

from common import cache as cache_lib
from common import errors, files
from common.audio import io, vad
from common.data import examples, indexing, records, splits

log = logging.getLogger(__name__)

_VERSION = 1  # raise it whenever the same recordings give other samples
_AT_ONCE = 256  # recordings
_LEAST_LEFT = 1 << 28  # bytes of the disk


@dataclasses.dataclass(frozen=True)
class KeptSpeech:
    """A source whose records are those of another one at the same `positions`, with int16 samples.

    It pickles as a path and a table.
    """

    name: str
    path: pathlib.Path
    rows: records.RecordList  # in the order of `positions`
    positions: Int[np.ndarray, "n"]
    ends: Int[np.ndarray, "n"]
    sample_rate_hz: int

    @property
    def fingerprint(self) -> str:
        """Changes when the recordings do, or how they are heard."""
        return f"kept:{self.path.stem}"

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    @functools.cached_property
    def _samples(self) -> Int16[np.ndarray, "t"]:
        return np.memmap(self.path, np.int16, "r")

    def __len__(self) -> int:
        return int(self.positions[-1]) + 1

    def __getitem__(self, position: int) -> records.Record:
        row = int(np.searchsorted(self.positions, position))
        start = int(self.ends[row - 1]) if row else 0
        audio = self._samples[start : int(self.ends[row])]
        kept = {"audio": audio, "sample_rate": self.sample_rate_hz, "channel": 0}
        return {**self.rows[row], **kept}


def keep(
    split: splits.Split,
    *,
    sample_rate_hz: int,
    channel: str | int,
    detector: vad.Detector | None,
    rejected_tsv: pathlib.Path,
    progress: bool,
) -> splits.Split:
    """The usable records of a split out of the cache, into which they are written the first time.

    What holds no speech by the `detector`, or cannot be read, is left out and listed in
    `rejected_tsv`. Raises UserError: no room, or nothing left.
    """
    how = (_VERSION, sample_rate_hz, channel, repr(detector))
    digest = hashlib.sha256(repr((how, _state(split))).encode("utf-8", "surrogateescape"))
    path = cache_lib.folder() / "kept" / f"{digest.hexdigest()[:32]}.i16"
    listed = path.with_suffix(".npz")
    if not listed.is_file():  # it is written last
        lengths, reasons = _write(split, path, sample_rate_hz, channel, detector, progress)
        with files.replacing(listed) as temporary, temporary.open("wb") as file:
            np.savez(file, lengths=lengths, reasons=np.array(reasons))
    with listed.open("rb") as file, np.load(file) as stored:
        lengths, reasons = stored["lengths"], stored["reasons"].tolist()
    rows = split.written
    rejected = [
        records.Rejected(row["id"], row["id"], reason)
        for row, reason in zip(rows, reasons)
        if reason
    ]
    name = f"{split.source.name} ({split.name}, kept)"
    indexing.write_rejected(rejected_tsv, name, rejected)
    if rejected:
        log.warning(
            "%s: %d of %d recordings cannot be kept, %s (%s) first; they are listed in %s",
            *(name, len(rejected), len(rows), rejected[0].id, rejected[0].reason, rejected_tsv),
        )
    if not lengths.any():
        raise errors.UserError(f"{name}: none of {len(rows)} recordings holds speech.")
    source = KeptSpeech(
        *(name, path, rows, split.index.positions, np.cumsum(lengths)), sample_rate_hz
    )
    there = lengths > 0
    index = records.Index(split.index.positions[there], lengths[there], sample_rate_hz)
    return splits.Split(split.name, source, index)


def _state(split: splits.Split) -> list[Any]:
    """What tells these recordings from others, and from themselves after a change."""
    found: list[Any] = [examples.recordings(split.source, split.index.positions)]
    if getattr(split.source, "fingerprint", ""):
        return [*found, split.source.fingerprint]
    for position in split.index.positions.tolist():
        record = split.source[position]
        path = os.path.abspath(os.fspath(record["audio"]))  # noqa: PTH100 - a million times
        try:
            status = os.stat(path)  # noqa: PTH116
        except OSError as error:
            raise errors.UserError(
                f"{path} cannot be read any more ({error.strerror}). Is the disk still there?"
            ) from error
        stretch = (record.get("start"), record.get("duration"), record.get("channel"))
        found.append((path, status.st_size, status.st_mtime_ns, stretch))
    return found


def _write(
    split: splits.Split,
    path: pathlib.Path,
    sample_rate_hz: int,
    channel: str | int,
    detector: vad.Detector | None,
    progress: bool,
) -> tuple[Int[np.ndarray, "n"], Sequence[str]]:
    """Writes all samples end to end; returns how many each has, and why one has none."""
    _check_room(path, int(split.index.lengths.sum()))
    positions = split.index.positions.tolist()
    lengths, reasons = np.zeros(len(positions), np.int64), [""] * len(positions)

    def load(position: int) -> Int16[np.ndarray, "t"] | str:
        try:
            audio = records.load_record(split.source[position], sample_rate_hz, channel)
        except (io.AudioError, OSError) as error:
            return f"unreadable ({error})"
        if detector is not None:
            audio = vad.keep_speech(audio, sample_rate_hz, detector)
        if not len(audio):
            return "no speech (says config.data.vad)"
        return np.rint(np.clip(audio, -1, 32767 / 32768) * 32768).astype(np.int16)

    with (
        files.replacing(path) as temporary,
        temporary.open("wb") as file,
        concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool,
        tqdm.tqdm(total=len(positions), desc="keeping", unit="file", disable=not progress) as bar,
    ):
        for start in range(0, len(positions), _AT_ONCE):
            part = positions[start : start + _AT_ONCE]
            for row, found in enumerate(pool.map(load, part), start=start):
                if isinstance(found, str):
                    reasons[row] = found
                else:
                    lengths[row] = len(found)
                    file.write(found.tobytes())
            bar.update(len(part))
    return lengths, reasons


def _check_room(path: pathlib.Path, samples: int) -> None:
    folder = next(p for p in path.absolute().parents if p.exists())
    free, needed = shutil.disk_usage(folder).free, 2 * samples + _LEAST_LEFT
    if free < needed:
        raise errors.UserError(
            f"config.data.cached: the recordings take {needed / 2**30:.1f} GiB and {folder} has "
            f"{free / 2**30:.1f} GiB free: free some, set SPEECH_CACHE to another folder, or leave "
            "them where they are (config.data.cached=False)."
        )
