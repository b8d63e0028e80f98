"""What --mode=attribution leaves of each map: arrays, pictures, a summary."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from common import files, writers
from common.analysis import attribution, attribution_figures, explaining, figures, judging
from common.task import Part


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """One recording and target: its maps without padding, and what they were made of."""

    name: str
    about: Mapping[str, Any]
    found: attribution.Attribution
    values: np.ndarray
    baseline: np.ndarray
    parts: Sequence[Part]
    spectrogram: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One target on all recordings, and what its maps are computed with."""

    explainer: explaining.Explainer
    options: Any
    batch: dict[str, np.ndarray]
    values: np.ndarray
    lengths: np.ndarray
    starts: list[np.ndarray]

    @property
    def label(self) -> str:
        """What its files are named by: the target, and what is not as usual."""
        made, options = self.explainer, self.options
        usual = (next(iter(made.task.explanation.inputs)), "integrated_gradients", "silence")
        names = (made.input_name, options.method, options.baseline)
        unusual = [name for name, other in zip(names, usual) if name != other]
        return files.safe_name("-".join([made.target_name.replace(":", "-"), *unusual]))

    def maps(self, variables: Any) -> list[attribution.Attribution]:
        """The attributions of all rows by these variables.

        A row a device at a time: how many nodes it takes is its own affair.
        """
        found: list[attribution.Attribution] = []
        for first in range(0, len(self.values), self.explainer.mesh.size):
            rows = slice(first, first + self.explainer.mesh.size)
            found += self.explainer.explain(
                variables,
                {name: array[rows] for name, array in self.batch.items()},
                self.values[rows],
                self.lengths[rows],
                [start[rows] for start in self.starts],
                method=self.options.method,
                tolerance_percent=self.options.tolerance,
                max_nodes=self.options.max_nodes,
                seed=self.options.seed,
            )
        return found


def hop_seconds(setup: Run, one: Result) -> float:
    """Of a frame of the spectrogram that is shown."""
    duration = len(one.values) * setup.explainer.input.seconds
    return duration / max(1, len(one.spectrogram))


def title(setup: Run, one: Result) -> str:
    """One line: the recording, what was done, and how far it can be trusted."""
    found = one.found
    gap = "" if math.isnan(found.gap_percent) else f", gap {found.gap_percent:.2g} %"
    return (
        f"{one.name}: {setup.options.method.replace('_', ' ')} of {setup.explainer.target_name}   "
        f"F(x) {found.score.sum():.4g}, F({setup.options.baseline}) "
        f"{found.baseline_score.sum():.4g}{gap}, {found.nodes} nodes"
    )


def write(
    folder: pathlib.Path,
    writer: writers.Writers,
    step: int,
    setup: Run,
    results: Sequence[Result],
    judged: Sequence[dict[str, Any]],
) -> None:
    """Arrays, pictures and the summary of one target."""
    made, rows = setup.explainer, []
    target = setup.label
    for one, judgement in zip(results, judged):
        stem = f"attribution_{step}_{target}_{files.safe_name(one.name)}"
        row = summary(step, setup, one, judgement)
        rows.append(row)
        found = one.found
        with files.replacing(folder / f"{stem}.npz") as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                attribution=found.values.astype(np.float32),
                input=one.values,
                baseline=one.baseline,
                score=found.score,
                baseline_score=found.baseline_score,
                gap_percent=found.gap_percent,
                nodes=found.nodes,
                converged=found.converged,
                part_texts=np.array([part.text for part in one.parts]),
                part_seconds=np.array([part[1:] for part in one.parts]).reshape(-1, 2),
                metadata=json.dumps(_plain(row)),
            )
        hop, several = hop_seconds(setup, one), len(found.values) > 1
        second = made.input.seconds
        scores = found.score if several else None
        total = found.values.sum(axis=0)
        heading = title(setup, one)
        picture = attribution_figures.one(
            heading, one.spectrogram, hop, total, second, one.parts, scores=scores
        )
        figures.save(picture, folder / f"{stem}.png", writer, step)
        if several:
            picture = attribution_figures.each(
                heading, one.spectrogram, hop, found.values, second, one.parts, found.score
            )
            figures.save(picture, folder / f"{stem}_each.png", writer, step)
        if judgement:
            picture = attribution_figures.curves(heading, judging.SHARES, judgement["curves"])
            figures.save(picture, folder / f"{stem}_curves.png", writer, step)
        print(title(setup, one) + ("" if found.converged else "   DOES NOT ADD UP"))
    columns = [
        name for name, value in rows[0].items() if not isinstance(value, list | dict | np.ndarray)
    ]
    lines = ["\t".join(columns)]
    lines += ["\t".join(_cell(row[name]) for name in columns) for row in rows]
    files.write_text(folder / f"attribution_{step}_{target}.tsv", "\n".join(lines) + "\n")
    text = json.dumps(_plain(rows), indent=2, ensure_ascii=False)
    files.write_text(folder / f"attribution_{step}_{target}.json", text + "\n")


def summary(step: int, setup: Run, one: Result, judgement: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of one map: plain values, and lists of its parts."""
    found, options, made = one.found, setup.options, setup.explainer
    row: dict[str, Any] = {
        "recording": one.name,
        "step": step,
        "target": made.target_name,
        "input": made.input_name,
        "method": options.method,
        "baseline": options.baseline,
        "seed": options.seed,
        "score": float(found.score.sum()),
        "baseline_score": float(found.baseline_score.sum()),
        "gap_percent": found.gap_percent,
        "nodes": found.nodes,
        "converged": found.converged,
        "speaker": one.about.get("speaker", ""),
        "gender": one.about.get("gender", ""),
    }
    parts, inside, even = [], [], []
    for k, part in enumerate(one.parts):
        entry = {"text": part.text, "start": part.start, "end": part.end}
        if len(found.values) > 1:
            args = part.start, part.end, made.input.seconds
            entry["score"] = float(found.score[k])
            if part.end > part.start:
                entry["share_inside"], entry["even_share"] = attribution.share_inside(
                    found.values[k], *args
                )
                inside.append(entry["share_inside"])
                even.append(entry["even_share"])
        parts.append(entry)
    if inside:
        row["share_inside"], row["even_share"] = float(np.mean(inside)), float(np.mean(even))
    for kind, orders in judgement.get("curves", {}).items():
        low, high = orders["attribution"][[-1, 0] if kind == "deletion" else [0, -1]]
        for name, curve in orders.items():
            row[f"{kind}_{name}"] = judging.area(curve, low, high)
    for fraction, (signed, sizes) in judgement.get("randomised", {}).items():
        row[f"random_{fraction}_signed"], row[f"random_{fraction}_sizes"] = signed, sizes
    return {**row, "parts": parts, **{k: v for k, v in judgement.items() if k != "randomised"}}


def _plain(value: Any) -> Any:
    """JSON values; what is not finite is null."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value


def _cell(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
