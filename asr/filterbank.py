"""A learned filter bank on the waveform in place of log-mel: dense, or of rank r.

The bank is H [window, m], m FIR filters. Dense it is one matrix; with a rank it is H = B A, a basis
B [window, r] of FIR filters and their mixing A [r, m] (the first layer of raw-waveform acoustic
models, Palaz et al. 2013, in low rank): window r + r m parameters instead of window m.

A short filter's energy moves faster than frames come: one value every 10 ms would be an accident of
where it fell. So energies are computed several times a frame and low-passed to it (from every
sample in Zeghidour et al. 2021, arXiv 2101.08596), which multiplies the cost of the filters.
"""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from common.audio import frontend
from common.nn import lowrank, masking, norm

log = logging.getLogger(__name__)

NORMALIZATIONS = (*frontend.NORMALIZATIONS, "batch")
LISTED_RANKS = (4, 8, 12, 16, 24, 32, 40, 50, 60, 80, 100, 120)
FILTERS = ("kernel", "basis", "mixing")  # parameters
# A feature whose filters have less than this share of what features have in the mean is constant:
# on speech the logarithm of so little hardly leaves the floor.
_CONSTANT = 0.01
_FLOOR = 1e-5  # of energies, before the logarithm


@dataclasses.dataclass(frozen=True)
class FilterbankConfig:
    """The learned front end; the defaults span 25 ms every 10 ms at 16 kHz.

    Attributes:
      num_filters: pairs of FIR filters, whose log(c^2 + s^2) does not hang on the phase. They start
        as windowed sinusoids at mel centres, with a rank as the truncated SVD of these.
      pooling: energies a frame, `pooling` to either side of its own weighted by a Hann window of
        two frames: all energies count the same, and a steady tone stays as it is. 1: one alone.
      normalize: of the log energies, as that of `frontend.LogMelConfig`; or "batch", batch
        normalisation, whose statistics are the training data's (`NORMALIZATIONS`).
      rank: of the filter bank; None is the dense bank.
    """

    num_filters: int = 80
    window_samples: int = 400
    hop_samples: int = 160
    pooling: int = 4
    normalize: str = "utterance"
    sample_rate_hz: int = 16_000
    rank: int | None = None
    axis_name: str | None = None
    dtype: Any = jnp.float32

    def __post_init__(self):
        limit = min(self.window_samples, self.num_columns)
        if self.rank is not None and not 1 <= self.rank <= limit:
            raise ValueError(f"FilterbankConfig.rank is {self.rank}: choose 1..{limit} or None")
        if self.normalize not in NORMALIZATIONS:
            known = ", ".join(NORMALIZATIONS)
            raise ValueError(f"normalize={self.normalize!r}: choose one of {known}")
        if self.pooling < 1 or self.hop_samples % self.pooling:
            whole = [n for n in range(1, 9) if self.hop_samples % n == 0]
            raise ValueError(
                f"pooling={self.pooling} does not divide the hop of {self.hop_samples} samples: "
                f"choose one of {', '.join(map(str, whole))}, or another hop_ms"
            )

    @property
    def num_columns(self) -> int:
        """FIR filters in the bank."""
        return 2 * self.num_filters


def mel_filters(config: FilterbankConfig) -> Float[np.ndarray, "w m"]:
    """Hann-windowed cosines at centres equally spaced in mel, then the sines.

    From 60 Hz to 95 % of the highest frequency. A unit sinusoid at its centre gives an energy of 1.
    The window shortens where the mel bands are wider than what the whole window resolves, so that
    bands overlap as mel triangles do.
    """

    def mel(hz):
        return 2595.0 * np.log10(1.0 + np.asarray(hz) / 700.0)

    edges = np.linspace(mel(60.0), mel(0.475 * config.sample_rate_hz), config.num_filters + 2)
    edges = 700.0 * (10.0 ** (edges / 2595.0) - 1.0)
    centre, width = edges[1:-1], (edges[2:] - edges[:-2]) / 2
    time = np.arange(config.window_samples) - (config.window_samples - 1) / 2
    # The main lobe of a Hann window of n samples is 2 rate / n wide at half amplitude.
    spans = np.minimum(config.window_samples, 2 * config.sample_rate_hz / width)
    inside = np.abs(time[:, None]) < spans / 2
    window = np.where(inside, 0.5 + 0.5 * np.cos(2 * np.pi * time[:, None] / spans), 0.0)
    window = window * 2 / window.sum(axis=0, keepdims=True)
    phase = 2 * np.pi * centre * time[:, None] / config.sample_rate_hz
    return np.concatenate([window * np.cos(phase), window * np.sin(phase)], 1).astype(np.float32)


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
        audio = masking.zero_padding(audio, lengths).astype(config.dtype)
        y = self._filter(_hops(audio, config, num_frames)).astype(jnp.float32)
        cosine, sine = jnp.split(y, 2, axis=-1)
        energy = _pooled(jnp.square(cosine) + jnp.square(sine), config.pooling, num_frames)
        y = jnp.log(energy + _FLOOR)
        true_lengths = masking.fold_row_mask(frame_lengths, mask)
        if config.normalize != "batch":
            return frontend.normalized(y, true_lengths, config.normalize), frame_lengths
        batch_norm = norm.MaskedBatchNorm(axis_name=config.axis_name, name="norm")
        y = batch_norm(y, masking.length_mask(true_lengths, y.shape[1]), train=train)
        return masking.zero_padding(y, true_lengths), frame_lengths

    def _filter(self, hops: Array) -> Array:
        config = self.config
        if config.rank is None:
            kernel = self.param("kernel", lambda key: jnp.asarray(mel_filters(config)))
            return _convolved(hops, kernel)

        def factor(key, part):
            return lowrank.factor_matrix(jnp.asarray(mel_filters(config)), config.rank)[part]

        basis, mixing = self.param("basis", factor, 0), self.param("mixing", factor, 1)
        return _product(_convolved(hops, basis), mixing.astype(config.dtype))


