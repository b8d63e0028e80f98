"""What a ContextNet's layers cost and how much rank they use; truncate, fine-tune and merge one.

    python -m asr.lowrank --workdir=runs/quickstart
    python -m asr.lowrank --workdir=runs/quickstart --rank_fraction=0.25 --out=runs/quarter
    python -m asr.lowrank --workdir=runs/an4 --budget_params=366000 --by=activations --steps=200
        --out=runs/half [--config.optimizer.learning_rate=1e-3]
    python -m asr.lowrank --workdir=runs/learned --bank_rank=60 --out=runs/rank60

A learned filter bank (features.kind=learned) is listed, factorised and merged like the encoder.
With --steps the error rates before, after the change and after so many steps of training are said,
and written to lowrank.json of --out; --steps=0 only measures. A training that was stopped goes on
with the same command.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from asr import activations, filterbank, penalties
from asr import task as asr_task
from asr.costs import LayerCost, format_table, layer_costs, measured, norm_cost
from asr.truncation import LowRankError, decompositions, factorize, merge, settings
from common import (
    app,
    checkpoint,
    command_line,
    errors,
    evaluation,
    files,
    parallel,
    preemption,
    trained,
    trainer,
    workdir,
)
from common.analysis import objective
from common.nn import lowrank
from common.task import Report

BY = ("weights", "activations", "normalized")
_SAID = "lowrank.json"  # of --out
_CHANGE = ("rank_fraction", "budget_params", "budget_macs", "merge", "by", "split", "batches")
_CHANGE += ("bank_rank", "steps")  # flags by which a change is the same one


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
    return costs + ([norm_cost("filterbank/norm", params["norm"])] if "norm" in params else [])


def main() -> None:
    """The command line: prints the table; with --out also writes a work directory."""
    parser = app.parser("asr.lowrank", __doc__)
    app.add_run(parser)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--rank_fraction", type=float, help="rank of 1x1 maps over their channels")
    how.add_argument("--budget_params", type=int, help="parameters that the encoder may have")
    how.add_argument("--merge", action="store_true", help="factored layers back to dense ones")
    parser.add_argument("--budget_macs", type=float, help="MACs a second of audio that it may cost")
    parser.add_argument(
        "--by",
        choices=BY,
        help="what is kept: most of the weights (default), or of the outputs on real activations, "
        "as they are or as batch normalisation scales them",
    )
    parser.add_argument("--split", help="whose activations: train (default), or a split")
    parser.add_argument("--batches", type=int, help="so many batches of it (8; 0: all of a split)")
    parser.add_argument("--bank_rank", type=int, help="rank of the learned filter bank")
    parser.add_argument("--out", type=pathlib.Path, help="new work directory for the result")
    parser.add_argument("--steps", type=int, help="fine-tune so long, and say all error rates")
    args, words = parser.parse_known_args()
    app.command("asr.lowrank", lambda: _run(args, words))


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


def _check(args: argparse.Namespace, words: Sequence[str]) -> None:
    """Raises UserError for options that exclude each other or miss one another."""
    if args.merge and args.bank_rank is not None:
        raise errors.UserError("--merge makes the filter bank dense: leave --bank_rank out.")
    if args.budget_macs is not None and (args.merge or args.rank_fraction is not None):
        raise errors.UserError("--budget_macs goes with --budget_params or alone.")
    if (args.merge or args.bank_rank is not None or _of_encoder(args)) != (args.out is not None):
        raise errors.UserError(
            "--out goes with --rank_fraction, --budget_params, --budget_macs, --bank_rank or "
            "--merge."
        )
    if args.by is not None and not _of_encoder(args):
        raise errors.UserError(
            "--by goes with --rank_fraction, --budget_params or --budget_macs: it says by what the "
            "encoder is truncated."
        )
    if args.by in (None, "weights") and not (args.split is None and args.batches is None):
        raise errors.UserError(
            "--split and --batches say whose activations are taken: give --by=activations too."
        )
    if args.steps is not None and (args.out is None or args.steps < 0):
        raise errors.UserError("--steps is how long --out is fine-tuned: 0 or more, with --out.")
    if words and args.out is None:
        raise errors.UserError(f"{words[0]}: settings and others go with --out. See --help.")


def _of_encoder(args: argparse.Namespace) -> bool:
    targets = (args.rank_fraction, args.budget_params, args.budget_macs)
    return any(target is not None for target in targets)


def components(
    found: trained.Trained,
    by: str = "activations",
    *,
    split: str = objective.TRAIN,
    batches: int = 8,
) -> dict[str, lowrank.Decomposition]:
    """The components of a run's 1x1 maps (`truncation.decompositions`), to truncate them by.

    Args:
      by: one of `BY`: "weights"; "activations", the error on the outputs of each map on real
        recordings; "normalized", on them as batch normalisation scales them.
      split: whose activations: "train", or an evaluation split ("" is the first).
      batches: so many of it; 0 is all of a split.

    Raises UserError: activations of an encoder that is not separable, no such split.
    """
    encoder, params = found.task.model.encoder_config, found.variables["params"]["encoder"]
    if by not in BY:
        raise errors.UserError(f"{by!r} is unknown: choose one of {', '.join(BY)}.")
    if by == "weights":
        return decompositions(encoder, params)
    if encoder.conv != "separable":
        raise errors.UserError(
            f"--by={by} is of 1x1 maps, but config.encoder.conv={encoder.conv!r} has filters "
            "over time: take --by=weights."
        )
    if batches < 0:
        raise errors.UserError(f"--batches={batches}: give 0 (all of a split) or more.")
    _, data = objective.batches_of(found.task, split, batches)
    sums = activations.moments(found.task, found.variables, data, found.mesh, most=batches)
    scales: Mapping[str, Any] = {}
    if by == "normalized":
        stats = found.variables["batch_stats"]["encoder"]
        scales = activations.output_scales(encoder, params, stats)
    moments = {name: (moment, scales.get(name)) for name, moment in sums.items()}
    return decompositions(encoder, params, moments)


def _run(args: argparse.Namespace, words: Sequence[str]) -> None:
    _check(args, words)
    folder = args.workdir.expanduser().resolve()
    found = trained.load(asr_task.PACKAGE, folder, step=args.checkpoint)
    config, task, variables = found.config, found.task, found.variables
    encoder, params = task.model.encoder_config, dict(variables["params"])
    bank = task.model.front_end if config.features.kind == "learned" else None
    frames_per_second = 1000.0 / config.features.hop_ms

    def show(title: str) -> dict[str, Any]:
        costs = bank_costs(bank, params["filterbank"]) if bank else []
        of_encoder = layer_costs(encoder, params["encoder"], frames_per_second)
        print(f"{title}\n{format_table(measured([*costs, *of_encoder]))}")
        if bank:
            print(filterbank.describe(params["filterbank"], bank))
        return {
            "encoder_parameters": sum(cost.parameters for cost in of_encoder),
            "encoder_macs_per_second": sum(cost.macs_per_second for cost in of_encoder),
        }

    said: dict[str, Any] = {"before": show(f"{folder}, step {found.step}")}
    if args.out is None:
        return
    out = args.out.expanduser().resolve()
    if (out / "checkpoints").exists():
        new = workdir.load_config(out, "asr", asr_task.PACKAGE.default_config())
        same = command_line.read_config(ConfigDict(new.to_dict()), words) == new
        about = {"from": str(folder), "step": found.step, "change": _change(args)}
        if args.steps and same and (begun := _begun(out, about)):
            with workdir.Lock(out):
                _train(asr_task.make_task(new, out), new, out, begun, found.mesh)
            print(_evaluating(out))
            return
        raise errors.UserError(
            f"{out} has checkpoints already, and not those of this fine-tuning, stopped: choose "
            "another --out."
        )
    if args.merge:
        encoder, params["encoder"] = merge(encoder, params["encoder"])
        if bank and bank.rank:
            bank = dataclasses.replace(bank, rank=None)
            params["filterbank"] = filterbank.merge(params["filterbank"])
    if _of_encoder(args):
        maps = None
        if encoder.conv == "separable" or args.by not in (None, "weights"):
            batches = 8 if args.batches is None else args.batches
            split = args.split or objective.TRAIN
            maps = components(found, args.by or "weights", split=split, batches=batches)
        encoder, params["encoder"] = factorize(
            encoder,
            params["encoder"],
            rank_fraction=args.rank_fraction,
            budget_params=args.budget_params,
            budget_macs=args.budget_macs,
            frames_per_second=frames_per_second,
            maps=maps,
        )
        ranks = dict(encoder.pointwise_ranks)
        said["maps"] = {
            name: {"rank": rank, "share_lost": maps[name].lost(rank)}
            for name, rank in ranks.items()
        }
    if args.bank_rank is not None:
        if not bank:
            raise LowRankError("--bank_rank: features.kind is log_mel, there is no filter bank.")
        bank, params["filterbank"] = _factored_bank(bank, params["filterbank"], args.bank_rank)
    said["after"] = show(f"\n{out}")
    new = _new_config(config, encoder, bank, args.steps, words)
    with workdir.Lock(out):
        workdir.save_config(out, "asr", new)
        shutil.copytree(folder / "tokenizer", out / "tokenizer", dirs_exist_ok=True)
        changed = asr_task.make_task(new, out)
        state = parallel.place(changed.create_state({**variables, "params": params}), found.mesh)
        saver = checkpoint.Checkpointer(out / "checkpoints")
        saver.save(0, state, None, {**changed.checkpoint_meta(), "evaluated": -1}, None)
        saver.close()
        if args.steps is not None:
            by = (args.by or "weights") if _of_encoder(args) else None
            about = {"from": str(folder), "step": found.step, "by": by, "change": _change(args)}
            said = about | said
            _fine_tune(found, changed, state.eval_variables, new, out, said, train=args.steps > 0)
    print(_evaluating(out))
    if not args.steps:
        print(f"Train on: python -m asr.main --workdir={out}")


def _new_config(config: Any, encoder: Any, bank: Any, steps: int | None, words: Any) -> Any:
    """The config of the changed network; a fine-tuning warms up for a tenth of its steps.

    Penalties of a run whose network has no low-rank layers any more are left out.
    """
    new = config.to_dict()
    if not penalties.any_low_rank(encoder):
        new["regularize"] = dict.fromkeys(new["regularize"], 0.0)
    new["encoder"].update(settings(encoder))
    if bank:
        new["features"]["rank"] = bank.rank or 0
    if steps:
        new["total_steps"] = steps
        warmup = new["optimizer"]["warmup_steps"]
        new["optimizer"]["warmup_steps"] = min(warmup, steps // 10)
    return command_line.read_config(ConfigDict(new), words)


def _fine_tune(
    found: trained.Trained,
    task: asr_task.AsrTask,
    variables: Any,
    config: Any,
    out: pathlib.Path,
    said: dict[str, Any],
    *,
    train: bool,
) -> None:
    """Measures the network before and after the change, trains on, and says it all."""
    mesh = found.mesh
    before = evaluation.reports(found.task, found.eval_step, found.variables, mesh)
    _say(out, said, "before", "before", before)
    eval_step = evaluation.make_eval_step(task, config, mesh)
    after = evaluation.reports(task, eval_step, variables, mesh)
    _say(out, said, "after the change", "changed", after)
    if train:
        _train(task, config, out, said, mesh)
    else:
        print(f"All of it: {out / _SAID}")


def _train(
    task: asr_task.AsrTask, config: Any, out: pathlib.Path, said: dict[str, Any], mesh: Any
) -> None:
    """Trains the changed network on from where it is. A signal ends the process as it ends a
    training; the same command goes on with it."""
    task.prepare()
    state, reports = trainer.train(task, config, out, mesh)
    if reports is None:
        sys.exit(preemption.EXIT_CODE)
    if not reports:  # all steps were done before
        eval_step = evaluation.make_eval_step(task, config, mesh)
        reports = evaluation.reports(task, eval_step, state.eval_variables, mesh)
    said["fine_tuning_steps"] = config.total_steps
    _say(out, said, f"after {config.total_steps} steps", "fine_tuned", reports)
    print(f"All of it: {out / _SAID}")


def _say(
    out: pathlib.Path, said: dict[str, Any], when: str, key: str, reports: Mapping[str, Report]
) -> None:
    for split, report in reports.items():
        print(f"{when + ':':<20} {report.lines[0]}", flush=True)
        names = ("wer", "wer_low", "wer_high", "cer", "loss")
        numbers = {name: float(report.scalars[name]) for name in names}
        said.setdefault("splits", {}).setdefault(split, {})[key] = numbers
    if jax.process_index() == 0:
        files.write_text(out / _SAID, json.dumps(said, indent=2) + "\n")


def _evaluating(out: pathlib.Path) -> str:
    return f"Evaluate: python -m asr.main --workdir={out} --mode=evaluate"


def _change(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in _CHANGE}


def _begun(out: pathlib.Path, about: Mapping[str, Any]) -> dict[str, Any] | None:
    """What was said of a change `about` the same when its training was stopped; None where `out`
    holds another one, or it is done."""
    try:
        said = json.loads((out / _SAID).read_text())
    except (OSError, ValueError):
        return None
    rates = [dict(found) for found in said.get("splits", {}).values()]
    is_begun = rates and all("changed" in found and "fine_tuned" not in found for found in rates)
    return said if is_begun and about.items() <= said.items() else None


if __name__ == "__main__":
    main()
