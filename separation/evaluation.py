"""What an evaluation says of its mixtures: improvements, failures, wrong speakers, by speaker."""

import csv
import io
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from common import files, metrics
from common.data import splits
from common.task import Report
from separation import fixed, judges, modes

# What the report takes from the batch as it is.
GIVEN = ("present", "noisy", "snr_db", "target_index", "enrolment_index", "interferer_index")
_COLUMNS = ("si_sdr", "si_sdri", "wrong_speaker")  # of each mode
BSS = ("sdr", "sir", "sar")
_SNR_EDGES = (-10.0, -5.0, -2.5, 0.0, 2.5, 5.0, 10.0)
_SNR_RANGES = (
    f"below {_SNR_EDGES[0]:g} dB",
    *(f"{low:g} to {high:g} dB" for low, high in itertools.pairwise(_SNR_EDGES)),
    f"above {_SNR_EDGES[-1]:g} dB",
)


def summarise(
    split: str,
    outputs: Sequence[Mapping[str, np.ndarray]],
    part: splits.Split,
    known: Mapping[str, modes.Mode] = modes.MODES,
) -> Report:
    """Scalars, lines and <split>.csv with a row for every mixture.

    SI-SDRi: of the extracted voice over that of the mixture. Failure: it is below 0. Wrong speaker:
    what was extracted is nearer, by SI-SDR, to an interferer than to the target. All of it also by
    SNR, by the genders of the voices where the data name them, and by enrolments with and without
    noise, in lines and in <split>_groups.csv. Intervals: 95 %,
    over speakers of the targets, whose mixtures fail together. Each of the `known` modes that was
    measured has a line, and columns; where nothing says whom to extract, the loudest voice is the
    target, of all mixtures. Where the target is absent, the level of the output against that of
    the mixture counts.
    """
    real = np.concatenate([batch["mask"] for batch in outputs])
    names = [name for name in outputs[0] if name not in ("mask", "examples")]
    rows = {name: np.concatenate([batch[name] for batch in outputs])[real] for name in names}
    order = np.argsort(rows["index"], kind="stable")  # whatever the buckets made of it
    rows = {name: np.asarray(values)[order] for name, values in rows.items()}
    targets = [part.written_at(int(i)) for i in rows["target_index"]]
    speakers = np.array([row["speaker"] for row in targets])
    present, others = rows["present"], rows["interferer_index"].shape[1]
    measured = [mode for mode in known.values() if f"{mode.prefix}si_sdr" in rows]
    columns, first = {}, np.zeros(len(targets), int)
    for mode in measured:
        wanted = {"loudest": rows["loudest"], "target": first, "other": first + 1}[mode.wanted]
        columns |= _columns(mode.prefix, rows, wanted, others)
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
    everything = np.ones(len(targets), bool)
    for mode in measured:
        prefix, words = mode.prefix, mode.words
        among = present if mode.wanted == "target" else everything
        gains, failed = columns[f"{prefix}si_sdri"], columns[f"{prefix}si_sdri"] < 0
        median = say(f"{prefix}si_sdri_median", gains, among, np.median)
        mean = say(f"{prefix}si_sdri_mean", gains, among, np.mean)
        failed = say(f"{prefix}failure_rate", failed, among, np.mean)
        wrong = ""
        if others:
            name = f"{prefix}wrong_speaker"
            wrong = f", another speaker {say(f'{name}_rate', columns[name], among, np.mean)}"
        lines.append(
            f"{split} SI-SDRi {words}: median {median}, mean {mean}, below 0 dB {failed}{wrong} "
            f"({among.sum()} mixtures, {len(set(speakers[among]))} voices)"
        )
    if "own_seconds" in rows:
        known = np.mean(rows["own_seconds"] > 0)
        scalars["self_enrolled_rate"] = float(known)
        lines.append(f"{split} self-enrolled: {100 * known:.1f} % of mixtures, the others blind")
    if "sdr" in rows:
        said = [f"{n.upper()} {say(f'{n}_median', rows[n], present, np.median)}" for n in BSS]
        lines.append(f"{split} BSS Eval, medians: {', '.join(said)}")
    if not present.all():
        level = say("absent_level_db_median", rows["level_db"], ~present, np.median)
        lines.append(f"{split} level where the target is absent: median {level}")
    judged, said = judges.summarise(split, rows, speakers)
    scalars |= judged
    lines += said
    genders = _genders(rows, part)
    groups, wrong = [], columns["wrong_speaker"] if others else np.full(len(targets), np.nan)
    for kind, labels in (
        ("SNR", np.array(_SNR_RANGES)[np.digitize(rows["snr_db"], _SNR_EDGES)]),
        ("voices", genders),
        ("enrolment", np.where(rows["noisy"], "noisy", "clean")),
    ):
        groups += [
            (kind, label, _Figures.of(improved, wrong, speakers, among))
            for label, among in _groups(labels, present)
        ]
    if isinstance(part, fixed.ListSplit) and part.note:
        lines.append(f"{split}: {part.note}")
    lines += [f"{split} {kind} {label}: {figures}" for kind, label, figures in groups]
    name = files.safe_name(split)
    table = _table(rows, columns, measured, targets, speakers, genders, part)
    return Report(
        scalars, lines, files={f"{name}.csv": table, f"{name}_groups.csv": _group_table(groups)}
    )