def _hops(audio: Array, config: FilterbankConfig, num_frames: int) -> Array:
    """[b, n, hop / pooling]: what the filters see, from `pooling` - 1 energies before the start."""
    size = config.hop_samples // config.pooling
    before = config.pooling - 1
    total = num_frames * config.pooling + before - 1 - (-config.window_samples // size)
    audio = jnp.pad(audio, ((0, 0), (before * size, 0)))[:, : total * size]
    audio = jnp.pad(audio, ((0, 0), (0, total * size - audio.shape[1])))
    return audio.reshape(audio.shape[0], total, size)


def _convolved(hops: Float[Array, "b n s"], kernel: Float[Array, "w m"]) -> Float[Array, "b l m"]:
    """The filters [w, m] at the start of every hop: several times faster than cutting windows."""
    size, columns = hops.shape[2], kernel.shape[1]
    kernel = jnp.pad(kernel, ((0, -kernel.shape[0] % size), (0, 0)))
    return jax.lax.conv_general_dilated(
        hops,
        kernel.reshape(-1, size, columns).astype(hops.dtype),
        (1,),
        "VALID",
        dimension_numbers=("NWC", "WIO", "NWC"),
        precision="highest",
    )


def _pooled(energy: Float[Array, "b q f"], pooling: int, num_frames: int) -> Array:
    """[b, l, f]: low-passed to frames; `energy` begins `pooling` - 1 before the first of them."""
    weights = (1 + np.cos(np.pi * np.arange(1 - pooling, pooling) / pooling)) / (2 * pooling)
    last = (num_frames - 1) * pooling + 1
    return sum(
        float(weight) * energy[:, k : k + last : pooling] for k, weight in enumerate(weights)
    )


def _product(x: Array, kernel: Array) -> Array:
    """In all of float32 (of bfloat16 if that is the dtype): the log of an energy shows rounding."""
    return jnp.matmul(x, kernel, precision="highest")


def impulse_responses(params: dict[str, Array]) -> Float[Array, "w m"]:
    """The filter bank H that a parameter tree of `Filterbank` computes, whatever its form."""
    if "kernel" in params:
        return params["kernel"]
    return _product(params["basis"], params["mixing"])


def factor(params: dict[str, Array], rank: int) -> dict[str, Array]:
    """A bank's parameters as those of the bank of this rank (truncated SVD)."""
    basis, mixing = lowrank.factor_matrix(impulse_responses(params), rank)
    rest = {name: value for name, value in params.items() if name not in FILTERS}
    return {"basis": basis, "mixing": mixing, **rest}


def merge(params: dict[str, Array]) -> dict[str, Array]:
    """A factored bank's parameters as those of the dense bank that computes the same."""
    rest = {name: value for name, value in params.items() if name not in FILTERS}
    return {"kernel": impulse_responses(params), **rest}


def truncations(
    filters: Float[np.ndarray, "w m"], ranks: Sequence[int]
) -> list[tuple[int, float, int]]:
    """What the truncated SVD of a bank keeps: (rank, share of the energy, constant features).

    Large singular values are those of the short filters of high bands, which have most energy; what
    a low rank loses are whole features of low bands, not a little of each.
    """
    _, singular, right = np.linalg.svd(np.asarray(filters), full_matrices=False)
    # Of each component in each feature, cosine and sine; components are orthogonal.
    energy = np.square(singular[:, None] * right).reshape(len(singular), 2, -1).sum(axis=1)
    kept = np.cumsum(energy, axis=0)
    total, least = energy.sum(), _CONSTANT * energy.sum(axis=0).mean()
    return [
        (rank, float(row.sum() / total), int(np.sum(row < least)))
        for rank, row in ((rank, kept[rank - 1]) for rank in ranks)
    ]


def describe(params: dict[str, Array]) -> str:
    """As text, what ranks of a bank keep, up to the one that it has."""
    filters = np.asarray(impulse_responses(params))
    last = params["basis"].shape[1] if "basis" in params else min(filters.shape)
    ranks = [rank for rank in LISTED_RANKS if rank < last] + [last]
    lines = ["filterbank, truncated to a rank: share of its energy, features left constant"]
    for rank, share, constant in truncations(filters, ranks):
        lines.append(f"{rank:>8d} {100 * share:7.1f} % {constant:>4d} of {filters.shape[1] // 2}")
    return "\n".join(lines)


def warn_of_constant(filters: Float[np.ndarray, "w m"], rank: int) -> None:
    """Logs how many features the bank of this rank starts with in vain, if any."""
    ((_, share, constant),) = truncations(filters, [rank])
    if constant:
        log.warning(
            "Rank %d keeps %.0f %% of the filter bank's energy, and leaves %d of %d features "
            "constant until training moves them: a higher rank leaves fewer.",
            *(rank, 100 * share, constant, filters.shape[1] // 2),
        )
