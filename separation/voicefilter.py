"""VoiceFilter (Wang et al., Interspeech 2019, arXiv:1810.04826), table 1: a mask for magnitudes.

The published table's layers and sizes. What a port is free in: spectra are compressed by a power of
0.3, as in the paper's loss, the mask multiplies linear magnitudes, and the mixture lends its phase.
The network sees all of a recording, so it cannot stream.

Parameters without the cue's encoder: 18,872,801 with 601 bins (`num_fft=1200`), 9,859,657 with 257.
The public PyTorch port has 18,876,001 and 9,862,857, because PyTorch's LSTM has two bias vectors
where one is enough: 4 * 400 more in each direction.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from common import parallel, sections
from common.audio import stft
from common.nn import conv2d, lstm, masking, norm

# Kernels and dilations over time and frequency; the last layer has few channels.
LAYERS = (
    ((1, 7), 1),
    ((7, 1), 1),
    ((5, 5), 1),
    ((5, 5), 2),
    ((5, 5), 4),
    ((5, 5), 8),
    ((5, 5), 16),
    ((1, 1), 1),
)


@dataclasses.dataclass(frozen=True)
class VoiceFilterConfig:
    """Sizes; the defaults are the paper's, at 257 frequency bins."""

    sample_rate_hz: int = 16000
    num_fft: int = 512
    window_ms: float = 25.0
    hop_ms: float = 10.0
    channels: int = 64
    last_channels: int = 8
    lstm_size: int = 400
    bidirectional: bool = True
    hidden_size: int = 600
    power: float = 0.3

    def __post_init__(self) -> None:
        sections.check_sizes(
            self, "num_fft", "channels", "last_channels", "lstm_size", "hidden_size"
        )
        self.stft  # noqa: B018 - raises for windows that cannot be

    @property
    def stft(self) -> stft.StftConfig:
        rate = self.sample_rate_hz / 1000
        return stft.StftConfig(
            self.num_fft, round(rate * self.window_ms), round(rate * self.hop_ms)
        )


class VoiceFilter(nn.Module):
    """Mixture and cue -> the voice of the cue."""

    config: VoiceFilterConfig

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
        config, sizes = self.config, self.config.stft
        num_samples = mixture.shape[1]
        # A window of silence at the end: all frames that a row's last samples are made of.
        mixture = jnp.pad(mixture, ((0, 0), (0, sizes.num_fft)))
        # A row that is not real has no frame, and no part in the statistics.
        frames = jnp.where(lengths > 0, sizes.num_frames(lengths + sizes.num_fft), 0)
        spectrum = stft.stft(mixture, sizes)
        power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
        x = masking.zero_padding((power + 1e-8) ** (config.power / 2), frames)[..., None]
        mask = masking.float_mask(frames, x.shape[1])[:, :, None]
        for i, (kernel, dilation) in enumerate(LAYERS):
            last = i == len(LAYERS) - 1
            channels = config.last_channels if last else config.channels
            x = conv2d.Conv2D(
                channels, kernel, dilation=dilation, use_bias=True, name=f"conv{i + 1}"
            )(x)
            batch_norm = norm.MaskedBatchNorm(
                axis_name=parallel.AXIS if train else None, name=f"norm{i + 1}"
            )
            x = jax.nn.relu(batch_norm(x, mask, train=train))
        x = x.reshape(*x.shape[:2], -1)
        repeated = jnp.broadcast_to(cue[:, None, :], (*x.shape[:2], cue.shape[-1]))
        x = jnp.concatenate([x, repeated], axis=-1)
        heard, _ = lstm.LSTM(config.lstm_size, name="forward")(x, frames)
        if config.bidirectional:
            backward, _ = lstm.LSTM(config.lstm_size, name="backward")(_turned(x, frames), frames)
            heard = jnp.concatenate([heard, _turned(backward, frames)], axis=-1)
        hidden = jax.nn.relu(nn.Dense(config.hidden_size, name="fc1")(jax.nn.relu(heard)))
        gains = jax.nn.sigmoid(nn.Dense(sizes.num_bins, name="fc2")(hidden))
        return stft.istft(spectrum * gains, sizes, num_samples=num_samples)


def _turned(x: Float[Array, "b l d"], lengths: Int[Array, "b"]) -> Float[Array, "b l d"]:
    """Each row's own frames in reverse."""
    place = jnp.arange(x.shape[1])[None, :]
    turned = lengths[:, None] - 1 - place
    return jnp.take_along_axis(x, jnp.where(turned >= 0, turned, place)[:, :, None], axis=1)
