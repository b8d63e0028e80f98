"""Widths with which forms of an encoder cost the same: parameters, or MACs a second of audio.

    python -m asr.widths --config=configs/asr/an4.py --by=params
    python -m asr.widths --config=configs/asr/librispeech.py:s --by=macs

prints, for each form of convolution, the widths with which it costs what the config's own encoder
does, by how much it deviates, and the settings to train it with. One factor widens or narrows all
blocks but the last, whose channels the decoder reads: so equal encoders are equal recognisers.
"""

import bisect
import dataclasses
import fractions
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from asr import contextnet, costs, model, truncation
from common import app, command_line, errors

MULTIPLE = 8  # of channels
MEASURES = {"params": "parameters", "macs": "macs_per_second"}
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "separable": {"conv": "separable"},
    "rank_1": {"conv": "spectro_temporal", "rank": 1},
    "rank_2": {"conv": "spectro_temporal", "rank": 2},
    "rank_4": {"conv": "spectro_temporal", "rank": 4},
    "pointwise_1/8": {"conv": "separable", "pointwise_rank_fraction": 0.125},
    "pointwise_1/4": {"conv": "separable", "pointwise_rank_fraction": 0.25},
    "pointwise_1/2": {"conv": "separable", "pointwise_rank_fraction": 0.5},
    "dense": {"conv": "dense"},
}


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of an encoder, as `costs.layer_costs` counts them."""

    parameters: int
    macs_per_second: float


@dataclasses.dataclass(frozen=True)
class Found:
    """A form of an encoder with the widths found for it.

    `deviation` is that of what was to be equal, over the reference's: 0.01 is one per cent more.
    """

    name: str
    config: contextnet.ContextNetConfig
    cost: Cost
    deviation: float


def cost(
    config: contextnet.ContextNetConfig,
    num_features: int,
    frames_per_second: float = costs.FRAMES_PER_SECOND,
) -> Cost:
    """What an encoder of `num_features` a frame costs; nothing is allocated."""
    init = functools.partial(contextnet.ContextNet(config).init, train=False)
    features = jax.ShapeDtypeStruct((1, config.reduction, num_features), jnp.float32)
    lengths = jax.ShapeDtypeStruct((1,), jnp.int32)
    params = jax.eval_shape(init, jax.random.key(0), features, lengths)["params"]
    layers = costs.layer_costs(config, params, frames_per_second)
    return Cost(
        sum(layer.parameters for layer in layers), sum(layer.macs_per_second for layer in layers)
    )


def equal(
    config: contextnet.ContextNetConfig,
    name: str,
    num_features: int,
    *,
    by: str = "params",
    frames_per_second: float = costs.FRAMES_PER_SECOND,
) -> Found:
    """The form `name` of `VARIANTS` with the widths that cost what `config` costs by `by`.

    Of all tables that a common factor makes of the config's, rounded to multiples of 8 channels,
    it takes the two around the cost; between them blocks are widened one by one, from the last,
    and the nearest counts. What is left is `Found.deviation`.

    Raises UserError for an unknown form or measure, and where even 8 channels a block cost more.
    """
    for given, known in ((name, VARIANTS), (by, MEASURES)):
        if given not in known:
            raise errors.UserError(f"{given!r} is unknown: choose one of {', '.join(known)}.")
    base = {"rank": 1, "pointwise_rank_fraction": None, "pointwise_ranks": (), **VARIANTS[name]}
    whole = functools.partial(cost, num_features=num_features, frames_per_second=frames_per_second)
    channels = [block.channels for block in config.blocks]
    wanted = float(getattr(whole(config), MEASURES[by]))

    @functools.cache
    def made(widths: tuple[int, ...]) -> tuple[contextnet.ContextNetConfig, Cost]:
        blocks = [dataclasses.replace(b, channels=w) for b, w in zip(config.blocks, widths)]
        new = dataclasses.replace(config, blocks=tuple(blocks), **base)
        return new, whole(new)

    def measure(widths: Sequence[int]) -> float:
        return float(getattr(made(tuple(widths))[1], MEASURES[by]))

    nearest = _nearest(channels, measure, wanted)
    if nearest is None:
        raise errors.UserError(
            f"{name}: even with {MULTIPLE} channels a block its encoder has more {by} than that "
            "of the config: take a wider config or a narrower last block."
        )
    new, found = made(nearest)
    return Found(name, new, found, getattr(found, MEASURES[by]) / wanted - 1.0)


def _nearest(
    channels: Sequence[int], measure: Callable[[Sequence[int]], float], wanted: float
) -> tuple[int, ...] | None:
    """The widths whose measure, which grows with each of them, is nearest; None: all are above."""

    def scaled(factor: fractions.Fraction) -> tuple[int, ...]:
        widths = [math.floor(factor * c / MULTIPLE + fractions.Fraction(1, 2)) for c in channels]
        return (*(MULTIPLE * max(1, w) for w in widths[:-1]), channels[-1])

    least = scaled(fractions.Fraction(0))
    if measure(least) > wanted or len(channels) == 1:
        return None if measure(least) > wanted else least
    most = 1
    while measure(scaled(fractions.Fraction(most))) <= wanted:
        most *= 2
    # Where one of the widths makes a step.
    steps = {
        fractions.Fraction(MULTIPLE * (2 * k + 1), 2 * c)
        for c in set(channels[:-1])
        for k in range(1, most * c // MULTIPLE + 1)
    }
    tables = sorted({least, *map(scaled, steps)}, key=sum)
    place = bisect.bisect_right(tables, wanted, key=measure)
    below, above = tables[place - 1], tables[place]
    differ = [i for i, (a, b) in enumerate(zip(below, above)) if a != b]
    between = [
        tuple(above[i] if i in differ[len(differ) - n :] else w for i, w in enumerate(below))
        for n in range(len(differ) + 1)
    ]
    place = bisect.bisect_right(between, wanted, key=measure)
    return min(between[place - 1 : place + 1], key=lambda widths: abs(measure(widths) - wanted))


def settings(found: Found) -> dict[str, Any]:
    """The part of `config.encoder` that makes a recogniser's encoder that one."""
    rows = tuple((b.num_convs, b.channels, b.stride, b.kernel_size) for b in found.config.blocks)
    if contextnet.reduced(rows).blocks != found.config.blocks:
        raise errors.UserError(
            "A block of one convolution with a residual cannot be a row of config.encoder.blocks: "
            "set config.encoder.num_convs to 2 or more."
        )
    return {"blocks": rows, **truncation.settings(found.config)}


