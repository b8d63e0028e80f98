"""Low-rank forms of a trained encoder within a budget, and back; pure functions.

Which components of which map stay is decided by the singular values of the weights, or by the error
on real activations (`asr.activations` collects what that takes).
"""

import dataclasses
import heapq
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from asr import contextnet, costs
from common import errors
from common.nn import lowrank


class LowRankError(errors.UserError, ValueError):
    """A rank or a budget that the layers cannot have."""


def at(params: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The part of a tree that a name ("block_0/conv_1") stands for."""
    for part in name.split("/"):
        params = params[part]
    return params


def _replace(params: Mapping[str, Any], new: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A copy of the tree with the sub-trees at the names in `new` exchanged."""

    def walk(tree, prefix):
        result = {}
        for key, value in tree.items():
            name = f"{prefix}{key}"
            if name in new:
                result[key] = dict(new[name])
            else:
                result[key] = walk(value, f"{name}/") if isinstance(value, Mapping) else value
        return result

    return walk(params, "")


class Budget(NamedTuple):
    """What an encoder, or its 1x1 maps, may have; None is no limit."""

    params: int | None = None
    macs_per_second: float | None = None

    def describe(self) -> str:
        """As messages name it."""
        said = [] if self.params is None else [f"{self.params:,d} parameters"]
        if self.macs_per_second is not None:
            said.append(f"{self.macs_per_second / 1e6:,.3f} MMAC/s")
        return " and ".join(said)


def decompositions(
    config: contextnet.ContextNetConfig,
    params: Mapping[str, Any],
    moments: Mapping[str, tuple[np.ndarray, np.ndarray | None]] | None = None,
) -> dict[str, lowrank.Decomposition]:
    """The components of every 1x1 map by name; factored ones are merged first.

    With `moments` (`activations.moments`) by the error on these inputs, else by the weights.
    """
    config, params = merge(config, params)
    return {
        name: lowrank.decompose(
            np.asarray(at(params, name)["kernel"]), *(moments[name] if moments else ())
        )
        for name in contextnet.pointwise_names(config)
    }


def choose_ranks(
    spectra: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, int]],
    budget_params: int | None = None,
    *,
    budget_macs: float | None = None,
    frames: Mapping[str, float] | None = None,
) -> dict[str, int]:
    """Ranks of 1x1 maps that keep most singular energy within a budget; a layer not named is dense.

    Greedy: every layer starts with one component; then the component with the largest share of its
    layer's energy for its price is bought while the budget lasts (shares, because normalisation
    behind every map makes its scale free). A rank r costs r (c + f) parameters; when the next
    component would cost more than the dense map, the last offer is the dense map with all energy
    that is left. A price is in shares of the budget: parameters, or MACs a second, or the larger of
    the two shares.

    Args:
      spectra: singular values per name, descending. shapes: (c, f) per name.
      frames: per second, at which each map runs; goes with `budget_macs`.

    Raises:
      LowRankError: the budget is below the cost of rank one everywhere.
    """
    budget = Budget(budget_params, budget_macs)
    limits = np.array([np.inf if limit is None else limit for limit in budget])
    shares = {n: np.square(s) / max(float(np.sum(np.square(s))), 1e-30) for n, s in spectra.items()}
    unit = {name: sum(shapes[name]) for name in spectra}
    dense = {name: int(np.prod(shapes[name])) for name in spectra}

    def costs_of(name: str, size: int) -> np.ndarray:
        return np.array([size, size * (frames[name] if frames else 0.0)])

    ranks: dict[str, int | None] = {}
    spent = np.zeros(2)
    for name in spectra:
        ranks[name] = 1 if unit[name] < dense[name] else None
        spent += costs_of(name, min(unit[name], dense[name]))
    if np.any(spent > limits):
        least = Budget(
            int(spent[0]) if budget_params is not None else None,
            float(spent[1]) if budget_macs is not None else None,
        )
        raise LowRankError(
            f"a budget of {budget.describe()} for the 1x1 maps is below rank 1 in every layer "
            f"({least.describe()}): raise it or take a narrower model"
        )

    def offer(name):
        """(-gain for its price, name, costs, new rank) of the layer's next component."""
        rank = ranks[name]
        if rank is None:
            return None
        size, gain, following = unit[name], shares[name][rank], rank + 1
        if (rank + 1) * unit[name] >= dense[name]:
            size, following = dense[name] - rank * unit[name], None
            gain = np.sum(shares[name][rank:])
        cost = costs_of(name, size)
        return -float(gain / np.max(cost / limits)), name, tuple(cost), following

    heap = [bid for bid in map(offer, spectra) if bid]
    heapq.heapify(heap)
    while heap:
        _, name, cost, rank = heapq.heappop(heap)
        if np.any(spent + cost > limits):
            continue  # A cheaper layer may still fit.
        spent, ranks[name] = spent + cost, rank
        following = offer(name)
        if following:
            heapq.heappush(heap, following)
    return {name: rank for name, rank in ranks.items() if rank is not None}


