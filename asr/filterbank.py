"""A learned filter bank on the waveform in place of log-mel: dense, or of rank r.

The bank is H [taps, m], m FIR filters. Dense it is one matrix; with a rank it is H = B A, a basis
B [taps, r] of FIR filters and their mixing A [r, m] (the first layer of raw-waveform acoustic
models, Palaz et al. 2013, in low rank): taps r + r m parameters instead of taps m.

It starts as log-mel: pre-emphasis, sinusoids where the mel bands lie and as wide as they are, at
their scale; energies computed several times a frame and low-passed so that a feature sees as much
time as a frame of log-mel (Zeghidour et al. 2018, arXiv 1711.01161; Gaussians, learned ones too,
and PCEN are those of LEAF, Zeghidour et al. 2021, arXiv 2101.08596); the floor, the logarithm and
the normalisation are log-mel's own. Error rates beside log-mel: benchmarks/RESULTS.md.
"""

import dataclasses
import logging
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from common.audio import frontend
from common.audio.stft import window_function
from common.nn import adjoints, masking, norm

log = logging.getLogger(__name__)

NORMALIZATIONS = (*frontend.NORMALIZATIONS, "batch")
CHOICES = {
    "filters": ("pairs", "single", "max_pooled"),
    "pool": ("gaussian", "learned", "hann"),
    "compression": ("log", "pcen"),
    "start": ("mel", "random"),
    "normalize": NORMALIZATIONS,
}
LISTED_RANKS = (4, 8, 12, 16, 24, 32, 40, 50, 60, 80, 100, 120)
FILTERS = ("kernel", "basis", "mixing")  # parameters
# A feature whose filters keep less than this share of their energy has lost what it was: on speech
# the logarithm of so little hardly leaves the floor.
_CONSTANT = 0.01
_SPREAD = 0.1414  # standard deviation of a squared Hann window over its length


@dataclasses.dataclass(frozen=True)
class FilterbankConfig:
    """The learned front end; the defaults are log-mel's 25 ms every 10 ms at 16 kHz.

    Attributes:
      window_samples: what a frame spans: the length of the filters, unless `taps` is another, with
        the low-pass of `pool`.
      taps: of the filters, in the middle of the window; 0 means all of it.
      filters: "pairs": a feature is c^2 + s^2 of two filters, a cosine and a sine at the start, and
        does not hang on the phase. "single": c^2, half the filters; c^2 moves at twice the filter's
        frequency, which the low-pass takes away as far as `pooling` is fine enough. "max_pooled":
        the largest of a frame's `pooling` outputs, or 0 if all are below it, neither low-passed nor
        compressed (the first layer of Idiap's LR-CNN: 30 taps every 10 samples).
      pooling: energies a frame.
      pool: their low-pass. "gaussian": for every feature as wide as makes filter and low-pass
        together see the time that log-mel's window sees; "learned": starts so, the widths are
        parameters; "hann": a Hann window of two frames for all.
      compression: "log" of energies, at least `floor`; or "pcen" with learned constants.
      start: "mel", with a rank its best factors (`factor`); or "random": noise of the same scale.
      normalize: of the features, as that of `frontend.LogMelConfig`; or "batch", batch
        normalisation, whose statistics are the training data's.
      rank: of the filter bank; None is the dense bank.
    """

    num_filters: int = 80
    window_samples: int = 400
    hop_samples: int = 160
    taps: int = 0
    filters: str = "pairs"
    pooling: int = 4
    pool: str = "gaussian"
    compression: str = "log"
    preemphasis: float = 0.97
    floor: float = 1e-6
    start: str = "mel"
    normalize: str = "utterance"
    sample_rate_hz: int = 16_000
    rank: int | None = None
    axis_name: str | None = None
    dtype: Any = jnp.float32

    def __post_init__(self):
        for name, known in CHOICES.items():
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name}={value!r}: choose one of {', '.join(known)}")
        limit = min(self.num_taps, self.num_columns)
        if self.rank is not None and not 1 <= self.rank <= limit:
            raise ValueError(f"FilterbankConfig.rank is {self.rank}: choose 1..{limit} or None")
        if not 0 <= self.taps <= self.window_samples:
            raise ValueError(
                f"filters of {self.taps} samples exceed the window of {self.window_samples}"
            )
        if self.pooling < 1 or self.hop_samples % self.pooling:
            whole = [n for n in range(1, 17) if self.hop_samples % n == 0]
            raise ValueError(
                f"pooling={self.pooling} does not divide the hop of {self.hop_samples} samples: "
                f"choose one of {', '.join(map(str, whole))}, or another hop_ms"
            )

    @property
    def num_taps(self) -> int:
        return self.taps or self.window_samples

    @property
    def num_columns(self) -> int:
        """FIR filters in the bank."""
        return self.num_filters * (2 if self.filters == "pairs" else 1)

    @property
    def step(self) -> int:
        """Samples from one energy to the next."""
        return self.hop_samples // self.pooling

    @property
    def reach(self) -> tuple[int, int]:
        """Energies before and after its own that a frame takes in."""
        if self.filters == "max_pooled":
            return self.pooling // 2, (self.pooling - 1) // 2
        if self.pool == "hann" or self.pooling == 1:
            return self.pooling - 1, self.pooling - 1
        # 2.8 standard deviations of the widest; learned ones may become twice as wide.
        count = math.ceil(0.4 * self.window_samples / self.step)
        return (count, count) if self.pool == "gaussian" else (2 * count, 2 * count)

    def log_mel(self) -> frontend.LogMelConfig:
        """The log-mel that the bank starts from."""
        return frontend.LogMelConfig(
            sample_rate_hz=self.sample_rate_hz,
            window_ms=1000 * self.window_samples / self.sample_rate_hz,
            hop_ms=1000 * self.hop_samples / self.sample_rate_hz,
            num_mels=self.num_filters,
        )

    def centres_hz(self) -> Float[np.ndarray, "f"]:
        """Centre frequencies that the features have at a start from mel."""
        return self.log_mel().centres_hz()


