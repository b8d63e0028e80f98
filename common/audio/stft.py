"""The short-time Fourier transform, its exact inverse, and phase recovery by Griffin-Lim."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, PRNGKeyArray

from common.audio import framing


def window_function(
    name: str, size: int, *, periodic: bool = True, blackman_coeff: float = 0.42
) -> np.ndarray:
    """A window of `size` samples in float64: hann, hamming, blackman, povey or rectangular.

    `periodic` windows (for spectral analysis) repeat after `size` samples, symmetric ones after
    `size - 1`; Kaldi uses symmetric. Povey is Kaldi's own: a Hann window to the power 0.85.
    """
    phase = 2 * np.pi * np.arange(size) / max(size if periodic else size - 1, 1)
    hann = 0.5 - 0.5 * np.cos(phase)
    match name:
        case "hann" | "hanning":
            return hann
        case "hamming":
            return 0.54 - 0.46 * np.cos(phase)
        case "blackman":
            return blackman_coeff - 0.5 * np.cos(phase) + (0.5 - blackman_coeff) * np.cos(2 * phase)
        case "povey":
            return hann**0.85
        case "rectangular":
            return np.ones(size)
    raise ValueError(
        f"window={name!r} is unknown; choose hann, hamming, blackman, povey or rectangular"
    )


@dataclasses.dataclass(frozen=True)
class StftConfig:
    """Sizes are in samples. A window shorter than `num_fft` stands in its middle.

    `center`: frame i is centred on sample `i * hop_size` (zeros outside the signal), which makes
    `1 + t // hop_size` frames; otherwise it starts there and only whole frames are taken.
    """

    num_fft: int = 512
    window_size: int = 400
    hop_size: int = 160
    window: str = "hann"
    center: bool = True

    def __post_init__(self):
        if not 0 < self.window_size <= self.num_fft or self.hop_size <= 0:
            raise ValueError(f"need 0 < window_size <= num_fft and hop_size > 0: {self}")

    @property
    def num_bins(self) -> int:
        return self.num_fft // 2 + 1

    def num_frames(self, num_samples):
        """Frames of a signal; works on integers and on arrays of lengths."""
        if self.center:
            return 1 + num_samples // self.hop_size
        return 1 + (num_samples - self.num_fft) // self.hop_size

    def window_samples(self) -> np.ndarray:
        missing = self.num_fft - self.window_size
        window = window_function(self.window, self.window_size)
        return np.pad(window, (missing // 2, missing - missing // 2)).astype(np.float32)


def stft(audio: Float[Array, "b t"], config: StftConfig) -> Complex[Array, "b l f"]:
    """Complex spectrogram with `config.num_frames(t)` frames of `num_fft // 2 + 1` bins.

    Unnormalised, with phases as in librosa and torch. A row that is zero beyond its length has, in
    its own first `config.num_frames(length)` frames, the values that it has alone.
    """
    num_frames = config.num_frames(audio.shape[1])
    if num_frames < 1:
        raise ValueError(f"{audio.shape[1]} samples are shorter than one frame of {config}")
    audio = audio.astype(jnp.float32)
    if config.center:
        audio = jnp.pad(audio, ((0, 0), (config.num_fft // 2, 0)))
    frames = framing.frame(
        audio, window_size=config.num_fft, hop_size=config.hop_size, num_frames=num_frames
    )
    return jnp.fft.rfft(frames * config.window_samples()[None, None, :])


def istft(
    spectrogram: Complex[Array, "b l f"], config: StftConfig, *, num_samples: int
) -> Float[Array, "b t"]:
    """The signal of `num_samples` samples whose STFT is closest to `spectrogram`.

    Windowed overlap-add divided by the sum of squared windows, the least-squares inverse (Griffin
    and Lim 1984, eq. 6), hence exact for an unmodified STFT wherever a window is non-zero.
    """
    window = config.window_samples()
    frames = jnp.fft.irfft(spectrogram, config.num_fft) * window[None, None, :]
    audio = framing.overlap_add(frames, hop_size=config.hop_size)
    weight = np.zeros(audio.shape[1])
    for i in range(spectrogram.shape[1]):
        weight[i * config.hop_size : i * config.hop_size + config.num_fft] += window**2.0
    # Where no window reaches, the signal is unknown: leave 0 instead of amplifying rounding.
    scale = np.where(weight > 1e-8 * weight.max(), 1 / np.maximum(weight, 1e-30), 0)
    start = config.num_fft // 2 if config.center else 0
    audio = (audio * scale.astype(np.float32)[None, :])[:, start : start + num_samples]
    return jnp.pad(audio, ((0, 0), (0, num_samples - audio.shape[1])))


def griffin_lim(
    magnitude: Float[Array, "b l f"],
    config: StftConfig,
    key: PRNGKeyArray,
    *,
    num_samples: int,
    num_iterations: int = 32,
    momentum: float = 0.99,
) -> Float[Array, "b t"]:
    """A signal whose STFT magnitude approaches `magnitude` (linear, not power).

    Griffin-Lim from random phases with the momentum of Perraudin, Balazs and Søndergaard 2013 (alg.
    2); `momentum=0` is the classic algorithm. Feed rows padded with zero magnitude.
    """
    angles = 2 * jnp.pi * jax.random.uniform(key, magnitude.shape)

    def step(_, carry):
        phases, previous = carry
        projected = stft(istft(magnitude * phases, config, num_samples=num_samples), config)
        # The projection may have one frame more than a magnitude made elsewhere.
        projected = projected[:, : magnitude.shape[1]]
        moved = projected + momentum * (projected - previous)
        return moved / jnp.maximum(jnp.abs(moved), 1e-12), projected

    start = jnp.exp(1j * angles).astype(jnp.complex64)
    phases, _ = jax.lax.fori_loop(0, num_iterations, step, (start, jnp.zeros_like(start)))
    return istft(magnitude * phases, config, num_samples=num_samples)
