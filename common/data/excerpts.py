"""Model-ready examples of records: decoded, and with a speaker's class cropped at random."""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import soxr
from jaxtyping import Int

from common.audio import io, vad
from common.data import ark, records


@dataclasses.dataclass(frozen=True)
class SpeechExamples:
    """Random access to model-ready examples: records at `positions`, decoded and encoded.

    Element i is {"audio": f32[t] at `sample_rate_hz`, "index": i32 position in the source} and,
    with `encode`, "labels": i32[u] = encode(text). `encode` must be picklable.
    Raises `io.AudioError` for a recording that can no longer be read.
    """

    source: records.Source
    positions: Int[np.ndarray, "n"]
    sample_rate_hz: int
    channel: str | int = "mean"
    encode: Callable[[str], Any] | None = None

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        position = int(self.positions[i])
        record = self.source[position]
        example = {
            "audio": records.load_record(record, self.sample_rate_hz, self.channel),
            "index": np.int32(position),
        }
        if self.encode is not None:
            example["labels"] = np.asarray(self.encode(record.get("text") or ""), np.int32)
        return example


@dataclasses.dataclass(frozen=True)
class SpeechCrops:
    """Random access to recordings with the class of their speaker, whole or cropped at random.

    Element i is {"audio": f32[t], "label": i32 place of its speaker in `speakers`, "index": i32};
    `draw` gives the same with at most `max_samples` samples from a random place, played at a speed
    drawn from `speeds`, and reads no more of the file than that. Speed k of a speaker counts as
    another speaker: label + k * `num_speakers` (Yamamoto et al., Speaker augmentation and bandwidth
    extension for deep speaker embedding, Interspeech 2019).
    With a `detector` the whole file is read, what `vad.keep_speech` does not keep is cut out, and
    what is left cropped. Raises `io.AudioError` for a recording that can no longer be read, or then
    holds no speech.
    """

    source: records.Source
    index: records.Index
    labels: Int[np.ndarray, "n"]
    sample_rate_hz: int
    channel: str | int = "mean"
    max_samples: int | None = None  # of a whole recording; the rest of it is not read
    speeds: tuple[float, ...] = (1.0,)  # 1.1 is faster, shorter and higher; the first one is 1
    num_speakers: int = 0
    detector: vad.Detector | None = None

    @property
    def fingerprint(self) -> str:
        """Changes with the ids, lengths or speakers of the recordings, and how they are read."""
        how = (self.sample_rate_hz, self.channel, self.speeds, self.detector)
        return _fingerprint(self.source, self.index, self.labels, *how)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        if self.max_samples is None:
            return self._example(i, 0.0, None)
        example = self._example(i, 0.0, self.max_samples / self.sample_rate_hz)
        return example | {"audio": example["audio"][: self.max_samples]}

    def draw(self, i: int, rng: np.random.Generator, max_samples: int) -> dict[str, np.ndarray]:
        """Example i, cropped; consumes two numbers of `rng`."""
        place, choice = rng.random(2)
        number = int(choice * len(self.speeds))
        speed = self.speeds[number]
        seconds = max_samples / self.sample_rate_hz * speed
        example = self._example(i, float(place), seconds)
        audio = example["audio"]
        if speed != 1.0:
            audio = soxr.resample(audio, self.sample_rate_hz * speed, self.sample_rate_hz)
        label = example["label"] + np.int32(number * self.num_speakers)
        return example | {"audio": audio[:max_samples], "label": label}

    def _example(self, i: int, place: float, duration: float | None) -> dict[str, np.ndarray]:
        """`duration` seconds from between the start (`place` 0) and the end (1) of a recording."""
        position = int(self.index.positions[i])
        record, how = self.source[position], (self.sample_rate_hz, self.channel)
        if self.detector is not None:
            audio = records.load_record(record, *how)
            audio = vad.keep_speech(audio, self.sample_rate_hz, self.detector)
            if not len(audio):
                raise io.AudioError(record["id"], "no speech in it, says config.data.vad")
            most = None if duration is None else round(duration * self.sample_rate_hz)
            audio = audio[_start(place, len(audio), most) :][:most]
        else:
            spare = 0.0 if duration is None else float(self.index.seconds[i]) - duration
            audio = records.load_record(
                record, *how, start=place * max(0.0, spare), duration=duration
            )
        return {"audio": audio, "label": np.int32(self.labels[i]), "index": np.int32(position)}


@dataclasses.dataclass(frozen=True)
class FeatureCrops:
    """`SpeechCrops` of records that hold features: {"features": f32[l, f], "label", "index"}.

    Lengths are frames. Records with "vad" give the frames that hold speech, and for that are read
    whole. Raises `io.AudioError` also for one without any speech.
    """

    source: records.Source
    index: records.Index
    labels: Int[np.ndarray, "n"]
    max_frames: int | None = None  # of whole features; the rest is not read

    @property
    def fingerprint(self) -> str:
        """Changes with the number, the lengths or the speakers of the records, and with "vad"."""
        selected = len(self.index) and "vad" in self.source[int(self.index.positions[0])]
        return _fingerprint(self.source, self.index, self.labels, selected)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        return self._example(i, 0.0, self.max_frames)

    def draw(self, i: int, rng: np.random.Generator, max_frames: int) -> dict[str, np.ndarray]:
        """Example i, cropped; consumes one number of `rng`."""
        return self._example(i, float(rng.random()), max_frames)

    def _example(self, i: int, place: float, most: int | None) -> dict[str, np.ndarray]:
        """At most `most` frames, from the start (`place` 0) to the end (1) of the record."""
        position = int(self.index.positions[i])
        record = self.source[position]
        if "vad" in record:
            features = records.speech_frames(record)
            start = _start(place, len(features), most)
            features = features[start:][:most]
        else:
            frames = round(float(self.index.seconds[i]) * 1000 / record["hop_ms"])
            features = ark.read_matrix(record["features"], _start(place, frames, most), most)
        return {
            "features": features,
            "label": np.int32(self.labels[i]),
            "index": np.int32(position),
        }


def _start(place: float, count: int, most: int | None) -> int:
    """The first of `most` out of `count`, each possible one for an equal part of [0, 1)."""
    return 0 if most is None else int(place * max(1, count - most + 1))


def _fingerprint(
    source: records.Source, index: records.Index, labels: Int[np.ndarray, "n"], *others: Any
) -> str:
    # Reading samples only for their ids would take as long as an epoch.
    ids = source.column("id") if isinstance(source, records.RecordList) else source.name
    text = repr((ids, index.positions.tolist(), index.lengths.tolist(), labels.tolist(), *others))
    return hashlib.sha256(text.encode()).hexdigest()
