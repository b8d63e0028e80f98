"""--mode=attribution: what of its recordings the output of a trained network hangs on.

Everything lies in DIR/analysis/: of each recording and target an .npz and a picture, a summary as
.tsv and .json, with --panel the maps of several recordings in one picture, with --film the map for
every checkpoint of the run.
"""

import dataclasses
import json
import logging
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from common import checkpoint, errors, files, parallel, trained, writers
from common.analysis import (
    attribution,
    attribution_figures,
    explaining,
    figures,
    judging,
    recordings,
    video,
)
from common.audio import frontend, io
from common.package import Context, Package
from common.task import Explained, Part

log = logging.getLogger(__name__)

_GROUP_SECONDS = 0.01  # of a waveform, one cell of the curves
_FILM_FPS = 2.0


@dataclasses.dataclass(frozen=True, eq=False)
class Explained1:
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

    def maps(self, variables: Any) -> list[attribution.Attribution]:
        """The attributions of all rows by these variables."""
        return self.explainer.explain(
            variables,
            self.batch,
            self.values,
            self.lengths,
            self.starts,
            method=self.options.method,
            tolerance_percent=self.options.tolerance,
            max_nodes=self.options.max_nodes,
            seed=self.options.seed,
        )


def run(package: Package, context: Context) -> None:
    """The mode. Raises UserError at the end if a file was broken or a map does not add up."""
    options = context.options
    if jax.process_count() > 1:
        raise errors.UserError("--mode=attribution runs in one process: start it on one host.")
    if options.max_nodes < 1 or options.tolerance <= 0:
        raise errors.UserError("--max_nodes and --tolerance must be positive.")
    if options.files and options.split:
        raise errors.UserError("--files and --split exclude each other: give one.")
    loaded = trained.load(
        package,
        context.folder,
        step=context.checkpoint,
        config=context.config,
        mesh=context.mesh,
    )
    task = loaded.task
    if not isinstance(task, Explained):
        raise errors.UserError(f"{package.name} names no targets of attributions yet.")
    input_name, _ = explaining.find_input(task, options.input)
    targets = targets_of(task, options)
    chosen = _chosen(task, context.config, options)
    folder = context.folder / "analysis"
    settings = context.config.writers
    with writers.Writers(
        context.folder,
        config=context.config.to_dict(),
        tensorboard=settings.tensorboard,
        wandb=settings.wandb,
        project=settings.wandb_project,
        jsonl=False,
    ) as writer:
        done = {}
        for target in targets:
            made = explaining.Explainer(
                task, input_name, target, context.mesh, context.config.parallel
            )
            setup = _prepare(made, loaded.variables, chosen, options)
            done[target] = results = _explain(setup, loaded.variables, chosen)
            judged = _judge(setup, loaded, results) if options.judge else [{}] * len(results)
            _write(folder, writer, loaded.step, setup, results, judged)
            if options.film:
                _film(folder, package, context, setup, results)
        if options.panel:
            _panel(folder, writer, loaded.step, task, input_name, done)
    print(f"Pictures, arrays and the summary: {folder}")
    _complain(done, chosen.failed, options)


def targets_of(task: Explained, options: Any) -> list[str]:
    """The names of --target, all known; UserError."""
    named = options.target or ("channel,channel:3" if _has_panel(task, options) else "")
    names = [name.strip() for name in named.split(",")]
    return [explaining.find_target(task, name)[0] for name in names]


def _has_panel(task: Explained, options: Any) -> bool:
    return options.panel and "channel" in task.targets


def _chosen(task: Explained, config: Any, options: Any) -> recordings.Chosen:
    if options.files:
        chosen = recordings.of_files(task, config, options.files, options.max_seconds)
    else:
        chosen = recordings.of_split(
            task, options.split, options.n, config, options.max_seconds, voices=options.panel
        )
    if options.against:
        try:
            other = recordings.load(config, options.against, options.max_seconds)
        except (io.AudioError, OSError) as error:
            raise errors.UserError(f"--against: {error}") from error
        rows = len(chosen.batch["mask"])
        beside = {
            "against": np.tile(other, (rows, 1)),
            "against_lengths": np.full(rows, len(other), np.int32),
        }
        chosen = dataclasses.replace(chosen, batch={**chosen.batch, **beside})
    return chosen


def _prepare(
    made: explaining.Explainer, variables: Any, chosen: recordings.Chosen, options: Any
) -> Run:
    padded = recordings.padded(chosen.batch, made.mesh.size)
    batch = made.chosen(variables, padded)
    values, lengths, silence = made.read(variables, batch)
    starts = made.starts(options.baseline, values, lengths, silence, options.seed)
    return Run(made, options, batch, values, lengths, starts)


