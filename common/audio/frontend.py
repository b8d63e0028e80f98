"""The front end: from waveforms to log-mel spectra and cepstra, inside the jitted step.

All functions are padding-exact: a row of a padded batch gets, in its own frames, the values that it
has alone, whatever stands beyond its length, and exact zeros in the frames beyond.
"""

import dataclasses
import math
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from common.audio import framing, kaldi, mel
from common.audio.stft import window_function
from common.nn import masking, norm

NORMALIZATIONS = ("none", "mean", "utterance", "causal")


@dataclasses.dataclass(frozen=True)
class LogMelConfig:
    """Log-mel spectrum: audio in [-1, 1], natural logarithm of mel power.

    `window` "" means hann, or povey when `compat` is "kaldi". `floor` is the least mel power:
    16-bit rounding noise lies near 1e-7, so 1e-6 hides it without touching speech.
    `normalize`: "none"; "mean" subtracts each band's mean over the true frames; "utterance" also
    divides by its standard deviation; "causal" does so with the frames so far, as a stream must.
    `compat="kaldi"` gives Kaldi's fbank of the same sizes instead: 16-bit scale, its mel triangles,
    per-frame DC removal and pre-emphasis, its floor, and only whole windows (`snip_edges`).
    """

    sample_rate_hz: int = 16000
    window_ms: float = 25.0
    hop_ms: float = 10.0
    num_mels: int = 80
    min_hz: float = 20.0
    max_hz: float | None = None
    mel_scale: mel.MelScale = "htk"
    mel_norm: Literal["none", "slaney"] = "none"
    num_fft: int | None = None
    preemphasis: float = 0.97
    window: str = ""
    floor: float = 1e-6
    normalize: str = "utterance"
    compat: str = "default"

    def __post_init__(self):
        if self.compat not in ("default", "kaldi"):
            raise ValueError(f'compat={self.compat!r} is neither "default" nor "kaldi"')
        if self.normalize not in NORMALIZATIONS:
            raise ValueError(
                f"normalize={self.normalize!r}: choose one of {', '.join(NORMALIZATIONS)}"
            )
        if self.window:
            window_function(self.window, 1)  # raises for one that there is not
        if self.hop_size < 1 or self.window_size < 1:
            raise ValueError(f"window and hop must be positive: {self}")
        if self.num_fft is not None and self.num_fft < self.window_size:
            raise ValueError(
                f"num_fft={self.num_fft} is below the {self.window_size}-sample window"
            )

    @property
    def window_size(self) -> int:
        return round(self.sample_rate_hz * self.window_ms / 1000)

    @property
    def hop_size(self) -> int:
        return round(self.sample_rate_hz * self.hop_ms / 1000)

    @property
    def fft_size(self) -> int:
        """`num_fft`, or the next power of two that holds the window."""
        return self.num_fft or 1 << math.ceil(math.log2(self.window_size))

    def num_frames(self, num_samples):
        """Frames of `num_samples` samples, `ceil(t / hop)`; on integers and on length arrays."""
        if self.compat == "kaldi":
            return self.kaldi().num_frames(num_samples)
        return -(-num_samples // self.hop_size)

    def filter_bank(self) -> Float[np.ndarray, "f m"]:
        """The mel filters used, `[fft_size // 2 + 1, num_mels]`."""
        return mel.mel_filter_bank(
            num_mels=self.num_mels,
            num_fft=self.fft_size,
            sample_rate_hz=self.sample_rate_hz,
            min_hz=self.min_hz,
            max_hz=self.max_hz,
            scale=self.mel_scale,
            norm=self.mel_norm,
        )

    def centres_hz(self) -> Float[np.ndarray, "m"]:
        """The centre frequencies of the mel bands."""
        low, high = mel.hz_to_mel([self.min_hz, self.max_hz or self.sample_rate_hz / 2])
        edges = np.linspace(low, high, self.num_mels + 2)
        return mel.mel_to_hz(edges[1:-1])

    def kaldi(self) -> kaldi.KaldiConfig:
        """The Kaldi options of the same sizes, for `compat="kaldi"`."""
        return kaldi.KaldiConfig(
            sample_rate_hz=self.sample_rate_hz,
            window_ms=self.window_ms,
            hop_ms=self.hop_ms,
            num_mels=self.num_mels,
            low_hz=self.min_hz,
            high_hz=self.max_hz or 0.0,
            preemphasis=self.preemphasis,
            window=self.window or "povey",
        )


def log_mel(
    audio: Float[Array, "b t"], lengths: Int[Array, "b"], config: LogMelConfig
) -> tuple[Float[Array, "b l m"], Int[Array, "b"]]:
    """Log-mel spectrum and its lengths: frame i starts at sample `i * hop`, `ceil(t / hop)` frames.

    The last frames reach past the end of their row and see zeros there. Always float32.
    """
    if config.compat == "kaldi":
        features, frame_lengths = kaldi.fbank(audio, lengths, config.kaldi())
    else:
        audio = emphasised(audio.astype(jnp.float32), lengths, config.preemphasis)
        frames = framing.frame(
            audio,
            window_size=config.window_size,
            hop_size=config.hop_size,
            num_frames=config.num_frames(audio.shape[1]),
        )
        # On a CPU the FFT takes a third of the time of the same DFT as one matrix product.
        window = window_function(config.window or "hann", config.window_size).astype(np.float32)
        spectrum = jnp.fft.rfft(frames * window[None, None, :], config.fft_size)
        power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
        # "highest": an accelerator would multiply in TF32 or bfloat16, three digits or two.
        mels = jnp.matmul(power, config.filter_bank(), precision="highest")
        features = jnp.log(jnp.maximum(mels, config.floor))
        frame_lengths = config.num_frames(lengths)
    return normalized(features, frame_lengths, config.normalize), frame_lengths


@dataclasses.dataclass(frozen=True)
class MfccConfig:
    """Cepstra of a log-mel spectrum; `normalize` acts on the cepstra, so `log_mel` has "none"."""

    log_mel: LogMelConfig = LogMelConfig(num_mels=40, normalize="none")
    num_ceps: int = 20
    lifter: float = 22.0
    normalize: str = "utterance"

    def __post_init__(self):
        if self.num_ceps > self.log_mel.num_mels:
            raise ValueError(f"num_ceps={self.num_ceps} exceeds {self.log_mel.num_mels} mel bands")
        if self.log_mel.normalize != "none" or self.log_mel.compat != "default":
            raise ValueError(
                'MfccConfig.log_mel needs normalize="none" and compat="default" '
                "(Kaldi's MFCC is common.audio.kaldi.mfcc)"
            )


def mfcc(
    audio: Float[Array, "b t"], lengths: Int[Array, "b"], config: MfccConfig
) -> tuple[Float[Array, "b l c"], Int[Array, "b"]]:
    """Mel-frequency cepstral coefficients: orthonormal DCT-II of the log-mel, then the lifter."""
    features, frame_lengths = log_mel(audio, lengths, config.log_mel)
    matrix = mel.dct_matrix(config.log_mel.num_mels, config.num_ceps)
    weights = mel.lifter(config.num_ceps, config.lifter)
    cepstra = jnp.matmul(features, matrix * weights, precision="highest")
    return normalized(cepstra, frame_lengths, config.normalize), frame_lengths


def normalized(
    features: Float[Array, "b l f"], lengths: Int[Array, "b"], normalize: str
) -> Float[Array, "b l f"]:
    """Zero mean ("mean"), also unit variance ("utterance"), per row and bin over true frames.

    "causal": `norm.causal_norm`. Frames beyond the length become exactly 0 in every case.
    """
    if normalize == "causal":
        return norm.causal_norm(features, lengths)
    if normalize != "none":
        features = features - masking.masked_mean(features, lengths)[:, None, :]
    if normalize == "utterance":
        variance = masking.masked_mean(jnp.square(features), lengths)
        # Keeps a band that does not move (digital silence, one frame) at 0.
        features = features / jnp.sqrt(variance + 1e-5)[:, None, :]
    return masking.zero_padding(features, lengths)


def emphasised(
    audio: Float[Array, "b t"], lengths: Int[Array, "b"], coefficient: float
) -> Float[Array, "b t"]:
    """`y[n] = x[n] - c x[n-1]` over the true samples, zeros beyond; `x[-1] = x[0]`, no click."""
    before = jnp.concatenate([audio[:, :1], audio[:, :-1]], axis=1)
    emphasised = audio - coefficient * before if coefficient else audio
    return masking.zero_padding(emphasised[:, :, None], lengths)[:, :, 0]
