"""Speech as examples: whole utterances with their labels, stretches with their speaker's class."""

import contextlib
import dataclasses
import fractions
import hashlib
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import soxr
from jaxtyping import Float, Int

from common.audio import io, vad
from common.data import ark, examples, records


@dataclasses.dataclass(frozen=True)
class SpeechExamples:
    """The records at `positions`, decoded whole and encoded: see `examples.Examples`.

    {"audio": f32[t] at `sample_rate_hz`, "index": i32 position in the source, "id"}, "speaker"
    where the record names one, and with `encode` "labels": i32[u] = encode(text). `encode` must be
    picklable. With several `speeds` each record is an example at every one (Ko et al., Audio
    augmentation for speech recognition, Interspeech 2015): first all at the first speed, and so on;
    `played_lengths` says how long they are. `silence` has the zeros before and after each example
    (`draw_silence`); with a multiple of that many rows the examples come in several versions.
    """

    source: records.Source
    positions: Int[np.ndarray, "n"]
    sample_rate_hz: int
    channel: str | int = "mean"
    encode: Callable[[str], Any] | None = None
    speeds: tuple[float, ...] = (1.0,)  # 1.1 is faster, shorter and higher
    silence: Int[np.ndarray, "m 2"] | None = None

    @property
    def identity(self) -> Mapping[str, str]:
        """Which recordings, and how they are read."""
        how = f"{self.sample_rate_hz} Hz, channel {self.channel}"
        if self.speeds != (1.0,):
            how += f", speeds {self.speeds}"
        if self.silence is not None:
            how += f", silence {hashlib.sha256(np.ascontiguousarray(self.silence)).hexdigest()}"
        return {
            "recordings": examples.recordings(self.source, self.positions),
            "settings": how,
        }

    def __len__(self) -> int:
        played = len(self.positions) * len(self.speeds)
        return played if self.silence is None else len(self.silence)

    def draw(
        self, i: int, rng: np.random.Generator | None, lengths: Mapping[str, int]
    ) -> dict[str, Any]:
        """Example i, whatever there is room for: its labels stand for the whole of it."""
        del rng, lengths
        number, place = divmod(i, len(self.positions))
        position = int(self.positions[place])
        record = self.source[position]
        with _named(record):
            audio = records.load_record(record, self.sample_rate_hz, self.channel)
        audio = _play(audio, self.speeds[number % len(self.speeds)])
        if self.silence is not None:
            audio = np.pad(audio, self.silence[i])
        example = {"audio": audio, "index": np.int32(position), **_names(record)}
        if self.encode is not None:
            example["labels"] = np.asarray(self.encode(record.get("text") or ""), np.int32)
        return example


@dataclasses.dataclass(frozen=True)
class SpeechCrops:
    """Recordings with the class of their speaker, cut to the room that there is.

    {"audio": f32[t], "label": i32 place of its speaker in the list of classes, "index": i32, "id"}
    and "speaker" where the record names one. In training the stretch begins anywhere and is played
    at a speed drawn from `speeds`; no more of the file is read than that. Speed k of a speaker
    counts as another speaker: label + k * `num_speakers` (Yamamoto et al., Speaker augmentation and
    bandwidth extension for deep speaker embedding, Interspeech 2019). In evaluation it begins at
    the start. With a `detector` the whole file is read, what `vad.keep_speech` does not keep is cut
    out, and what is left cropped; raises `io.AudioError` also for one that holds no speech.

    With a `grain` above 1 stretches begin at a multiple of so many samples of what is read, and
    rows say at which, "start": i32, so that films can be cut with them.
    """

    source: records.Source
    index: records.Index
    labels: Int[np.ndarray, "n"]
    sample_rate_hz: int
    channel: str | int = "mean"
    speeds: tuple[float, ...] = (1.0,)  # 1.1 is faster, shorter and higher; the first one is 1
    num_speakers: int = 0
    detector: vad.Detector | None = None
    grain: int = 1

    @property
    def identity(self) -> Mapping[str, str]:
        """Which recordings by which speakers, and how they are read."""
        how = (self.sample_rate_hz, self.channel, self.speeds, self.detector)
        return _identity(self.source, self.index, self.labels, repr(how))

    def __len__(self) -> int:
        return len(self.index)

    def draw(
        self, i: int, rng: np.random.Generator | None, lengths: Mapping[str, int]
    ) -> dict[str, Any]:
        """Example i; consumes two numbers of `rng`."""
        place, choice = (0.0, 0.0) if rng is None else rng.random(2)
        number = int(choice * len(self.speeds))
        speed, most = self.speeds[number], lengths.get("audio")
        position = int(self.index.positions[i])
        record = self.source[position]
        with _named(record):
            audio, start = self._stretch(i, record, place, most and math.ceil(most * speed))
        if not len(audio):
            raise io.AudioError(record["id"], "no speech in it, says config.data.vad")
        if speed != 1.0:
            audio = _play(audio, speed)[:most]
        label = np.int32(self.labels[i] + number * self.num_speakers)
        where = {"start": np.int32(start)} if self.grain > 1 else {}
        return {
            "audio": audio,
            "label": label,
            "index": np.int32(position),
            **where,
            **_names(record),
        }

    def _stretch(
        self, i: int, record: records.Record, place: float, most: int | None
    ) -> tuple[Float[np.ndarray, "t"], int]:
        """(at most `most` samples from the start (`place` 0) to the end (1) of a recording, the
        first of them)"""
        rate, count = self.sample_rate_hz, int(self.index.lengths[i])
        if self.detector is not None:
            audio = records.load_record(record, rate, self.channel)
            audio = vad.keep_speech(audio, rate, self.detector)
            start = _start(place, len(audio), most, self.grain)
            return audio[start:][:most], start
        if most is None or count <= most:  # Whole, so that one that has grown is noticed.
            return records.load_record(record, rate, self.channel), 0
        start = _start(place, count, most, self.grain)
        audio = records.load_record(
            record, rate, self.channel, start=start / rate, duration=most / rate
        )
        return audio[:most], start