def _explain(setup: Run, variables: Any, chosen: recordings.Chosen) -> list[Explained1]:
    made = setup.explainer
    found, parts = setup.maps(variables), made.parts(setup.batch)
    results = []
    for row, (name, about) in enumerate(zip(recordings.names(chosen.about), chosen.about)):
        length = int(setup.lengths[row])
        # Of several scalars those that have a part; one scalar is the whole.
        several = found[row].values.shape[0] > 1
        kept = attribution.trimmed(found[row], len(parts[row]) if several else 1, length)
        values = setup.values[row, :length]
        start = np.mean([start[row, :length] for start in setup.starts], axis=0)
        shown = values if values.ndim == 2 else _spectrogram(values, made.input.seconds)
        results.append(Explained1(name, about, kept, values, start, parts[row], shown))
    return results


def _spectrogram(audio: np.ndarray, seconds: float) -> np.ndarray:
    config = frontend.LogMelConfig(sample_rate_hz=round(1 / seconds), normalize="none")
    size = np.array([len(audio)], np.int32)
    return np.asarray(jax.jit(frontend.log_mel, static_argnums=2)(audio[None], size, config)[0][0])


def _judge(
    setup: Run, loaded: trained.Trained, results: Sequence[Explained1]
) -> list[dict[str, Any]]:
    """Curves, and the likeness to maps of models whose layers are randomised from the top."""
    made, variables = setup.explainer, loaded.variables

    def score(point: np.ndarray) -> np.ndarray:
        return made.score(variables, setup.batch, point.astype(np.float32)).sum(axis=1)

    totals = [one.found.values.sum(axis=0) for one in results]
    group = max(1, round(_GROUP_SECONDS / made.input.seconds)) if setup.values.ndim == 2 else 1
    start = np.mean(setup.starts, axis=0)
    options = {"group": group, "seed": setup.options.seed}
    lines = judging.curves(score, start, setup.values, setup.lengths, totals, **options)
    order = judging.layers(loaded.task.init)
    fresh = jax.jit(loaded.task.init)(jax.random.key(setup.options.seed))
    likeness: list[dict[str, list[float]]] = [{} for _ in results]
    for fraction in judging.FRACTIONS:
        mixed = judging.randomised(variables, fresh, order, fraction)
        mixed = parallel.place(mixed, made.mesh)
        # A random model's own gap is of no interest: the nodes are those that were enough.
        few = dataclasses.replace(
            setup.options, max_nodes=min(attribution.BLOCK, setup.options.max_nodes)
        )
        maps = dataclasses.replace(setup, options=few).maps(mixed)
        for row, one in enumerate(results):
            other = maps[row].values[:, : len(one.values)].sum(axis=0)
            likeness[row][f"{fraction:g}"] = list(judging.similarity(totals[row], other))
    return [
        {"curves": line, "randomised": like, "shares": judging.SHARES}
        for line, like in zip(lines, likeness)
    ]


def _seconds_of_picture(setup: Run, one: Explained1) -> float:
    duration = len(one.values) * setup.explainer.input.seconds
    return duration / max(1, len(one.spectrogram))


def _title(setup: Run, one: Explained1) -> str:
    found = one.found
    gap = "" if math.isnan(found.gap_percent) else f", gap {found.gap_percent:.2g} %"
    return (
        f"{one.name}: {setup.options.method.replace('_', ' ')} of {setup.explainer.target_name}   "
        f"F(x) {found.score.sum():.4g}, F({setup.options.baseline}) "
        f"{found.baseline_score.sum():.4g}{gap}, {found.nodes} nodes"
    )


def _write(
    folder: pathlib.Path,
    writer: writers.Writers,
    step: int,
    setup: Run,
    results: Sequence[Explained1],
    judged: Sequence[dict[str, Any]],
) -> None:
    """Arrays, pictures and the summary of one target."""
    made, rows = setup.explainer, []
    target = files.safe_name(made.target_name.replace(":", "-"))
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
        hop, several = _seconds_of_picture(setup, one), len(found.values) > 1
        second = made.input.seconds
        scores = found.score if several else None
        total = found.values.sum(axis=0)
        title = _title(setup, one)
        picture = attribution_figures.one(
            title, one.spectrogram, hop, total, second, one.parts, scores=scores
        )
        figures.save(picture, folder / f"{stem}.png", writer, step)
        if several:
            picture = attribution_figures.each(
                title, one.spectrogram, hop, found.values, second, one.parts, found.score
            )
            figures.save(picture, folder / f"{stem}_each.png", writer, step)
        if judgement:
            picture = attribution_figures.curves(title, judging.SHARES, judgement["curves"])
            figures.save(picture, folder / f"{stem}_curves.png", writer, step)
        print(_title(setup, one) + ("" if found.converged else "   DOES NOT ADD UP"))
    columns = [
        name for name, value in rows[0].items() if not isinstance(value, list | dict | np.ndarray)
    ]
    lines = ["\t".join(columns)]
    lines += ["\t".join(_cell(row[name]) for name in columns) for row in rows]
    files.write_text(folder / f"attribution_{step}_{target}.tsv", "\n".join(lines) + "\n")
    text = json.dumps(_plain(rows), indent=2, ensure_ascii=False)
    files.write_text(folder / f"attribution_{step}_{target}.json", text + "\n")


