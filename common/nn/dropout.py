"""Dropout with one key a row: what is dropped depends on neither batch nor device."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def drop(x: Float[Array, "b *n"], keys: Key[Array, "b"], rate: float) -> Float[Array, "b *n"]:
    """Zeros with probability `rate`, the others larger by as much as is missing."""
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x.shape[1:]))(keys)
    return jnp.where(kept, x / (1.0 - rate), jnp.zeros((), x.dtype))
