"""Adversarial losses, by rows, BEGAN's balance, and the gradient penalty.

D(x) is a logit. non_saturating: Goodfellow et al. 2014, section 3; hinge: Lim and Ye 2017; least
squares: Mao et al. 2017, with labels 1 and 0; relativistic: the pairing loss of Jolicoeur-Martineau
2018, as in R3GAN (Huang et al. 2024, equation 1). began: Berthelot et al. 2017, D(x) being the
error of an autoencoder.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from common import errors


class Adversarial(NamedTuple):
    """What real and fake logits cost the discriminator, and fake ones the generator.

    Without `real` the game is relative: the others are functions of how far a fake's logit lies
    above that of the real picture in the same row.
    """

    real: Callable[[Array], Array] | None
    fake: Callable[[Array], Array]
    fooled: Callable[[Array], Array]

    @property
    def relative(self) -> bool:
        return self.real is None


LOSSES = {
    "non_saturating": Adversarial(
        lambda x: jax.nn.softplus(-x), jax.nn.softplus, lambda x: jax.nn.softplus(-x)
    ),
    "hinge": Adversarial(
        lambda x: jax.nn.relu(1.0 - x), lambda x: jax.nn.relu(1.0 + x), lambda x: -x
    ),
    "least_squares": Adversarial(
        lambda x: jnp.square(x - 1.0), jnp.square, lambda x: jnp.square(x - 1.0)
    ),
    "relativistic": Adversarial(None, jax.nn.softplus, lambda x: jax.nn.softplus(-x)),
    "began": Adversarial(lambda x: x, lambda x: x, lambda x: x),
}

BALANCE = "balance"  # the collection of BEGAN's k


def adversarial(name: str) -> Adversarial:
    """The losses of `config.loss.kind`. Raises UserError for one that there is not."""
    if name not in LOSSES:
        raise errors.UserError(
            f"config.loss.kind={name!r} is unknown; choose one of {', '.join(LOSSES)}."
        )
    return LOSSES[name]


def balanced(
    k: Float[Array, ""], real: Float[Array, ""], fake: Float[Array, ""], gamma: float, rate: float
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """BEGAN's next k, from mean errors, and its measure of convergence.

    Berthelot et al. 2017, equation 3 and section 3.4.
    """
    off = gamma * real - fake
    return jnp.clip(k + rate * off, 0.0, 1.0), real + jnp.abs(off)


def gradient_penalty(
    logits: Callable[[Float[Array, "b h w c"]], Float[Array, "b"]],
    pictures: Float[Array, "b h w c"],
) -> Float[Array, "b"]:
    """|dD/dx|^2 of each picture, without the gamma / 2 of Mescheder et al. 2018.

    R1 (their equation 9) on real pictures, R2 (equation 10) on fakes.
    A row's logit has to depend on its own picture alone.
    """
    gradient = jax.grad(lambda x: jnp.sum(logits(x)))(pictures)
    return jnp.sum(jnp.square(gradient), axis=(1, 2, 3))
