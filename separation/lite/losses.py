"""The losses of VoiceFilter-Lite: an asymmetric one of features, and the noise type's."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from common import errors
from common.metrics import Term
from common.nn import masking

ACTIVE_DB = 30.0  # a voice talks in frames that are at most so far below the mixture's loudest


@dataclasses.dataclass(frozen=True)
class LiteLossConfig:
    """Weights of the terms, and `alpha`, how much worse it is to take too much than too little."""

    features: float | int = 1.0
    noise_type: float | int = 1.0
    alpha: float | int = 2.0

    def __post_init__(self) -> None:
        if self.features <= 0 or self.noise_type < 0 or self.alpha < 1:
            raise errors.UserError(
                f"config.loss.lite: features={self.features} is above 0, "
                f"noise_type={self.noise_type} not below, and alpha={self.alpha} not below 1."
            )


def asymmetric(apart: Float[Array, "*n"], alpha: float) -> Float[Array, "*n"]:
    """g(x) of clean minus enhanced: x where too little was taken, alpha x where too much."""
    return jnp.where(apart <= 0, apart, alpha * apart)


def reachable(
    clean: Float[Array, "b l m"], mixture: Float[Array, "b l m"], least_gain: float
) -> Float[Array, "b l m"]:
    """The clean features, or the least that a mask leaves of the mixture's."""
    return jnp.maximum(clean, mixture + math.log(least_gain))


def active(
    x: Float[Array, "b l m"], mixture: Float[Array, "b l m"], frames: Int[Array, "b"]
) -> Bool[Array, "b l"]:
    """Where a part of a mixture is heard, by its log-energies; False beyond the lengths."""
    there = masking.length_mask(frames, x.shape[1])
    own, whole = (jax.nn.logsumexp(y, axis=-1) for y in (x, mixture))
    loudest = jnp.max(jnp.where(there, whole, -jnp.inf), axis=1, keepdims=True)
    return there & (own > loudest - ACTIVE_DB * math.log(10) / 10)


def terms(
    enhanced: Float[Array, "b l m"],
    wanted: Float[Array, "b l m"],
    logits: Float[Array, "b l"],
    overlapped: Bool[Array, "b l"],
    frames: Int[Array, "b"],
    config: LiteLossConfig,
) -> dict[str, Term]:
    """The terms over true frames: g squared, a mean over bands too, and the cross-entropy of
    whether another voice talks."""
    count = jnp.sum(frames).astype(jnp.float32)
    there = masking.length_mask(frames, wanted.shape[1])
    squares = jnp.square(asymmetric(wanted - enhanced, config.alpha))
    squares = jnp.where(there[..., None], squares, 0.0)
    found = {"feature_loss": Term(jnp.sum(squares), count * wanted.shape[2], config.features)}
    if config.noise_type:
        said = jnp.where(overlapped, jax.nn.softplus(-logits), jax.nn.softplus(logits))
        said = jnp.sum(jnp.where(there, said, 0.0))
        found["noise_type_loss"] = Term(said, count, config.noise_type)
    return found
