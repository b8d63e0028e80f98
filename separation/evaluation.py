"""What an evaluation says of its mixtures: improvements, failures, wrong speakers, by speaker."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from common import files, metrics
from common.data import splits
from common.task import Report

# What the report takes from the batch as it is.
GIVEN = ("present", "snr_db", "enrolment_index", "interferer_index")
BSS = ("sdr", "sir", "sar")


def summarise(
    split: str, outputs: Sequence[Mapping[str, np.ndarray]], part: splits.Split
) -> Report:
    """Scalars, lines and <split>.csv with a row for every mixture.

    SI-SDRi: of the extracted voice over that of the mixture. Failure: it is below 0. Wrong speaker:
    what was extracted is nearer, by SI-SDR, to an interferer than to the target. Intervals: 95 %,
    over speakers of the targets, whose mixtures fail together. Without an enrolment ("blind") the
    loudest voice is the target. Where the target is absent, the level of the output against that of
    the mixture counts.
    """
    real = np.concatenate([batch["mask"] for batch in outputs])
    names = set(outputs[0]) - {"mask", "examples"}
    rows = {name: np.concatenate([batch[name] for batch in outputs])[real] for name in names}
    order = np.argsort(rows["index"], kind="stable")  # whatever the buckets made of it
    rows = {name: np.asarray(values)[order] for name, values in rows.items()}
    targets = [part.written_at(int(i)) for i in rows["index"]]
    speakers = np.array([row["speaker"] for row in targets])
    present = rows["present"]
    columns = {
        "si_sdri": rows["si_sdr"][:, 0] - rows["mixture_si_sdr"][:, 0],
        "wrong_speaker": rows["si_sdr"][:, 0] < rows["si_sdr"][:, 1:].max(1),
    }
    each = np.arange(len(targets))
    blind = rows["blind_si_sdr"][each, rows["loudest"]]
    columns["blind_si_sdri"] = blind - rows["mixture_si_sdr"][each, rows["loudest"]]
    scalars, lines = {"mixtures": float(len(targets))}, []

    def say(name: str, values: np.ndarray, among: np.ndarray, how: Any) -> str:
        values = np.asarray(values[among], np.float64)
        value = float(how(values)) if len(values) else float("nan")
        low, high = metrics.group_interval(values, speakers[among], how)
        scalars[name] = value
        if name == "si_sdri_median":
            scalars["si_sdri_median_low"], scalars["si_sdri_median_high"] = low, high
        scale, unit = (100, " %") if name.endswith("rate") else (1, " dB")
        low, high = scale * low, scale * high
        return f"{scale * value:.1f}{unit} [{low:.1f}, {high:.1f}]"

    improved = columns["si_sdri"]
    median = say("si_sdri_median", improved, present, np.median)
    mean = say("si_sdri_mean", improved, present, np.mean)
    failed = say("failure_rate", improved < 0, present, np.mean)
    wrong = say("wrong_speaker_rate", columns["wrong_speaker"], present, np.mean)
    count = f"{int(present.sum())} mixtures, {len(set(speakers))} voices"
    lines.append(f"{split} SI-SDRi with an enrolment: median {median}, mean {mean} ({count})")
    lines.append(f"{split} below 0 dB: {failed}; another speaker: {wrong}")
    everything = np.ones(len(targets), bool)
    median = say("blind_si_sdri_median", columns["blind_si_sdri"], everything, np.median)
    lines.append(f"{split} SI-SDRi without one, of the loudest voice: median {median}")
    if "sdr" in rows:
        said = [f"{n.upper()} {say(f'{n}_median', rows[n], present, np.median)}" for n in BSS]
        lines.append(f"{split} BSS Eval, medians: {', '.join(said)}")
    if not present.all():
        level = say("absent_level_db_median", rows["level_db"], ~present, np.median)
        lines.append(f"{split} level where the target is absent: median {level}")
    table = _table(rows, columns, targets, speakers, part)
    return Report(scalars, lines, files={f"{files.safe_name(split)}.csv": table})


def _table(
    rows: Mapping[str, np.ndarray],
    columns: Mapping[str, np.ndarray],
    targets: Sequence[Mapping[str, Any]],
    speakers: np.ndarray,
    part: splits.Split,
) -> str:
    """A line for every mixture; what has no meaning there is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["target", "speaker", "enrolment", "interferers", "seconds", "snr_db", "present"]
    bss = [name for name in BSS if name in rows]
    measured = ["mixture_si_sdr", "si_sdr", "si_sdri", "wrong_speaker", *bss]
    writer.writerow([*head, *measured, "blind_si_sdri", "level_db"])
    for i, target in enumerate(targets):
        others = [part.written_at(int(k))["id"] for k in rows["interferer_index"][i] if k >= 0]
        enrolment = part.written_at(int(rows["enrolment_index"][i]))["id"]
        here = bool(rows["present"][i])
        values = {
            "mixture_si_sdr": rows["mixture_si_sdr"][i, 0],
            "si_sdr": rows["si_sdr"][i, 0],
            "si_sdri": columns["si_sdri"][i],
            "wrong_speaker": int(columns["wrong_speaker"][i]),
            **{name: rows[name][i] for name in bss},
        }
        writer.writerow(
            [
                *(target["id"], speakers[i], enrolment, " ".join(others)),
                *(f"{rows['seconds'][i]:.2f}", f"{rows['snr_db'][i]:.2f}", int(here)),
                *(f"{values[n]:.4g}" if here else "" for n in measured),
                *(f"{columns['blind_si_sdri'][i]:.4g}", f"{rows['level_db'][i]:.4g}"),
            ]
        )
    return text.getvalue()
