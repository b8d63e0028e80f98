"""Terms of the loss that are of the encoder's factors alone (`config.regularize`)."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from asr import contextnet, truncation
from common import errors, metrics
from common.nn import lowrank


def factors(
    config: contextnet.ContextNetConfig, params: Mapping[str, Any]
) -> list[tuple[Float[Array, "*f c r"], Float[Array, "*f r d"]]]:
    """Both factors of every low-rank layer of an encoder, of each filter where it has many.

    The first one is that whose columns `orthogonality` wants orthonormal: `v [c, r]` of a 1x1 map,
    the spectral parts `[f, c, r]` of spectro-temporal filters.
    """
    found = []
    for name in contextnet.pointwise_names(config):
        layer = truncation.at(params, name)
        if "v" in layer:
            found.append((layer["v"], layer["u"]))
    if config.conv == "spectro_temporal":
        for name in contextnet.filter_names(config):
            temporal, spectral = lowrank.filter_factors(truncation.at(params, name), config.rank)
            found.append((spectral.swapaxes(1, 2), temporal.swapaxes(1, 2)))
    return found


def terms(
    settings: Any, config: contextnet.ContextNetConfig, params: Mapping[str, Any]
) -> dict[str, metrics.Term]:
    """The terms whose weight in `settings` is not 0, by name; `params` are the encoder's.

    orthogonality: ||V'V - I||^2 (`lowrank.non_orthogonality`); nuclear_norm: half of ||V||^2 +
    ||U||^2 (`lowrank.factor_energy`). Both are added over layers and filters, and count once on
    each device. Batch normalisation behind a layer makes its scale free: the nuclear norm presses
    on the scale of all singular values as well as on the small ones, as weight decay does.
    """
    found = factors(config, params)
    values = {
        "orthogonality": lambda v, u: lowrank.non_orthogonality(v),
        "nuclear_norm": lowrank.factor_energy,
    }
    return {
        name: metrics.Term(sum(value(*pair) for pair in found), jnp.ones(()), settings[name])
        for name, value in values.items()
        if settings[name]
    }


def any_low_rank(config: contextnet.ContextNetConfig) -> bool:
    """Whether an encoder has a low-rank layer, on which the terms act."""
    pointwise = bool(config.pointwise_ranks) or config.pointwise_rank_fraction is not None
    return config.conv == "spectro_temporal" or pointwise


def check(settings: Any, config: contextnet.ContextNetConfig) -> None:
    """Raises UserError for weights that are negative, or without a low-rank layer to act on."""
    for name, weight in settings.items():
        if weight < 0:
            raise errors.UserError(f"config.regularize.{name}={weight}: give 0 (off) or more.")
        if weight and not any_low_rank(config):
            raise errors.UserError(
                f"config.regularize.{name}={weight} acts on low-rank layers, and this encoder has "
                "none: set config.encoder.pointwise_rank_fraction below 1 or "
                "config.encoder.conv=spectro_temporal, or leave it at 0."
            )
