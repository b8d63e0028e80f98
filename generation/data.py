"""Batches of voices with faces: a stretch of a recording, its speaker's picture, another's."""

import contextlib
import dataclasses
import functools
import logging
import math
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from common import errors, parallel
from common.audio import io, vad
from common.data import buckets, pipeline, speech, splits
from generation import people

log = logging.getLogger(__name__)

_FAINTEST = 1e-4  # the peak of a recording that holds no voice: 3 steps of 16 bits


def is_silent(audio: Float[np.ndarray, "t"]) -> bool:
    """Whether there is nothing to hear."""
    return not len(audio) or bool(np.abs(audio).max() < _FAINTEST)


def check_voice(audio: Float[np.ndarray, "t"], name: object) -> None:
    """Raises io.AudioError for a recording in which there is nothing to hear."""
    if is_silent(audio):
        raise io.AudioError(name, "is silent: there is no voice to make a face of")


def detector(config: Any) -> vad.Detector | None:
    """What finds the pauses that are cut out of recordings; webrtc as Wen et al. (2019) used it."""
    if config.data.vad == "webrtc":
        return vad.WebRtcVad(aggressiveness=2, hop_ms=20)
    if config.data.vad not in ("none", "energy"):
        raise errors.UserError(
            f"config.data.vad={config.data.vad!r}: choose none, energy or webrtc."
        )
    return vad.EnergyVad() if config.data.vad == "energy" else None


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Recordings, each with a picture of its speaker and one of somebody else: `Examples`.

    {"audio": f32[samples], "label": i32, "face": u8[h, w, c], "other_face": u8[h, w, c],
    "other_label": i32, "index": i32}. What is shorter than `samples` is repeated. In training the
    stretch, both pictures and who else is drawn, and pictures are mirrored at random; in evaluation
    they are the first ones. With `independent` "other" is anybody, the speaker too. A silent
    recording or a picture that cannot be read raises io.AudioError or images.ImageError.
    """

    crops: speech.SpeechCrops
    names: tuple[str, ...]  # of the people, by label
    faces: people.Small
    samples: int
    independent: bool = False

    @property
    def identity(self) -> Mapping[str, str]:
        """That of the recordings, and of the pictures."""
        how = f"{self.faces.identity} {self.samples} {self.independent}"
        return {**self.crops.identity, "faces": how}

    @property
    def labels(self) -> Int[np.ndarray, "n"]:
        """The person of each recording."""
        return self.crops.labels

    def __len__(self) -> int:
        return len(self.crops)

    def audio(self, i: int, rng: np.random.Generator | None) -> dict[str, Any]:
        """{"audio", "label", "index", "id"} of recording i."""
        row = self.crops.draw(i, rng, {"audio": self.samples})
        check_voice(row["audio"], row["id"])
        return {**row, "audio": np.resize(row["audio"], self.samples)}

    def draw(
        self, i: int, rng: np.random.Generator | None, lengths: Mapping[str, int]
    ) -> dict[str, Any]:
        """Recording i and the two pictures."""
        del lengths
        row = self.audio(i, rng)
        return {**row, **_pictures(self, i, rng)}


@dataclasses.dataclass(frozen=True)
class Looks:
    """Pictures with classes and no sound, each with one of another class: `Examples`.

    The keys are those of `Pairs` without "audio"; an epoch has each picture once. With
    `independent` "other" is of any class.
    """

    names: tuple[str, ...]  # of the classes, by label
    labels: Int[np.ndarray, "n"]
    faces: people.Small
    recordings: str  # changes with them
    independent: bool = False

    @property
    def identity(self) -> Mapping[str, str]:
        """That of the pictures."""
        return {"recordings": self.recordings, "faces": f"{self.faces.identity} {self.independent}"}

    def __len__(self) -> int:
        return len(self.labels)

    @functools.cached_property
    def _numbers(self) -> Int[np.ndarray, "n"]:
        """Of each picture, how many of its class come before."""
        found = np.zeros(len(self.labels), np.int64)
        for label in range(len(self.names)):
            own = np.flatnonzero(self.labels == label)
            found[own] = np.arange(len(own))
        return found

    def draw(
        self, i: int, rng: np.random.Generator | None, lengths: Mapping[str, int]
    ) -> dict[str, Any]:
        """Picture i, and another."""
        del lengths
        label = int(self.labels[i])
        face = self.faces(self.names[label], int(self._numbers[i]))
        if rng is not None and rng.integers(2):
            face = self.faces.turned(face)
        row = {"label": np.int32(label), "index": np.int32(i)}
        return {**row, **_pictures(self, i, rng), "face": face}


def _pictures(rows: Pairs | Looks, i: int, rng: np.random.Generator | None) -> dict[str, Any]:
    """{"face", "other_face", "other_label"} of row i: of its person, and of somebody else."""
    label, count, mirrored = int(rows.labels[i]), len(rows.names), rng is not None
    if rng is None:
        # Of another stream than the names' order, which may follow the voice.
        rng = np.random.default_rng([zlib.crc32(b"pictures"), i])
    if rows.independent:
        other = int(rng.integers(count))
    else:
        other = (label + 1 + int(rng.integers(count - 1))) % count
    return {
        "face": rows.faces.drawn(rows.names[label], rng, mirrored=mirrored),
        "other_face": rows.faces.drawn(rows.names[other], rng, mirrored=mirrored),
        "other_label": np.int32(other),
    }


@dataclasses.dataclass(frozen=True)
class Seated:
    """A fixed number of rows of every person, to be matched: `Examples`.

    Row (p, k): recording k of person p ("audio"), the next one ("probe"), picture k ("face");
    "person" p and "turn" k. What there are fewer of is taken again, a recording for the time
    "again": 0, 1, ...; the other keys are those of `Pairs`, or of `Looks`, which have neither
    "audio" nor "probe".
    """

    pairs: Pairs | Looks
    turns: int

    @property
    def identity(self) -> Mapping[str, str]:
        return {**self.pairs.identity, "turns": str(self.turns)}

    @functools.cached_property
    def _of(self) -> tuple[np.ndarray, ...]:
        """The recordings of every person."""
        labels = self.pairs.labels
        return tuple(np.flatnonzero(labels == p) for p in range(len(self.pairs.names)))

    @property
    def lonely(self) -> int:
        """How many people have one recording only, which is then its own probe."""
        return sum(len(found) == 1 for found in self._of)

    @property
    def fewest(self) -> int:
        """How many recordings, or pictures without any, there are of the person with the fewest."""
        return min(map(len, self._of))

    def __len__(self) -> int:
        return len(self.pairs.names) * self.turns

    def draw(
        self, i: int, rng: np.random.Generator | None, lengths: Mapping[str, int]
    ) -> dict[str, Any]:
        """Row i: person i // turns."""
        del rng
        person, turn = divmod(i, self.turns)
        mine = self._of[person]
        row = self.pairs.draw(int(mine[turn % len(mine)]), None, lengths)
        name = self.pairs.names[person]
        row["face"] = self.pairs.faces(name, turn % self.pairs.faces.count(name))
        if isinstance(self.pairs, Pairs):
            row["probe"] = self.pairs.audio(int(mine[(turn + 1) % len(mine)]), None)["audio"]
        again = np.int32(turn // len(mine))
        return {**row, "person": np.int32(person), "turn": np.int32(turn), "again": again}


def names_of(split: splits.Split) -> tuple[str, ...]:
    """The people of a split in the order of their labels."""
    return tuple(sorted(set(split.speakers)))


def pairs(split: splits.Split, faces: people.Faces, config: Any, *, train: bool) -> Pairs | Looks:
    """The pairs of a split (`people.with_faces`); of one without recordings its pictures."""
    data, names = config.data, names_of(split)
    labels = np.searchsorted(np.array(names), np.array(split.speakers)).astype(np.int32)
    small = people.Small(faces, config.picture.size, config.picture.channels)
    if data.kind == "none":
        return Looks(names, labels, small, split.identity, data.independent)
    crops = speech.SpeechCrops(
        *(split.source, split.index, labels, data.sample_rate_hz),
        channel=splits.channel(data),
        num_speakers=len(names),
        detector=None if data.cached else detector(config),  # what is kept has no pauses
    )
    seconds = data.crop_seconds if train else data.eval_seconds
    samples = math.ceil(seconds * data.sample_rate_hz)
    return Pairs(crops, names, small, samples, data.independent)


def first_recordings(
    split: splits.Split, faces: people.Faces, config: Any, most: int
) -> Float[np.ndarray, "n t"]:
    """The beginnings of some of the training recordings, spread over all of them, as training
    hears them. Those that cannot be used are left out; raises UserError where none is left."""
    found = pairs(split, faces, config, train=True)
    rows = []
    for i in np.unique(np.linspace(0, len(found) - 1, most).astype(int)).tolist():
        with contextlib.suppress(io.AudioError, OSError):  # Named where training meets it.
            rows.append(found.audio(i, None)["audio"])
    if not rows:
        seconds = f"config.data.crop_seconds={config.data.crop_seconds:g}"
        raise errors.UserError(
            f"{split.source.name}: in the first {seconds} of no recording there is anything to "
            "hear. Are they silent, or is the disk gone? config.data.vad=energy cuts pauses out."
        )
    return np.stack(rows)


def train_batches(split: splits.Split, faces: people.Faces, config: Any) -> Any:
    """The endless stream of `batch_rows` pairs; an epoch has each recording once."""
    data, found = config.data, pairs(split, faces, config, train=True)
    parallel.check_rows(config, "discriminator_updates", config.discriminator_updates)
    of = "recordings of %d people" if isinstance(found, Pairs) else "pictures of %d classes"
    log.info(f"%s: %d {of}.", split.name, len(found), len(found.names))
    return pipeline.train_batches(
        found,
        (buckets.Bucket(data.batch_rows, {}),),
        {},
        seed=config.seed,
        num_workers=data.num_workers,
        max_failed_share=data.max_bad_share,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def eval_batches(split: splits.Split, faces: people.Faces, config: Any) -> Any:
    """`eval_turns` rows of every person, in fixed order."""
    data = config.data
    seated = Seated(pairs(split, faces, config, train=False), data.eval_turns)
    if seated.lonely and isinstance(seated.pairs, Pairs):
        log.warning(
            "%s: %d people have one recording only: it is matched with itself.",
            *(split.name, seated.lonely),
        )
    if isinstance(seated.pairs, Looks) and seated.fewest < data.eval_turns:
        log.warning(
            "%s: a class has %d pictures, fewer than config.data.eval_turns=%d: real ones are "
            "taken more than once.",
            *(split.name, seated.fewest, data.eval_turns),
        )
    rows = -(-data.eval_rows // jax.device_count()) * jax.device_count()
    return pipeline.eval_batches(
        seated,
        (buckets.Bucket(rows, {}),),
        {},
        num_workers=data.num_workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
