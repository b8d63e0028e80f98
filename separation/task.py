"""The separation task of a config, and the last words of its runs."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from common import errors, package, sections
from common.data import splits
from common.task import Report
from separation import extraction, fixed, losses, mixing, model, modes, unread
from separation import lists as lists_lib
from separation import settings as settings_lib
from separation.lite import losses as lite_losses
from separation.lite import network as lite_network
from separation.lite import task as lite_task
from separation.visualvoice import losses as visualvoice_losses
from separation.visualvoice import task as visualvoice_task

# What differs from one `config.model.kind` to the others.
KINDS = {"visualvoice": visualvoice_task.VisualVoiceTask, "lite": lite_task.LiteTask}
NEXT = {
    "visualvoice": ("separate_video", "--input=FILM.mp4 --out=DIR"),
    "lite": ("transcribe", "--recogniser=ASR_DIR --enroll=VOICE.wav FILES"),
}


def make_task(config: Any, workdir: pathlib.Path) -> extraction.SeparationTask:
    """The task of a config. Settings that cannot be, or that it never reads, are said; no data are
    opened."""
    _check_sizes(config)
    kind = KINDS.get(config.model.kind, extraction.SeparationTask)
    if kind is visualvoice_task.VisualVoiceTask:
        visualvoice_task.make_sizes(config)
        sections.build(visualvoice_losses.LossConfig, config.loss.visualvoice)
    elif kind is lite_task.LiteTask:
        lite_network.make_sizes(config)
        sections.build(lite_losses.LiteLossConfig, config.loss.lite)
        sections.build(lite_network.SuppressionConfig, config.suppression)
    else:
        model.make_model(config)
        sections.build(losses.LossConfig, config.loss)
    sections.build(mixing.MixingConfig, config.mixing)
    lists_lib.named(config.data.lists)
    modes.table(config)
    unread.check(config, workdir)
    parts = splits.Splits(config, workdir, require_text=False)
    return kind(config, workdir, parts)


def _check_sizes(config: Any) -> None:
    for name in ("batch_rows", "crop_seconds", "enrolment_seconds", "max_eval_seconds"):
        if config.data[name] <= 0:
            raise errors.UserError(f"config.data.{name}={config.data[name]} has to be above 0.")
    least, most = config.mixing.shortest_seconds, config.data.crop_seconds
    if least and not fixed.SHORTEST_SECONDS <= least <= most:
        raise errors.UserError(
            f"config.mixing.shortest_seconds={least:g} is 0 (all mixtures are of one length) or "
            f"from {fixed.SHORTEST_SECONDS:g} to config.data.crop_seconds={most:g}."
        )
    for name in ("size", "channels", "num_mels"):
        if config.cue[name] < 1:
            raise errors.UserError(f"config.cue.{name}={config.cue[name]} has to be 1 at least.")
    if not 0 <= config.cue.dropout <= 1:
        raise errors.UserError(f"config.cue.dropout={config.cue.dropout} is a share from 0 to 1.")


def close(
    task: extraction.SeparationTask,
    workdir: pathlib.Path,
    reports: Mapping[str, Report],
    more: Sequence[str] = (),
) -> None:
    """The last words of a run: figures, `more` lines of them, and where things lie."""
    for report in reports.values():
        print("\n".join(report.lines))
    if task.config.data.kind in splits.EMBEDDED and not set(reports) <= set(task.lists):
        print("These are synthetic voices: the figures say nothing about real speech.")
    for line in more:
        print(line)
    if reports:
        print(f"  figures and mixtures: {workdir / 'results'}")
    print(f"Checkpoints: {workdir / 'checkpoints'}   curves: {workdir / 'metrics.jsonl'}")
    command, given = NEXT.get(
        task.config.model.kind, ("enhance", "--enroll=VOICE.wav --out=DIR FILES")
    )
    print(f"Next: python -m separation.{command} --workdir={workdir} {given}")


PACKAGE = package.Package(
    "separation",
    settings_lib.default_config,
    make_task,
    close,
    changeable=(
        "data",
        "mixing",
        "augment",
        "bss_eval",
        "modes",
        "judges",
        "suppression",
        "parallel",
    ),
    fixed=(
        *("data.sample_rate_hz", "data.train"),
        # of no use without training
        *("data.crop_seconds", "data.batch_rows", "mixing.shortest_seconds"),
    ),
)
