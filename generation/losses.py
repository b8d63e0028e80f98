"""Adversarial losses, by rows, and the gradient penalty on real pictures.

D(x) is a logit. non_saturating: Goodfellow et al. 2014, section 3; hinge: Lim and Ye 2017; least
squares: Mao et al. 2017, with labels 1 and 0.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from common import errors


class Adversarial(NamedTuple):
    """What real and fake logits cost the discriminator, and fake ones the generator."""

    real: Callable[[Array], Array]
    fake: Callable[[Array], Array]
    fooled: Callable[[Array], Array]


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
}


def adversarial(name: str) -> Adversarial:
    """The losses of `config.loss.kind`. Raises UserError for one that there is not."""
    if name not in LOSSES:
        raise errors.UserError(
            f"config.loss.kind={name!r} is unknown; choose one of {', '.join(LOSSES)}."
        )
    return LOSSES[name]


def gradient_penalty(
    logits: Callable[[Float[Array, "b h w c"]], Float[Array, "b"]],
    pictures: Float[Array, "b h w c"],
) -> Float[Array, "b"]:
    """|dD/dx|^2 of each picture: R1 of Mescheder et al. 2018, equation 9, without its gamma / 2.

    A row's logit has to depend on its own picture alone.
    """
    gradient = jax.grad(lambda x: jnp.sum(logits(x)))(pictures)
    return jnp.sum(jnp.square(gradient), axis=(1, 2, 3))
