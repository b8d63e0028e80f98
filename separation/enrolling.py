"""From recordings of a voice to its cue, and what is wrong with them."""

import dataclasses
import logging
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from common.audio import io
from separation import cue as cue_lib

log = logging.getLogger(__name__)

Recording = io.PathLike | bytes | Num[np.ndarray, "..."]

MIN_SECONDS = 1.0
_CLIPPED_SHARE = 0.01  # of samples at full scale


@dataclasses.dataclass(frozen=True)
class Enroller:
    """`encode` makes cues of samples at `sample_rate_hz`, [1, n] of which the first `lengths` [1]
    are true; n is always that of `max_seconds`, as in training."""

    encode: Callable[[Float[Array, "1 n"], Int[Array, "1"]], Float[Array, "1 c"]]
    sample_rate_hz: int
    channel: str | int
    max_seconds: float

    def cue(
        self, enrolment: Recording | Sequence[Recording] | None, rate: int | None = None
    ) -> Float[Array, "1 c"]:
        """What is to be known of a voice. None: the null cue. Of several recordings: the mean.

        `rate` (Hz) goes with samples. Raises io.AudioError, also for a recording that is silent or
        shorter than a second; of a long one it takes the first seconds, as in training.
        """
        if isinstance(enrolment, list | tuple):
            if not enrolment:
                raise io.AudioError("enrolment", "a list without any: give one, or None")
            return cue_lib.unit(jnp.mean(jnp.stack([self.cue(x, rate) for x in enrolment]), axis=0))
        audio = np.zeros(0, np.float32)
        if enrolment is not None:
            name = "enrolment" if isinstance(enrolment, np.ndarray | bytes) else enrolment
            audio = self.load(enrolment, rate)
            if len(audio) < MIN_SECONDS * self.sample_rate_hz:
                raise io.AudioError(
                    name,
                    f"{len(audio) / self.sample_rate_hz:.2f} s are too short to know a voice by: "
                    f"give {MIN_SECONDS:g} s at least, better five",
                )
            if not audio.any():
                raise io.AudioError(name, f"silent: {io.silence(self.channel)}")
            if not audio[: self.longest].any():
                raise io.AudioError(
                    name,
                    f"silent for {self.max_seconds:g} s, and a voice is known by the first "
                    f"{self.max_seconds:g} s: cut the silence off",
                )
            if np.mean(np.abs(audio) >= 0.999) > _CLIPPED_SHARE:
                log.warning(
                    "%s: clipped, the voice may be missed; record it at a lower level.", name
                )
        return self.cue_of(audio)

    def cue_of(self, audio: Float[np.ndarray, "n"]) -> Float[Array, "1 c"]:
        """That of samples at the network's rate, whatever they are; of none the null cue."""
        padded = np.zeros(self.longest, np.float32)
        audio = audio[: len(padded)]
        padded[: len(audio)] = audio
        return self.encode(padded[None], jnp.array([len(audio)]))

    @property
    def longest(self) -> int:
        """Samples that a cue is made of, at most."""
        return round(self.max_seconds * self.sample_rate_hz)

    def load(self, recording: Recording, rate: int | None) -> Float[np.ndarray, "_"]:
        """The samples of a recording at the network's rate; raises io.AudioError."""
        return io.load_audio(
            recording,
            sample_rate_hz=self.sample_rate_hz,
            channel=self.channel,
            source_rate_hz=rate,
        )
