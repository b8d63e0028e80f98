"""Kaldi's features in JAX: fbank, MFCC and spectrogram.

The arithmetic follows Kaldi's `feature-window`, `mel-computations` and `feature-{fbank,mfcc,
spectrogram}` (Povey et al. 2011), without dither, and is checked against archives that Kaldi wrote.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from common.audio import framing
from common.audio import mel as mel_scale
from common.audio.stft import window_function
from common.nn import masking

_SAMPLE_SCALE = 32768.0  # from [-1, 1] to the 16-bit range
_FLT_EPSILON = float(np.finfo(np.float32).eps)  # Kaldi's floor before every logarithm


@dataclasses.dataclass(frozen=True)
class KaldiConfig:
    """Options under Kaldi's names where a unit does not make them clearer; its fbank defaults.

    Kaldi's own MFCC default is `use_energy=True`; the energy is the raw one, before pre-emphasis
    and window. `high_hz` at or below 0 counts from the Nyquist frequency.
    """

    sample_rate_hz: int = 16000
    window_ms: float = 25.0
    hop_ms: float = 10.0
    window: str = "povey"
    preemphasis: float = 0.97
    remove_dc_offset: bool = True
    snip_edges: bool = True
    round_to_power_of_two: bool = True
    use_energy: bool = False
    num_mels: int = 23
    low_hz: float = 20.0
    high_hz: float = 0.0
    num_ceps: int = 13
    cepstral_lifter: float = 22.0

    @property
    def window_size(self) -> int:
        return int(self.sample_rate_hz * 0.001 * self.window_ms)  # truncated, as Kaldi does

    @property
    def hop_size(self) -> int:
        return int(self.sample_rate_hz * 0.001 * self.hop_ms)

    @property
    def fft_size(self) -> int:
        size = self.window_size
        return 1 << (size - 1).bit_length() if self.round_to_power_of_two else size

    def num_frames(self, num_samples):
        """Frames of `num_samples` samples; works on integers and on arrays of lengths.

        Whole windows only with `snip_edges`, else one per hop, rounded.
        """
        if self.snip_edges:
            frames = 1 + (num_samples - self.window_size) // self.hop_size
            # Not a maximum: floor division of a short signal may go far below 0.
            return frames * (num_samples >= self.window_size)
        return (num_samples + self.hop_size // 2) // self.hop_size


def fbank(
    audio: Float[Array, "b t"], lengths: Int[Array, "b"], config: KaldiConfig
) -> tuple[Float[Array, "b l f"], Int[Array, "b"]]:
    """`compute-fbank-feats`: log mel energies, with `use_energy` after the log energy.

    Returns the features, zero beyond their lengths, and the lengths.
    """
    power, log_energy, frame_lengths = _power_spectrum(audio, lengths, config)
    features = _log_mel(power, config)
    if config.use_energy:
        features = jnp.concatenate([log_energy, features], axis=-1)
    return masking.zero_padding(features, frame_lengths), frame_lengths


def mfcc(
    audio: Float[Array, "b t"], lengths: Int[Array, "b"], config: KaldiConfig
) -> tuple[Float[Array, "b l c"], Int[Array, "b"]]:
    """`compute-mfcc-feats`: `num_ceps` cepstra; `use_energy` puts the log energy in place of c0."""
    power, log_energy, frame_lengths = _power_spectrum(audio, lengths, config)
    matrix = mel_scale.dct_matrix(config.num_mels, config.num_ceps)
    weights = mel_scale.lifter(config.num_ceps, config.cepstral_lifter)
    features = jnp.matmul(_log_mel(power, config), matrix * weights, precision="highest")
    if config.use_energy:
        features = jnp.concatenate([log_energy, features[..., 1:]], axis=-1)
    return masking.zero_padding(features, frame_lengths), frame_lengths


def spectrogram(
    audio: Float[Array, "b t"], lengths: Int[Array, "b"], config: KaldiConfig
) -> tuple[Float[Array, "b l f"], Int[Array, "b"]]:
    """`compute-spectrogram-feats`: log power of each FFT bin, bin 0 replaced by the log energy."""
    power, log_energy, frame_lengths = _power_spectrum(audio, lengths, config)
    log_power = jnp.log(jnp.maximum(power[..., 1:], _FLT_EPSILON))
    features = jnp.concatenate([log_energy, log_power], axis=-1)
    return masking.zero_padding(features, frame_lengths), frame_lengths


def mel_filter_bank(config: KaldiConfig) -> Float[np.ndarray, "f m"]:
    """Kaldi's triangles, straight in mel, [fft_size // 2 + 1, num_mels]; the last bin counts 0."""
    nyquist = config.sample_rate_hz / 2
    low_hz, high_hz = config.low_hz, config.high_hz
    high_hz += nyquist if high_hz <= 0 else 0
    if not 0 <= low_hz < high_hz <= nyquist:
        raise ValueError(f"need 0 <= low_hz={low_hz} < high_hz={high_hz} <= {nyquist}")
    corners = np.linspace(
        mel_scale.hz_to_mel(low_hz), mel_scale.hz_to_mel(high_hz), config.num_mels + 2
    )
    left, center, right = corners[:-2], corners[1:-1], corners[2:]
    bins = np.arange(config.fft_size // 2) * config.sample_rate_hz / config.fft_size
    mel = mel_scale.hz_to_mel(bins)[:, None]
    rising, falling = (mel - left) / (center - left), (right - mel) / (right - center)
    bank = np.where((mel > left) & (mel < right), np.where(mel <= center, rising, falling), 0)
    return np.pad(bank, ((0, config.fft_size // 2 + 1 - len(bank)), (0, 0))).astype(np.float32)


def _log_mel(power: Float[Array, "b l n"], config: KaldiConfig) -> Float[Array, "b l f"]:
    mel = jnp.matmul(power, mel_filter_bank(config), precision="highest")
    return jnp.log(jnp.maximum(mel, _FLT_EPSILON))


def _power_spectrum(
    audio: Float[Array, "b t"], lengths: Int[Array, "b"], config: KaldiConfig
) -> tuple[Float[Array, "b l f"], Float[Array, "b l 1"], Int[Array, "b"]]:
    """Power spectrum and log energy of each frame, and the frame lengths."""
    num_frames = config.num_frames(audio.shape[1])
    audio = masking.zero_padding(audio.astype(jnp.float32)[:, :, None], lengths)[:, :, 0]
    if not config.snip_edges:
        audio = _reflected(audio, lengths, num_frames, config)
    frames = framing.frame(
        audio * _SAMPLE_SCALE,
        window_size=config.window_size,
        hop_size=config.hop_size,
        num_frames=num_frames,
    )
    if config.remove_dc_offset:
        frames = frames - frames.mean(axis=-1, keepdims=True)
    energy = jnp.sum(jnp.square(frames), axis=-1, keepdims=True)
    if config.preemphasis:
        before = jnp.concatenate([frames[..., :1], frames[..., :-1]], axis=-1)
        frames = frames - config.preemphasis * before
    window = window_function(config.window, config.window_size, periodic=False)
    frames = frames * window.astype(np.float32)[None, None, :]
    spectrum = jnp.fft.rfft(frames, config.fft_size)
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    return power, jnp.log(jnp.maximum(energy, _FLT_EPSILON)), config.num_frames(lengths)


def _reflected(
    audio: Float[Array, "b t"], lengths: Int[Array, "b"], num_frames: int, config: KaldiConfig
) -> Float[Array, "b n"]:
    """The samples under all frames when frames are centred on hops: mirrored at both true ends."""
    start = config.hop_size // 2 - config.window_size // 2
    total = (num_frames - 1) * config.hop_size + config.window_size
    # A mirrored signal repeats every 2n samples: 0 .. n-1, n-1 .. 0. Rows of length 0 read zeros.
    length = jnp.maximum(lengths, 1)[:, None]
    position = (start + jnp.arange(total))[None, :] % (2 * length)
    position = jnp.where(position < length, position, 2 * length - 1 - position)
    return jnp.take_along_axis(audio, position, axis=1)
