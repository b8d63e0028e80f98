"""Folders of noise, music or room responses, of which a training row draws one at random."""

import dataclasses
import functools
import hashlib
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from common import errors
from common.audio import io
from common.data import examples, folders, records


def read_folder(root: str | os.PathLike) -> records.RecordList:
    """A record for every audio file under a folder (MUSAN, RIRS_NOISES, your own), sorted.

    Links to folders are followed, hidden names are left out, suffixes may be in capitals. A folder
    in it that may not be read is a record with a "problem": indexing rejects and names it.
    Raises records.DataError for a missing folder and for one without audio files.
    """
    root = pathlib.Path(root).expanduser()
    if not os.access(root, os.R_OK | os.X_OK) or not root.is_dir():
        raise records.DataError(
            f"There is no folder {root} that can be read: name one that holds audio files."
        )
    rows = []
    for found in folders.walk(root):
        if not isinstance(found, os.DirEntry):
            rows.append(found)
        elif pathlib.PurePath(found.name).suffix.lower() in io.SUFFIXES:
            name = pathlib.PurePath(found.path).relative_to(root).as_posix()
            rows.append({"id": name, "audio": found.path})
    if not any("audio" in row for row in rows):
        raise records.DataError(
            f"{root} holds no audio files ({', '.join(io.SUFFIXES)})"
            + "".join(f"; {row['problem']}: {row['id']}" for row in rows[:1])
            + "."
        )
    return records.RecordList(str(root), sorted(rows, key=lambda row: row["id"]))


def read_speakers(root: str | os.PathLike, names: Sequence[str]) -> records.RecordList:
    """The recordings below some folders of `root` ("." is root itself), each `read_folder`.

    A folder directly below one of them is a speaker: ROOT/NAME/SPEAKER/.../x.wav. Ids are paths
    below NAME, or with several names below ROOT.
    """
    rows = []
    for name in names:
        for row in read_folder(pathlib.Path(root).expanduser() / name):
            first, slash, _ = row["id"].partition("/")
            prefix = "" if len(names) == 1 else f"{name}/"
            own = {"speaker": first} if slash and "audio" in row else {}
            rows.append({**row, **own, "id": f"{prefix}{row['id']}"})
    return records.RecordList(f"{root} ({', '.join(names)})", rows)


def named_files(names: Iterable[str], fail: Callable[[str], None]) -> Iterator[str]:
    """The files that a command's arguments name, those below a folder in its place, sorted.

    `fail` is told of folders and files that cannot be used.
    """
    for name in names:
        if not os.path.isdir(name):  # noqa: PTH112 - a name of any bytes
            yield name
            continue
        try:
            found = read_folder(name)
        except errors.UserError as error:
            fail(str(error))
            continue
        for record in found:
            if "problem" in record:
                fail(f"{io.printable(record['id'])}: {record['problem']}")
            else:
                yield record["audio"]


