"""--mode=attribution: what of its recordings the output of a trained network hangs on.

Everything lies in DIR/analysis/: of each recording and target an .npz and a picture, a summary as
.tsv and .json, with --panel the maps of several recordings in one picture, with --film the map for
every checkpoint of the run.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from common import errors, files, parallel, trained, writers
from common.analysis import (
    attribution,
    attribution_figures,
    explaining,
    figures,
    judging,
    recordings,
    video,
)
from common.analysis.attribution_files import Result, Run, hop_seconds, title, write
from common.audio import frontend, io
from common.package import Context, Package
from common.task import Explained

log = logging.getLogger(__name__)

_GROUP_SECONDS = 0.01  # of a waveform, one cell of the curves
_FILM_FPS = 2.0


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
    with figures.writer(context.folder, context.config) as writer:
        done = {}
        for target in targets:
            made = explaining.Explainer(
                task, input_name, target, context.mesh, context.config.parallel
            )
            setup = _prepare(made, loaded.variables, chosen, options)
            done[target] = results = _explain(setup, loaded.variables, chosen)
            judged = _judge(setup, loaded, results) if options.judge else [{}] * len(results)
            write(folder, writer, loaded.step, setup, results, judged)
            if options.film:
                _film(folder, loaded, setup, results)
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
    return options.panel and "channel" in task.explanation.targets


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
            task.recordings([other])  # whether it takes any
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


def _explain(setup: Run, variables: Any, chosen: recordings.Chosen) -> list[Result]:
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
        results.append(Result(name, about, kept, values, start, parts[row], shown))
    return results


def _spectrogram(audio: np.ndarray, seconds: float) -> np.ndarray:
    config = frontend.LogMelConfig(sample_rate_hz=round(1 / seconds), normalize="none")
    size = np.array([len(audio)], np.int32)
    return np.asarray(jax.jit(frontend.log_mel, static_argnums=2)(audio[None], size, config)[0][0])


def _judge(setup: Run, loaded: trained.Trained, results: Sequence[Result]) -> list[dict[str, Any]]:
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


def _film(
    folder: pathlib.Path,
    loaded: trained.Trained,
    setup: Run,
    results: Sequence[Result],
) -> None:
    """The maps of every checkpoint, in one colour range, of what the chosen checkpoint decided."""
    maps, made = {}, setup.explainer
    for step, variables in trained.checkpoints(loaded):
        maps[step] = setup.maps(variables)
    if len(maps) < 2:
        log.warning("A film of one checkpoint stands still (config.keep_every keeps more).")
    target = setup.label
    for row, one in enumerate(results):
        shown = {
            step: attribution.trimmed(found[row], len(one.found.values), len(one.values))
            for step, found in maps.items()
        }
        totals = {step: found.values.sum(axis=0) for step, found in shown.items()}
        most = attribution_figures.limit(np.stack(list(totals.values())))
        frames = []
        for step, total in totals.items():
            heading = f"step {step}   {title(setup, dataclasses.replace(one, found=shown[step]))}"
            hop = hop_seconds(setup, one)
            args = heading, one.spectrogram, hop, total, made.input.seconds, one.parts
            frames.append(figures.pixels(attribution_figures.one(*args, colour_limit=most)))
        path = folder / f"attribution_film_{target}_{files.safe_name(one.name)}"
        video.write(frames, path, fps=_FILM_FPS)


def _panel(
    folder: pathlib.Path,
    writer: writers.Writers,
    step: int,
    task: Explained,
    input_name: str,
    done: Mapping[str, Sequence[Result]],
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
        heading = "\n".join(filter(None, (gender, one.name)))
        rows.append({"title": heading, "spectrogram": one.spectrogram, "maps": maps})
    seconds = task.explanation.inputs[input_name].seconds
    hop = len(first[places[0]].values) * seconds / len(first[places[0]].spectrogram)
    picture = attribution_figures.panel(rows, list(done), hop, seconds)
    names = "_".join(files.safe_name(name.replace(":", "-")) for name in done)
    figures.save(picture, folder / f"attribution_{step}_panel_{names}.png", writer, step)


def _complain(done: Mapping[str, Sequence[Result]], failed: Sequence[str], options: Any) -> None:
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