def _columns(
    prefix: str, rows: Mapping[str, np.ndarray], wanted: Int[np.ndarray, "n"], others: int
) -> dict[str, np.ndarray]:
    """SI-SDR, its improvement, and whether another voice was extracted than the one `wanted`."""
    each = np.arange(len(wanted))
    # Behind the voices stands the noise, which is no speaker.
    voices = rows[f"{prefix}si_sdr"][:, : 1 + others]
    reached = voices[each, wanted]
    return {
        f"{prefix}si_sdr": reached,
        f"{prefix}si_sdri": reached - rows["mixture_si_sdr"][each, wanted],
        f"{prefix}wrong_speaker": np.argmax(voices, axis=1) != wanted,
    }


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
    """What is said of a group, with intervals; no wrong speakers where there is one voice: NaN."""

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
        wrong = 100 * self.wrong_speaker_rate
        return (
            f"median {self.median:.1f} dB [{self.median_low:.1f}, {self.median_high:.1f}], below "
            f"0 dB {failed[0]} % [{failed[1]}, {100 * self.failure_high:.1f}]"
            + ("" if np.isnan(wrong) else f", another speaker {wrong:.1f} %")
            + f" ({self.mixtures} mixtures)"
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
    measured: Sequence[modes.Mode],
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
    told = {name: columns[name] for name in _COLUMNS}
    told = {"mixture_si_sdr": rows["mixture_si_sdr"][:, 0], **told}
    told |= {name: rows[name] for name in bss}
    blind = {}  # what has a meaning in mixtures without their target too
    for mode in (mode for mode in measured if mode.prefix):
        kept = told if mode.wanted == "target" else blind
        kept |= {f"{mode.prefix}{n}": columns[f"{mode.prefix}{n}"] for n in _COLUMNS[1:]}
    if "own_seconds" in rows:
        blind["self_enrolment_seconds"] = rows["own_seconds"]
    told, blind = ({n: np.asarray(x, float) for n, x in one.items()} for one in (told, blind))
    judged = judges.columns(rows)
    writer.writerow([*head, *told, *blind, "level_db", *judged])
    for i, target in enumerate(targets):
        others = [part.written_at(int(k))["id"] for k in rows["interferer_index"][i] if k >= 0]
        enrolment = part.written_at(int(rows["enrolment_index"][i]))["id"]
        here = bool(rows["present"][i])
        listed = isinstance(part, fixed.ListSplit)
        name = part.fixed.entries[rows["index"][i]].id if listed else target["id"]
        writer.writerow(
            [
                *(name, target["id"], speakers[i], enrolment, int(rows["noisy"][i])),
                *(" ".join(others), genders[i]),
                *(f"{rows['seconds'][i]:.2f}", f"{rows['snr_db'][i]:.2f}", int(here)),
                *(f"{x[i]:.4g}" if here else "" for x in told.values()),
                *(f"{x[i]:.4g}" for x in (*blind.values(), rows["level_db"])),
                *(column[i] for column in judged.values()),
            ]
        )
    return text.getvalue()