def of_config(config: Any, name: str, by: str = "params") -> Found:
    """`equal` of the encoder that a recogniser's config describes."""
    features = config.features
    rate = 1000.0 / features.hop_ms
    encoder = model.encoder_config(config)
    return equal(encoder, name, features.num_mels, by=by, frames_per_second=rate)


def format_table(reference: Cost, table: Sequence[Found]) -> str:
    """One form a line, with the settings that make it."""
    lines = [f"{'form':14s} {'parameters':>11s} {'MMAC/s':>9s} {'deviation':>9s}   settings"]

    def row(name: str, cost: Cost, deviation: str, said: str) -> str:
        macs = cost.macs_per_second / 1e6
        return f"{name:14s} {cost.parameters:>11,d} {macs:>9.3f} {deviation:>9s}   {said}".rstrip()

    lines.append(row("the config", reference, "", ""))
    for found in table:
        changed = {k: v for k, v in settings(found).items() if k != "pointwise_ranks"}
        said = " ".join(
            f'--config.encoder.{k}="{v}"'.replace(" ", "") if k == "blocks"
            else f"--config.encoder.{k}={v}"
            for k, v in changed.items()
        )  # fmt: skip
        lines.append(row(found.name, found.cost, f"{100 * found.deviation:+.2f} %", said))
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = app.parser("asr.widths", __doc__)
    parser.add_argument("--config", required=True, help="configs/asr/an4.py, settings behind it")
    parser.add_argument(
        "--by", choices=list(MEASURES), default="params", help="what is to be equal"
    )
    parser.add_argument("--only", choices=list(VARIANTS), nargs="+", help="these forms alone")
    args, words = parser.parse_known_args()
    app.command("asr.widths", lambda: _run(args, words))


def _run(args: Any, words: Sequence[str]) -> None:
    config = command_line.read_config(args.config, words)
    reference = cost(
        model.encoder_config(config), config.features.num_mels, 1000.0 / config.features.hop_ms
    )
    names = args.only or list(VARIANTS)
    print(format_table(reference, [of_config(config, name, args.by) for name in names]))


if __name__ == "__main__":
    main()
