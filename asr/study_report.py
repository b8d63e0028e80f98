"""The report of a study: one HTML page with tables, plots, films, and what they say.

It reads what the stages of `asr.study` left in the folders of the cells. An interval over seeds is
Student's t of 95 %; where it holds 0 a difference is called not told apart.
"""

import base64
import contextlib
import dataclasses
import html
import io
import json
import logging
import math
import pathlib
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import Float
from matplotlib.figure import Figure
from scipy import stats

from asr import widths
from common import errors, files
from common.analysis import figures

log = logging.getLogger(__name__)

RADIUS = 0.5  # of the points around a checkpoint over which sharpness is the mean
REFERENCE = "separable"
FLATTER = "Is its minimum flatter?"
PREDICTS = "Does flatness predict WER?"
_NOT_YET = "<p>Not there yet: no run has been looked into.</p>"
_FORMS = {
    "separable": "a filter over time for each channel, then a 1x1 map",
    "rank": "filters that are sums of so many products, a pattern in time times one over channels",
    "pointwise": "separable with 1x1 maps of low rank, a share of their input channels",
    "dense": "filters without any such form",
    "log_mel": "log-mel features",
    "waveform": "a learned filter bank on the waveform, which starts as log-mel",
    "waveform_low_rank": "such a bank of low rank",
}
_STYLE = """body{font:15px/1.45 sans-serif;max-width:1150px;margin:2em auto;padding:0 1em}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.25em .7em;border-bottom:1px solid #ccc;
text-align:right}td:first-child,th:first-child{text-align:left}img{max-width:100%}
.row{display:flex;flex-wrap:wrap;gap:1em}.row figure{margin:0;flex:1 1 330px;max-width:540px}
figcaption{font-size:.85em;color:#555}"""


@dataclasses.dataclass(frozen=True)
class Seed:
    """One run: plain figures by name, None or absent where a stage is not done.

    `over` has curves over training: name -> [(step, value)].
    """

    cell: str
    seed: int
    folder: pathlib.Path
    values: dict[str, float]
    over: dict[str, list[tuple[int, float]]]


def sharpness(points: Float[np.ndarray, "n d"], loss: Float[np.ndarray, "n"]) -> float:
    """By how much the loss is higher than in the middle, in the mean of the points within `RADIUS`.

    1 is as far as weights are long, by filters (Li et al. 2018). NaN counts as no point.
    """
    distance = np.linalg.norm(points, axis=1)
    near = (distance > 0) & (distance <= RADIUS + 1e-6) & np.isfinite(loss)
    return float(np.mean(loss[near]) - loss[distance == 0][0]) if near.any() else math.nan


class Damaged(errors.UserError):
    """A file of a stage that cannot be read."""


