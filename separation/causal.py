"""The streaming extractor: a complex mask on frames of at most 32 ms, without look-ahead.

`CausalExtractor.step(state, chunk) -> (state, audio)` is the network; a whole recording is one
large step. Whose voice comes out is in the state (`with_cue`). A hop of the output is complete when
its last window is, hence the algorithmic latency is that window: `delay_samples` of output that
comes late, and the hop that has to be there first.

Layers: residual convolutions over the frame and one of before, farther back from layer to layer and
gated (van den Oord et al. 2016, arXiv:1609.03499, section 2.3), each with its input scaled and
shifted by the cue, and by what is seen of the lips in that hop (FiLM, Perez et al. 2018,
arXiv:1709.07871). Input: real part, imaginary part and magnitude, of magnitudes to the power 0.3.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from common import sections
from common.audio import stft
from common.nn import products
from separation import sight, spectra

MAX_WINDOW_MS = 32.0


@dataclasses.dataclass(frozen=True)
class CausalConfig:
    """Sizes. `window_ms` is the algorithmic latency; hop_ms half of it or a smaller part.

    With `synthesis_ms` that is the latency, and `window_ms`, a multiple of the hop, is what the
    network sees of a frame's past: at 12 of 30 ms the bins are as narrow as at 30.

    `dtype` is that of the factors of products: float32, or bfloat16 (`products.dot_general`).
    """

    sample_rate_hz: int = 16000
    window_ms: float = 32.0
    hop_ms: float = 16.0
    features: int = 224
    num_layers: int = 12
    cycle: int = 6  # layer i sees the frame that is 2 ** (i % cycle) before
    power: float = 0.3
    dtype: str = "float32"
    synthesis_ms: float = 0.0  # 0: window_ms

    def __post_init__(self) -> None:
        latency_ms = self.synthesis_ms or self.window_ms
        if not 0 < 2 * self.hop_ms <= latency_ms <= self.window_ms <= MAX_WINDOW_MS:
            raise ValueError(
                f"window_ms={self.window_ms:g} may be up to {MAX_WINDOW_MS:g}, "
                f"synthesis_ms={self.synthesis_ms:g} up to that (0: the same), and "
                f"hop_ms={self.hop_ms:g} up to half of the shorter one"
            )
        if self.synthesis_ms and self.window_size % self.stft.hop_size:
            raise ValueError(
                f"window_ms={self.window_ms:g} has to be a multiple of hop_ms={self.hop_ms:g} "
                f"beside synthesis_ms={self.synthesis_ms:g}"
            )
        sections.check_sizes(self, "features", "num_layers", "cycle")
        products.dot_general(self.dtype)
        if self.window_size % 2:
            raise ValueError(f"window_ms={self.window_ms:g} is an odd number of samples")
        self.stft  # noqa: B018 - raises for a hop of no sample

    @property
    def window_size(self) -> int:
        return round(self.sample_rate_hz * self.window_ms / 1000)

    @property
    def stft(self) -> stft.StftConfig:
        return stft.StftConfig(
            num_fft=self.window_size,
            window_size=self.window_size,
            hop_size=round(self.sample_rate_hz * self.hop_ms / 1000),
            window="sqrt_hann",
            center=False,
            synthesis_size=round(self.sample_rate_hz * self.synthesis_ms / 1000),
        )


class CausalState(NamedTuple):
    """What a stream remembers: samples, a state for each layer, and what is yet to be added.

    `films` are the scales and shifts of each layer, [b, layers, 2 c], those of a cue.
    """

    samples: Array
    layers: tuple[Array, ...]
    tail: Array
    films: Array


class CausalExtractor(nn.Module):
    """See the head of this file."""

    config: CausalConfig

    @property
    def hop_size(self) -> int:
        """Chunks are multiples of so many samples."""
        return self.config.stft.hop_size

    @property
    def delay_samples(self) -> int:
        """So much later than the input the output comes."""
        return self.config.stft.delay_samples

    def initial_state(self, batch: int) -> CausalState:
        """Before a stream's first sample, of a cue that changes nothing."""
        config = self.config
        layers = [
            jnp.zeros((batch, 2 ** (i % config.cycle), config.features))
            for i in range(config.num_layers)
        ]
        return CausalState(
            stft.stft_state(batch, config.stft),
            tuple(layers),
            stft.istft_state(batch, config.stft),
            jnp.zeros((batch, config.num_layers, 2 * config.features)),
        )

    @nn.compact
    def with_cue(self, state: CausalState, cue: Float[Array, "b c"]) -> CausalState:
        """The state of a stream that extracts the voice of `cue` from here on."""
        size, count = 2 * self.config.features, self.config.num_layers
        films = [self._dense(size, f"film{i}")(cue) for i in range(count)]
        return state._replace(films=jnp.stack(films, axis=1))

    def __call__(
        self,
        mixture: Float[Array, "b t"],
        lengths: Int[Array, "b"],
        cue: Float[Array, "b c"],
        *,
        train: bool,
        motion: sight.Motion | None = None,
    ) -> Float[Array, "b t"]:
        """The extracted voice, on time. `mixture` is 0 beyond its lengths, the output is not."""
        del lengths, train
        num_samples, late, hop = mixture.shape[1], self.delay_samples, self.hop_size
        missing = late + -(num_samples + late) % hop
        mixture = jnp.pad(mixture, ((0, 0), (0, missing)))
        state = self.with_cue(self.initial_state(mixture.shape[0]), cue)
        known = None
        if motion is not None:
            count = mixture.shape[1] // hop
            known = motion.at_hops(count, hop, self.config.sample_rate_hz)
        _, audio = self.step(state, mixture, known)
        return audio[:, late : late + num_samples]

    @nn.compact
    def step(
        self,
        state: CausalState,
        chunk: Float[Array, "b t"],
        motion: Float[Array, "b k d"] | None = None,
    ) -> tuple[CausalState, Float[Array, "b t"]]:
        """The next k * `hop_size` samples of a stream; out come as many, `delay_samples` late.

        `motion`: what is known of the lips at the end of each hop, in networks that see them.
        """
        config, dense = self.config, self._dense
        samples, spectrum = stft.stft_step(state.samples, chunk, config.stft)
        x = jnp.concatenate(spectra.compressed(spectrum, config.power), axis=-1)
        x = dense(config.features, "input")(x)
        layers = []
        for i, before in enumerate(state.layers):
            film = state.films[:, i, None, :]
            if motion is not None:
                film = film + dense(2 * config.features, f"motion{i}")(motion)
            factor, offset = jnp.split(film, 2, axis=-1)
            y = nn.LayerNorm(name=f"norm{i}")(x) * (1 + factor) + offset
            past = jnp.concatenate([before, y], axis=1)
            y = jnp.concatenate([past[:, : y.shape[1]], y], axis=-1)
            gate, y = jnp.split(dense(2 * config.features, f"input{i}")(y), 2, axis=-1)
            x = x + dense(config.features, f"output{i}")(nn.sigmoid(gate) * y)
            layers.append(past[:, chunk.shape[1] // self.hop_size :])
        mask = dense(2 * config.stft.num_bins, "mask", bias_init=spectra.half_real)(
            nn.LayerNorm(name="norm")(x)
        )
        voice = spectra.masked(spectrum, *jnp.split(mask, 2, axis=-1))
        tail, audio = stft.istft_step(state.tail, voice, config.stft)
        return CausalState(samples, tuple(layers), tail, state.films), audio

    def _dense(self, features: int, name: str, **options: Any) -> nn.Dense:
        products_of = products.dot_general(self.config.dtype)
        return nn.Dense(features, dot_general=products_of, name=name, **options)
