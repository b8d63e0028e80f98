"""Mixtures drawn on the fly: one to extract from several voices, and a recording to know it by."""

import dataclasses
import functools
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from common import errors
from common.data import examples, speech
from separation import films as films_lib
from separation import signals, surroundings


@dataclasses.dataclass(frozen=True)
class MixingConfig:
    """What is drawn, uniformly between the two ends of each range.

    Attributes:
        interferers: how many other voices there are; (0, 0): none, a voice in noise.
        snr_db: power of the target over that of each of them, where each talks.
        overlap: the share of the mixture that each of them talks, anywhere in it.
        absent: the probability that the target says nothing.
        level_db: RMS of the mixture below full scale.
        noisy_enrolment: the probability that something else is heard in the enrolment: another
            voice, or noise where there is any.
        enrolment_snr_db: power of the voice over that of it.
        shortest_seconds: in training mixtures are from this to `config.data.crop_seconds` long, as
            drawn for each; 0: all are as long as that, where the recording is.
    """

    interferers: tuple[int, int] = (1, 1)
    snr_db: tuple[float | int, float | int] = (-5.0, 5.0)
    overlap: tuple[float | int, float | int] = (1.0, 1.0)
    absent: float | int = 0.0
    level_db: tuple[float | int, float | int] = (-35.0, -15.0)
    noisy_enrolment: float | int = 0.0
    enrolment_snr_db: tuple[float | int, float | int] = (0.0, 10.0)
    # Of training alone, and no part of what evaluations are told apart by.
    shortest_seconds: float | int = dataclasses.field(default=0.0, repr=False)

    def __post_init__(self) -> None:
        bounds = {"interferers": (0, 8), "overlap": (0.01, 1), "level_db": (-80, 0)}
        ratios = dict.fromkeys(("snr_db", "enrolment_snr_db"), (-60, 60))
        for name, (least, most) in {**bounds, **ratios}.items():
            drawn = getattr(self, name)
            if len(drawn) != 2 or not least <= drawn[0] <= drawn[1] <= most:
                raise errors.UserError(
                    f"config.mixing.{name}={drawn}: give the least and the most, between {least} "
                    f"and {most}."
                )
        if self.interferers[0] == 0 < self.interferers[1]:
            raise errors.UserError(
                f"config.mixing.interferers={self.interferers}: one voice at least, or (0, 0)."
            )
        if not 0 <= self.absent < 1:
            raise errors.UserError(f"config.mixing.absent={self.absent}: from 0 to below 1.")
        if not 0 <= self.noisy_enrolment <= 1:
            raise errors.UserError(
                f"config.mixing.noisy_enrolment={self.noisy_enrolment}: from 0 to 1."
            )


