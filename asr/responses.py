"""What the filters of a trained recogniser listen to: bands in Hz, modulations in Hz, ranks used.

    python -m asr.responses --workdir=runs/an4

Of every convolution of the encoder the filters are composed (factors have a free scale and order),
each [k, c] is brought to its best rank 1 form u v', and |FFT(u)| at the layer's frame rate is its
modulation response (Arai and Greenberg 1998: speech lives between 1 and 16 Hz). Of the first
convolution v says which mel bands it weighs; of a learned filter bank |FFT| of the impulse
responses is the frequency response. Into DIR/analysis/: responses_<step>.json, .npz and a picture.
"""

import argparse
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from asr import contextnet, costs, filterbank
from asr import task as asr_task
from common import app, files, parameters, trained
from common.analysis import figures
from common.nn import lowrank

POINTS = 129  # of a modulation response, from 0 Hz to half the frame rate


class Layer(NamedTuple):
    """The filters of one convolution.

    `modulation` is the mean power response over the filters, each of sum 1, at `hz`; `spectral` the
    mean of v squared, of sum 1. `best_share` is the part of the energy that the rank 1 forms have.
    `filters` are the composed ones, frames before channels.
    """

    name: str
    hz: Float[np.ndarray, "p"]
    modulation: Float[np.ndarray, "p"]
    spectral: Float[np.ndarray, "c"]
    channels_used: float
    best_share: float
    stable_rank: float
    filters: Float[np.ndarray, "f k c"]


def layer(name: str, filters: Float[np.ndarray, "f k c"], frames_per_second: float) -> Layer:
    """Of composed filters. `channels_used` is the mean participation ratio 1 / sum(v^4)."""
    left, singular, right = np.linalg.svd(np.asarray(filters, np.float64), full_matrices=False)
    energy = np.square(singular)
    whole = np.maximum(energy.sum(axis=1), np.finfo(float).tiny)
    power = np.square(np.abs(np.fft.rfft(left[:, :, 0], n=2 * (POINTS - 1), axis=1)))
    power /= power.sum(axis=1, keepdims=True)
    weights = np.square(right[:, 0])
    return Layer(
        name,
        np.linspace(0, frames_per_second / 2, POINTS),
        power.mean(axis=0),
        weights.mean(axis=0),
        float(np.mean(1 / np.square(weights).sum(axis=1))),
        float(np.mean(energy[:, 0] / whole)),
        float(np.mean(lowrank.stable_rank(jnp.asarray(singular)))),
        filters,
    )


def of_encoder(
    config: contextnet.ContextNetConfig,
    table: Sequence[costs.LayerCost],
    frames_per_second: float,
) -> list[Layer]:
    """Every convolution over time and channels, from the first to the last."""
    rates = {}
    for i, block in enumerate(config.blocks):
        for j in range(block.num_convs):
            rates[f"block_{i}/conv_{j}"] = frames_per_second
        frames_per_second /= block.stride
    found = []
    for cost in table:
        name = cost.name.removesuffix("/filter")
        if cost.matrices is not None and name in rates:
            found.append(layer(name, np.asarray(cost.matrices()), rates[name]))
    return found


class Bands(NamedTuple):
    """The frequency responses of a filter bank: power [m, p] at `hz`, each of sum 1."""

    hz: Float[np.ndarray, "p"]
    power: Float[np.ndarray, "m p"]

    @property
    def centres(self) -> Float[np.ndarray, "m"]:
        """Hz, the means of the responses."""
        return self.power @ self.hz

    @property
    def widths(self) -> Float[np.ndarray, "m"]:
        """Hz, the standard deviations."""
        return np.sqrt(np.maximum(self.power @ np.square(self.hz) - np.square(self.centres), 0))


def bands(filters: Float[np.ndarray, "w m"], sample_rate_hz: int) -> Bands:
    """Of impulse responses; those of no energy are left out."""
    filters = np.asarray(filters, np.float64)
    filters = filters[:, np.square(filters).sum(axis=0) > 0]
    size = 2 ** int(np.ceil(np.log2(4 * len(filters))))
    power = np.square(np.abs(np.fft.rfft(filters, n=size, axis=0))).T
    return Bands(np.fft.rfftfreq(size, 1 / sample_rate_hz), power / power.sum(axis=1)[:, None])


def share_below(found: Layer, hz: float) -> float:
    """Of the modulation's power, what lies at or below `hz`."""
    return float(found.modulation[found.hz <= hz].sum())


class Measured(NamedTuple):
    """Of a run: its convolutions, its learned filter bank (None: log-mel), what its layers cost."""

    layers: list[Layer]
    bank: Bands | None
    table: list[costs.LayerCost]