@contextlib.contextmanager
def reading(path: pathlib.Path) -> Iterator[None]:
    """What goes wrong with a file's content comes as Damaged, with its name."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise Damaged(f"{path} cannot be read ({error}): move it away.") from error


def read(folder: pathlib.Path, last: int) -> Seed:
    """What the stages of one run left; figures are those of step `last`, error rates those of the
    first split of config.data.eval. Raises Damaged."""
    with reading(folder / "study.json"):
        about = json.loads((folder / "study.json").read_text())
        cell, seed = str(about["cell"]), int(about["seed"])
    values: dict[str, float] = {}
    over: dict[str, list[tuple[int, float]]] = {}

    def add(name: str, step: int, value: Any) -> None:
        if value is not None:
            over.setdefault(name, []).append((step, float(value)))

    if (path := folder / "metrics.jsonl").exists():
        with reading(path):
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            lines = [line for line in lines if "wer" in line]
            for line in lines:
                if line["split"] == lines[0]["split"]:
                    add("wer", line["step"], 100 * line["wer"])
    analysis = folder / "analysis"
    for path in analysis.glob("study/[0-9]*.npz"):
        with reading(path), path.open("rb") as file, np.load(file) as grid:
            add("sharpness", int(path.stem), sharpness(grid["points"], grid["values/loss"]))
    for path in analysis.glob("hessian_*.json"):
        with reading(path):
            found = json.loads(path.read_text())
            add("largest", found["step"], found["largest"][0])
            add("least", found["step"], found["least"][-1])
            add("trace", found["step"], found["trace"])
    over = {name: sorted(dict(rows).items()) for name, rows in over.items()}
    values |= {name: rows[-1][1] for name, rows in over.items() if rows[-1][0] == last}
    for path in analysis.glob("responses_*.json"):
        with reading(path):
            found = json.loads(path.read_text())
            first = found["layers"][0]
            values |= {
                "parameters": found["parameters"],
                "encoder_parameters": found["encoder_parameters"],
                "mmacs": found["encoder_macs_per_second"] / 1e6,
                "stable_rank": found["stable_rank"],
                "rank_1_share": found["rank_1_share"],
                "modulation_hz": first["modulation_mean_hz"],
                "channels_used": first["channels_used"],
            }
    for path in analysis.glob("attribution_*_transcript.json"):
        with reading(path):
            rows = json.loads(path.read_text())
            values["explained"] = float(np.mean([row["converged"] for row in rows]))
            for kind in ("deletion", "insertion"):
                for order in ("attribution", "energy", "random"):
                    areas = [row.get(f"{kind}_{order}") for row in rows if row["converged"]]
                    areas = [area for area in areas if area is not None]
                    if areas:
                        values[f"{kind}_{order}"] = float(np.mean(areas))
    return Seed(cell, seed, folder, values, over)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval (NaN of one value)."""
    known = np.array([value for value in values if math.isfinite(value)])
    if not len(known):
        return math.nan, math.nan
    if len(known) == 1:
        return float(known[0]), math.nan
    error = known.std(ddof=1) / math.sqrt(len(known))
    return float(known.mean()), float(stats.t.ppf(0.975, len(known) - 1) * error)


def paired(
    seeds: Sequence[Seed], name: str, cell: str, reference: str
) -> tuple[float, float, int] | None:
    """Mean difference of a cell to another over the seeds of both, half its interval, how many."""
    found = {
        which: {
            s.seed: s.values[name]
            for s in seeds
            if s.cell == which and math.isfinite(s.values.get(name, math.nan))
        }
        for which in (cell, reference)
    }
    both = sorted(found[cell].keys() & found[reference].keys())
    if not both:
        return None
    mean, half = interval([found[cell][k] - found[reference][k] for k in both])
    return mean, half, len(both)


def verdict(mean: float, half: float, more: str, less: str) -> str:
    """In words, what a difference with such an interval says."""
    if math.isnan(half):
        return "one seed: no interval"
    if abs(mean) <= half:
        return "not told apart"
    return more if mean > 0 else less


def correlation(
    seeds: Sequence[Seed], x: str, y: str, *, draws: int = 2000
) -> tuple[float, float, float, int] | None:
    """Spearman's of two figures over the runs, and its 95 % interval when cells are drawn anew."""
    rows = [(s.cell, s.values.get(x, math.nan), s.values.get(y, math.nan)) for s in seeds]
    rows = [row for row in rows if math.isfinite(row[1]) and math.isfinite(row[2])]
    names = sorted({row[0] for row in rows})
    if len(names) < 3:
        return None
    members = [np.array([row[1:] for row in rows if row[0] == name]) for name in names]

    def rho(some: Sequence[np.ndarray]) -> float:
        a, b = np.concatenate(some).T
        if len(np.unique(a)) < 2 or len(np.unique(b)) < 2:
            return math.nan
        return float(stats.spearmanr(a, b).statistic)

    whole = rho(members)
    if math.isnan(whole):
        return None
    rng = np.random.default_rng(0)
    drawn = [rho([members[k] for k in rng.integers(len(names), size=len(names))])
             for _ in range(draws)]  # fmt: skip
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return whole, float(low), float(high), len(rows)


