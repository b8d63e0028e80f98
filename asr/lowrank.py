"""What a ContextNet's layers cost and how much rank they use; factorise and merge a trained one.

Pure functions on a configuration and the parameter tree of its encoder. The singular values are
those of composed filters: the factors of a layer have a free scale (v s, u / s), its map has not.
Frames come in at 100 Hz unless said otherwise.
"""

import dataclasses
import heapq
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from asr import contextnet
from common.nn import lowrank

FRAMES_PER_SECOND = 100.0


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """One row of the table.

    Attributes:
      name: of the module in the parameter tree.
      kind: "pointwise", "separable" (the composed filters of a depthwise and a pointwise layer),
        "spectro_temporal", "dense", "squeeze_excite" or "norm".
      shape: of the map whose rank is measured: [c, f], or per filter [k, c].
      rank: the number of components that the form of the layer allows.
      stable_rank, entropy_rank: of the map; for filters the mean over the filters. None for layers
        without one.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    rank: int | None
    parameters: int
    macs_per_second: float
    stable_rank: float | None
    entropy_rank: float | None


def _ranks(matrices: jax.Array) -> tuple[float, float]:
    """Mean stable and entropy rank of `[..., m, n]`."""
    singular = jnp.linalg.svd(matrices, compute_uv=False)
    return (
        float(jnp.mean(lowrank.stable_rank(singular))),
        float(jnp.mean(lowrank.entropy_rank(singular))),
    )


def _dense_matrix(layer: Mapping[str, Any]) -> jax.Array:
    return layer["kernel"] if "kernel" in layer else layer["v"] @ layer["u"]


def _pointwise_report(name: str, layer: Mapping[str, Any], frames: float) -> LayerReport:
    matrix = _dense_matrix(layer)
    rank = layer["v"].shape[1] if "v" in layer else min(matrix.shape)
    parameters = contextnet.count_parameters(layer)
    ranks = _ranks(matrix)
    return LayerReport(
        name, "pointwise", matrix.shape, rank, parameters, frames * parameters, *ranks
    )


def _filter_report(name, kind, kernel, rank, parameters, macs) -> LayerReport:
    """`kernel [k, c, f]`: one matrix of k frames by c channels per filter."""
    return LayerReport(
        name, kind, kernel.shape[:2], rank, parameters, macs, *_ranks(kernel.transpose(2, 0, 1))
    )


def layer_table(
    config: contextnet.ContextNetConfig,
    params: Mapping[str, Any],
    frames_per_second: float = FRAMES_PER_SECOND,
) -> list[LayerReport]:
    """A row per layer in order of computation; parameters and MACs add up to the encoder's.

    MACs are multiplications of weights with frames per second of audio; the squeeze (once per
    utterance), normalisation and the activations are left out, as is usual. The composed filters of
    a separable convolution have a row of their own ("separable") that costs nothing.
    """
    table, frames = [], frames_per_second
    for i, block in enumerate(config.blocks):
        tree = params[f"block_{i}"]
        for j in range(block.num_convs):
            unit, name = tree[f"conv_{j}"], f"block_{i}/conv_{j}"
            after = frames / (block.stride if j == block.num_convs - 1 else 1)
            table += _unit_reports(config, name, unit, frames, after)
            frames = after
            table.append(_norm_report(f"{name}/norm", unit["norm"]))
        if "se" in tree:
            size = contextnet.count_parameters(tree["se"])
            # Once per utterance over all of it, or on every frame with a moving mean.
            moving = config.causal or config.se_window is not None
            weights = sum(tree["se"][part]["kernel"].size for part in ("squeeze", "excite"))
            macs = frames * weights if moving else 0.0
            table.append(
                LayerReport(f"block_{i}/se", "squeeze_excite", (), None, size, macs, None, None)
            )
        if "residual" in tree:
            name = f"block_{i}/residual"
            projection = tree["residual"]["projection"]
            table.append(_pointwise_report(f"{name}/projection", projection, frames))
            table.append(_norm_report(f"{name}/norm", tree["residual"]["norm"]))
    return table


def _norm_report(name: str, layer: Mapping[str, Any]) -> LayerReport:
    size = contextnet.count_parameters(layer)
    return LayerReport(name, "norm", layer["scale"].shape, None, size, 0.0, None, None)


def _unit_reports(config, name, unit, before: float, after: float) -> list[LayerReport]:
    if config.conv == "separable":
        taps, mixing = unit["depthwise"]["kernel"], unit["pointwise"]
        composed = lowrank.compose_separable(taps, _dense_matrix(mixing))
        rank = min(composed.shape[:2])
        return [
            LayerReport(
                f"{name}/depthwise",
                "depthwise",
                taps.shape,
                None,
                taps.size,
                after * taps.size,
                None,
                None,
            ),
            _pointwise_report(f"{name}/pointwise", mixing, after),
            _filter_report(name, "separable", composed, rank, 0, 0.0),
        ]
    layer = unit["filter"]
    size = contextnet.count_parameters(layer)
    if config.conv == "dense":
        kernel = layer["kernel"]
        rank = min(kernel.shape[:2])
        return [_filter_report(f"{name}/filter", "dense", kernel, rank, size, after * size)]
    # The 1x1 runs on every frame that comes in, the temporal filter on those that go out.
    macs = before * layer["spectral"].size + after * layer["temporal"].size
    kernel = lowrank.merge_conv(layer, config.rank)["kernel"]
    return [_filter_report(f"{name}/filter", "spectro_temporal", kernel, config.rank, size, macs)]


def encoder_macs_per_second(
    config: contextnet.ContextNetConfig,
    params: Mapping[str, Any],
    frames_per_second: float = FRAMES_PER_SECOND,
) -> float:
    """Multiply-accumulates per second of audio; `params` may be shapes (`jax.eval_shape`)."""
    return sum(row.macs for row in _costs(config, params, frames_per_second))


def format_table(table: list[LayerReport]) -> str:
    """The table as text, one layer a line, with the totals below."""
    header = f"{'layer':34s} {'kind':17s} {'shape':>11s} {'rank':>5s} {'parameters':>11s}"
    lines = [f"{header} {'MMAC/s':>9s} {'stable':>7s} {'entropy':>8s}"]
    for row in table:
        shape = "x".join(str(n) for n in row.shape) or "-"
        ranks = ["-" if r is None else f"{r:.2f}" for r in (row.stable_rank, row.entropy_rank)]
        lines.append(
            f"{row.name:34s} {row.kind:17s} {shape:>11s} {row.rank or '-':>5} "
            f"{row.parameters:>11,d} {row.macs_per_second / 1e6:9.3f} {ranks[0]:>7s} {ranks[1]:>8s}"
        )
    total = sum(row.parameters for row in table)
    lines.append(f"total: {total:,d} parameters, {macs_per_second(table) / 1e9:.3f} GMAC/s")
    return "\n".join(lines)


def _get(params: Mapping[str, Any], name: str) -> Mapping[str, Any]:
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


def choose_ranks(spectra: Mapping[str, np.ndarray], shapes, budget_params: int) -> dict[str, int]:
    """Ranks of 1x1 maps that keep most singular energy within a budget; a layer not named is dense.

    Greedy: every layer starts with one component; then the component with the largest share of its
    layer's energy per parameter is bought while the budget lasts (shares, because normalisation
    behind every map makes its scale free). A rank r costs r (c + f); when the next component would
    cost more than the dense map, the last offer is the dense map with all energy that is left.

    Args:
      spectra: singular values per name, descending. shapes: (c, f) per name.

    Raises:
      ValueError: the budget is below the cost of rank one everywhere.
    """
    shares = {n: np.square(s) / max(float(np.sum(np.square(s))), 1e-30) for n, s in spectra.items()}
    unit = {name: sum(shapes[name]) for name in spectra}
    dense = {name: int(np.prod(shapes[name])) for name in spectra}
    ranks: dict[str, int | None] = {}
    spent = 0
    for name in spectra:
        ranks[name] = 1 if unit[name] < dense[name] else None
        spent += min(unit[name], dense[name])
    if spent > budget_params:
        raise ValueError(
            f"a budget of {budget_params:,d} parameters for the 1x1 maps is below rank 1 in every "
            f"layer ({spent:,d}): raise it or take a narrower model"
        )

    def offer(name):
        """(-gain per parameter, name, cost, new rank) of the layer's next component."""
        rank = ranks[name]
        if rank is None:
            return None
        if (rank + 1) * unit[name] < dense[name]:
            return -shares[name][rank] / unit[name], name, unit[name], rank + 1
        cost = dense[name] - rank * unit[name]
        return -float(np.sum(shares[name][rank:])) / cost, name, cost, None

    heap = [bid for bid in map(offer, spectra) if bid]
    heapq.heapify(heap)
    while heap:
        _, name, cost, rank = heapq.heappop(heap)
        if spent + cost > budget_params:
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
) -> tuple[contextnet.ContextNetConfig, dict[str, Any]]:
    """A trained encoder with its kernels replaced by truncated SVDs: new configuration and tree.

    A separable encoder gets low-rank 1x1 maps; an encoder of dense convolutions becomes one of
    rank-R spectro-temporal filters, one R for all. Batch statistics stay valid as far as the
    factors reproduce the maps. Factored layers are merged first, so ranks can be changed again.

    Args:
      rank_fraction: rank over input channels of the 1x1 maps of the convolutions (residual
        projections stay dense); for dense convolutions R over min(k, c).
      budget_params: parameters that the whole tree may have; ranks by `choose_ranks`.

    Raises:
      ValueError: not exactly one of the two, a fraction outside (0, 1], or a budget out of reach.
    """
    if (rank_fraction is None) == (budget_params is None):
        raise ValueError("factorize: give rank_fraction or budget_params, and only one")
    if rank_fraction is not None and not 0 < rank_fraction <= 1:
        raise ValueError(f"factorize: rank_fraction is {rank_fraction}, it must be in (0, 1]")
    config, params = merge(config, params)
    if config.conv == "dense":
        return _factorize_filters(config, params, rank_fraction, budget_params)
    layers = contextnet.pointwise_names(config)
    if rank_fraction is not None:
        names = [name for name in layers if not name.endswith("/projection")]
        ranks = {}
        for name in names:
            kernel = _get(params, name)["kernel"]
            ranks[name] = min(max(1, round(rank_fraction * kernel.shape[0])), min(kernel.shape))
    else:
        kernels = {name: np.asarray(_get(params, name)["kernel"]) for name in layers}
        spectra = {n: np.linalg.svd(k, compute_uv=False) for n, k in kernels.items()}
        rest = contextnet.count_parameters(params) - sum(k.size for k in kernels.values())
        if budget_params <= rest:
            raise ValueError(
                f"factorize: a budget of {budget_params:,d} parameters leaves nothing for the 1x1 "
                f"maps, the other layers have {rest:,d}"
            )
        shapes = {name: kernel.shape for name, kernel in kernels.items()}
        ranks = choose_ranks(spectra, shapes, budget_params - rest)
    new = {name: lowrank.factor_pointwise(_get(params, name), r) for name, r in ranks.items()}
    config = dataclasses.replace(config, pointwise_ranks=tuple(ranks.items()))
    return config, _replace(params, new)


