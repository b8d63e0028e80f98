"""What the networks know of a row beside noise: a voice in one of several forms, a class, nothing.

Each is a function of (its frozen variables, the batch, how many samples of each voice are heard) to
vectors [b, size].
"""

import dataclasses
import math
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from common import errors
from common.audio import framing, frontend, mel
from common.audio.stft import window_function
from common.nn import masking
from common.task import Batch
from generation import voice

SOUNDS = ("statistics", "encoder", "mfcc")  # what there have to be recordings for
KINDS = (*SOUNDS, "class", "none")
_MELS, _LEAST_POWER, _RANGE_DB = 128, 1e-10, 80.0  # librosa's


@runtime_checkable
class Hearing(Protocol):
    """`size`: of its vectors. `init` makes frozen variables as of no training, or None."""

    @property
    def size(self) -> int: ...

    def init(self, key: Key[Array, ""]) -> Any: ...

    def __call__(
        self, frozen: Any, batch: Batch, lengths: Int[Array, "b"] | None
    ) -> Float[Array, "b d"]: ...


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Mean and deviation of log-mel bands."""

    front_end: frontend.LogMelConfig

    @property
    def size(self) -> int:
        return 2 * self.front_end.num_mels

    def init(self, key: Key[Array, ""]) -> None:
        return None

    def __call__(
        self, frozen: Any, batch: Batch, lengths: Int[Array, "b"] | None
    ) -> Float[Array, "b d"]:
        return voice.statistics(batch["audio"], _whole(batch["audio"], lengths), self.front_end)


@dataclasses.dataclass(frozen=True)
class Encoded:
    """The vector of a trained encoder, which stays as it is."""

    encoder: voice.VoiceEncoder
    front_end: frontend.LogMelConfig

    @property
    def size(self) -> int:
        return self.encoder.features

    def init(self, key: Key[Array, ""]) -> dict[str, Any]:
        return voice.init_encoder(self.encoder, key, self.front_end.num_mels)

    def __call__(
        self, frozen: Any, batch: Batch, lengths: Int[Array, "b"] | None
    ) -> Float[Array, "b d"]:
        audio = batch["audio"]
        lengths = _whole(audio, lengths)
        found = voice.embed(self.encoder, frozen, audio, lengths, self.front_end)
        return jax.lax.stop_gradient(found)


@dataclasses.dataclass(frozen=True)
class Mfcc:
    """Cepstra of a fixed number of frames end to end, each scaled by its mean and deviation in the
    training recordings.

    As asariri hears: 16 of each of the 40 frames that 5 s at 16 kHz have with a hop of 2048 make
    640 numbers, 98 make 3920. Theirs are not scaled.
    """

    coefficients: int
    hop_samples: int
    num_fft: int
    sample_rate_hz: int
    samples: int

    @property
    def size(self) -> int:
        return self.coefficients * (1 + self.samples // self.hop_samples)

    def init(self, key: Key[Array, ""]) -> dict[str, Array]:
        shape = (self.coefficients,)
        return {"mean": jnp.zeros(shape), "deviation": jnp.ones(shape)}

    def __call__(
        self, frozen: Any, batch: Batch, lengths: Int[Array, "b"] | None
    ) -> Float[Array, "b d"]:
        audio = batch["audio"]
        found, frames = self.cepstra(audio, _whole(audio, lengths))
        scaled = (found - frozen["mean"][None, None]) / frozen["deviation"][None, None]
        return masking.zero_padding(scaled, frames).reshape(audio.shape[0], -1)

    def cepstra(
        self, audio: Float[Array, "b t"], lengths: Int[Array, "b"]
    ) -> tuple[Float[Array, "b l c"], Int[Array, "b"]]:
        """`librosa.feature.mfcc` by its defaults, and the number of frames: 1 + length // hop.

        Frame i is centred on sample i * hop; 128 bands of Slaney's; decibels of power, 80 at most
        below the loudest of the row; orthonormal DCT.
        """
        audio = masking.zero_padding(audio.astype(jnp.float32)[:, :, None], lengths)[:, :, 0]
        frames = framing.frame(
            jnp.pad(audio, ((0, 0), (self.num_fft // 2, 0))),
            window_size=self.num_fft,
            hop_size=self.hop_samples,
            num_frames=1 + audio.shape[1] // self.hop_samples,
        )
        window = window_function("hann", self.num_fft).astype(np.float32)
        spectrum = jnp.fft.rfft(frames * window[None, None, :])
        power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
        bank = mel.mel_filter_bank(
            num_mels=_MELS,
            num_fft=self.num_fft,
            sample_rate_hz=self.sample_rate_hz,
            scale="slaney",
            norm="slaney",
        )
        mels = jnp.matmul(power, bank, precision="highest")
        decibels = 10 * jnp.log10(jnp.maximum(mels, _LEAST_POWER))
        count = 1 + lengths // self.hop_samples
        true = masking.length_mask(count, frames.shape[1])[:, :, None]
        loudest = jnp.max(decibels, axis=(1, 2), keepdims=True, where=true, initial=-jnp.inf)
        decibels = jnp.maximum(decibels, loudest - _RANGE_DB)
        matrix = mel.dct_matrix(_MELS, self.coefficients)
        cepstra = jnp.matmul(decibels, matrix, precision="highest")
        return masking.zero_padding(cepstra, count), count

    def scales(self, audio: Float[Array, "b t"]) -> dict[str, Array]:
        """The frozen variables: of each coefficient over all frames of whole recordings."""
        found, _ = self.cepstra(audio, _whole(audio, None))
        deviation = jnp.std(found, axis=(0, 1))
        # One that hardly moves is not blown up.
        return {"mean": jnp.mean(found, axis=(0, 1)), "deviation": jnp.maximum(deviation, 1e-2)}


@dataclasses.dataclass(frozen=True)
class OfClass:
    """One-hot: which of the training people, or classes, it is."""

    size: int

    def init(self, key: Key[Array, ""]) -> None:
        return None

    def __call__(
        self, frozen: Any, batch: Batch, lengths: Int[Array, "b"] | None
    ) -> Float[Array, "b d"]:
        return jax.nn.one_hot(batch["label"], self.size)


@dataclasses.dataclass(frozen=True)
class Nothing:
    """A zero: noise is all that a picture is made of."""

    size: int = 1

    def init(self, key: Key[Array, ""]) -> None:
        return None

    def __call__(
        self, frozen: Any, batch: Batch, lengths: Int[Array, "b"] | None
    ) -> Float[Array, "b d"]:
        return jnp.zeros((next(iter(batch.values())).shape[0], self.size))


def make(config: Any, encoder_config: Any, num_classes: int) -> Hearing:
    """That of `config.voice`; `encoder_config` is that of the run of the encoder, if any.

    Raises UserError for settings that cannot be.
    """
    settings, kind = config.voice, config.voice.kind
    if kind == "class":
        return OfClass(num_classes)
    if kind == "none":
        return Nothing()
    if kind == "encoder":
        front_end = voice.front_end(encoder_config)
        return Encoded(voice.make_encoder(encoder_config), front_end)
    if kind == "mfcc":
        samples = math.ceil(config.data.crop_seconds * config.data.sample_rate_hz)
        return Mfcc(**settings.mfcc, sample_rate_hz=config.data.sample_rate_hz, samples=samples)
    return Statistics(voice.front_end(config))


def check(config: Any) -> None:
    """Raises UserError for settings of `config.voice` that cannot be."""
    settings, data = config.voice, config.data
    if settings.kind not in KINDS:
        raise errors.UserError(
            f"config.voice.kind={settings.kind!r} is unknown; choose one of {', '.join(KINDS)}."
        )
    if settings.kind != "mfcc":
        return
    of, cepstra = "config.voice.mfcc", settings.mfcc
    if not 1 <= cepstra.coefficients <= _MELS:
        raise errors.UserError(f"{of}.coefficients={cepstra.coefficients}: 1 to {_MELS}.")
    if cepstra.hop_samples < 1 or cepstra.num_fft < 2 or cepstra.num_fft % 2:
        raise errors.UserError(
            f"{of}: hop_samples={cepstra.hop_samples} has to be positive, and num_fft="
            f"{cepstra.num_fft} even."
        )
    if data.crop_seconds != data.eval_seconds:
        raise errors.UserError(
            f"config.voice.kind=mfcc hears as much of every voice: config.data.eval_seconds="
            f"{data.eval_seconds:g} has to be config.data.crop_seconds={data.crop_seconds:g} (5 "
            "for 40 frames)."
        )
    if tuple(settings.crop_frames) != (0, 0):
        raise errors.UserError(
            "config.voice.kind=mfcc hears as much of every voice: leave config.voice.crop_frames "
            "at (0, 0)."
        )


def _whole(audio: Float[Array, "b t"], lengths: Int[Array, "b"] | None) -> Int[Array, "b"]:
    """Lengths, by default those of whole rows."""
    return jnp.full(audio.shape[:1], audio.shape[1], jnp.int32) if lengths is None else lengths