def findings(seeds: Sequence[Seed]) -> dict[str, list[str]]:
    """The answers by question, each with its interval; only of what was run."""
    names = list(dict.fromkeys(seed.cell for seed in seeds))
    found_of: dict[str, list[str]] = {}
    questions: tuple[tuple[str, str, str, str, str, str], ...] = (
        ("Does the form cost WER?", "wer", "WER", "points", "higher", "lower"),
        (FLATTER, "sharpness", "Sharpness", "nats", "sharper", "flatter"),
        (FLATTER, "largest", "The largest eigenvalue", "", "larger", "smaller"),
    )
    for question, name, what, unit, more, less in questions:
        lines = found_of.setdefault(question, [])
        for cell in names:
            form, _, front = cell.rpartition("/")
            reference = f"{REFERENCE}/{front}" if form != REFERENCE else f"{REFERENCE}/log_mel"
            if cell == reference or not (found := paired(seeds, name, cell, reference)):
                continue
            mean, half, count = found
            error = "" if math.isnan(half) else f" &plusmn; {half:.3g}"
            lines.append(
                f"{what} of {html.escape(cell)} less that of {html.escape(reference)}: "
                f"{mean:+.3g}{error} {unit} ({count} seeds): {verdict(mean, half, more, less)}."
            )
    lines = found_of.setdefault(PREDICTS, [])
    for name, what in (
        ("sharpness", "sharpness"),
        ("largest", "the largest eigenvalue"),
        ("trace", "the trace"),
    ):
        if found := correlation(seeds, name, "wer"):
            rho, low, high, count = found
            said = "predicts WER" if low > 0 or high < 0 else "does not tell WER"
            lines.append(
                f"Rank correlation of {what} and WER over {count} runs: {rho:+.2f} "
                f"[{low:+.2f}, {high:+.2f}]: it {said} here."
            )
    return {question: lines for question, lines in found_of.items() if lines}


# Title, how to read it, columns: figure, heading, format.
_TABLES: tuple[tuple[str, str, tuple[tuple[str, str, str], ...]], ...] = (
    (
        "Error and cost",
        "WER of the evaluation split at the last step.",
        (
            ("wer", "WER %", ".2f"),
            ("parameters", "parameters", ",.0f"),
            ("encoder_parameters", "of the encoder", ",.0f"),
            ("mmacs", "encoder MMAC/s", ".2f"),
        ),
    ),
    (
        "The minimum",
        "Sharpness: by how many nats the loss is higher, in the mean of the points within "
        f"{RADIUS} of the last checkpoint on its plane; 1 is as far as composed filters are long. "
        "Eigenvalues and trace are those of the loss's Hessian; they hang on the scale of weights, "
        "sharpness does not.",
        (
            ("sharpness", f"sharpness (radius {RADIUS})", ".3g"),
            ("largest", "largest eigenvalue", ".3g"),
            ("least", "least eigenvalue", ".3g"),
            ("trace", "trace", ".3g"),
        ),
    ),
    (
        "What it listens to",
        "Stable rank: the energy of a filter over that of its best rank 1 form, whose share is the "
        "next column. Modulation: where the filters of the first layer lie over time; speech has "
        "most of its own from 1 to 16 Hz. Deletion: the area below the transcript's "
        "log-probability while more and more of the spectrogram is silenced, 1 being the whole "
        "recording and 0 silence; a map that knows what counts has less than energy and chance.",
        (
            ("stable_rank", "stable rank", ".2f"),
            ("rank_1_share", "energy in rank 1", ".2f"),
            ("modulation_hz", "first layer: modulation Hz", ".1f"),
            ("channels_used", "first layer: bands used", ".1f"),
            ("deletion_attribution", "deletion: map", ".3f"),
            ("deletion_energy", "by energy", ".3f"),
            ("deletion_random", "at random", ".3f"),
            ("explained", "maps that add up", ".2f"),
        ),
    ),
)


def _table(seeds: Sequence[Seed], columns: Sequence[tuple[str, str, str]]) -> str:
    rows = [
        "<tr><th>cell</th><th>seeds</th>"
        + "".join(f"<th>{html.escape(title)}</th>" for _, title, _ in columns)
        + "</tr>"
    ]
    for cell in dict.fromkeys(seed.cell for seed in seeds):
        some = [seed for seed in seeds if seed.cell == cell]
        cells = []
        for name, _, form in columns:
            known = [s.values[name] for s in some if math.isfinite(s.values.get(name, math.nan))]
            mean, half = interval(known)
            text = "-" if math.isnan(mean) else format(mean, form)
            if not math.isnan(half) and half > 0:
                text += f" &plusmn; {format(half, form)}"
            if 0 < len(known) < len(some):
                text += f" ({len(known)} of them)"
            cells.append(f"<td>{text}</td>")
        rows.append(f"<tr><td>{html.escape(cell)}</td><td>{len(some)}</td>{''.join(cells)}</tr>")
    return f"<table>{''.join(rows)}</table>"


