"""The face of a voice while it speaks: a network that hears all that was said so far."""

import numpy as np
from jaxtyping import Float, UInt8

from common.audio import io, vad
from generation import data, maker

_SECONDS = 30.0  # of sound that are kept, the last ones
_RECORDED_STEP_SECONDS = 10.0  # no face is drawn between


class Listener:
    """One voice, as its samples come, and the face that goes with it so far.

    The face is of the vector of all that was said, not of the last second, which is as much what
    was said as who said it: the face would change with every word. The vector of all settles, and
    with it the face; so the noise is the same all along.

    Sound is heard in steps. One without speech changes nothing: it is a pause. What finds speech is
    that of `config.data.vad`, or energy where the training cut no pauses out, as people are silent
    longer before a microphone than in a corpus. It looks at all that is kept anew each time: noise
    at the beginning, the loudest there is so far, goes when a voice is heard.
    """

    def __init__(
        self, network: maker.FaceMaker, *, seed: int = 0, step_seconds: float = 1.0
    ) -> None:
        """Raises UserError for a network that hears no voices."""
        network.check_hears()
        settings, self._rate = network.config, network.sample_rate_hz
        self.step_seconds = step_seconds
        self._network, self._noise = network, network.noise(seed, 1)
        self._detector = data.detector(settings) or vad.EnergyVad()
        self._wanted = round(settings.data.eval_seconds * self._rate)
        # Cepstra end to end are those of a fixed time.
        kept = 0 if settings.voice.kind == "mfcc" else round(_SECONDS * self._rate)
        self._most = max(self._wanted, kept)
        self._least = settings.data.min_seconds * self._rate
        self._step = round(step_seconds * self._rate)
        self._waiting: list[np.ndarray] = []
        self._heard = 0
        self._sound = self._voice = np.zeros(0, np.float32)

    @property
    def heard_seconds(self) -> float:
        """How much sound was heard."""
        return self._heard / self._rate

    @property
    def voice_seconds(self) -> float:
        """How much speech the face is of."""
        return len(self._voice) / self._rate

    @property
    def has_voice(self) -> bool:
        """Whether it is speech enough for a face: `config.data.min_seconds`."""
        return len(self._voice) >= self._least

    def gather(self, samples: Float[np.ndarray, "n"]) -> bool:
        """Takes samples at the network's rate; whether there is a step of them now."""
        self._waiting.append(samples)
        return sum(map(len, self._waiting)) >= self._step

    def face(self, *, last: bool = False) -> UInt8[np.ndarray, "h w c"] | None:
        """Listens; the face, or None where there is no more of the voice than before."""
        if not self.listen(last=last):
            return None
        return self._network.drawn(self.vector()[None], self._noise)[0]

    def listen(self, *, last: bool = False) -> bool:
        """Hears the steps that were gathered, at the end (`last`) the rest too; whether there is
        more of the voice than before."""
        waiting = np.concatenate([np.zeros(0, np.float32), *self._waiting])
        steps = len(waiting) // self._step
        parts = np.split(waiting, np.arange(1, steps + 1) * self._step)
        self._waiting = [] if last else [parts.pop()]
        return any([self._hear(part) for part in parts])

    def _hear(self, part: Float[np.ndarray, "n"]) -> bool:
        """Whether there is more of the voice."""
        self._heard += len(part)
        if data.is_silent(part):
            return False
        sound = np.concatenate([self._sound, part])[-self._most :]
        stretches = vad.speech_stretches(sound, self._rate, self._detector)
        if not len(stretches) or stretches[-1, 1] <= len(sound) - len(part):
            return False
        self._sound = sound
        self._voice = np.concatenate([sound[start:end] for start, end in stretches])
        return self.has_voice

    def vector(self) -> Float[np.ndarray, "d"]:
        """What the network hears in the voice so far; of nothing, where there is none yet."""
        voice = self._voice
        if len(voice) < self._wanted:  # repeated, as in evaluations
            voice = np.resize(voice, self._wanted)
        padded = np.pad(voice, (0, self._most - len(voice)))
        return self._network.vector(padded, len(voice))


def heard(
    network: maker.FaceMaker, audio: Float[np.ndarray, "n"], name: object
) -> Float[np.ndarray, "d"]:
    """The vector of a whole recording, as if a `Listener` had heard it come.

    Raises io.AudioError, which calls it `name`: silent, or too little speech in it.
    """
    data.check_voice(audio, name)
    voice = Listener(network, step_seconds=_RECORDED_STEP_SECONDS)
    voice.gather(audio)
    voice.listen(last=True)
    if not voice.has_voice:
        least = network.config.data.min_seconds
        raise io.AudioError(
            name,
            f"{voice.voice_seconds:.2f} s of speech are too short to make a face of; it takes "
            f"{least:g} s (config.data.min_seconds)",
        )
    return voice.vector()