def _filter_names(config: contextnet.ContextNetConfig) -> list[str]:
    return [
        f"block_{i}/conv_{j}/filter"
        for i, block in enumerate(config.blocks)
        for j in range(block.num_convs)
    ]


def _factorize_filters(config, params, rank_fraction, budget_params):
    names = _filter_names(config)
    shapes = {name: _get(params, name)["kernel"].shape for name in names}
    most = min(min(k, c) for k, c, _ in shapes.values())
    if rank_fraction is not None:
        rank = max(1, round(rank_fraction * most))
    else:
        dense = sum(int(np.prod(shape)) for shape in shapes.values())
        rest = contextnet.count_parameters(params) - dense
        unit = sum(f * (k + c) for k, c, f in shapes.values())
        rank = min(most, (budget_params - rest) // unit)
        if rank < 1:
            raise ValueError(
                f"factorize: a budget of {budget_params:,d} parameters is below that of filters of "
                f"rank 1, {rest + unit:,d}"
            )
    new = {name: lowrank.factor_conv(_get(params, name), rank) for name in names}
    config = dataclasses.replace(config, conv="spectro_temporal", rank=rank)
    return config, _replace(params, new)


def merge(
    config: contextnet.ContextNetConfig, params: Mapping[str, Any]
) -> tuple[contextnet.ContextNetConfig, dict[str, Any]]:
    """The dense encoder that computes what the factored one does: new configuration and tree."""
    new = {}
    for name in contextnet.pointwise_names(config):
        values = _get(params, name)
        if "v" in values:
            new[name] = lowrank.merge_pointwise(values)
    if config.conv == "spectro_temporal":
        for name in _filter_names(config):
            new[name] = lowrank.merge_conv(_get(params, name), config.rank)
        config = dataclasses.replace(config, conv="dense", rank=1)
    config = dataclasses.replace(config, pointwise_ranks=(), pointwise_rank_fraction=None)
    return config, _replace(params, new)