@dataclasses.dataclass(frozen=True)
class FeatureCrops:
    """`SpeechCrops` of records that hold features: {"features": f32[l, f], "label", "index", "id"}.

    Lengths are frames. Records with "vad" give the frames that hold speech, and for that are read
    whole. Raises `io.AudioError` also for one without any speech.
    """

    source: records.Source
    index: records.Index
    labels: Int[np.ndarray, "n"]

    @property
    def identity(self) -> Mapping[str, str]:
        """Which records by which speakers, and whether "vad" selects frames of them."""
        selected = len(self.index) and "vad" in self.source[int(self.index.positions[0])]
        return _identity(self.source, self.index, self.labels, f"vad {bool(selected)}")

    def __len__(self) -> int:
        return len(self.index)

    def draw(
        self, i: int, rng: np.random.Generator | None, lengths: Mapping[str, int]
    ) -> dict[str, Any]:
        """Example i; consumes one number of `rng`."""
        place = 0.0 if rng is None else rng.random()
        position, most = int(self.index.positions[i]), lengths.get("features")
        record = self.source[position]
        with _named(record):
            if "vad" in record:
                features = records.speech_frames(record)
                features = features[_start(place, len(features), most) :][:most]
            else:
                count = int(self.index.lengths[i])
                cut = most if most is not None and count > most else None
                features = ark.read_matrix(record["features"], _start(place, count, cut), cut)
        label = np.int32(self.labels[i])
        return {"features": features, "label": label, "index": np.int32(position), **_names(record)}


def played_lengths(
    lengths: Int[np.ndarray, "n"], speeds: tuple[float, ...]
) -> Int[np.ndarray, "m"]:
    """The samples of recordings at each of `speeds`, in the order of `SpeechExamples`."""
    ratios = [_ratio(speed) for speed in speeds]
    played = [[records.resampled_length(int(n), *ratio) for n in lengths] for ratio in ratios]
    return np.array(played, np.int64).reshape(-1)


def draw_silence(
    count: int, *, seed: int, probability: float, max_samples: int
) -> Int[np.ndarray, "n 2"]:
    """Zeros before and after each of `count` examples.

    Which of them get any is drawn with `probability`. Before go 0 to `max_samples` zeros, drawn
    uniformly, after 0 to what that leaves of them.
    """
    rng = np.random.default_rng([seed, zlib.crc32(b"silence")])
    most = np.where(rng.random(count) < probability, max_samples, 0)
    before = rng.integers(0, most, endpoint=True)
    after = rng.integers(0, most - before, endpoint=True)
    return np.stack([before, after], axis=1).astype(np.int32)


def batch_of(audio: Sequence[Float[np.ndarray, "_"]]) -> dict[str, np.ndarray]:
    """Recordings of which nothing else is known, as one batch on the host."""
    lengths = np.array([len(one) for one in audio], np.int32)
    return {
        "audio": np.stack([np.pad(one, (0, int(lengths.max()) - len(one))) for one in audio]),
        "audio_lengths": lengths,
        "mask": np.ones(len(audio), bool),
        "index": np.arange(len(audio), dtype=np.int32),
    }


def _play(audio: Float[np.ndarray, "t"], speed: float) -> Float[np.ndarray, "n"]:
    faster, slower = _ratio(speed)
    return audio if faster == slower else soxr.resample(audio, faster, slower, quality="HQ")


def _ratio(speed: float) -> tuple[int, int]:
    return fractions.Fraction(speed).limit_denominator(100).as_integer_ratio()


def _start(place: float, count: int, most: int | None, grain: int = 1) -> int:
    """The first of `most` out of `count`, each possible one for an equal part of [0, 1)."""
    return 0 if most is None else grain * int(place * (max(0, count - most) // grain + 1))


def _names(record: records.Record) -> dict[str, str]:
    """What stays on the host: who and what it is."""
    speaker = record.get("speaker")
    return {"id": record["id"]} | ({"speaker": speaker} if speaker else {})


@contextlib.contextmanager
def _named(record: records.Record) -> Iterator[None]:
    """Errors name the record, of which there may be several in a file, or no file."""
    try:
        yield
    except io.AudioError as error:
        raise io.AudioError(record["id"], str(error)) from error


def _identity(
    source: records.Source, index: records.Index, labels: Int[np.ndarray, "n"], how: str
) -> dict[str, str]:
    speakers = hashlib.sha256(np.ascontiguousarray(labels, np.int64).tobytes()).hexdigest()[:16]
    found = examples.recordings(source, index.positions)
    return {"recordings": found, "speakers": speakers, "settings": how}
