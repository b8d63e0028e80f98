"""DET plots: miss against false alarm rates on normal-deviate axes (Martin et al., 1997)."""

import pathlib
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common import errors, files
from speaker import detection

_FORMATS = ("png", "pdf", "svg")
# Rates in %, those of NIST's plots and beyond for good and for poor systems.
_TICKS = (0.001, 0.01, 0.1, 0.5, 1, 2, 5, 10, 20, 40, 60, 80, 90, 95, 99)


def draw(axes: Axes, curves: Mapping[str, detection.ErrorCurve]) -> None:
    """Draws each curve with its equal error rate marked, titles in the legend.

    Coordinates are `detection.probit` of the rates; the marks lie on the curve up to the bend that
    these axes give to a straight line of the ROC, which many tied scores make visible. The axes
    show all curves and at least 1 to 40 %. A curve without a point inside (0, 1) x (0, 1), that of
    a system without errors, is named in the legend and not drawn.
    """
    low, high = detection.probit(np.array([0.01, 0.40]))
    for name, curve in curves.items():
        p_fa, p_miss = detection.det_points(curve)
        x, y = detection.probit(p_fa), detection.probit(p_miss)
        rate = detection.eer(curve)
        (line,) = axes.plot(x, y, linewidth=1.2, label=f"{name}  (EER {100 * rate:.2f} %)")
        if 0 < rate < 1:
            point = detection.probit(np.array([rate]))
            axes.plot(point, point, "o", markersize=5, color=line.get_color())
        low = min([low, *x, *y])
        high = max([high, *x, *y])
    room = 0.03 * (high - low)
    ticks = np.array(_TICKS)
    axes.set_xlabel("false alarm rate (%)")
    axes.set_ylabel("miss rate (%)")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(detection.probit(ticks / 100), [f"{tick:g}" for tick in ticks])
    axes.set_xlim(low - room, high + room)
    axes.set_ylim(low - room, high + room)
    axes.set_aspect("equal")
    axes.axline((0, 0), slope=1, color="grey", linewidth=0.6, linestyle=":")
    axes.grid(linewidth=0.4, alpha=0.6)
    axes.legend(loc="upper right", fontsize="small")


def plot_format(path: pathlib.Path) -> str:
    """png, pdf or svg, by the ending of a name. Raises errors.UserError for any other."""
    kind = path.suffix[1:].lower()
    if kind not in _FORMATS:
        raise errors.UserError(
            f"{path}: a plot cannot be written as {kind!r}; end the name with .png, .pdf or .svg."
        )
    return kind


def save_det(path: pathlib.Path | str, curves: Mapping[str, detection.ErrorCurve]) -> None:
    """Writes the DET plot of named systems; the name's ending says the format (png, pdf, svg).

    The file is there whole or not at all. Raises errors.UserError: no curves, a format that is not
    known, or a place that cannot be written.
    """
    path = pathlib.Path(path)
    if not curves:
        raise errors.UserError(f"{path}: there is no curve to draw.")
    kind = plot_format(path)
    figure = Figure(figsize=(6, 6), layout="constrained")
    draw(figure.add_subplot(), curves)
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=150)