def mel_filters(config: FilterbankConfig) -> Float[np.ndarray, "w m"]:
    """Hann-windowed cosines where log-mel's bands lie, and with "pairs" their sines behind them.

    Centre and width are the mean and the standard deviation of the band's weights over the FFT bins
    (narrow triangles hold one or two). The main lobe is as wide as the triangle where the filter is
    long enough. On white noise each has the energy that log-mel's band has.
    """
    log_mel = config.log_mel()
    bank = log_mel.filter_bank().astype(np.float64)
    share = bank / bank.sum(axis=0)
    bins = np.arange(len(bank))[:, None] * log_mel.sample_rate_hz / log_mel.fft_size
    centre = np.sum(share * bins, axis=0)
    deviation = np.sqrt(np.sum(share * np.square(bins - centre), axis=0))
    # A triangle's half width is sqrt(6) deviations. Of a Hann window of n samples the main lobe has
    # half its amplitude at rate / n, where a triangle of this half width has its foot.
    rate = config.sample_rate_hz
    spans = np.minimum(config.num_taps, 1.1 * rate / np.maximum(np.sqrt(6) * deviation, 1e-3))
    time = np.arange(config.num_taps)[:, None] - (config.num_taps - 1) / 2
    inside = np.abs(time) < spans / 2
    window = np.where(inside, 0.5 + 0.5 * np.cos(2 * np.pi * time / spans), 0.0)
    frame = window_function("hann", config.window_samples)
    wanted = bank.sum(axis=0) * np.sum(np.square(frame))
    window *= np.sqrt(wanted / np.sum(np.square(window), axis=0))
    phase = 2 * np.pi * centre * time / rate
    cosine, sine = window * np.cos(phase), window * np.sin(phase)
    if config.filters == "pairs":
        return np.concatenate([cosine, sine], axis=1).astype(np.float32)
    return (math.sqrt(2) * cosine).astype(np.float32)


def start_filters(config: FilterbankConfig, key: Key[Array, ""]) -> Float[Array, "w m"]:
    """The bank before training: `mel_filters`, or noise with their energies."""
    filters = jnp.asarray(mel_filters(config))
    if config.start == "mel":
        return filters
    noise = jax.random.normal(key, filters.shape)
    return noise * jnp.sqrt(jnp.mean(jnp.square(filters), axis=0, keepdims=True))


