"""What the two sides of a GAN are given beside their inputs, and what a discriminator says."""

from typing import NamedTuple

import jax
from jaxtyping import Array, Bool, Float, Key


class Training(NamedTuple):
    """In a training step: the real rows of the batch, and a key for each row.

    Without it (None) a network is as in evaluations: running statistics, nothing dropped.
    """

    mask: Bool[Array, "b"]
    keys: Key[Array, "b"]

    def keys_of(self, layer: int) -> Key[Array, "b"]:
        """Those of one of several layers."""
        return jax.vmap(lambda key: jax.random.fold_in(key, layer))(self.keys)


class Judged(NamedTuple):
    """Of each picture, by a discriminator.

    `real`: the logit of being real; of BEGAN's autoencoder its error. Where it tells people apart:
    `people`, a logit of each, or the unit vector `face` and the `centres` of the people in the same
    space, not of unit length. `voice`: the unit vector, in that space, of what was heard.
    """

    real: Float[Array, "b"]
    people: Float[Array, "b n"] | None = None
    face: Float[Array, "b d"] | None = None
    centres: Float[Array, "n d"] | None = None
    voice: Float[Array, "b d"] | None = None
