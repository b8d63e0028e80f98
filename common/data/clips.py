"""Folders of noise, music or room responses, of which a training row draws one at random."""

import dataclasses
import hashlib
import os
import pathlib

import numpy as np
from jaxtyping import Float

from common.audio import io
from common.data import folders, records


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


@dataclasses.dataclass(frozen=True)
class Clips:
    """Random stretches of usable recordings, read without the rest of the file where it can be.

    `crop` True: a stretch begins anywhere (noise); False: at the start, of the first channel (room
    responses: the mean of several microphones' is none). `voices`: how many stretches are added up,
    at least and at most, each scaled to the same power (babble).
    """

    source: records.Source
    index: records.Index
    sample_rate_hz: int
    crop: bool
    voices: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        if len(self.voices) != 2 or not 1 <= self.voices[0] <= self.voices[1]:
            raise records.DataError(
                f"Babble of {self.voices} voices? Give how many at least and at most, as (3, 7)."
            )

    @property
    def fingerprint(self) -> str:
        """Changes when a recording is added, removed or of another length."""
        names = [self.source[int(i)]["id"] for i in self.index.positions]
        text = repr((names, self.index.seconds.tolist(), self.crop, self.voices))
        return hashlib.sha256(text.encode()).hexdigest()

    def draw(self, rng: np.random.Generator, max_samples: int) -> Float[np.ndarray, "n"]:
        """The whole of a recording drawn from `rng`, or `max_samples` of it; may raise AudioError.

        Of several voices the longest decides how long. Consumes the same numbers of `rng` whatever
        it finds.
        """
        low, high = self.voices
        if high == 1:
            return self._stretch(rng, max_samples)
        stretches = [self._stretch(rng, max_samples) for _ in range(rng.integers(low, high + 1))]
        mixed = np.zeros(max(map(len, stretches)), np.float32)
        for stretch in stretches:
            power = float(np.mean(np.square(stretch, dtype=np.float64)))
            mixed[: len(stretch)] += stretch / np.float32(max(power, 1e-12) ** 0.5)
        return mixed

    def _stretch(self, rng: np.random.Generator, max_samples: int) -> Float[np.ndarray, "n"]:
        choice, place = rng.random(2)
        i = int(choice * len(self.index))
        record = self.source[int(self.index.positions[i])]
        duration = max_samples / self.sample_rate_hz
        spare = max(0.0, float(self.index.seconds[i]) - duration)
        audio = io.load_audio(
            record["audio"],
            sample_rate_hz=self.sample_rate_hz,
            source_rate_hz=record.get("sample_rate"),
            channel="mean" if self.crop else 0,
            start=place * spare if self.crop else 0.0,
            duration=duration,
        )
        return audio[:max_samples]
