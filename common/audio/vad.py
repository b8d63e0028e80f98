"""Voice activity by energy, as Kaldi's `compute-vad` decides it, or by WebRTC's detector.

The rule of Kaldi's `ivector/voice-activity-detection` takes every frame for itself, by how many
frames around it are louder than a threshold that follows the recording's mean. It finds pauses in
clean recordings; it does not tell speech from other sounds. WebRTC's detector follows mixtures of
Gaussians for speech and for noise in six bands, and so works above steady noise too.
"""

import dataclasses

import numpy as np
import soxr
from jaxtyping import Bool, Float, Int

from common import errors

_SAMPLE_SCALE = 32768.0  # log energies are those of 16-bit samples, as in Kaldi
_FLOOR = float(np.finfo(np.float32).eps)


@dataclasses.dataclass(frozen=True)
class EnergyVad:
    """Options under Kaldi's names, with the values of its VoxCeleb recipe (conf/vad.conf).

    A frame is loud when its natural log energy is above `energy_threshold + energy_mean_scale *
    mean`, and speech when at least `proportion_threshold` of the frames at most `frames_context`
    away are loud. Raises ValueError for values that Kaldi refuses.
    """

    energy_threshold: float = 5.5
    energy_mean_scale: float = 0.5
    frames_context: int = 2
    proportion_threshold: float = 0.12
    window_ms: float = 25.0
    hop_ms: float = 10.0

    def __post_init__(self) -> None:
        if self.energy_mean_scale < 0 or self.frames_context < 0:
            raise ValueError(f"energy_mean_scale and frames_context must not be negative: {self}")
        if not 0 < self.proportion_threshold < 1:
            raise ValueError(f"proportion_threshold={self.proportion_threshold} is not in (0, 1)")

    def decide(
        self, audio: Float[np.ndarray, "t"], sample_rate_hz: int
    ) -> tuple[Bool[np.ndarray, "l"], float]:
        """Which frames hold speech, and the samples of a hop."""
        _, hop = _sizes(sample_rate_hz, self)
        return energy_vad(log_energy(audio, sample_rate_hz, self), self), float(hop)