@dataclasses.dataclass(frozen=True)
class Clips:
    """Random stretches of usable recordings, read without the rest of the file where it can be.

    `crop` True: a stretch begins anywhere (noise); False: at the start, of the first channel (room
    responses: the mean of several microphones' is none). `voices`: how many stretches are added up,
    at least and at most, each scaled to the same power (babble). `speakers`, where given, are those
    of the recordings in the order of `index`: beside an example that names its speaker comes none
    of the same.
    """

    source: records.Source
    index: records.Index
    sample_rate_hz: int
    crop: bool
    voices: tuple[int, int] = (1, 1)
    speakers: Sequence[str] = ()

    def __post_init__(self) -> None:
        if len(self.voices) != 2 or not 1 <= self.voices[0] <= self.voices[1]:
            raise records.DataError(
                f"Babble of {self.voices} voices? Give how many at least and at most, as (3, 7)."
            )
        if self.speakers and len(self.speakers) != len(self.index):
            raise ValueError(f"{len(self.speakers)} speakers of {len(self.index)} recordings")

    @property
    def fingerprint(self) -> str:
        """Changes when a recording is added, removed or of another length."""
        names = examples.recordings(self.source, self.index.positions)
        text = repr((names, self.index.lengths.tolist(), self.crop, self.voices, *self.speakers))
        return hashlib.sha256(text.encode()).hexdigest()

    def draw(
        self, rng: np.random.Generator, max_samples: int, beside: Mapping[str, Any]
    ) -> Float[np.ndarray, "n"]:
        """The whole of a recording drawn from `rng`, or `max_samples` of it, for an example.

        Of several voices the longest decides how long. Consumes the same numbers of `rng` whatever
        it finds. Raises io.AudioError for what cannot be read, and where all are of the example's
        own speaker.
        """
        speaker = beside.get("speaker")
        low, high = self.voices
        if high == 1:
            return self._stretch(rng, max_samples, speaker)
        count = rng.integers(low, high + 1)
        stretches = [self._stretch(rng, max_samples, speaker) for _ in range(count)]
        mixed = np.zeros(max(map(len, stretches)), np.float32)
        for stretch in stretches:
            power = float(np.mean(np.square(stretch, dtype=np.float64)))
            mixed[: len(stretch)] += stretch / np.float32(max(power, 1e-12) ** 0.5)
        return mixed

    def _stretch(
        self, rng: np.random.Generator, max_samples: int, speaker: str | None
    ) -> Float[np.ndarray, "n"]:
        choice, place = rng.random(2)
        i = self._choose(choice, speaker)
        record, count = self.source[int(self.index.positions[i])], int(self.index.lengths[i])
        start = int(place * max(1, count - max_samples + 1)) if self.crop else 0
        audio = io.load_audio(
            record["audio"],
            sample_rate_hz=self.sample_rate_hz,
            source_rate_hz=record.get("sample_rate"),
            channel="mean" if self.crop else 0,
            start=start / self.sample_rate_hz,
            duration=max_samples / self.sample_rate_hz,
        )
        return audio[:max_samples]

    def _choose(self, choice: float, speaker: str | None) -> int:
        """The place in the index that a number in [0, 1) means."""
        order, blocks = self._by_speaker
        first, end = blocks.get(speaker, (0, 0))
        others = len(self.index) - (end - first)
        if not others:
            raise io.AudioError(self.source.name, f"holds no other speaker than {speaker!r}")
        place = int(choice * others)
        return int(order[place if place < first else place + end - first])

    @functools.cached_property
    def _by_speaker(self) -> tuple[Int[np.ndarray, "n"], dict[str, tuple[int, int]]]:
        """Places in the index, sorted by speaker, and where each speaker begins and ends there."""
        if not self.speakers:
            return np.arange(len(self.index)), {}
        order = np.argsort(self.speakers, kind="stable")
        names, first = np.unique(np.asarray(self.speakers)[order], return_index=True)
        ends = [*first[1:], len(order)]
        return order, {n: (int(a), int(b)) for n, a, b in zip(names.tolist(), first, ends) if n}


@dataclasses.dataclass(frozen=True)
class Hiss:
    """Steady noise made from random numbers, for training without a folder of recordings.

    Its power falls with frequency as f^-a: a is drawn from 0 (white) to 2 (red), 1 is pink.
    """

    @property
    def fingerprint(self) -> str:
        return "hiss"

    def draw(
        self, rng: np.random.Generator, max_samples: int, beside: Mapping[str, Any]
    ) -> Float[np.ndarray, "n"]:
        """At most two seconds of it, at a power of 1: who wants more repeats them."""
        del beside
        count = min(max_samples, 1 << 15)  # a power of two: a quick transform
        slope = rng.uniform(0.0, 2.0)
        spectrum = np.fft.rfft(rng.standard_normal(count, dtype=np.float32))
        spectrum[0] = 0.0  # no offset
        spectrum[1:] *= np.arange(1, len(spectrum), dtype=np.float64) ** (-slope / 2)
        noise = np.fft.irfft(spectrum, count).astype(np.float32)
        return noise / np.float32(max(float(np.mean(np.square(noise))), 1e-20) ** 0.5)


@dataclasses.dataclass(frozen=True)
class MadeRooms:
    """Room responses made from random numbers, for training without a folder of recordings.

    The direct sound, and behind it noise that decays by 60 dB in the reverberation time (the
    statistical model of Polack). Drawn uniformly: the time within `t60_seconds`, the direct sound
    at -3 to 12 dB over all that follows, the first reflection after 1 to 15 ms.
    """

    t60_seconds: tuple[float, float]
    sample_rate_hz: int

    def __post_init__(self) -> None:
        limits = self.t60_seconds
        if len(limits) != 2 or not 0.05 <= limits[0] <= limits[1] <= 10:
            raise records.DataError(
                f"Reverberation times of {limits} s? Give the least and the most, as (0.2, 0.6)."
            )

    @property
    def fingerprint(self) -> str:
        return f"rooms of {self.t60_seconds} s"

    def draw(
        self, rng: np.random.Generator, max_samples: int, beside: Mapping[str, Any]
    ) -> Float[np.ndarray, "n"]:
        """A response, its direct sound first and 1."""
        del beside
        seconds, ratio = rng.uniform(*self.t60_seconds), rng.uniform(-3.0, 12.0)
        gap = max(1, round(rng.uniform(0.001, 0.015) * self.sample_rate_hz))
        count = max(gap + 1, min(max_samples, round(seconds * self.sample_rate_hz)))
        decay = np.exp(-math.log(1000) / (seconds * self.sample_rate_hz) * np.arange(count))
        response = rng.standard_normal(count) * decay
        response[:gap] = 0.0
        response *= (10 ** (-ratio / 10) / np.sum(response**2)) ** 0.5
        response[0] = 1.0
        return response[:max_samples].astype(np.float32)
