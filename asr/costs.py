"""What the layers of a ContextNet cost, and how much rank they use.

Pure functions on a configuration and a parameter tree. The singular values are those of composed
filters: the factors of a layer have a free scale (v s, u / s), its map has not. Frames come in at
100 Hz unless said otherwise.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from asr import contextnet
from common.nn import lowrank

FRAMES_PER_SECOND = 100.0


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """What a layer is and costs; needs shapes only.

    Attributes:
      name: of the module in the parameter tree.
      kind: "depthwise", "pointwise", "spectro_temporal", "dense", "squeeze_excite", "norm",
        "filter_bank", or "separable": the composed filters of a depthwise and a pointwise layer,
        at no cost.
      shape: of the map whose rank is measured: [c, f] or, per filter, [k, c].
      rank: the number of components that the form of the layer allows; None without a map.
      macs_per_second: multiplications of weights per second of audio. Normalisation, activations
        and what runs once per utterance (the squeeze over all of it) are left out, as is usual.
      matrices: computes the map or the maps `[f, k, c]`; None without one.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    rank: int | None
    parameters: int
    macs_per_second: float
    matrices: Callable[[], jax.Array] | None = dataclasses.field(default=None, repr=False)


@dataclasses.dataclass(frozen=True)
class LayerReport(LayerCost):
    """The cost and how much rank is used: the mean over the filters where there are many."""

    stable_rank: float | None = None
    entropy_rank: float | None = None


def layer_costs(
    config: contextnet.ContextNetConfig,
    params: Mapping[str, Any],
    frames_per_second: float = FRAMES_PER_SECOND,
) -> list[LayerCost]:
    """All layers in order of computation; `params` may be shapes (`jax.eval_shape`)."""
    costs, frames = [], frames_per_second
    for i, block in enumerate(config.blocks):
        tree = params[f"block_{i}"]
        for j in range(block.num_convs):
            unit, name = tree[f"conv_{j}"], f"block_{i}/conv_{j}"
            after = frames / (block.stride if j == block.num_convs - 1 else 1)
            costs += _unit_costs(config, name, unit, frames, after)
            frames = after
            costs.append(norm_cost(f"{name}/norm", unit["norm"]))
        if "se" in tree:
            # Once per utterance over all of it, but on every frame with a moving mean.
            moving = config.causal or config.se_window is not None
            weights = sum(tree["se"][part]["kernel"].size for part in ("squeeze", "excite"))
            size = contextnet.count_parameters(tree["se"])
            macs = frames * weights if moving else 0.0
            costs.append(LayerCost(f"block_{i}/se", "squeeze_excite", (), None, size, macs))
        if "residual" in tree:
            name = f"block_{i}/residual"
            costs.append(
                _pointwise_cost(f"{name}/projection", tree["residual"]["projection"], frames)
            )
            costs.append(norm_cost(f"{name}/norm", tree["residual"]["norm"]))
    return costs


def norm_cost(name: str, layer: Mapping[str, Any]) -> LayerCost:
    size = contextnet.count_parameters(layer)
    return LayerCost(name, "norm", layer["scale"].shape, None, size, 0.0)


def _dense_matrix(layer: Mapping[str, Any]) -> jax.Array:
    return layer["kernel"] if "kernel" in layer else lowrank.merge_pointwise(layer)["kernel"]


def _pointwise_cost(name: str, layer: Mapping[str, Any], frames: float) -> LayerCost:
    if "kernel" in layer:
        shape = layer["kernel"].shape
        rank = min(shape)
    else:
        shape = (layer["v"].shape[0], layer["u"].shape[1])
        rank = layer["v"].shape[1]
    size = contextnet.count_parameters(layer)
    return LayerCost(
        name, "pointwise", shape, rank, size, frames * size, lambda: _dense_matrix(layer)
    )


def _unit_costs(config, name, unit, before: float, after: float) -> list[LayerCost]:
    """The layers of one ConvUnit that reads `before` and writes `after` frames per second."""
    if config.conv == "separable":
        taps, mixing = unit["depthwise"]["kernel"], unit["pointwise"]

        def composed():
            filters = lowrank.compose_separable(taps, _dense_matrix(mixing))
            return filters.transpose(2, 0, 1)

        macs = after * taps.size
        return [
            LayerCost(f"{name}/depthwise", "depthwise", taps.shape, None, taps.size, macs),
            _pointwise_cost(f"{name}/pointwise", mixing, after),
            LayerCost(name, "separable", taps.shape, min(taps.shape), 0, 0.0, composed),
        ]
    layer, name = unit["filter"], f"{name}/filter"
    size = contextnet.count_parameters(layer)
    if config.conv == "dense":
        shape = layer["kernel"].shape[:2]
        return [
            LayerCost(
                name,
                "dense",
                shape,
                min(shape),
                size,
                after * size,
                lambda: layer["kernel"].transpose(2, 0, 1),
            )
        ]
    # The 1x1 runs on every frame that comes in, the temporal filter on those that go out.
    macs = before * layer["spectral"].size + after * layer["temporal"].size
    shape = (layer["temporal"].shape[0], layer["spectral"].shape[0])

    def merged():
        return lowrank.merge_conv(layer, config.rank)["kernel"].transpose(2, 0, 1)

    return [LayerCost(name, "spectro_temporal", shape, config.rank, size, macs, merged)]


def layer_table(
    config: contextnet.ContextNetConfig,
    params: Mapping[str, Any],
    frames_per_second: float = FRAMES_PER_SECOND,
) -> list[LayerReport]:
    """`layer_costs` with the stable and entropy rank of every map; adds up to the encoder's."""
    return measured(layer_costs(config, params, frames_per_second))


def measured(costs: Sequence[LayerCost]) -> list[LayerReport]:
    """The costs with the stable and entropy rank of every map."""
    table = []
    for cost in costs:
        ranks = (None, None)
        if cost.matrices is not None:
            # On the host: hundreds of small decompositions of different shapes, not worth a jit.
            singular = np.linalg.svd(np.asarray(cost.matrices()), compute_uv=False)
            ranks = (
                float(jnp.mean(lowrank.stable_rank(jnp.asarray(singular)))),
                float(jnp.mean(lowrank.entropy_rank(jnp.asarray(singular)))),
            )
        fields = {f.name: getattr(cost, f.name) for f in dataclasses.fields(cost)}
        table.append(LayerReport(**fields, stable_rank=ranks[0], entropy_rank=ranks[1]))
    return table


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
    macs = sum(row.macs_per_second for row in table)
    lines.append(f"total: {total:,d} parameters, {macs / 1e9:.3f} GMAC/s")
    return "\n".join(lines)
