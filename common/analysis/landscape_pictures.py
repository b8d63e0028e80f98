"""What `landscape` draws of its grids: for each checkpoint, and films with one range of colours."""

import logging
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from common import writers
from common.analysis import figures, grid, planes, surfaces, video

log = logging.getLogger(__name__)

_FPS = 2.0
DRAWN = ("loss", "accuracy")  # the terms of a loss are in the files


def names(plane: planes.Plane) -> list[str]:
    """What the axes are, as a reader understands them."""
    about, along = plane.about, plane.about["along"]
    if along == "random":
        scale = about["normalize"]
        unit = "" if scale == "none" else f" (1: the {scale}s' norms)".replace("ys'", "ies'")
        return [f"random direction {k + 1}{unit}" for k in range(len(plane.axes))]
    if along == "pca":
        shares = about["explained"]
        return [
            f"principal direction {k + 1} ({100 * shares[k]:.0f} %)" for k in range(len(plane.axes))
        ]
    if along == "between":
        return [f"from step {about['checkpoint']} (0) to step {about['other']} (1)"]
    if along == "gradient":
        return ["distance against the gradient"]
    values = about["eigenvalues"]
    return [f"eigenvector of {values[k]:.3g}, distance" for k in range(len(plane.axes))]


def draw(
    folder: pathlib.Path,
    plane: planes.Plane,
    marks: Sequence[surfaces.Mark],
    grids: Mapping[int, grid.Grid],
    coarse: Mapping[str, str],
    writer: writers.Writers,
) -> None:
    """All pictures of the grids by step, into `folder` and to the dashboards.

    `coarse`: what there is of some of the points only, with the split that it is of.
    """
    if len(plane.axes) == 1:
        _lines(folder, plane, marks, grids, coarse, writer)
    else:
        _planes(folder, plane, marks, grids, coarse, writer)


def _title(
    plane: planes.Plane, step: int, mark: surfaces.Mark | None, known: grid.Grid, split: str = ""
) -> str:
    about = known.about
    text = f"step {step}, {split or about['split']}, batch norm {about['batch_norm']}"
    if mark is not None and step != plane.about["checkpoint"]:
        there = ", ".join(f"{x:.2g}" for x in mark.coordinates)
        centre = plane.about["checkpoint"]
        text += f"\nat ({there}) on the plane of step {centre}, {mark.distance:.3g} beside it"
    return text


def _numbers(values: np.ndarray) -> np.ndarray:
    """NaN where a metric was no number, which a grid keeps as infinity."""
    return np.where(np.isinf(values), np.nan, values)


def _lines(
    folder: pathlib.Path,
    plane: planes.Plane,
    marks: Sequence[surfaces.Mark],
    grids: Mapping[int, grid.Grid],
    coarse: Mapping[str, str],
    writer: writers.Writers,
) -> None:
    axis, (name,) = plane.axes[0], names(plane)
    at = {"": 0.0}
    if plane.about["along"] in ("pca", "between"):
        at = {f"step {mark.step}": mark.coordinates[0] for mark in marks}
    last = max(grids)
    about = grids[last].about
    for value in (*DRAWN, *coarse):
        curves = {}
        for step, known in grids.items():
            if value in known.values:
                curves[f"step {step}"] = _numbers(known.values[value])
        seen = np.concatenate([np.zeros(0), *(x[np.isfinite(x)] for x in curves.values())])
        if not seen.size:
            continue
        title = f"{coarse.get(value, about['split'])}, batch norm {about['batch_norm']}"
        log_scale = bool(seen.min() > 0 and seen.max() > 30 * seen.min())
        figure = surfaces.line(
            curves, axis, name, title=title, value=value, marks=at, log=log_scale
        )
        figures.save(figure, folder / f"{value}.png", writer, last)


def _planes(
    folder: pathlib.Path,
    plane: planes.Plane,
    marks: Sequence[surfaces.Mark],
    grids: Mapping[int, grid.Grid],
    coarse: Mapping[str, str],
    writer: writers.Writers,
) -> None:
    labels, by_step = names(plane), {mark.step: mark for mark in marks}
    values = [name for name in DRAWN if all(name in known.values for known in grids.values())]
    way = marks if plane.about["along"] == "pca" else ()
    for value in values:
        shown = {step: known.surface(value) for step, known in grids.items()}
        frames: dict[str, list[np.ndarray]] = {}
        for log_scale in (True, False):
            colours = surfaces.scale(list(shown.values()), log=log_scale)
            if colours is None or (log_scale and colours.high < 3 * colours.low):
                continue  # a logarithm of hardly a range shows nothing else
            suffix = "_log" if log_scale else ""
            for step, surface in shown.items():
                title = _title(plane, step, by_step.get(step), grids[step])
                common = {"title": title, "value": value}
                at = way if step == plane.about["checkpoint"] else ()
                stem = f"{step}_{value}"
                drawn = {
                    f"filled{suffix}": surfaces.contour(
                        surface, plane.axes, labels, colours, filled=True, marks=at, **common
                    ),
                    f"contour{suffix}": surfaces.contour(
                        surface, plane.axes, labels, colours, filled=False, marks=at, **common
                    ),
                    f"surface{suffix}": surfaces.surface_3d(
                        surface, plane.axes, labels, colours, **common
                    ),
                }
                for kind, figure in drawn.items():
                    image = figures.save(figure, folder / f"{stem}_{kind}.png", writer, step)
                    frames.setdefault(kind, []).append(image)
                page = folder / f"{stem}_surface{suffix}.html"
                surfaces.html(surface, plane.axes, labels, colours, page, **common)
        if len(grids) > 1:
            for kind, pictures in frames.items():
                if kind.startswith(("filled", "surface")):
                    video.write(pictures, folder / f"film_{value}_{kind}", fps=_FPS)
    for name, split in coarse.items():
        _coarse(folder, plane, grids, name, split, by_step, writer)


def _coarse(
    folder: pathlib.Path,
    plane: planes.Plane,
    grids: Mapping[int, grid.Grid],
    name: str,
    split: str,
    by_step: Mapping[int, surfaces.Mark],
    writer: writers.Writers,
) -> None:
    cut = {}
    for step, known in grids.items():
        surface = _numbers(known.surface(name))
        rows, columns = (np.flatnonzero(np.isfinite(surface).any(axis=k)) for k in (1, 0))
        cut[step] = surface[np.ix_(rows, columns)], (plane.axes[0][rows], plane.axes[1][columns])
    every = np.concatenate([surface.ravel() for surface, _ in cut.values()])
    if not np.isfinite(every).any():
        return
    for step, (surface, axes) in cut.items():
        figure = surfaces.coarse(
            surface,
            axes,
            names(plane),
            title=_title(plane, step, by_step.get(step), grids[step], split),
            value=name.replace("_", " "),
            low=float(np.nanmin(every)),
            high=float(np.nanmax(every)),
        )
        figures.save(figure, folder / f"{step}_{name}.png", writer, step)