def pool_widths(config: FilterbankConfig) -> Float[np.ndarray, "f"]:
    """Standard deviations in samples of the low-pass that completes the filters to the window.

    Those of a chain add up in squares; what log-mel sees has that of its squared window. A single
    filter gets all of it, for its energy moves on its own however long it is.
    """
    wanted = _SPREAD * config.window_samples
    if config.filters != "pairs":
        return np.full(config.num_filters, wanted)
    energy = np.square(mel_filters(config)).reshape(config.num_taps, 2, -1).sum(axis=1)
    time = np.arange(config.num_taps)[:, None] - (config.num_taps - 1) / 2
    seen = np.sum(energy * np.square(time), axis=0) / np.sum(energy, axis=0)
    # Not below one sample: alone in the sum.
    return np.sqrt(np.maximum(np.square(wanted) - seen, 1.0))


class Filterbank(nn.Module):
    """Audio to features through learned FIR filters; padded equals alone."""

    FACTORS = FILTERS[1:]  # what the bank is the product of (`common.analysis`)

    config: FilterbankConfig

    @nn.compact
    def __call__(
        self,
        audio: Float[Array, "b t"],
        lengths: Int[Array, "b"],
        *,
        train: bool,
        mask: Bool[Array, "b"] | None = None,
    ) -> tuple[Float[Array, "b l f"], Int[Array, "b"]]:
        """Args: audio in [-1, 1]; lengths in samples; train, mask: as in batch normalisation.

        Returns features, zero beyond the true end, and their lengths, ceil(samples / hop).
        """
        config, num_frames = self.config, -(-audio.shape[1] // self.config.hop_samples)
        frame_lengths = masking.conv_lengths(lengths, config.hop_samples)
        # Before the start and beyond the end are zeros, whose energies are 0: padded equals alone.
        audio = frontend.emphasised(audio.astype(jnp.float32), lengths, config.preemphasis)
        y = self._filter(_hops(audio.astype(config.dtype), config, num_frames)).astype(jnp.float32)
        if config.filters == "max_pooled":
            frames = y.reshape(y.shape[0], -1, config.pooling, y.shape[2])
            y = nn.relu(frames[:, :num_frames].max(axis=2))
        else:
            parts = jnp.split(y, config.num_columns // config.num_filters, axis=-1)
            energy = sum(jnp.square(part) for part in parts)
            y = self._compressed(_pooled(energy, self._weights(), config.pooling))
        true_lengths = masking.fold_row_mask(frame_lengths, mask)
        if config.normalize != "batch":
            return frontend.normalized(y, true_lengths, config.normalize), frame_lengths
        batch_norm = norm.MaskedBatchNorm(axis_name=config.axis_name, name="norm")
        y = batch_norm(y, masking.length_mask(true_lengths, y.shape[1]), train=train)
        return masking.zero_padding(y, true_lengths), frame_lengths

    def _filter(self, hops: Array) -> Array:
        config = self.config
        if config.rank is None:
            return _convolved(hops, self.param("kernel", lambda key: start_filters(config, key)))

        def start(key, part):
            filters = mel_filters(config)
            if config.start == "mel":
                return _factored(filters, config)[part]
            shape = ((config.num_taps, config.rank), (config.rank, config.num_columns))[part]
            square = float(np.mean(np.square(filters))) / config.rank
            return square**0.25 * jax.random.normal(key, shape)

        basis, mixing = self.param("basis", start, 0), self.param("mixing", start, 1)
        return _product(_convolved(hops, basis), mixing.astype(config.dtype))

    def _weights(self) -> Float[Array, "k f"]:
        """Of a frame's energies, adding up to one: a steady tone stays as it is."""
        config, (before, after) = self.config, self.config.reach
        place = np.arange(-before, after + 1)[:, None]
        if config.pool == "hann" or config.pooling == 1:
            weights = 1 + np.cos(np.pi * place / config.pooling)
            return jnp.asarray(np.repeat(weights / weights.sum(), config.num_filters, axis=1))
        widths = pool_widths(config) / config.step
        if config.pool == "gaussian":
            weights = np.exp(-0.5 * np.square(place / widths))
            return jnp.asarray(weights / weights.sum(axis=0), jnp.float32)
        # A width far below a step would have no gradient.
        start = jnp.asarray(np.log(np.maximum(widths, 0.5)), jnp.float32)
        width = self.param("width", lambda key: start)[None, :]
        weights = jnp.exp(-0.5 * jnp.square(place * jnp.exp(-width)))
        return weights / weights.sum(axis=0, keepdims=True)

    def _compressed(self, energy: Float[Array, "b l f"]) -> Float[Array, "b l f"]:
        if self.config.compression == "log":
            return jnp.log(jnp.maximum(energy, self.config.floor))
        start = {"smooth": 0.04, "gain": 0.96, "offset": 2.0, "root": 0.5}
        constants = {
            name: jnp.exp(
                self.param(
                    f"pcen_{name}",
                    lambda _, value=value: jnp.full(self.config.num_filters, math.log(value)),
                )
            )
            for name, value in start.items()
        }
        return pcen(energy, floor=self.config.floor, **constants)


def pcen(
    energy: Float[Array, "b l f"],
    *,
    smooth: Float[Array, "f"],
    gain: Float[Array, "f"],
    offset: Float[Array, "f"],
    root: Float[Array, "f"],
    floor: float,
) -> Float[Array, "b l f"]:
    """Per-channel energy normalisation (arXiv 1607.05666): `(E / (eps + M)^a + d)^r - d^r`.

    M follows E, `M[l] = (1 - s) M[l - 1] + s E[l]` from M[0] = E[0]. Constants per feature.
    """
    smooth = jnp.clip(smooth, 0.0, 1.0)
    kept = jnp.broadcast_to(1.0 - smooth, energy.shape)
    first = jnp.arange(energy.shape[1])[None, :, None] == 0
    added = jnp.where(first, energy, smooth[None, None, :] * energy)

    def chain(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
        return left[0] * right[0], left[1] * right[0] + right[1]

    _, mean = jax.lax.associative_scan(chain, (kept, added), axis=1)
    constants = (gain, offset, root)
    gain, offset, root = (x[None, None, :] for x in constants)
    return (energy * (floor + mean) ** -gain + offset) ** root - offset**root


def _hops(audio: Array, config: FilterbankConfig, num_frames: int) -> Array:
    """[b, n, step]: what the filters see, from the first energy that the first frame takes in."""
    size, (before, after) = config.step, config.reach
    frames = num_frames + (before + after) // config.pooling
    energies = frames * config.pooling
    total = energies - 1 - (-config.num_taps // size)
    # Shorter filters lie in the middle of the window.
    early = before * size - (config.window_samples - config.num_taps) // 2
    audio = jnp.pad(audio, ((0, 0), (early, 0))) if early > 0 else audio[:, -early:]
    audio = audio[:, : total * size]
    audio = jnp.pad(audio, ((0, 0), (0, total * size - audio.shape[1])))
    return audio.reshape(audio.shape[0], total, size)


def _convolved(hops: Float[Array, "b n s"], kernel: Float[Array, "w m"]) -> Float[Array, "b q m"]:
    """The filters [w, m] at the start of every hop: several times faster than cutting windows."""
    size, columns = hops.shape[2], kernel.shape[1]
    kernel = jnp.pad(kernel, ((0, -kernel.shape[0] % size), (0, 0)))
    kernel = kernel.reshape(-1, size, columns).astype(hops.dtype)
    return adjoints.convolution(hops, kernel, (1,), ((0, 0),), (1,), "highest")


def _pooled(
    energy: Float[Array, "b q f"], weights: Float[Array, "k f"], pooling: int
) -> Float[Array, "b l f"]:
    """Low-passed to frames, each of which takes in the energies from its first one on.

    Sums over whole frames of energies: strided slices, one for each weight, are as fast forwards,
    but their gradients are scattered one by one.
    """
    count = -(-len(weights) // pooling)
    weights = jnp.pad(weights, ((0, count * pooling - len(weights)), (0, 0)))
    weights = weights.reshape(count, pooling, -1)
    frames = energy.reshape(energy.shape[0], -1, pooling, energy.shape[2])
    last = frames.shape[1] - count + 1
    return sum(
        jnp.sum(frames[:, k : k + last] * weights[k][None, None], axis=2) for k in range(count)
    )


def _product(x: Array, kernel: Array) -> Array:
    """In all of float32 (of bfloat16 if that is the dtype): the log of an energy shows rounding."""
    return jnp.matmul(x, kernel, precision="highest")


def impulse_responses(params: dict[str, Array]) -> Float[Array, "w m"]:
    """The filter bank H that a parameter tree of `Filterbank` computes, whatever its form."""
    if "kernel" in params:
        return params["kernel"]
    return _product(params["basis"], params["mixing"])


def _norms(filters: Float[np.ndarray, "w m"], num_features: int) -> Float[np.ndarray, "m"]:
    """Of each filter, of a pair together."""
    energy = np.sum(np.square(np.asarray(filters, np.float64)), axis=0).reshape(-1, num_features)
    norms = np.sqrt(np.maximum(energy.sum(axis=0), 1e-30))
    return np.tile(norms, len(energy))


def _factored(
    filters: Float[np.ndarray, "w m"], config: FilterbankConfig
) -> tuple[Float[Array, "w r"], Float[Array, "r m"]]:
    """The factors of the rank that keep most of every feature's energy, not most of the bank's.

    Truncated SVD of the bank with all features scaled to one energy: behind a logarithm the error
    that counts is the one over the feature's own energy. (As they are, the short filters of high
    bands have nearly all energy, and low bands would be lost.) Both factors get one mean square, so
    that an optimizer's steps are as large for both.
    """
    norms = _norms(filters, config.num_filters)
    scaled = np.asarray(filters, np.float64) / norms
    left, singular, right = np.linalg.svd(scaled, full_matrices=False)
    basis = left[:, : config.rank]
    mixing = singular[: config.rank, None] * right[: config.rank] * norms
    ratio = np.sqrt(np.sqrt(np.mean(np.square(mixing)) / np.mean(np.square(basis))))
    return jnp.asarray(basis * ratio, jnp.float32), jnp.asarray(mixing / ratio, jnp.float32)


def factor(params: dict[str, Array], config: FilterbankConfig) -> dict[str, Array]:
    """A bank's parameters as those of the bank of `config.rank` (`_factored`)."""
    basis, mixing = _factored(np.asarray(impulse_responses(params)), config)
    rest = {name: value for name, value in params.items() if name not in FILTERS}
    return {"basis": basis, "mixing": mixing, **rest}


def merge(params: dict[str, Array]) -> dict[str, Array]:
    """A factored bank's parameters as those of the dense bank that computes the same."""
    rest = {name: value for name, value in params.items() if name not in FILTERS}
    return {"kernel": impulse_responses(params), **rest}


def truncations(
    filters: Float[np.ndarray, "w m"], num_features: int, ranks: Sequence[int]
) -> list[tuple[int, float, float, int]]:
    """What ranks keep of a bank: (rank, mean and least share of a feature's energy, constant)."""
    scaled = np.asarray(filters, np.float64) / _norms(filters, num_features)
    _, singular, right = np.linalg.svd(scaled, full_matrices=False)
    # Of each component in each feature; components are orthogonal.
    energy = np.square(singular[:, None] * right).reshape(len(singular), -1, num_features)
    kept = np.cumsum(energy.sum(axis=1), axis=0)
    rows = ((rank, kept[rank - 1]) for rank in ranks)
    return [
        (rank, float(row.mean()), float(row.min()), int(np.sum(row < _CONSTANT)))
        for rank, row in rows
    ]


def describe(params: dict[str, Array], config: FilterbankConfig) -> str:
    """As text, what ranks of a bank keep, up to the one that it has."""
    filters = np.asarray(impulse_responses(params))
    last = params["basis"].shape[1] if "basis" in params else min(filters.shape)
    ranks = [rank for rank in LISTED_RANKS if rank < last] + [last]
    lines = ["filterbank, truncated to a rank: share of its features' energy, mean and least"]
    for rank, mean, least, constant in truncations(filters, config.num_filters, ranks):
        line = f"{rank:>8d} {100 * mean:7.1f} % {100 * least:7.1f} %"
        lines.append(line + (f"   {constant} features left constant" if constant else ""))
    return "\n".join(lines)


def say_what_is_kept(filters: Float[np.ndarray, "w m"], config: FilterbankConfig) -> None:
    """Logs what `config.rank` keeps of a bank; a warning if features are lost."""
    rows = truncations(filters, config.num_filters, [config.rank])
    ((rank, mean, least, constant),) = rows
    log.info(
        "Rank %d keeps %.0f %% of the energy of a feature of the filter bank in the mean, %.0f %% "
        "at least.",
        *(rank, 100 * mean, 100 * least),
    )
    if constant:
        log.warning(
            "Rank %d leaves %d of %d features of the filter bank constant until training moves "
            "them: a higher rank leaves fewer.",
            *(rank, constant, config.num_filters),
        )
