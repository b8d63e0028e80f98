"""What an evaluation says of its mixtures: improvements, failures, wrong speakers, by speaker."""

import csv
import io
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped

from common import files, metrics
from common.data import splits
from common.task import Report
from separation import fixed

# What the report takes from the batch as it is.
GIVEN = ("present", "noisy", "snr_db", "target_index", "enrolment_index", "interferer_index")
BSS = ("sdr", "sir", "sar")
_SNR_EDGES = (-10.0, -5.0, -2.5, 0.0, 2.5, 5.0, 10.0)
_SNR_RANGES = (
    f"below {_SNR_EDGES[0]:g} dB",
    *(f"{low:g} to {high:g} dB" for low, high in itertools.pairwise(_SNR_EDGES)),
    f"above {_SNR_EDGES[-1]:g} dB",
)


def summarise(
    split: str, outputs: Sequence[Mapping[str, np.ndarray]], part: splits.Split
) -> Report:
    """Scalars, lines and <split>.csv with a row for every mixture.

    SI-SDRi: of the extracted voice over that of the mixture. Failure: it is below 0. Wrong speaker:
    what was extracted is nearer, by SI-SDR, to an interferer than to the target. All of it also by
    SNR, by the genders of the voices where the data name them, and by enrolments with and without
    noise, in lines and in <split>_groups.csv. Intervals: 95 %,
    over speakers of the targets, whose mixtures fail together. Without an enrolment ("blind") the
    loudest voice is the target. Where the target is absent, the level of the output against that of
    the mixture counts.
    """
    real = np.concatenate([batch["mask"] for batch in outputs])
    names = set(outputs[0]) - {"mask", "examples"}
    rows = {name: np.concatenate([batch[name] for batch in outputs])[real] for name in names}
    order = np.argsort(rows["index"], kind="stable")  # whatever the buckets made of it
    rows = {name: np.asarray(values)[order] for name, values in rows.items()}
    targets = [part.written_at(int(i)) for i in rows["target_index"]]
    speakers = np.array([row["speaker"] for row in targets])
    present, others = rows["present"], rows["interferer_index"].shape[1]
    columns = {
        "si_sdri": rows["si_sdr"][:, 0] - rows["mixture_si_sdr"][:, 0],
        # Behind the voices stands the noise, which is no speaker.
        "wrong_speaker": rows["si_sdr"][:, 0] < rows["si_sdr"][:, 1 : 1 + others].max(1),
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
    genders = _genders(rows, part)
    groups = []
    for kind, labels in (
        ("SNR", np.array(_SNR_RANGES)[np.digitize(rows["snr_db"], _SNR_EDGES)]),
        ("voices", genders),
        ("enrolment", np.where(rows["noisy"], "noisy", "clean")),
    ):
        groups += [
            (kind, label, _Figures.of(improved, columns["wrong_speaker"], speakers, among))
            for label, among in _groups(labels, present)
        ]
    if isinstance(part, fixed.ListSplit) and part.note:
        lines.append(f"{split}: {part.note}")
    lines += [f"{split} {kind} {label}: {figures}" for kind, label, figures in groups]
    name = files.safe_name(split)
    table = _table(rows, columns, targets, speakers, genders, part)
    return Report(
        scalars, lines, files={f"{name}.csv": table, f"{name}_groups.csv": _group_table(groups)}
    )


def _genders(rows: Mapping[str, np.ndarray], part: splits.Split) -> Shaped[np.ndarray, "n"]:
    """Those of the voices of each mixture, sorted ("fm"), "" where one is not known."""
    if isinstance(part, fixed.ListSplit):
        return np.array(part.genders)[rows["index"]]
    found = []
    for i, target in enumerate(rows["target_index"]):
        places = [target, *(k for k in rows["interferer_index"][i] if k >= 0)]
        genders = [part.written_at(int(k)).get("gender", "") for k in places]
        found.append("".join(sorted(genders)) if all(genders) else "")
    return np.array(found)


def _groups(
    labels: Shaped[np.ndarray, "n"], present: Bool[np.ndarray, "n"]
) -> list[tuple[str, Bool[np.ndarray, "n"]]]:
    """(label, its mixtures with a target); none where all are of one group."""
    names = sorted(set(labels[present].tolist()) - {""}, key=_order)
    return [(name, present & (labels == name)) for name in names] if len(names) > 1 else []


def _order(label: str) -> tuple[int, str]:
    return _SNR_RANGES.index(label) if label in _SNR_RANGES else -1, label


class _Figures(NamedTuple):
    """What is said of a group, with intervals."""

    mixtures: int
    median: float
    median_low: float
    median_high: float
    failure_rate: float
    failure_low: float
    failure_high: float
    wrong_speaker_rate: float

    @classmethod
    def of(
        cls,
        improved: Float[np.ndarray, "n"],
        wrong: Bool[np.ndarray, "n"],
        speakers: Shaped[np.ndarray, "n"],
        among: Bool[np.ndarray, "n"],
    ) -> "_Figures":
        improved, speakers = np.asarray(improved[among], np.float64), speakers[among]
        failed = np.asarray(improved < 0, np.float64)
        return cls(
            len(improved),
            float(np.median(improved)),
            *metrics.group_interval(improved, speakers, np.median),
            float(np.mean(failed)),
            *metrics.group_interval(failed, speakers, np.mean),
            float(np.mean(wrong[among])),
        )

    def __str__(self) -> str:
        failed = [f"{100 * x:.1f}" for x in (self.failure_rate, self.failure_low)]
        return (
            f"median {self.median:.1f} dB [{self.median_low:.1f}, {self.median_high:.1f}], below "
            f"0 dB {failed[0]} % [{failed[1]}, {100 * self.failure_high:.1f}], another speaker "
            f"{100 * self.wrong_speaker_rate:.1f} % ({self.mixtures} mixtures)"
        )


def _group_table(groups: Sequence[tuple[str, str, _Figures]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["kind", "group", *_Figures._fields])
    for kind, label, figures in groups:
        writer.writerow([kind, label, figures.mixtures, *(f"{x:.4g}" for x in figures[1:])])
    return text.getvalue()


def _table(
    rows: Mapping[str, np.ndarray],
    columns: Mapping[str, np.ndarray],
    targets: Sequence[Mapping[str, Any]],
    speakers: np.ndarray,
    genders: np.ndarray,
    part: splits.Split,
) -> str:
    """A line for every mixture; what has no meaning there is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["mixture", "target", "speaker", "enrolment", "noisy", "interferers", "genders"]
    head += ["seconds", "snr_db", "present"]
    bss = [name for name in BSS if name in rows]
    measured = ["mixture_si_sdr", "si_sdr", "si_sdri", "wrong_speaker", *bss]
    writer.writerow([*head, *measured, "blind_si_sdri", "level_db"])
    for i, target in enumerate(targets):
        others = [part.written_at(int(k))["id"] for k in rows["interferer_index"][i] if k >= 0]
        enrolment = part.written_at(int(rows["enrolment_index"][i]))["id"]
        here = bool(rows["present"][i])
        listed = isinstance(part, fixed.ListSplit)
        name = part.fixed.entries[rows["index"][i]].id if listed else target["id"]
        values = {
            "mixture_si_sdr": rows["mixture_si_sdr"][i, 0],
            "si_sdr": rows["si_sdr"][i, 0],
            "si_sdri": columns["si_sdri"][i],
            "wrong_speaker": int(columns["wrong_speaker"][i]),
            **{name: rows[name][i] for name in bss},
        }
        writer.writerow(
            [
                *(name, target["id"], speakers[i], enrolment, int(rows["noisy"][i])),
                *(" ".join(others), genders[i]),
                *(f"{rows['seconds'][i]:.2f}", f"{rows['snr_db'][i]:.2f}", int(here)),
                *(f"{values[n]:.4g}" if here else "" for n in measured),
                *(f"{columns['blind_si_sdri'][i]:.4g}", f"{rows['level_db'][i]:.4g}"),
            ]
        )
    return text.getvalue()
