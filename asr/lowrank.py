"""What a ContextNet's layers cost and how much rank they use; factorise and merge a trained one.

    python -m asr.lowrank --workdir=runs/quickstart
    python -m asr.lowrank --workdir=runs/quickstart --rank_fraction=0.25 --out=runs/quarter
    python -m asr.lowrank --workdir=runs/learned --bank_rank=60 --out=runs/rank60

A learned filter bank (features.kind=learned) is listed, factorised and merged like the encoder.
Pure functions on a configuration and a parameter tree. The singular values are those of composed
filters: the factors of a layer have a free scale (v s, u / s), its map has not. Frames come in at
100 Hz unless said otherwise.
"""

import argparse
import dataclasses
import heapq
import math
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from asr import contextnet, filterbank
from asr import task as asr_task
from common import app, checkpoint, errors, parallel, trained, workdir
from common.nn import lowrank

FRAMES_PER_SECOND = 100.0


class LowRankError(errors.UserError, ValueError):
    """A rank or a budget that the layers cannot have."""


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
            costs.append(_norm_cost(f"{name}/norm", unit["norm"]))
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
            costs.append(_norm_cost(f"{name}/norm", tree["residual"]["norm"]))
    return costs


def bank_costs(config: filterbank.FilterbankConfig, params: Mapping[str, Any]) -> list[LayerCost]:
    """Those of the learned filter bank, which runs `pooling` times a frame; constants after it."""
    taps = [params[name].shape for name in filterbank.FILTERS if name in params]
    size = sum(map(math.prod, taps))
    energies = config.pooling * config.sample_rate_hz / config.hop_samples
    shape = (taps[0][0], taps[-1][1])
    bank = LayerCost(
        "filterbank",
        "filter_bank",
        shape,
        config.rank or min(shape),
        size,
        energies * size,
        lambda: filterbank.impulse_responses(params),
    )
    costs = [bank]
    others = sorted(name for name in params if name not in (*filterbank.FILTERS, "norm"))
    for name in others:
        size = params[name].size
        costs.append(LayerCost(f"filterbank/{name}", "constants", (size,), None, size, 0.0))
    return costs + ([_norm_cost("filterbank/norm", params["norm"])] if "norm" in params else [])


def _norm_cost(name: str, layer: Mapping[str, Any]) -> LayerCost:
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
      LowRankError: the budget is below the cost of rank one everywhere.
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
        raise LowRankError(
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
      LowRankError: not exactly one of the two, a fraction outside (0, 1], or a budget out of reach.
    """
    if (rank_fraction is None) == (budget_params is None):
        raise LowRankError("factorize: give rank_fraction or budget_params, and only one")
    if rank_fraction is not None and not 0 < rank_fraction <= 1:
        raise LowRankError(f"factorize: rank_fraction is {rank_fraction}, it must be in (0, 1]")
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
            raise LowRankError(
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
            raise LowRankError(
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


def _encoder_settings(config: contextnet.ContextNetConfig) -> dict[str, Any]:
    """The part of `config.encoder` that factorising and merging change."""
    return {
        "conv": config.conv,
        "rank": config.rank,
        "pointwise_rank_fraction": config.pointwise_rank_fraction or 1.0,
        "pointwise_ranks": config.pointwise_ranks,
    }


def main() -> None:
    """The command line: prints the table; with --out also writes a work directory."""
    parser = app.parser(
        "asr.lowrank",
        "Parameters, MACs and ranks of a trained ContextNet's layers; factorises it.",
    )
    app.add_run(parser)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--rank_fraction", type=float, help="rank of 1x1 maps over their channels")
    how.add_argument("--budget_params", type=int, help="parameters that the encoder may have")
    how.add_argument("--merge", action="store_true", help="factored layers back to dense ones")
    parser.add_argument("--bank_rank", type=int, help="rank of the learned filter bank")
    parser.add_argument("--out", type=pathlib.Path, help="new work directory for the result")
    parser.add_argument("--steps", type=int, help="total_steps of --out, to train it on")
    args = parser.parse_args()
    app.command("asr.lowrank", lambda: _run(args))


def _factored_bank(
    config: filterbank.FilterbankConfig, params: Mapping[str, Any], rank: int
) -> tuple[filterbank.FilterbankConfig, dict[str, Any]]:
    """A filter bank, dense or factored, as one of `rank`. Raises LowRankError."""
    try:
        config = dataclasses.replace(config, rank=rank)
    except ValueError as error:
        raise LowRankError(f"--bank_rank: {error}.") from error
    filterbank.say_what_is_kept(np.asarray(filterbank.impulse_responses(params)), config)
    return config, filterbank.factor(params, config)


def _run(args: argparse.Namespace) -> None:
    if args.merge and args.bank_rank is not None:
        raise errors.UserError("--merge makes the filter bank dense: leave --bank_rank out.")
    of_encoder = args.rank_fraction is not None or args.budget_params is not None
    changes = of_encoder or args.merge or args.bank_rank is not None
    if changes != (args.out is not None):
        raise errors.UserError(
            "--out goes with --rank_fraction, --budget_params, --bank_rank or --merge."
        )
    folder = args.workdir.expanduser().resolve()
    found = trained.load(asr_task.PACKAGE, folder, step=args.checkpoint)
    config, task, variables = found.config, found.task, found.variables
    encoder, params = task.model.encoder_config, dict(variables["params"])
    bank = task.model.front_end if config.features.kind == "learned" else None

    def show(title: str) -> None:
        costs = bank_costs(bank, params["filterbank"]) if bank else []
        costs += layer_costs(encoder, params["encoder"], 1000.0 / config.features.hop_ms)
        print(f"{title}\n{format_table(measured(costs))}")
        if bank:
            print(filterbank.describe(params["filterbank"], bank))

    show(f"{folder}, step {found.step}")
    if not changes:
        return
    if args.merge:
        encoder, params["encoder"] = merge(encoder, params["encoder"])
        if bank and bank.rank:
            bank = dataclasses.replace(bank, rank=None)
            params["filterbank"] = filterbank.merge(params["filterbank"])
    if of_encoder:
        encoder, params["encoder"] = factorize(
            encoder,
            params["encoder"],
            rank_fraction=args.rank_fraction,
            budget_params=args.budget_params,
        )
    if args.bank_rank is not None:
        if not bank:
            raise LowRankError("--bank_rank: features.kind is log_mel, there is no filter bank.")
        bank, params["filterbank"] = _factored_bank(bank, params["filterbank"], args.bank_rank)
    out = args.out.expanduser().resolve()
    show(f"\n{out}")
    new = config.to_dict()
    new["encoder"].update(_encoder_settings(encoder))
    if bank:
        new["features"]["rank"] = bank.rank or 0
    new["total_steps"] = args.steps or new["total_steps"]
    with workdir.Lock(out):
        if (out / "checkpoints").exists():
            raise errors.UserError(f"{out} has checkpoints already; choose another --out.")
        workdir.save_config(out, "asr", workdir.freeze(new))
        shutil.copytree(folder / "tokenizer", out / "tokenizer", dirs_exist_ok=True)
        task = asr_task.make_task(workdir.freeze(new), out)
        saver = checkpoint.Checkpointer(out / "checkpoints")
        state = parallel.place(task.create_state({**variables, "params": params}), found.mesh)
        saver.save(0, state, None, {**task.checkpoint_meta(), "evaluated": -1}, None)
        saver.close()
    print(
        f"Evaluate: python -m asr.main --workdir={out} --mode=evaluate\n"
        f"Train on: python -m asr.main --workdir={out}"
    )


if __name__ == "__main__":
    main()