@dataclasses.dataclass(frozen=True)
class WebRtcVad:
    """The detector of WebRTC (`common_audio/vad`), of the package webrtcvad-wheels.

    `aggressiveness`, 0 to 3: how sure it wants to be that a frame is speech. Frames are 10, 20 or
    30 ms; after speech it stays on for a few of them. Raises UserError without the package, and
    ValueError for values that it does not take.
    """

    aggressiveness: int = 1  # 2 leaves a third of some recordings of one word
    hop_ms: int = 30

    def __post_init__(self) -> None:
        if self.aggressiveness not in range(4) or self.hop_ms not in (10, 20, 30):
            raise ValueError(f"aggressiveness is 0 to 3, hop_ms 10, 20 or 30: {self}")
        _webrtcvad()

    def decide(
        self, audio: Float[np.ndarray, "t"], sample_rate_hz: int
    ) -> tuple[Bool[np.ndarray, "l"], float]:
        """Which frames hold speech, and the samples of a hop, which need not be whole."""
        rate = sample_rate_hz
        if rate not in (8000, 16000, 32000, 48000):  # it has no others
            rate = 16000
            audio = soxr.resample(np.asarray(audio, np.float32), sample_rate_hz, rate)
        hop = rate * self.hop_ms // 1000
        frames = -(-len(audio) // hop)
        samples = np.clip(np.rint(audio * _SAMPLE_SCALE), -_SAMPLE_SCALE, _SAMPLE_SCALE - 1)
        framed = np.pad(samples, (0, frames * hop - len(audio))).astype("<i2").reshape(frames, hop)
        detector = _webrtcvad().Vad(self.aggressiveness)
        speech = [detector.is_speech(frame.tobytes(), rate) for frame in framed]
        return np.array(speech, bool), sample_rate_hz * self.hop_ms / 1000


Detector = EnergyVad | WebRtcVad
DETECTORS = {"energy": EnergyVad, "webrtc": WebRtcVad}  # as `config.data.vad` names them


def energy_vad(
    log_energy: Float[np.ndarray, "l"], config: EnergyVad = EnergyVad()
) -> Bool[np.ndarray, "l"]:
    """Which frames hold speech."""
    frames = len(log_energy)
    if not frames:
        return np.zeros(0, bool)
    threshold = config.energy_threshold
    threshold += config.energy_mean_scale * float(np.mean(log_energy, dtype=np.float64))
    # loud[i]: how many of the first i frames are.
    loud = np.concatenate([[0], np.cumsum(log_energy > threshold)])
    place = np.arange(frames)
    first = np.maximum(place - config.frames_context, 0)
    end = np.minimum(place + config.frames_context + 1, frames)
    # Kaldi's numbers are float32: 3 of 5 are a proportion of 0.6 there.
    needed = (end - first).astype(np.float32) * np.float32(config.proportion_threshold)
    return loud[end] - loud[first] >= needed


def log_energy(
    audio: Float[np.ndarray, "t"], sample_rate_hz: int, config: EnergyVad = EnergyVad()
) -> Float[np.ndarray, "l"]:
    """Natural log energy of each frame, without its mean, as in Kaldi's MFCC with `raw_energy`.

    Frames stand in the middle of their hop (`snip_edges=false`): there is one for each hop of the
    recording, to the nearest, and its ends are mirrored.
    """
    window, hop = _sizes(sample_rate_hz, config)
    frames = (len(audio) + hop // 2) // hop
    if not frames:
        return np.zeros(0, np.float32)
    before = window // 2 - hop // 2
    after = max(0, (frames - 1) * hop + window - before - len(audio))
    padded = np.pad(audio.astype(np.float32), (before, after), mode="symmetric") * _SAMPLE_SCALE
    framed = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop][:frames]
    # The energy about the mean, without an array of all frames.
    energy = np.einsum("lw,lw->l", framed, framed, dtype=np.float64)
    energy -= np.mean(framed, axis=1, dtype=np.float64) ** 2 * window
    return np.log(np.maximum(energy, _FLOOR)).astype(np.float32)


def speech_stretches(
    audio: Float[np.ndarray, "t"], sample_rate_hz: int, detector: Detector = EnergyVad()
) -> Int[np.ndarray, "s 2"]:
    """First sample, and the one after the last, of each stretch of frames that hold speech.

    A frame stands for its hop, the last one for what is left of the recording.
    """
    speech, hop = detector.decide(audio, sample_rate_hz)
    edges = np.flatnonzero(np.diff(speech, prepend=False, append=False))
    stretches = np.minimum(np.rint(edges.reshape(-1, 2) * hop).astype(np.int64), len(audio))
    if len(speech) and speech[-1]:
        stretches[-1, 1] = len(audio)
    return stretches


def keep_speech(
    audio: Float[np.ndarray, "t"], sample_rate_hz: int, detector: Detector = EnergyVad()
) -> Float[np.ndarray, "n"]:
    """The samples of `speech_stretches`, one after the other; none where no frame holds speech."""
    stretches = speech_stretches(audio, sample_rate_hz, detector)
    return np.concatenate([audio[:0], *(audio[start:end] for start, end in stretches)])


def _webrtcvad():
    try:
        import webrtcvad
    except ImportError as error:
        raise errors.UserError(
            "config.data.vad=webrtc wants the package webrtcvad-wheels: pip install "
            "webrtcvad-wheels, or choose energy."
        ) from error
    return webrtcvad


def _sizes(sample_rate_hz: int, config: EnergyVad) -> tuple[int, int]:
    """Samples of a window and of a hop, truncated as in Kaldi."""
    milli = sample_rate_hz * 0.001
    return int(milli * config.window_ms), int(milli * config.hop_ms)
