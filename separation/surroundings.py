"""What is round the voices of a mixture: noise, music, babble, and the room."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.signal
from jaxtyping import Float

from common.data import examples
from separation import signals

EARLY_SECONDS = 0.05


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """Companions (see `common.data.splits.companions`) as they are mixed on the host.

    `snr_db` is the power of the target over that of each kind of noise, over the whole mixture. A
    room is "rir" among the companions: all voices are in it, each with a response of its own. What
    is wanted of the target is its direct sound with the early reflections, up to 50 ms after it, as
    the intelligibility of speech (C50, ISO 3382-1) and dereverberating enhancers count them; the
    late part is noise.
    """

    companions: Mapping[str, examples.Companion]
    snr_db: Mapping[str, tuple[float, float]]
    sample_rate_hz: int
    said: set[str] = dataclasses.field(default_factory=set, compare=False)

    @property
    def identity(self) -> Mapping[str, str]:
        """What is drawn, and how it is mixed."""
        drawn = {name: companion.identity for name, companion in self.companions.items()}
        return {**drawn, "snr_db": repr(sorted(self.snr_db.items()))}

    @property
    def kinds(self) -> tuple[str, ...]:
        """Those that are noise."""
        return tuple(name for name in self.companions if name != "rir")

    def noise(
        self,
        target: Float[np.ndarray, "t"],
        row: Mapping[str, Any],
        rng: np.random.Generator,
        *,
        needed: bool = False,
    ) -> Float[np.ndarray, "t"]:
        """The noises of a mixture together; `needed`: where none is drawn, one of them is."""
        total = np.zeros_like(target)
        for name in self.kinds:
            stream = examples.own_stream(rng, name)
            ratio = stream.uniform(*self.snr_db[name])
            companion = self.companions[name]
            drawn = self._drawn(name, companion, len(target), row, stream)
            if len(drawn):
                total += signals.at_ratio(drawn, target, ratio)
        if needed and self.kinds and not total.any():
            stream = examples.own_stream(rng, "needed")
            name = self.kinds[int(stream.integers(len(self.kinds)))]
            ratio = stream.uniform(*self.snr_db[name])
            total = signals.at_ratio(self.stretch(name, len(target), row, stream), target, ratio)
        return total

    def stretch(
        self, name: str, length: int, row: Mapping[str, Any], rng: np.random.Generator
    ) -> Float[np.ndarray, "n"]:
        """So much of a kind of noise, whatever its probability; zeros if it cannot be read."""
        companion = dataclasses.replace(self.companions[name], probability=1.0)
        drawn = self._drawn(name, companion, length, row, rng)
        return drawn if len(drawn) else np.zeros(length, np.float32)

    def has_room(self, rng: np.random.Generator) -> bool:
        """Whether a mixture is in a room."""
        room = self.companions.get("rir")
        return room is not None and rng.random() < room.probability

    def reverberate(
        self, audio: Float[np.ndarray, "t"], rng: np.random.Generator
    ) -> tuple[Float[np.ndarray, "t"], Float[np.ndarray, "t"]]:
        """(direct and early sound, late sound) of a voice in the room.

        Both together have the energy of the voice; the direct sound stays where it was in time.
        """
        room = dataclasses.replace(self.companions["rir"], probability=1.0)
        response = examples.draw_beside({}, "rir", room, rng, room.length, self.said)
        early = round(EARLY_SECONDS * self.sample_rate_hz)
        return split_reverberation(audio, response, early)

    def _drawn(
        self,
        name: str,
        companion: examples.Companion,
        length: int,
        row: Mapping[str, Any],
        rng: np.random.Generator,
    ) -> Float[np.ndarray, "n"]:
        """A stretch of noise, repeated from a random start where it is short; or nothing."""
        drawn = examples.draw_beside(row, name, companion, rng, length, self.said)
        if not len(drawn):
            return drawn
        start = int(rng.integers(len(drawn))) if len(drawn) < length else 0
        return np.resize(np.roll(drawn, -start), length)


def split_reverberation(
    audio: Float[np.ndarray, "t"], response: Float[np.ndarray, "r"], early: int
) -> tuple[Float[np.ndarray, "t"], Float[np.ndarray, "t"]]:
    """(early, late) part of audio in a room: what the response holds up to `early` samples after
    its largest one, which falls on time 0, and the rest. No room where the response is silent."""
    if not response.any():
        return audio, np.zeros_like(audio)
    direct = int(np.argmax(np.abs(response)))
    border = direct + early
    tail = np.where(np.arange(len(response)) < border, 0, response)
    both = np.stack([response - tail, tail])
    parts = scipy.signal.fftconvolve(audio[None], both, axes=1)[:, direct:][:, : len(audio)]
    parts = np.pad(parts, ((0, 0), (0, len(audio) - parts.shape[1])))
    gain = (np.sum(np.square(audio)) / max(np.sum(np.square(parts.sum(0))), 1e-20)) ** 0.5
    early_part, late_part = (gain * parts).astype(np.float32)
    return early_part, late_part
