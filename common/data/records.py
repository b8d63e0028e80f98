"""The record contract: what a source of recordings or features gives.

A source is a lazy sequence of records. A record is a mapping with
  id           str, unique in its source
  audio        path of an audio file, or the samples themselves (f32 in [-1, 1] or int16)
  sample_rate  int, only beside samples
  start, duration  the stretch of `audio` that is meant, in seconds; optional, None: to the end
  channel      int or "mean", optional: that of `audio` which is meant, whatever the config says
  text, speaker  str, optional
  gender       "f" or "m", optional: of the speaker
  path         str, optional: what lists call the recording instead of its id
  video        optional: pictures of the speaker's mouth, uint8[n, h, w], 25 a second from the first
               sample on; an array, or a path-like that `np.asarray` makes one of when needed
  face         optional: portraits of the speaker, uint8[k, h, w, 3], likewise
  problem      str, optional: why it cannot be used, known without looking; nothing else is sure
or, where features were computed elsewhere, instead of `audio`
  features     a `common.data.ark.Entry`, and beside it
  hop_ms       float
  num_frames   int, optional: how many it should have
  vad          optional: the `ark.Entry` that says which frames hold speech

Sources are random access and picklable, because data workers are other processes. What they need
there does not import JAX itself (grain does, in its workers too, where JAX is installed).
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from common import errors
from common.audio import io
from common.data import ark, columns

Record = Mapping[str, Any]


class DataError(errors.UserError, ValueError):
    """The data cannot be used as asked; the message says what is wrong, where, and what to do."""


@runtime_checkable
class Source(Protocol):
    """Random access to records. `name` says in messages where they come from.

    A source whose records hold samples instead of paths should have a `fingerprint` attribute, a
    string that changes when the stored data do; without it such records are validated every time.
    Where copies of the data on other machines have other fingerprints, `contents` is the same for
    all of them.
    """

    name: str

    def __len__(self) -> int: ...

    def __getitem__(self, position: int) -> Record: ...


class RecordList:
    """A source that keeps its (small) records in memory, by columns; the audio stays in its files.

    A value None is as if it were not there.
    """

    def __init__(self, name: str, rows: Iterable[Record]):
        self.name = name
        self._table = columns.Table()
        for row in rows:
            self._table.append(row)

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, position: int) -> Record:
        return self._table[position]

    def column(self, name: str) -> list[Any]:
        """One value of every record, None where it has none."""
        return self._table.column(name)


@dataclasses.dataclass(frozen=True)
class Rejected:
    """A record left out of an index. `reason` starts with one of a few fixed phrases."""

    id: str
    path: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Index:
    """The usable records of a source: their positions in it, in its order, and their lengths.

    `lengths` are exact: the samples at `rate_hz` that `load_record` gives at that sampling rate
    and channel, or the frames of features, of which `rate_hz` pass in a second.
    """

    positions: Int[np.ndarray, "n"]
    lengths: Int[np.ndarray, "n"]
    rate_hz: float | int
    rejected: tuple[Rejected, ...] = ()

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def seconds(self) -> Float[np.ndarray, "n"]:
        return self.lengths / self.rate_hz


def load_record(
    record: Record,
    sample_rate_hz: int,
    channel: str | int = "mean",
    *,
    start: float = 0.0,
    duration: float | None = None,
) -> Float[np.ndarray, "t"]:
    """The samples of one record in [-1, 1] at `sample_rate_hz`, or a stretch of them in seconds.

    Raises `io.AudioError`.
    """
    if record.get("duration") is not None:
        left = record["duration"] - start
        duration = left if duration is None else min(duration, left)
    return io.load_audio(
        record["audio"],
        sample_rate_hz=sample_rate_hz,
        channel=record.get("channel", channel),
        source_rate_hz=record.get("sample_rate"),
        start=record.get("start", 0.0) + start,
        duration=duration,
    )


def resampled_length(
    length: int,
    rate_hz: int,
    wanted_hz: int,
    start: float = 0.0,
    duration: float | None = None,
) -> int:
    """The samples that `io.load_audio` gives at `wanted_hz` of so many at `rate_hz`.

    That is, of the stretch from `start` on, `duration` seconds long or to the end. soxr rounds
    half a sample up.
    """
    last = (2 * length * wanted_hz + rate_hz) // (2 * rate_hz)
    if duration is not None:
        last = min(last, round((start + duration) * wanted_hz))
    return max(0, last - round(start * wanted_hz))


def speech_frames(record: Record) -> Float[np.ndarray, "l f"]:
    """The frames of a record that its "vad" keeps."""
    features, speech = ark.read_matrix(record["features"]), ark.read_decisions(record["vad"])
    if len(speech) != len(features):
        raise io.AudioError(
            record["vad"], f"{len(speech)} decisions for {len(features)} frames of {record['id']}"
        )
    if not speech.any():
        raise io.AudioError(record["vad"], "no frame of it holds speech")
    return features[speech]
