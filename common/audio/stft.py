"""The short-time Fourier transform, its exact inverse, and phase recovery by Griffin-Lim.

Both transforms also run over a stream: `step(state, chunk) -> (state, out)` with a state of fixed
size, rows first, and real numbers only.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, PRNGKeyArray

from common.audio import framing


def window_function(name: str, size: int, *, periodic: bool = True) -> np.ndarray:
    """A window of `size` samples in float64: see the names below.

    `periodic` windows (for spectral analysis) repeat after `size` samples, symmetric ones after
    `size - 1`; Kaldi uses symmetric. Povey is Kaldi's own: a Hann window to the power 0.85. The
    square of sqrt_hann, used before and after, adds up to 1 where windows overlap by half.
    """
    phase = 2 * np.pi * np.arange(size) / max(size if periodic else size - 1, 1)
    hann = 0.5 - 0.5 * np.cos(phase)
    match name:
        case "hann" | "hanning":
            return hann
        case "sqrt_hann":
            return np.sqrt(hann)
        case "hamming":
            return 0.54 - 0.46 * np.cos(phase)
        case "blackman":
            return 0.42 - 0.5 * np.cos(phase) + 0.08 * np.cos(2 * phase)
        case "povey":
            return hann**0.85
        case "rectangular":
            return np.ones(size)
    raise ValueError(
        f"window={name!r} is unknown; choose hann, sqrt_hann, hamming, blackman, povey or "
        "rectangular"
    )


@dataclasses.dataclass(frozen=True)
class StftConfig:
    """Sizes are in samples. A window shorter than `num_fft` stands in its middle.

    `synthesis_size`: a stream comes late by so many samples only, less a hop. The windows of both
    ends are not symmetric then: that of the inverse is at the end of the frame, and that of the
    transform falls as steeply (Mauler and Martin 2007, "A low delay, variable resolution, perfect
    reconstruction spectral analysis-synthesis system for speech enhancement"). Their product is the
    square of a `window` of this size. 0: both have `window_size`. A multiple of `hop_size` in the
    window keeps the delay as small as it can be.

    `center`: frame i is centred on sample `i * hop_size` (zeros outside the signal), which makes
    `1 + t // hop_size` frames; otherwise it starts there and only whole frames are taken.
    `dft`: "matmul" computes the transform as a product with a matrix, slower and without complex
    numbers, for exports to runtimes that have no FFT.
    """

    num_fft: int = 512
    window_size: int = 400
    hop_size: int = 160
    window: str = "hann"
    center: bool = True
    dft: str = "fft"
    synthesis_size: int = 0

    def __post_init__(self):
        if not 0 < self.window_size <= self.num_fft or self.hop_size <= 0:
            raise ValueError(f"need 0 < window_size <= num_fft and hop_size > 0: {self}")
        if self.dft not in ("fft", "matmul"):
            raise ValueError(f"dft={self.dft!r} is unknown; choose fft or matmul")
        size = self.synthesis_size
        if size and (size % 2 or not 0 < size <= self.window_size == self.num_fft):
            raise ValueError(
                f"synthesis_size={size} has to be even and at most window_size={self.window_size}, "
                f"which has to be num_fft={self.num_fft} then"
            )

    @property
    def num_bins(self) -> int:
        return self.num_fft // 2 + 1

    @property
    def lead(self) -> int:
        """Samples before time 0 that frame 0 sees."""
        return self.num_fft // 2 if self.center else 0

    @property
    def delay_frames(self) -> int:
        """In a stream frame i is complete, and comes, with hop `i + delay_frames`."""
        return math.ceil((self.num_fft - self.lead) / self.hop_size) - 1

    @property
    def delay_samples(self) -> int:
        """By how much a stream comes late through the transform and its inverse."""
        return self.delay_frames * self.hop_size + self.lead - self.unheard

    @property
    def unheard(self) -> int:
        """Samples at the start of a frame that have no part in the inverse."""
        return self.num_fft - self.synthesis_size if self.synthesis_size else 0

    def num_frames(self, num_samples):
        """Frames of a signal; works on integers and on arrays of lengths."""
        if self.center:
            return 1 + num_samples // self.hop_size
        return 1 + (num_samples - self.num_fft) // self.hop_size

    def window_samples(self) -> np.ndarray:
        """Of the transform."""
        if self.synthesis_size:
            half = self.synthesis_size // 2
            rising = self.num_fft - half
            long = window_function(self.window, 2 * rising)
            short = window_function(self.window, 2 * half)
            return np.concatenate([long[:rising], short[half:]]).astype(np.float32)
        missing = self.num_fft - self.window_size
        window = window_function(self.window, self.window_size)
        return np.pad(window, (missing // 2, missing - missing // 2)).astype(np.float32)

    def synthesis_samples(self) -> np.ndarray:
        """Of the inverse: where it reaches, the square of a short window less that of the other."""
        if not self.synthesis_size:
            return self.window_samples()
        product = window_function(self.window, self.synthesis_size) ** 2
        window = self.window_samples()[self.unheard :]
        short = np.divide(product, window, out=np.zeros_like(product), where=window > 0)
        return np.pad(short, (self.unheard, 0)).astype(np.float32)


class Spectrum(NamedTuple):
    """A complex spectrum as two real arrays [b, l, f]."""

    real: Array
    imag: Array


def stft(audio: Float[Array, "b t"], config: StftConfig) -> Complex[Array, "b l f"]:
    """Complex spectrogram with `config.num_frames(t)` frames of `num_fft // 2 + 1` bins.

    Unnormalised, with phases as in librosa and torch. A row that is zero beyond its length has, in
    its own first `config.num_frames(length)` frames, the values that it has alone.
    """
    num_frames = config.num_frames(audio.shape[1])
    if num_frames < 1:
        raise ValueError(f"{audio.shape[1]} samples are shorter than one frame of {config}")
    audio = audio.astype(jnp.float32)
    audio = jnp.pad(audio, ((0, 0), (config.lead, 0)))
    frames = framing.frame(
        audio, window_size=config.num_fft, hop_size=config.hop_size, num_frames=num_frames
    )
    return jax.lax.complex(*_analysed(frames, config))


def istft(
    spectrogram: Complex[Array, "b l f"], config: StftConfig, *, num_samples: int
) -> Float[Array, "b t"]:
    """The signal of `num_samples` samples whose STFT is closest to `spectrogram`.

    Windowed overlap-add divided by the sum of squared windows, the least-squares inverse (Griffin
    and Lim 1984, eq. 6), hence exact for an unmodified STFT wherever a window is non-zero.
    """
    window = config.window_samples() * config.synthesis_samples()
    frames = _synthesised(Spectrum(spectrogram.real, spectrogram.imag), config)
    audio = framing.overlap_add(frames, hop_size=config.hop_size)
    weight = np.zeros(audio.shape[1])
    for i in range(spectrogram.shape[1]):
        weight[i * config.hop_size : i * config.hop_size + config.num_fft] += window
    audio = (audio * _inverse(weight)[None, :])[:, config.lead : config.lead + num_samples]
    return jnp.pad(audio, ((0, 0), (0, num_samples - audio.shape[1])))


def stft_state(batch: int, config: StftConfig) -> Float[Array, "b n"]:
    """The samples that `stft_step` remembers, before the first chunk: silence."""
    return jnp.zeros((batch, config.delay_samples + config.unheard), jnp.float32)


def stft_step(
    state: Float[Array, "b n"], audio: Float[Array, "b t"], config: StftConfig
) -> tuple[Float[Array, "b n"], Spectrum]:
    """The frames that the next `t = k * hop_size` samples complete: k of them.

    The stream is the `stft` of the signal with `delay_frames` hops of silence before it: frame i of
    the signal comes as frame `i + delay_frames`, and those before see its beginning only.
    Raises ValueError unless t is a multiple of the hop.
    """
    if audio.shape[1] % config.hop_size:
        raise ValueError(f"a chunk of {audio.shape[1]} samples is no multiple of {config.hop_size}")
    samples = jnp.concatenate([state, audio.astype(jnp.float32)], axis=1)
    frames = framing.frame(
        samples,
        window_size=config.num_fft,
        hop_size=config.hop_size,
        num_frames=audio.shape[1] // config.hop_size,
    )
    return samples[:, audio.shape[1] :], _analysed(frames, config)


def istft_state(batch: int, config: StftConfig) -> Float[Array, "b n"]:
    """What the frames so far add to the samples to come, before the first frame: nothing."""
    hops = math.ceil((config.num_fft - config.unheard) / config.hop_size)
    return jnp.zeros((batch, (hops - 1) * config.hop_size), jnp.float32)


def istft_step(
    state: Float[Array, "b n"], spectrum: Spectrum, config: StftConfig
) -> tuple[Float[Array, "b n"], Float[Array, "b t"]]:
    """The next `t = k * hop_size` samples of the inverse, from the next k frames.

    They come `lead - unheard` samples after those of `istft`: after `stft_step`, `delay_samples`
    after those that went in, which an unmodified spectrum gives back exactly. Every sample is
    divided by the windows of a stream that has always run, where `istft` knows that there is none
    before frame 0.
    """
    frames = _synthesised(spectrum, config)[:, :, config.unheard :]
    num_samples = frames.shape[1] * config.hop_size
    audio = framing.overlap_add(frames, hop_size=config.hop_size)
    audio = jnp.pad(audio, ((0, 0), (0, state.shape[1] + num_samples - audio.shape[1])))
    audio = audio + jnp.pad(state, ((0, 0), (0, num_samples)))
    # Windows that overlap forever weigh alike in every hop.
    window = (config.window_samples() * config.synthesis_samples())[config.unheard :]
    window = np.pad(window, (0, -len(window) % config.hop_size))
    weight = np.sum(window.reshape(-1, config.hop_size), axis=0)
    scale = np.tile(_inverse(weight), frames.shape[1])
    return audio[:, num_samples:], audio[:, :num_samples] * scale[None, :]


def _inverse(weight: np.ndarray) -> Float[np.ndarray, "n"]:
    """1 / weight. Where no window reaches, the signal is unknown: 0 instead of rounding errors."""
    inverse = np.where(weight > 1e-8 * weight.max(), 1 / np.maximum(weight, 1e-30), 0)
    return inverse.astype(np.float32)


def _analysed(frames: Float[Array, "b l w"], config: StftConfig) -> Spectrum:
    """The spectrum of the windowed frames."""
    window = config.window_samples()
    if config.dft == "fft":
        spectrum = jnp.fft.rfft(frames * window[None, None, :])
        return Spectrum(spectrum.real, spectrum.imag)
    cosine, sine = _waves(config)
    matrix = np.concatenate([window[:, None] * cosine, -window[:, None] * sine], axis=1)
    parts = jnp.matmul(frames, matrix.astype(np.float32), precision="highest")
    return Spectrum(parts[..., : config.num_bins], parts[..., config.num_bins :])


def _synthesised(spectrum: Spectrum, config: StftConfig) -> Float[Array, "b l w"]:
    """The frames of a spectrum, windowed once more."""
    window = config.synthesis_samples()
    if config.dft == "fft":
        frames = jnp.fft.irfft(jax.lax.complex(*spectrum), config.num_fft)
        return frames * window[None, None, :]
    cosine, sine = _waves(config)
    # Every bin but the first and, if there is one, the middle one stands for two.
    twice = np.where(2 * np.arange(config.num_bins) % config.num_fft == 0, 1, 2)
    weights = twice[:, None] * window[None, :] / config.num_fft
    matrix = np.concatenate([weights * cosine.T, -weights * sine.T]).astype(np.float32)
    return jnp.matmul(jnp.concatenate(spectrum, axis=-1), matrix, precision="highest")


def _waves(config: StftConfig) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine of every bin, `[num_fft, num_bins]`."""
    turns = np.outer(np.arange(config.num_fft), np.arange(config.num_bins)) % config.num_fft
    angles = 2 * np.pi * turns / config.num_fft
    return np.cos(angles), np.sin(angles)


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