@dataclasses.dataclass(frozen=True)
class Mixtures:
    """Mixture i has recording `places[i]` of the crops as its target; see `examples.Examples`.

    {"sources": f32[t, 1 + most interferers (+ 1)], whose sum is the mixture: the target, the others
    and, where there is something `around`, what is no voice; "enrolment": f32[n], "present": bool,
    "noisy": bool of the enrolment, "snr_db": f32, the target over all else (as if it were present),
    "index", "target_index", "enrolment_index" i32 and "interferer_index": i32[most] positions in
    the source, -1 where there is none, "speaker": i32, the target's label, "id"}. t is at most
    `num_samples`, n at most `num_enrolment`. The enrolment is of another recording of the target's
    speaker, or where there is no other one of another stretch of the same. Interferers are
    different speakers.

    In a room the late sound of every voice is no voice, so that each of them is wanted in the same
    way. With `keeps_late` that of interferers stays with them, for networks that are shown mixtures
    without them too.

    With `films` there is beside it what is seen of the target while it is heard: "mouth": u8[v, 96,
    96] and "mouth_seen": bool[v], of each 40 ms, and "face": u8[k, 224, 224, 3] and "face_seen":
    bool[k]; of the first interferer "other_mouth" and so on; and in evaluation "strange_mouth" and
    "strange_mouth_seen", of a speaker who is not heard, if there is one, or of another one.

    With `again` the enrolment is another clip, of which there is "enrolment_mouth" too; strange
    mouths are not drawn then.

    In training (`paired`) the first interferer has an enrolment too, "other_enrolment", and
    "other_speaker", so that a mixture has two voices to extract. Voices are played at one of
    `speeds`, a voice at speed k being another speaker: label + k * `num_speakers`.

    With a `shortest` above 0 each mixture has from so many samples to `num_samples`, drawn for it,
    or fewer where the recording is shorter.

    Everything is drawn from the row's random numbers; in evaluation from `seed` and i. Each choice
    has numbers of its own, so that one more interferer changes none of the others.
    """

    crops: speech.SpeechCrops
    places: Int[np.ndarray, "m"]
    config: MixingConfig
    num_samples: int
    num_enrolment: int
    seed: int = 0
    around: surroundings.Surroundings | None = None
    paired: bool = False
    speeds: tuple[float, ...] = (1.0,)
    num_speakers: int = 0
    films: films_lib.Films | None = None
    again: bool = False
    keeps_late: bool = False
    shortest: int = 0

    def __post_init__(self) -> None:
        if self.films and self.speeds != (1.0,):
            raise errors.UserError(
                f"config.augment.speeds={self.speeds}: what is seen of a speaker does not go with "
                "another speed. Leave it at (1.0,)."
            )
        most = self.config.interferers[1]
        if not most and self.paired:
            raise errors.UserError(
                "config.mixing.interferers=(0, 0): of every training mixture two voices are "
                "wanted. Networks of one voice in noise are config.model.kind=visualvoice with "
                "config.model.visualvoice.enhancement=True."
            )
        if not most and not (self.around and self.around.kinds):
            raise errors.UserError(
                "config.mixing.interferers=(0, 0) without noise: nothing is in the mixtures but "
                "the voice. Give config.augment.noise.root (or music, babble), or make noise with "
                "config.augment.hiss.probability=1."
            )
        needed = max(2, 1 + most)  # strange mouths and enrolments are of others
        if len(self._members) < needed:
            raise errors.UserError(
                f"{self.crops.source.name}: {len(self._members)} speaker(s), but a mixture takes "
                f"up to {needed}. Take more data, or lower config.mixing.interferers."
            )

    @property
    def identity(self) -> Mapping[str, str]:
        """Which recordings, and what is made of them."""
        how = (self.config, self.num_samples, self.num_enrolment, self.places.tolist())
        around = self.around.identity if self.around else {}
        seen = {"films": repr(self.films.pictures)} if self.films else {}
        late = {"late": "no voice"} if "rir" in around and not self.keeps_late else {}
        least = {"shortest": str(self.shortest)} if self.shortest else {}
        return {**self.crops.identity, "mixing": repr(how), **around, **seen, **late, **least}

    @functools.cached_property
    def _members(self) -> tuple[Int[np.ndarray, "n"], ...]:
        """The recordings of each speaker."""
        order = np.argsort(self.crops.labels, kind="stable")
        bounds = np.flatnonzero(np.diff(self.crops.labels[order])) + 1
        return tuple(np.split(order, bounds))

    @functools.cached_property
    def _speaker(self) -> Int[np.ndarray, "n"]:
        """Of each recording, the place among `_members`."""
        return np.unique(self.crops.labels, return_inverse=True)[1]

    @functools.cached_property
    def lengths(self) -> Int[np.ndarray, "m"]:
        """Samples of each mixture."""
        whole = self.crops.index.lengths[self.places]
        alone = np.array([len(self._members[s]) == 1 for s in self._speaker[self.places]], bool)
        return np.minimum(np.where(alone, whole // 2, whole), self.num_samples)

    @property
    def num_voices(self) -> int:
        """Of a mixture, at most."""
        return 1 + self.config.interferers[1]

    def __len__(self) -> int:
        return len(self.places)

    def draw(
        self, i: int, rng: np.random.Generator | None, lengths: Mapping[str, int]
    ) -> dict[str, Any]:
        """Mixture i, the same in every bucket."""
        del lengths
        if rng is None:
            rng = np.random.default_rng([self.seed, zlib.crc32(b"mixtures"), i])
        choice = examples.own_stream(rng, "choices")
        least, most = self.config.interferers
        absent, count = choice.random() < self.config.absent, choice.integers(least, most + 1)
        level = 10 ** (choice.uniform(*self.config.level_db) / 20)
        samples = self.num_samples
        if self.shortest:
            stream = examples.own_stream(rng, "length")
            samples = int(stream.integers(self.shortest, samples, endpoint=True))
        target, enrolment = self._voice(int(self.places[i]), samples, rng)
        own = self._speaker[self.places[i]]
        others = choice.choice(len(self._members) - 1, most, replace=False)[:count]
        others += others >= own
        around = self.around
        room = around is not None and around.has_room(examples.own_stream(rng, "room"))
        sources = np.zeros((len(target["audio"]), 1 + most + (around is not None)), np.float32)
        sources[:, 0], late = self._heard(target["audio"], room, rng, "target room")
        heard, known, seen = np.full(most, -1, np.int32), [], {}
        for k, speaker in enumerate(others):
            stream = examples.own_stream(rng, f"interferer {k}")
            members = self._members[speaker]
            begin, voice, *enrolments = self._interferer(sources, 1 + k, members, stream, room)
            heard[k] = voice["index"]
            known += enrolments
            if not k and self.films:
                seen = self._mouth("other_", voice, begin, len(sources))
                seen |= self._face("other_", voice, rng)
        if around is not None:
            sources[:, -1] += around.noise(sources[:, 0], target, rng, needed=not most)
        rest = sources[:, 1:].sum(1) + late
        snr = signals.decibels(signals.power(sources[:, 0]) / signals.power(rest))
        if absent:
            sources[:, 0] = 0
        elif around is not None:
            sources[:, -1] += late
        shown, noisy = self._shown(enrolment, int(own), examples.own_stream(rng, "noisy enrolment"))
        power = signals.power(sources.sum(1))
        row = {
            "sources": sources * np.float32(level / power**0.5),
            "enrolment": shown,
            "present": np.bool_(not absent),
            "noisy": np.bool_(noisy),
            "snr_db": np.float32(snr),
            "index": target["index"],
            "target_index": target["index"],
            "speaker": target["label"],
            "enrolment_index": enrolment["index"],
            "interferer_index": heard,
            "id": target["id"],
        }
        if self.films:
            row |= self._mouth("", target, 0, len(sources)) | self._face("", target, rng) | seen
        if self.films and self.again:
            row |= self._mouth("enrolment_", enrolment, 0, len(enrolment["audio"]))
        elif self.films and not self.paired:
            row |= self._strange(target, heard, rng)
        if self.paired:
            rng = examples.own_stream(rng, "other noisy enrolment")
            row["other_enrolment"] = self._shown(known[0], int(others[0]), rng)[0]
            row["other_speaker"] = known[0]["label"]
        return row

    def _heard(
        self, audio: Float[np.ndarray, "t"], room: bool, rng: np.random.Generator, name: str
    ) -> tuple[Float[np.ndarray, "t"], Float[np.ndarray, "t"]]:
        """(what of a voice is wanted, what its room adds after it)"""
        if not room:
            return audio, np.zeros_like(audio)
        return self.around.reverberate(audio, examples.own_stream(rng, name))

    def _shown(
        self, enrolment: Mapping[str, Any], own: int, rng: np.random.Generator
    ) -> tuple[Float[np.ndarray, "n"], bool]:
        """(an enrolment as it is given, whether another voice or noise is in it)"""
        audio = enrolment["audio"]
        if rng.random() >= self.config.noisy_enrolment:
            return audio, False
        ratio = rng.uniform(*self.config.enrolment_snr_db)
        kinds = self.around.kinds if self.around else ()
        kind = int(rng.integers(1 + len(kinds)))
        if kind:
            added = self.around.stretch(kinds[kind - 1], len(audio), enrolment, rng)
        else:
            speaker = int(rng.integers(len(self._members) - 1))
            members = self._members[speaker + (speaker >= own)]
            place = int(members[rng.integers(len(members))])
            voice = self.crops.draw(place, rng, {"audio": len(audio)})["audio"]
            start = int(rng.integers(len(audio) - len(voice) + 1))
            added = np.pad(voice, (start, len(audio) - len(voice) - start))
        return audio + signals.at_ratio(added, audio, ratio), True

    @functools.cached_property
    def _played(self) -> tuple[speech.SpeechCrops, ...]:
        """The recordings at each of the speeds."""
        labels = self.crops.labels
        return tuple(
            dataclasses.replace(self.crops, speeds=(s,), labels=labels + k * self.num_speakers)
            for k, s in enumerate(self.speeds)
        )

    def _voice(
        self, place: int, most: int, rng: np.random.Generator
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """A stretch of the recording at `place`, and one of another by the same speaker."""
        same = self._members[self._speaker[place]]
        choice = examples.own_stream(rng, "enrolment")
        crops = self._played[examples.own_stream(rng, "speed").integers(len(self.speeds))]
        if len(same) > 1:
            others = same[same != place]
            other = int(others[choice.integers(len(others))])
            target = crops.draw(place, examples.own_stream(rng, "target"), {"audio": most})
            return target, crops.draw(other, choice, {"audio": self.num_enrolment})
        whole = crops.draw(place, None, {})
        audio = whole["audio"]
        count = min(most, len(audio) // 2)
        start = self._grained(choice, len(audio) - count)
        # The larger part of the rest, of which that is taken which is farther away.
        first, end = 0, min(start, self.num_enrolment)
        if len(audio) - start - count > start:
            first, end = max(start + count, len(audio) - self.num_enrolment), len(audio)
            first += -first % self.crops.grain

        def stretch(first: int, end: int) -> dict[str, Any]:
            return {**whole, "audio": audio[first:end], "start": np.int32(first)}

        return stretch(start, start + count), stretch(first, end)

    def _grained(self, rng: np.random.Generator, most: int) -> int:
        """From 0 to `most`, where a film can be cut."""
        return self.crops.grain * int(rng.integers(most // self.crops.grain + 1))

    def _mouth(
        self, name: str, voice: Mapping[str, Any], begin: int, samples: int
    ) -> dict[str, np.ndarray]:
        """The mouth of a voice that is heard from `begin` on, over a mixture."""
        films = self.films
        mouth = np.zeros((films.frames(samples), *films_lib.MOUTH), np.uint8)
        there, first = np.zeros(len(mouth), bool), begin // films.grain
        film, known = films.mouth(int(voice["index"]), int(voice["start"]), len(voice["audio"]))
        mouth[first : first + len(film)], there[first : first + len(film)] = film, known
        return {f"{name}mouth": mouth, f"{name}mouth_seen": there}

    def _face(
        self, name: str, voice: Mapping[str, Any], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Portraits of who speaks: drawn in training, the first ones in evaluation."""
        training = self.paired or self.again
        drawn = examples.own_stream(rng, f"{name}face") if training else None
        face, there = self.films.face(int(voice["index"]), drawn)
        return {f"{name}face": face, f"{name}face_seen": there}

    def _strange(
        self, target: Mapping[str, Any], heard: Int[np.ndarray, "n"], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """The mouth of somebody else, who is not in the mixture either where there is one."""
        drawn, positions = examples.own_stream(rng, "strange"), self.crops.index.positions
        here = np.searchsorted(positions, [int(target["index"]), *heard[heard >= 0]])
        speakers = self._speaker[here]
        others = np.flatnonzero(~np.isin(self._speaker, speakers))
        if not len(others):
            others = np.flatnonzero(self._speaker != speakers[0])
        place = int(others[drawn.integers(len(others))])
        samples = len(target["audio"])
        start = self._grained(drawn, max(0, int(self.crops.index.lengths[place]) - samples))
        mouth, there = self.films.mouth(int(positions[place]), start, samples)
        return {"strange_mouth": mouth, "strange_mouth_seen": there}

    def _interferer(
        self,
        sources: Float[np.ndarray, "t s"],
        column: int,
        members: Int[np.ndarray, "n"],
        rng: np.random.Generator,
        room: bool,
    ) -> tuple[Any, ...]:
        """Puts a voice into a column, scaled against the target.

        Where it begins, what it was, and for the first one in training what it may be known by.
        """
        snr, overlap = rng.uniform(*self.config.snr_db), rng.uniform(*self.config.overlap)
        place = int(members[rng.integers(len(members))])
        most = max(1, round(overlap * len(sources)))
        if self.paired and column == 1:
            drawn = self._voice(place, most, rng)
        else:
            drawn = (self.crops.draw(place, rng, {"audio": most}),)
        audio = drawn[0]["audio"]
        start = self._grained(rng, len(sources) - len(audio))
        end = start + len(audio)
        audio, late = self._heard(audio, room, rng, "room")
        whole = audio + late
        scale = signals.scale(whole, sources[:, 0], snr)
        sources[start:end, column] = scale * (whole if self.keeps_late else audio)
        if room and not self.keeps_late:
            sources[start:end, -1] += scale * late
        return start, *drawn