def _curves(seeds: Sequence[Seed], name: str, label: str) -> Figure:
    """Means over seeds of what changes in training, a line a cell."""
    names = list(dict.fromkeys(s.cell for s in seeds if name in s.over))
    figure = figures.new(6.4, 4.2)
    plot = figure.add_subplot()
    for cell, colour in zip(names, figures.palette(len(names))):
        rows = [dict(s.over[name]) for s in seeds if s.cell == cell and name in s.over]
        steps = sorted(set.intersection(*(set(row) for row in rows)))
        plot.plot(
            steps,
            [np.mean([row[k] for row in rows]) for k in steps],
            marker=".", linewidth=1.2, color=colour, label=cell,
        )  # fmt: skip
    plot.set_xlabel("step")
    plot.set_ylabel(label)
    plot.legend(fontsize=7)
    return figure


def _scatter(seeds: Sequence[Seed], name: str, label: str) -> Figure:
    """WER over what is to predict it, a dot a run."""
    names = list(dict.fromkeys(s.cell for s in seeds))
    figure = figures.new(6.4, 4.2)
    plot = figure.add_subplot()
    for cell, colour in zip(names, figures.palette(len(names))):
        dots = [
            (s.values[name], s.values["wer"])
            for s in seeds
            if s.cell == cell and name in s.values and "wer" in s.values
        ]
        if dots:
            plot.scatter(*zip(*dots), s=18, color=[colour], label=cell)
    plot.set_xlabel(label)
    plot.set_ylabel("WER (%)")
    plot.legend(fontsize=7)
    return figure


def _embedded(kind: str, data: bytes, caption: str) -> str:
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    caption = html.escape(caption)
    return (
        f'<figure><img src="{source}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
    )


def _plot(draw: Callable[..., Figure], *args: Any) -> str:
    out = io.BytesIO()
    PIL.Image.fromarray(figures.pixels(draw(*args))).save(out, format="png")
    return _embedded("png", out.getvalue(), f"{args[-1]}")


def _pictures(seed: Seed) -> str:
    """The film, the spectrum and the responses of a run, and what a transcript of it hangs on."""
    analysis, shown = seed.folder / "analysis", []
    for patterns, what in (
        (("study/film_*filled*.gif", "study/*filled*.png"), "the loss around its checkpoints"),
        (("hessian_*_spectrum.png",), "spectrum of the Hessian"),
        (("responses_*.png",), "what its filters listen to"),
    ):
        found = next(filter(None, (list(analysis.glob(one)) for one in patterns)), None)
        if found:
            last = max(found, key=lambda path: (len(path.name), path.name))
            kind = last.suffix.removeprefix(".")
            shown.append(_embedded(kind, last.read_bytes(), f"{seed.cell}: {what}"))
    for curves in sorted(analysis.glob("attribution_*_transcript_*_curves.png"))[:1]:
        of_map = curves.with_name(curves.name.removesuffix("_curves.png") + ".png")
        for path, what in (
            (of_map, "what the transcript of a recording hangs on"),
            (curves, "its log-probability while that is silenced (deletion), or heard (insertion)"),
        ):
            shown.append(_embedded("png", path.read_bytes(), f"{seed.cell}: {what}"))
    return f'<div class="row">{"".join(shown)}</div>' if shown else ""


def _about(about: dict[str, Any], seeds: Sequence[Seed]) -> list[str]:
    """What was run, how far it is, and what the names of cells mean."""
    equal = {
        "params": "encoders of equal parameters",
        "macs": "encoders of equal multiply-accumulates",
        "none": "encoders of the config's widths",
    }[about["equal"]]
    batches, recordings = about["batches"], about["recordings"]
    trained = sum("wer" in seed.values for seed in seeds)
    looked = sum("sharpness" in seed.values for seed in seeds)
    count = len({seed.cell for seed in seeds})
    lines = [
        f"<p>{len(seeds)} runs of {count} cells, {equal}, {about['config']['total_steps']} steps "
        f"each; {trained} are trained to the end, {looked} have a landscape of it. Landscapes and "
        f"Hessians over {batches} batch{'es' if batches > 1 else ''} of the evaluation split, "
        f"attributions of {recordings} recordings. Means over seeds &plusmn; half of Student's "
        "95 % interval.</p>",
        "<p>A cell is form/front end, trained with several seeds:</p><ul>",
    ]
    names = {part for seed in seeds for part in seed.cell.rpartition("/")[::2]}
    for kind, words in _FORMS.items():
        some = [name for name in names if name == kind or name.startswith(f"{kind}_")]
        some = [name for name in some if name == kind or name not in _FORMS]
        if some:
            shown = ", ".join(map(html.escape, sorted(some)))
            lines.append(f"<li><b>{shown}</b>: {words}.</li>")
    return [*lines, "</ul>"]