def summary(step: int, setup: Run, one: Explained1, judgement: Mapping[str, Any]) -> dict[str, Any]:
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


def _film(
    folder: pathlib.Path,
    package: Package,
    context: Context,
    setup: Run,
    results: Sequence[Explained1],
) -> None:
    """The maps of every checkpoint, in one colour range, of what the chosen checkpoint decided."""
    loader = checkpoint.Checkpointer(context.folder / "checkpoints", read_only=True)
    steps, made = loader.steps(), setup.explainer
    loader.close()
    if len(steps) < 2:
        log.warning("A film of one checkpoint stands still (config.keep_every keeps more).")
    maps, shapes = {}, None
    for step in steps:
        found = trained.load(
            package, context.folder, step=step, config=context.config, mesh=context.mesh
        )
        now = jax.tree.map(lambda x: (x.shape, str(x.dtype)), found.variables)
        if shapes not in (None, now):
            raise errors.UserError(
                f"The checkpoints of steps {steps[0]} and {step} in {context.folder} differ in the "
                "shapes of their arrays: a film shows one network. Move those of the other away."
            )
        shapes = now
        maps[step] = setup.maps(found.variables)
    target = files.safe_name(made.target_name.replace(":", "-"))
    for row, one in enumerate(results):
        shown = {
            step: attribution.trimmed(found[row], len(one.found.values), len(one.values))
            for step, found in maps.items()
        }
        totals = {step: found.values.sum(axis=0) for step, found in shown.items()}
        most = attribution_figures.limit(np.stack(list(totals.values())))
        frames = []
        for step, total in totals.items():
            title = f"step {step}   {_title(setup, dataclasses.replace(one, found=shown[step]))}"
            hop = _seconds_of_picture(setup, one)
            args = title, one.spectrogram, hop, total, made.input.seconds, one.parts
            frames.append(figures.pixels(attribution_figures.one(*args, colour_limit=most)))
        path = folder / f"attribution_film_{target}_{files.safe_name(one.name)}"
        video.write(frames, path, fps=_FILM_FPS)


def _panel(
    folder: pathlib.Path,
    writer: writers.Writers,
    step: int,
    task: Explained,
    input_name: str,
    done: Mapping[str, Sequence[Explained1]],
) -> None:
    """Voices below each other, a woman's and a man's where the data tell, targets side by side."""
    first = next(iter(done.values()))
    by_gender: dict[str, int] = {}
    for place, one in enumerate(first):
        gender = str(one.about.get("gender", ""))[:1].lower()
        if gender in ("f", "m"):
            by_gender.setdefault(gender, place)
    places = [by_gender["f"], by_gender["m"]] if len(by_gender) == 2 else range(len(first))[:2]
    words = {"f": "female", "m": "male"}
    rows = []
    for place in places:
        one = first[place]
        gender = words.get(str(one.about.get("gender", ""))[:1].lower(), "")
        maps = [results[place].found.values.sum(axis=0) for results in done.values()]
        title = "\n".join(filter(None, (gender, one.name)))
        rows.append({"title": title, "spectrogram": one.spectrogram, "maps": maps})
    seconds = task.inputs[input_name].seconds
    hop = len(first[places[0]].values) * seconds / len(first[places[0]].spectrogram)
    picture = attribution_figures.panel(rows, list(done), hop, seconds)
    names = "_".join(files.safe_name(name.replace(":", "-")) for name in done)
    figures.save(picture, folder / f"attribution_{step}_panel_{names}.png", writer, step)


def _complain(
    done: Mapping[str, Sequence[Explained1]], failed: Sequence[str], options: Any
) -> None:
    """Raises UserError naming what is not to be trusted, or not there."""
    open_ = [
        f"{one.name} ({target}): the gap is {one.found.gap_percent:.3g} % with {one.found.nodes} "
        "nodes"
        for target, results in done.items()
        for one in results
        if not one.found.converged
    ]
    for line in open_:
        log.warning("%s, the tolerance %g %%.", line, options.tolerance)
    said = []
    if open_:
        said.append(
            f"{len(open_)} of the maps do not add up to F(x) - F(baseline) within "
            f"--tolerance={options.tolerance:g} % (converged=False in their files): {open_[0]}. "
            "Raise --max_nodes, or take another --baseline."
        )
    if failed:
        said.append(f"{len(failed)} of the files could not be used: {'; '.join(failed)}")
    if said:
        raise errors.UserError("\n".join(said))