def of_run(found: trained.Trained) -> Measured:
    """Of the checkpoint of a recogniser."""
    config = found.config
    params = jax.device_put(jax.device_get(found.variables["params"]), jax.devices()[0])
    encoder, rate = found.task.model.encoder_config, 1000.0 / config.features.hop_ms
    table = costs.layer_costs(encoder, params["encoder"], rate)
    bank = None
    if "filterbank" in params:
        filters = np.asarray(filterbank.impulse_responses(params["filterbank"]))
        bank = bands(filters, config.data.sample_rate_hz)
    return Measured(of_encoder(encoder, table, rate), bank, table)


def summary(layers: Sequence[Layer], bank: Bands | None) -> dict[str, Any]:
    """Plain figures."""
    return {
        "layers": [
            {
                "name": one.name,
                "modulation_mean_hz": float(one.modulation @ one.hz),
                "modulation_below_16_hz": share_below(one, 16.0),
                "channels_used": one.channels_used,
                "rank_1_share": one.best_share,
                "stable_rank": one.stable_rank,
            }
            for one in layers
        ],
        "stable_rank": float(np.mean([one.stable_rank for one in layers])),
        "rank_1_share": float(np.mean([one.best_share for one in layers])),
        "bank": bank
        and {
            "centres_hz": bank.centres.round(1).tolist(),
            "widths_hz": bank.widths.round(1).tolist(),
        },
    }


def draw(layers: Sequence[Layer], bank: Bands | None, title: str) -> Figure:
    """Modulation responses, what the first convolution weighs, and the bank's bands."""
    figure = figures.new(11.0 if bank else 8.4, 3.6)
    plots = figure.subplots(1, 3 if bank else 2)
    for one, colour in zip(layers, figures.palette(len(layers))):
        density = one.modulation / (one.hz[1] - one.hz[0])
        plots[0].plot(one.hz, density, color=colour, linewidth=1, label=one.name)
    plots[0].set_xlabel("modulation (Hz)")
    plots[0].set_ylabel("power, of area 1 (dark: the first layers)")
    plots[1].plot(layers[0].spectral, color="0.25", linewidth=1)
    plots[1].set_xlabel("band of the front end")
    plots[1].set_ylabel(f"weight in {layers[0].name}, of sum 1")
    plots[1].set_ylim(0, None)
    if bank:
        order = np.argsort(bank.centres)
        plots[2].errorbar(
            np.arange(len(order)),
            bank.centres[order],
            yerr=bank.widths[order],
            fmt=".",
            markersize=3,
            elinewidth=0.6,
            color="tab:blue",
        )
        plots[2].set_xlabel("filter of the bank, by its centre")
        plots[2].set_ylabel("Hz, mean and deviation")
        plots[2].set_ylim(0, bank.hz[-1])
    figure.suptitle(title, fontsize=10)
    return figure


def main() -> None:
    """The command line."""
    parser = app.parser("asr.responses", __doc__)
    app.add_run(parser)
    args = parser.parse_args()
    app.command("asr.responses", lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    folder: pathlib.Path = args.workdir.expanduser().resolve()
    found = trained.load(asr_task.PACKAGE, folder, step=args.checkpoint)
    layers, bank, table = of_run(found)
    stem = folder / "analysis" / f"responses_{found.step}"
    about = {
        "step": found.step,
        "parameters": parameters.count(found.variables["params"]),
        "encoder_parameters": sum(row.parameters for row in table),
        "encoder_macs_per_second": sum(row.macs_per_second for row in table),
        **summary(layers, bank),
    }
    files.write_text(stem.with_suffix(".json"), json.dumps(about, indent=2) + "\n")
    arrays = {f"{one.name}/{name}": getattr(one, name)
              for one in layers for name in ("hz", "modulation", "spectral")}  # fmt: skip
    if bank:
        arrays |= {"bank/hz": bank.hz, "bank/power": bank.power}
    with files.replacing(stem.with_suffix(".npz")) as temporary, temporary.open("wb") as out:
        np.savez(out, **arrays)
    figures.save(draw(layers, bank, f"{folder.name}, step {found.step}"), stem.with_suffix(".png"))
    for row in about["layers"]:
        print(
            f"{row['name']:24s} modulation {row['modulation_mean_hz']:5.1f} Hz in the mean, "
            f"{100 * row['modulation_below_16_hz']:3.0f} % below 16 Hz; "
            f"{row['channels_used']:6.1f} channels used; "
            f"rank 1 holds {100 * row['rank_1_share']:3.0f} %"
        )
    print(f"Figures and the picture: {stem}.*")


if __name__ == "__main__":
    main()
