"""A stretch of a voice as a picture, frames by bands, and the way back to sound."""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from common.audio import frontend, inverse

SCALES = "scales"  # the collection of what bands are scaled by
_SPAN = 3.0  # deviations that 1 stands for


@dataclasses.dataclass(frozen=True)
class Sounds:
    """Log-mel spectra of `frames` frames, each band less its mean and over three deviations of it
    in the training recordings (`scales`): what lies beyond is cut to [-1, 1]."""

    front_end: frontend.LogMelConfig
    frames: int

    @property
    def form(self) -> tuple[int, int, int]:
        """Of a picture: frames, bands, one channel."""
        return self.frames, self.front_end.num_mels, 1

    @property
    def samples(self) -> int:
        """What a stretch takes, and what is made of it."""
        return inverse.num_samples(self.frames, self.front_end)

    def init(self) -> dict[str, Array]:
        """Scales that change nothing but the span."""
        shape = (self.front_end.num_mels,)
        return {"mean": jnp.zeros(shape), "deviation": jnp.ones(shape)}

    def scales(self, audio: Float[Array, "b t"]) -> dict[str, Array]:
        """Mean and deviation of each band over all whole frames of whole recordings."""
        found = self._log_mel(audio, audio.shape[1] - self.front_end.window_size)
        deviation = jnp.std(found, axis=(0, 1))
        # One that hardly moves is not blown up.
        return {"mean": jnp.mean(found, axis=(0, 1)), "deviation": jnp.maximum(deviation, 1e-2)}

    def pictures(
        self, scales: Mapping[str, Array], audio: Float[Array, "b t"]
    ) -> Float[Array, "b l m 1"]:
        """Of the first `samples` samples."""
        found = self._log_mel(audio[:, : self.samples], self.samples - self.front_end.window_size)
        scaled = (found - scales["mean"][None, None]) / (_SPAN * scales["deviation"][None, None])
        return jnp.clip(scaled, -1.0, 1.0)[..., None]

    def sounds(
        self,
        scales: Mapping[str, Array],
        pictures: Float[Array, "b l m 1"],
        keys: Key[Array, "b"],
    ) -> Float[Array, "b t"]:
        """`samples` samples of each, in [-1, 1]: a louder one is made softer as a whole."""
        spread = _SPAN * scales["deviation"][None, None]
        log_mel = pictures[..., 0] * spread + scales["mean"][None, None]
        audio = inverse.sound(log_mel, self.front_end, keys)
        return audio / jnp.maximum(jnp.max(jnp.abs(audio), axis=1, keepdims=True), 1.0)

    def _log_mel(self, audio: Float[Array, "b t"], last_start: int) -> Float[Array, "b l m"]:
        """The frames that begin up to a sample, and are whole."""
        lengths = jnp.full(audio.shape[:1], audio.shape[1], jnp.int32)
        found, _ = frontend.log_mel(audio, lengths, self.front_end)
        return found[:, : 1 + last_start // self.front_end.hop_size]
