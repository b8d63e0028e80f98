"""The offline extractor: gated convolutions on a grid of bands and frames, with few parameters.

Neighbouring bins of the spectrum become bands (Luo and Yu 2023, arXiv:2209.15174, section III).
Each block has two gated layers: one that all bands share looks back and ahead in time, farther from
block to block; one for all bands of a frame brings them together. These are the two paths of
TF-GridNet (Wang et al. 2023, arXiv:2209.03952), without its recurrences and its attention. The cue
scales and shifts what goes into the first (FiLM). Input and mask as in `causal`.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from common import sections
from common.audio import stft
from common.nn import masking, products
from separation import spectra


@dataclasses.dataclass(frozen=True)
class QualityConfig:
    """Sizes. There are `bands`, of two bins at the bottom and ever more above.

    `dtype` is that of the factors of products: float32, or bfloat16 (`products.dot_general`).
    """

    sample_rate_hz: int = 16000
    window_ms: float = 32.0
    hop_ms: float = 16.0
    channels: int = 32
    num_blocks: int = 5
    bands: int = 24
    hidden: int = 96  # of the layer that brings bands together
    power: float = 0.3
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if not 0 < 2 * self.hop_ms <= self.window_ms:
            raise ValueError(
                f"hop_ms={self.hop_ms:g} may be up to half of window_ms={self.window_ms:g}"
            )
        sections.check_sizes(self, "channels", "num_blocks", "bands", "hidden")
        products.dot_general(self.dtype)
        if self.bands < 2 or len(self.edges) != self.bands + 1:
            raise ValueError(f"bands={self.bands} do not fit into {self.stft.num_bins} bins")

    @property
    def stft(self) -> stft.StftConfig:
        size = round(self.sample_rate_hz * self.window_ms / 1000)
        return stft.StftConfig(
            num_fft=size,
            window_size=size,
            hop_size=round(self.sample_rate_hz * self.hop_ms / 1000),
            window="sqrt_hann",
        )

    @property
    def edges(self) -> tuple[int, ...]:
        """The first bin of each band, and the end."""
        bins = self.stft.num_bins
        for growth in np.linspace(1.0, 3.0, 2001):
            found = np.concatenate([[0], np.cumsum(np.round(2 * growth ** np.arange(self.bands)))])
            if found[-1] >= bins:
                break
        edges = [*found[found < bins], bins]
        return tuple(int(edge) for edge in edges)


class QualityExtractor(nn.Module):
    """See the head of this file."""

    config: QualityConfig

    @nn.compact
    def __call__(
        self,
        mixture: Float[Array, "b t"],
        lengths: Int[Array, "b"],
        cue: Float[Array, "b c"],
        *,
        train: bool,
    ) -> Float[Array, "b t"]:
        """The extracted voice. `mixture` is 0 beyond its lengths, the output is not."""
        del train
        config, sizes, num_samples = self.config, self.config.stft, mixture.shape[1]
        dense = functools.partial(nn.Dense, dot_general=products.dot_general(config.dtype))
        # Half a window more: all frames that the last samples are made of.
        mixture = jnp.pad(mixture, ((0, 0), (0, sizes.num_fft // 2)))
        frames = jnp.where(lengths > 0, sizes.num_frames(lengths + sizes.num_fft // 2), 0)
        spectrum = stft.stft(mixture, sizes)
        spectrum = stft.Spectrum(spectrum.real, spectrum.imag)
        parts = jnp.stack(spectra.compressed(spectrum, config.power), axis=-1)
        x = _Split(config.edges, config.channels, name="split")(parts)
        kept = masking.float_mask(frames, x.shape[1])[:, :, None, None]
        for i in range(config.num_blocks):
            film = dense(2 * config.channels, name=f"film{i}")(cue)[:, None, None, :]
            factor, offset = jnp.split(film, 2, axis=-1)
            y = nn.LayerNorm(name=f"time_norm{i}")(x) * (1 + factor) + offset
            y = _beside(y * kept, 2**i)
            gate, y = jnp.split(dense(2 * config.channels, name=f"time{i}")(y), 2, axis=-1)
            x = x + dense(config.channels, name=f"time_output{i}")(nn.sigmoid(gate) * y)
            y = nn.LayerNorm(name=f"band_norm{i}")(x).reshape(*x.shape[:2], -1)
            gate, y = jnp.split(dense(2 * config.hidden, name=f"band{i}")(y), 2, axis=-1)
            y = dense(config.bands * config.channels, name=f"band_output{i}")(nn.sigmoid(gate) * y)
            x = x + y.reshape(x.shape)
        mask = _Join(config.edges, 2, name="mask")(nn.LayerNorm(name="norm")(x))
        voice = spectra.masked(spectrum, mask[..., 0], mask[..., 1])
        return stft.istft(jax.lax.complex(*voice), sizes, num_samples=num_samples)


def _beside(x: Float[Array, "b l k c"], distance: int) -> Float[Array, "b l k d"]:
    """Each frame between the one `distance` before and the one after."""
    padded = jnp.pad(x, ((0, 0), (distance, distance), (0, 0), (0, 0)))
    before, after = padded[:, : x.shape[1]], padded[:, 2 * distance :]
    return jnp.concatenate([before, x, after], axis=-1)


def _places(edges: tuple[int, ...]) -> tuple[Int[np.ndarray, "k w"], Bool[np.ndarray, "k w"]]:
    """(the bins of each band, filled up to those of the widest; which are its own)"""
    first, widths = np.array(edges[:-1]), np.diff(edges)
    place = np.arange(widths.max())[None, :]
    own = place < widths[:, None]
    return np.where(own, first[:, None] + place, 0), own


class _Split(nn.Module):
    """The bins of each band through a linear layer of its own."""

    edges: tuple[int, ...]
    channels: int

    @nn.compact
    def __call__(self, x: Float[Array, "b l f p"]) -> Float[Array, "b l k c"]:
        bins, own = _places(self.edges)
        x = x[:, :, bins] * own[None, None, :, :, None]
        x = x.reshape(*x.shape[:3], -1)
        shape = (len(bins), x.shape[-1], self.channels)
        kernel = self.param("kernel", nn.initializers.lecun_normal(batch_axis=0), shape)
        bias = self.param("bias", nn.initializers.zeros, (len(bins), self.channels))
        return jnp.einsum("blkw,kwc->blkc", x, kernel) + bias[None, None]


class _Join(nn.Module):
    """The way back: `parts` numbers for each bin, the first of which are 0.5 to start with."""

    edges: tuple[int, ...]
    parts: int

    @nn.compact
    def __call__(self, x: Float[Array, "b l k c"]) -> Float[Array, "b l f p"]:
        bins, own = _places(self.edges)
        shape = (len(bins), x.shape[-1], bins.shape[1] * self.parts)
        kernel = self.param("kernel", nn.initializers.lecun_normal(batch_axis=0), shape)
        bias = self.param("bias", spectra.half_real, (self.edges[-1], self.parts))
        y = jnp.einsum("blkc,kcw->blkw", x, kernel)
        y = y.reshape(*y.shape[:2], bins.size, self.parts)
        return y[:, :, np.flatnonzero(own)] + bias[None, None]
