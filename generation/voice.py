"""What is heard of a voice: statistics of its log-mel spectrum, or Wen's encoder.

Wen, Raj and Singh (NeurIPS 2019), "Face Reconstruction from Voice using Generative Adversarial
Networks": section 3.3 and table 1 for the encoder, 4 for the features.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from common import errors, sections, trained, workdir
from common.audio import frontend
from common.nn import conv, masking, norm

FOLDER = "voice"  # in the work directory: the settings of the encoder
ENCODER = "encoder"  # in the parameters of a run that trains one
FROZEN = "voice"  # the collection of an encoder that stays as it is


def front_end(config: Any) -> frontend.LogMelConfig:
    """The log-mel spectrum of `config.features`."""
    try:
        return sections.build(
            frontend.LogMelConfig, config.features, sample_rate_hz=config.data.sample_rate_hz
        )
    except ValueError as error:
        raise errors.UserError(f"config.features: {error}") from error


def statistics(
    audio: Float[Array, "b t"], lengths: Int[Array, "b"], config: frontend.LogMelConfig
) -> Float[Array, "b d"]:
    """Mean and deviation of every band over the frames, of order 1, whatever the level; d = 2 m."""
    return moments(*frontend.log_mel(audio, lengths, config))


def moments(features: Float[Array, "b l m"], frames: Int[Array, "b"]) -> Float[Array, "b d"]:
    """`statistics` of log-mel frames."""
    mean = masking.masked_mean(features, frames)
    centred = masking.zero_padding(features - mean[:, None, :], frames)
    deviation = jnp.sqrt(masking.masked_mean(jnp.square(centred), frames) + 1e-5)
    # Speech spans about 2 nepers in each.
    shape = (mean - jnp.mean(mean, axis=1, keepdims=True)) / 2.0
    return jnp.concatenate([shape, deviation - 1.5], axis=1)


class VoiceEncoder(nn.Module):
    """Log-mel frames to a unit vector: convolutions of 3 taps and stride 2, mean over time.

    `channels` of (256, 384, 576, 864) and 64 `features` of 64 bands have 2,670,720 parameters.
    Batch normalisation sees true frames only.
    """

    channels: tuple[int, ...] = (256, 384, 576, 864)
    features: int = 64
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b l f"], lengths: Int[Array, "b"], *, train: bool
    ) -> Float[Array, "b d"]:
        for i, channels in enumerate(self.channels):
            x, lengths = conv.Conv(channels, 3, stride=2, name=f"conv_{i}")(x, lengths)
            mask = masking.length_mask(lengths, x.shape[1])
            batch_norm = norm.MaskedBatchNorm(0.9, axis_name=self.axis_name, name=f"norm_{i}")
            x = nn.relu(batch_norm(x, mask, train=train))
            x = masking.zero_padding(x, lengths)
        last = conv.Conv(self.features, 3, stride=2, use_bias=True, name="last")
        x, lengths = last(x, lengths)
        return unit(masking.masked_mean(x, lengths))


def unit(x: Float[Array, "b d"]) -> Float[Array, "b d"]:
    """Rows of length 1; 0 stays 0, and has a gradient."""
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)


def make_encoder(config: Any, axis_name: str | None = None) -> VoiceEncoder:
    """The encoder of `config.voice`."""
    settings = config.voice
    return VoiceEncoder(tuple(settings.channels), settings.size, axis_name)


def init_encoder(encoder: VoiceEncoder, key: Key[Array, ""], num_mels: int) -> dict[str, Any]:
    """Fresh variables."""
    frames = jax.ShapeDtypeStruct((1, 64, num_mels), jnp.float32)
    return dict(encoder.lazy_init(key, frames, jnp.full((1,), 64, jnp.int32), train=False))


def embed(
    encoder: VoiceEncoder,
    variables: Mapping[str, Any],
    audio: Float[Array, "b t"],
    lengths: Int[Array, "b"],
    config: frontend.LogMelConfig,
) -> Float[Array, "b d"]:
    """The vectors of recordings, by the running statistics."""
    return encoder.apply(variables, *frontend.log_mel(audio, lengths, config), train=False)


def settings_of(folder: pathlib.Path | str, defaults: Any) -> Any:
    """The config of a run that trained an encoder. Raises UserError for another one."""

    def load(path: pathlib.Path) -> Any:
        return workdir.load_config(path, "generation", defaults)

    config = workdir.of_setting("config.voice.workdir", str(folder), "generation", load)
    if config.model.kind != "voice":
        raise errors.UserError(
            f"config.voice.workdir={folder} has trained a network of kind {config.model.kind!r}: "
            "name one of configs/generation/voice.py."
        )
    return config


def keep_settings(folder: str, beside: pathlib.Path, defaults: Any) -> None:
    """Those of the encoder, beside the checkpoints that will hold it."""
    workdir.save_config(beside / FOLDER, "generation", settings_of(folder, defaults))


def of_run(package: Any, folder: str) -> dict[str, Any]:
    """The variables of the best encoder of a run."""
    found = trained.load(package, folder).variables
    return {name: tree[ENCODER] for name, tree in found.items()}
