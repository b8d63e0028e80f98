"""Kaldi's features in JAX: fbank, MFCC and spectrogram with the options of its programs.

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

_FLT_EPSILON = float(np.finfo(np.float32).eps)  # Kaldi's floor before every logarithm


@dataclasses.dataclass(frozen=True)
class KaldiConfig:
    """Options under Kaldi's names where a unit does not make them clearer; its fbank defaults.

    Kaldi's own MFCC default is `use_energy=True`. `high_hz` and `vtln_high_hz` at or below 0 count
    from the Nyquist frequency. `sample_scale` brings audio in [-1, 1] to the 16-bit range.
    """

    sample_rate_hz: int = 16000
    window_ms: float = 25.0
    hop_ms: float = 10.0
    window: str = "povey"
    blackman_coeff: float = 0.42
    preemphasis: float = 0.97
    remove_dc_offset: bool = True
    snip_edges: bool = True
    round_to_power_of_two: bool = True
    use_energy: bool = False
    raw_energy: bool = True
    energy_floor: float = 0.0
    htk_compat: bool = False
    num_mels: int = 23
    low_hz: float = 20.0
    high_hz: float = 0.0
    use_power: bool = True
    use_log_fbank: bool = True
    subtract_mean: bool = False
    num_ceps: int = 13
    cepstral_lifter: float = 22.0
    vtln_warp: float = 1.0
    vtln_low_hz: float = 100.0
    vtln_high_hz: float = -500.0
    sample_scale: float = 32768.0

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
    """`compute-fbank-feats`: (log) mel energies.

    With `use_energy` one more column, the log energy: first, or last with `htk_compat`. Returns the
    features, zero beyond their lengths, and the lengths.
    """
    power, log_energy, frame_lengths = _power_spectrum(audio, lengths, config)
    # The floor keeps the gradient of the root finite; 1e-15 is far below any 16-bit magnitude.
    spectrum = power if config.use_power else jnp.sqrt(jnp.maximum(power, 1e-30))
    features = jnp.matmul(spectrum, mel_filter_bank(config), precision="highest")
    if config.use_log_fbank:
        features = jnp.log(jnp.maximum(features, _FLT_EPSILON))
    if config.use_energy:
        columns = [features, log_energy] if config.htk_compat else [log_energy, features]
        features = jnp.concatenate(columns, axis=-1)
    return _finish(features, frame_lengths, config), frame_lengths


def mfcc(
    audio: Float[Array, "b t"], lengths: Int[Array, "b"], config: KaldiConfig
) -> tuple[Float[Array, "b l c"], Int[Array, "b"]]:
    """`compute-mfcc-feats`: `num_ceps` cepstra; `use_energy` puts the log energy in place of c0.

    `htk_compat` moves that first coefficient to the end (c0 then scaled by sqrt 2).
    """
    power, log_energy, frame_lengths = _power_spectrum(audio, lengths, config)
    mel = jnp.matmul(power, mel_filter_bank(config), precision="highest")
    mel = jnp.log(jnp.maximum(mel, _FLT_EPSILON))
    matrix = mel_scale.dct_matrix(config.num_mels, config.num_ceps)
    weights = mel_scale.lifter(config.num_ceps, config.cepstral_lifter)
    features = jnp.matmul(mel, matrix * weights, precision="highest")
    first = log_energy if config.use_energy else features[..., :1]
    if config.htk_compat:
        first = first if config.use_energy else first * np.float32(np.sqrt(2))
        features = jnp.concatenate([features[..., 1:], first], axis=-1)
    else:
        features = jnp.concatenate([first, features[..., 1:]], axis=-1)
    return _finish(features, frame_lengths, config), frame_lengths


def spectrogram(
    audio: Float[Array, "b t"], lengths: Int[Array, "b"], config: KaldiConfig
) -> tuple[Float[Array, "b l f"], Int[Array, "b"]]:
    """`compute-spectrogram-feats`: log power of each FFT bin, bin 0 replaced by the log energy."""
    power, log_energy, frame_lengths = _power_spectrum(audio, lengths, config)
    log_power = jnp.log(jnp.maximum(power[..., 1:], _FLT_EPSILON))
    features = jnp.concatenate([log_energy, log_power], axis=-1)
    return _finish(features, frame_lengths, config), frame_lengths


def mel_filter_bank(config: KaldiConfig) -> Float[np.ndarray, "f m"]:
    """Kaldi's triangles, straight in mel, `[fft_size // 2 + 1, num_mels]`; the last bin counts 0.

    Vocal tract length normalisation moves the corners by Kaldi's piecewise linear warp.
    """
    nyquist = config.sample_rate_hz / 2
    low_hz, high_hz = config.low_hz, config.high_hz
    high_hz += nyquist if high_hz <= 0 else 0
    if not 0 <= low_hz < high_hz <= nyquist:
        raise ValueError(f"need 0 <= low_hz={low_hz} < high_hz={high_hz} <= {nyquist}")
    corners = np.linspace(
        mel_scale.hz_to_mel(low_hz), mel_scale.hz_to_mel(high_hz), config.num_mels + 2
    )
    if config.vtln_warp != 1.0:
        # Clipped: rounding must not put the outermost corners outside the band.
        hz = np.clip(mel_scale.mel_to_hz(corners), low_hz, high_hz)
        corners = mel_scale.hz_to_mel(_vtln_warp(hz, low_hz, high_hz, nyquist, config))
    left, center, right = corners[:-2], corners[1:-1], corners[2:]
    bins = np.arange(config.fft_size // 2) * config.sample_rate_hz / config.fft_size
    mel = mel_scale.hz_to_mel(bins)[:, None]
    rising, falling = (mel - left) / (center - left), (right - mel) / (right - center)
    bank = np.where((mel > left) & (mel < right), np.where(mel <= center, rising, falling), 0)
    return np.pad(bank, ((0, config.fft_size // 2 + 1 - len(bank)), (0, 0))).astype(np.float32)


def _vtln_warp(hz, low_hz: float, high_hz: float, nyquist: float, config: KaldiConfig):
    """Scales frequencies by 1 / warp between two cut-offs, with straight joins to the ends."""
    warp = config.vtln_warp
    vtln_high_hz = config.vtln_high_hz + (nyquist if config.vtln_high_hz <= 0 else 0)
    if not low_hz < config.vtln_low_hz < vtln_high_hz < high_hz:
        raise ValueError(
            f"need low_hz={low_hz} < vtln_low_hz={config.vtln_low_hz} < "
            f"vtln_high_hz={vtln_high_hz} < high_hz={high_hz}"
        )
    lower, upper = config.vtln_low_hz * max(1.0, warp), vtln_high_hz * min(1.0, warp)
    left_slope = (lower / warp - low_hz) / (lower - low_hz)
    right_slope = (high_hz - upper / warp) / (high_hz - upper)
    warped = np.where(hz < upper, hz / warp, high_hz + right_slope * (hz - high_hz))
    # The left piece goes last: for strong warps the two overlap, and in Kaldi the left one wins.
    return np.where(hz < lower, low_hz + left_slope * (hz - low_hz), warped)


def _power_spectrum(
    audio: Float[Array, "b t"], lengths: Int[Array, "b"], config: KaldiConfig
) -> tuple[Float[Array, "b l f"], Float[Array, "b l 1"], Int[Array, "b"]]:
    """Power spectrum and log energy of each frame, and the frame lengths."""
    num_frames = config.num_frames(audio.shape[1])
    audio = masking.zero_padding(audio.astype(jnp.float32)[:, :, None], lengths)[:, :, 0]
    if not config.snip_edges:
        audio = _reflected(audio, lengths, num_frames, config)
    frames = framing.frame(
        audio * config.sample_scale,
        window_size=config.window_size,
        hop_size=config.hop_size,
        num_frames=num_frames,
    )
    if config.remove_dc_offset:
        frames = frames - frames.mean(axis=-1, keepdims=True)
    raw_energy = _log_energy(frames, config)
    if config.preemphasis:
        before = jnp.concatenate([frames[..., :1], frames[..., :-1]], axis=-1)
        frames = frames - config.preemphasis * before
    window = window_function(
        config.window, config.window_size, periodic=False, blackman_coeff=config.blackman_coeff
    )
    frames = frames * window.astype(np.float32)[None, None, :]
    log_energy = raw_energy if config.raw_energy else _log_energy(frames, config)
    spectrum = jnp.fft.rfft(frames, config.fft_size)
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    return power, log_energy, config.num_frames(lengths)


def _log_energy(frames: Float[Array, "b l w"], config: KaldiConfig) -> Float[Array, "b l 1"]:
    energy = jnp.sum(jnp.square(frames), axis=-1, keepdims=True)
    return jnp.log(jnp.maximum(energy, max(_FLT_EPSILON, config.energy_floor)))


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


def _finish(
    features: Float[Array, "b l f"], lengths: Int[Array, "b"], config: KaldiConfig
) -> Float[Array, "b l f"]:
    if config.subtract_mean:
        features = features - masking.masked_mean(features, lengths)[:, None, :]
    return masking.zero_padding(features, lengths)