def page(
    folder: pathlib.Path,
    about: dict[str, Any],
    seeds: Sequence[Seed],
    left_out: Sequence[str] = (),
) -> str:
    """The whole report; `left_out` are messages of runs that could not be read."""
    name, answers = html.escape(folder.name), findings(seeds)
    parts = [
        f"<!doctype html><meta charset='utf-8'><title>{name}</title>",
        f"<style>{_STYLE}</style><h1>Low rank in a recogniser: {name}</h1>",
        *_about(about, seeds),
        *(f"<p>A run is left out: {html.escape(text)}</p>" for text in left_out),
        "<h2>Findings</h2>",
    ]
    for question, lines in answers.items():
        items = "".join(f"<li>{line}</li>" for line in lines)
        parts.append(f"<h3>{question}</h3><ul>{items}</ul>")
    if not answers:
        parts.append(
            f"<p>None yet: each compares a cell with {REFERENCE} behind the same front end, or "
            f"{REFERENCE} with itself behind log_mel, over the seeds that both have.</p>"
        )
    for title, words, columns in _TABLES:
        some = any(name in seed.values for seed in seeds for name, _, _ in columns)
        table = f"<p>{html.escape(words)}</p>{_table(seeds, columns)}" if some else _NOT_YET
        parts.append(f"<h2>{title}</h2>{table}")
    parts.append('<h2>Over training</h2><div class="row">')
    for name, label in (
        ("wer", "WER (%)"),
        ("sharpness", "sharpness"),
        ("largest", "largest eigenvalue"),
        ("trace", "trace"),
    ):
        if any(name in seed.over for seed in seeds):
            parts.append(_plot(_curves, seeds, name, label))
    parts.append(f"</div><h2>{PREDICTS}</h2>")
    plots = [
        _plot(_scatter, seeds, name, label)
        for name, label in (("sharpness", "sharpness"), ("largest", "largest eigenvalue"))
        if any(name in seed.values and "wer" in seed.values for seed in seeds)
    ]
    parts.append(f'<div class="row">{"".join(plots)}</div>' if plots else _NOT_YET)
    parts.append("<h2>Each cell</h2>")
    shown: set[str] = set()
    for seed in seeds:
        if seed.cell not in shown and (pictures := _pictures(seed)):
            shown.add(seed.cell)
            parts.append(f"<h3>{html.escape(seed.cell)}, seed {seed.seed}</h3>{pictures}")
    return "\n".join(parts)


def write(folder: pathlib.Path) -> pathlib.Path:
    """Writes DIR/report.html of what there is, and every figure into DIR/runs.json.

    Raises UserError.
    """
    path = folder / "study.json"
    if not path.exists():
        raise errors.UserError(f"{folder} has no study.json: it is no folder of asr.study.")
    with reading(path):
        about = json.loads(path.read_text())
        last = about["config"]["total_steps"]
    seeds, left_out = [], []
    for run in sorted(folder.glob("*/study.json")):
        try:
            seeds.append(read(run.parent, last))
        except Damaged as damaged:
            log.warning("A run is left out: %s", damaged)
            left_out.append(str(damaged))
    forms = list(widths.VARIANTS)
    seeds.sort(key=lambda s: (forms.index(s.cell.rpartition("/")[0]), s.cell, s.seed))
    report = folder / "report.html"
    files.write_text(report, page(folder, about, seeds, left_out))
    rows = [{"cell": s.cell, "seed": s.seed, **s.values, "over": s.over} for s in seeds]
    files.write_text(folder / "runs.json", json.dumps(rows, indent=2) + "\n")
    return report
