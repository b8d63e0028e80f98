"""The voice cue: what an enrolment says of its speaker, and what stands in when there is none."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from common.audio import frontend
from common.nn import conv, masking

FROZEN = "frozen"  # the collection of `FrozenEncoder`


@dataclasses.dataclass(frozen=True)
class CueConfig:
    """A small time-delay network: `layers` are (taps, dilation); `size` entries come out.

    In the manner of an x-vector (Snyder et al. 2018), trained together with the extractor, and
    normalised frame by frame, so that no statistics of batches are kept. Of the enrolment only the
    level is taken away: its mean spectrum tells voices apart.
    """

    sample_rate_hz: int = 16000
    num_mels: int = 40
    channels: int = 128
    layers: tuple[tuple[int, int], ...] = ((5, 1), (3, 2), (3, 3), (1, 1))
    size: int = 128


class CueEncoder(nn.Module):
    """Enrolments -> cues with a mean square of 1, whatever their level and length."""

    config: CueConfig

    @nn.compact
    def __call__(self, audio: Float[Array, "b t"], lengths: Int[Array, "b"]) -> Float[Array, "b c"]:
        config = self.config
        features = frontend.LogMelConfig(
            sample_rate_hz=config.sample_rate_hz, num_mels=config.num_mels, normalize="none"
        )
        audio = masking.zero_padding(audio[:, :, None], lengths)[:, :, 0]
        x, lengths = frontend.log_mel(audio, lengths, features)
        x = x - jnp.mean(masking.masked_mean(x, lengths), axis=-1)[:, None, None]
        for i, (taps, dilation) in enumerate(config.layers):
            layer = conv.Conv(
                config.channels, taps, dilation=dilation, use_bias=True, name=f"conv{i}"
            )
            x, lengths = layer(x, lengths)
            x = nn.LayerNorm(name=f"norm{i}")(jax.nn.relu(x))
        mean = masking.masked_mean(x, lengths)
        variance = masking.masked_mean(jnp.square(x - mean[:, None, :]), lengths)
        pooled = jnp.concatenate([mean, jnp.sqrt(variance + 1e-5)], axis=-1)
        return unit(nn.Dense(config.size, name="cue")(pooled))


class FrozenEncoder(nn.Module):
    """A trained network's embeddings and a linear layer. The network is a variable of its own
    collection, which no optimiser sees.

    embed: (its variables, audio [b, t], lengths [b]) -> [b, d]. fresh: key -> its variables.
    """

    embed: Callable[..., Array]
    fresh: Callable[..., Any]
    size: int

    @nn.compact
    def __call__(self, audio: Float[Array, "b t"], lengths: Int[Array, "b"]) -> Float[Array, "b c"]:
        network = self.variable(FROZEN, "network", lambda: self.fresh(self.make_rng("params")))
        embedding = jax.lax.stop_gradient(self.embed(network.value, audio, lengths))
        return unit(nn.Dense(self.size, name="cue")(unit(embedding)))


def unit(cue: Float[Array, "b c"]) -> Float[Array, "b c"]:
    """Scaled to a mean square of 1."""
    return cue * jax.lax.rsqrt(jnp.mean(jnp.square(cue), axis=-1, keepdims=True) + 1e-8)