def factorize(
    config: contextnet.ContextNetConfig,
    params: Mapping[str, Any],
    *,
    rank_fraction: float | None = None,
    budget_params: int | None = None,
    budget_macs: float | None = None,
    frames_per_second: float = costs.FRAMES_PER_SECOND,
    maps: Mapping[str, lowrank.Decomposition] | None = None,
) -> tuple[contextnet.ContextNetConfig, dict[str, Any]]:
    """A trained encoder with its kernels replaced by ones of low rank: new configuration and tree.

    A separable encoder gets low-rank 1x1 maps; an encoder of dense convolutions becomes one of
    rank-R spectro-temporal filters, one R for all. Batch statistics stay valid as far as the
    factors reproduce the maps. Factored layers are merged first, so ranks can be changed again.

    Args:
      rank_fraction: rank over input channels of the 1x1 maps of the convolutions (residual
        projections stay dense); for dense convolutions R over min(k, c).
      budget_params, budget_macs: parameters that the whole tree may have, multiply-accumulates a
        second of audio that it may cost, or both; ranks by `choose_ranks`.
      frames_per_second: at the encoder's input, of which the MACs are.
      maps: the components of the 1x1 maps (`decompositions`), by default those of the weights.

    Raises:
      LowRankError: not a fraction or a budget, a fraction outside (0, 1], a budget out of reach, or
        `maps` for an encoder that has no 1x1 maps in its convolutions.
    """
    budget = Budget(budget_params, budget_macs)
    if (rank_fraction is None) == (budget == Budget()):
        raise LowRankError("factorize: give rank_fraction or a budget, and only one")
    if rank_fraction is not None and not 0 < rank_fraction <= 1:
        raise LowRankError(f"factorize: rank_fraction is {rank_fraction}, it must be in (0, 1]")
    if config.conv != "separable" and maps is not None:
        raise LowRankError(
            "factorize: the convolutions of this encoder are dense or of rank R; the error on "
            "activations is known of 1x1 maps (conv=separable) alone. Truncate it by weights"
        )
    config, params = merge(config, params)
    if config.conv == "dense":
        return _factorize_filters(config, params, rank_fraction, budget, frames_per_second)
    maps = decompositions(config, params) if maps is None else maps
    if rank_fraction is not None:
        ranks = {}
        for name in maps:
            c, f = at(params, name)["kernel"].shape
            if not name.endswith("/projection"):
                ranks[name] = min(max(1, round(rank_fraction * c)), c, f)
    else:
        ranks = _ranks_within(budget, config, params, maps, frames_per_second)
    new = {name: maps[name].factors(rank) for name, rank in ranks.items()}
    config = dataclasses.replace(config, pointwise_ranks=tuple(ranks.items()))
    return config, _replace(params, new)


def _ranks_within(budget, config, params, maps, frames_per_second) -> dict[str, int]:
    """Ranks of the 1x1 maps with which the whole of a merged encoder is within the budget."""
    layers = {cost.name: cost for cost in costs.layer_costs(config, params, frames_per_second)}
    rest = [cost for name, cost in layers.items() if name not in maps]
    fixed = Budget(sum(c.parameters for c in rest), sum(c.macs_per_second for c in rest))
    left = Budget(*(None if all_ is None else all_ - other for all_, other in zip(budget, fixed)))
    if any(limit is not None and not limit > 0 for limit in left):  # NaN is not either
        raise LowRankError(
            f"factorize: a budget of {budget.describe()} leaves nothing for the 1x1 maps, the "
            f"other layers have {fixed.describe()}"
        )
    return choose_ranks(
        {name: found.singular for name, found in maps.items()},
        {name: layers[name].shape for name in maps},
        left.params,
        budget_macs=left.macs_per_second,
        frames={name: layers[name].macs_per_second / layers[name].parameters for name in maps},
    )


def _factorize_filters(config, params, rank_fraction, budget, frames_per_second):
    names = contextnet.filter_names(config)
    kernels = {name: at(params, name) for name in names}
    most = min(min(kernel["kernel"].shape[:2]) for kernel in kernels.values())

    def of_rank(rank):
        new = {name: lowrank.factor_conv(kernel, rank) for name, kernel in kernels.items()}
        wanted = dataclasses.replace(config, conv="spectro_temporal", rank=rank)
        return wanted, _replace(params, new)

    if rank_fraction is not None:
        return of_rank(max(1, round(rank_fraction * most)))
    for rank in range(most, 0, -1):
        wanted = dataclasses.replace(config, conv="spectro_temporal", rank=rank)
        shapes = jax.eval_shape(lambda rank=rank: of_rank(rank)[1])
        layers = costs.layer_costs(wanted, shapes, frames_per_second)
        needed = Budget(
            sum(layer.parameters for layer in layers),
            sum(layer.macs_per_second for layer in layers),
        )
        if all(limit is None or cost <= limit for cost, limit in zip(needed, budget)):
            return of_rank(rank)
    raise LowRankError(
        f"factorize: a budget of {budget.describe()} is below that of filters of rank 1, "
        f"{needed.describe()}"
    )


def merge(
    config: contextnet.ContextNetConfig, params: Mapping[str, Any]
) -> tuple[contextnet.ContextNetConfig, dict[str, Any]]:
    """The dense encoder that computes what the factored one does: new configuration and tree."""
    new = {}
    for name in contextnet.pointwise_names(config):
        values = at(params, name)
        if "v" in values:
            new[name] = lowrank.merge_pointwise(values)
    if config.conv == "spectro_temporal":
        for name in contextnet.filter_names(config):
            new[name] = lowrank.merge_conv(at(params, name), config.rank)
        config = dataclasses.replace(config, conv="dense", rank=1)
    config = dataclasses.replace(config, pointwise_ranks=(), pointwise_rank_fraction=None)
    return config, _replace(params, new)


def settings(config: contextnet.ContextNetConfig) -> dict[str, Any]:
    """The part of `config.encoder` that factorising and merging change."""
    return {
        "conv": config.conv,
        "rank": config.rank,
        "pointwise_rank_fraction": config.pointwise_rank_fraction or 1.0,
        "pointwise_ranks": config.pointwise_ranks,
    }
