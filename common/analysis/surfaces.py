"""Pictures of landscapes: lines, contours, surfaces, and the way that a run took over them."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib import colors, ticker
from matplotlib.figure import Figure

from common import files
from common.analysis import figures

CMAP = "viridis"
_LEVELS = 24
_LINEAR_SHARE, _LOG_SHARE = 90, 98  # per cent of the points that a scale tells apart


class Scale(NamedTuple):
    """The colours of a surface, or of all surfaces of a film: from `low` to `high`."""

    low: float
    high: float
    log: bool

    @property
    def levels(self) -> Float[np.ndarray, "k"]:
        """Values of contour lines."""
        if self.log:
            return np.geomspace(self.low, self.high, _LEVELS)
        return np.linspace(self.low, self.high, _LEVELS)

    @property
    def norm(self) -> colors.Normalize:
        return (colors.LogNorm if self.log else colors.Normalize)(self.low, self.high)


def scale(surfaces: Sequence[Float[np.ndarray, "p q"]], *, log: bool) -> Scale | None:
    """One for all; None where it cannot be (a logarithm of what is not positive; all NaN).

    A linear one ends where nine tenths of the points lie below, a logarithmic one where 98 per cent
    do: rims of hundreds of times the loss of the centre would leave one colour for the rest.
    """
    values = np.concatenate([surface[np.isfinite(surface)] for surface in surfaces])
    if not values.size or (log and values.min() <= 0):
        return None
    low = float(values.min())
    high = float(np.percentile(values, _LOG_SHARE if log else _LINEAR_SHARE))
    return Scale(low, high if high > low else low + max(abs(low), 1.0) * 1e-6, log)


def _short(value: float, _: Any = None) -> str:
    """A figure as it is read: no powers of ten below a million."""
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e6 else f"{value:.3g}"


def _round(colours: Scale) -> Float[np.ndarray, "k"]:
    """Round values on a logarithmic scale, some six of them."""
    span = np.log10(colours.high / colours.low)
    steps = (1, 2, 5) if span < 3 else (1,)
    every = [m * 10.0**k for k in range(-12, 13) for m in steps]
    inside = [x for x in every if colours.low <= x <= colours.high]
    inside = inside or list(np.geomspace(colours.low, colours.high, 4))
    return np.array(inside[:: max(1, round(len(inside) / 6))])


class Mark(NamedTuple):
    """A checkpoint on the plane, and how far from the plane it is."""

    step: int
    coordinates: Sequence[float]
    distance: float


def _labels(axes: Any, names: Sequence[str]) -> None:
    axes.set_xlabel(names[0])
    if len(names) > 1:
        axes.set_ylabel(names[1])


def _way(axes: Any, marks: Sequence[Mark]) -> None:
    """The trajectory, with the steps of its first and last points written beside."""
    if not marks:
        return
    at = np.array([mark.coordinates for mark in marks])
    axes.plot(at[:, 0], at[:, 1], "-o", color="white", markersize=4, linewidth=1.2, zorder=4)
    axes.plot(at[:, 0], at[:, 1], "-o", color="black", markersize=2.5, linewidth=0.6, zorder=5)
    for mark in {marks[0].step: marks[0], marks[-1].step: marks[-1]}.values():
        axes.annotate(
            f"step {mark.step}",
            mark.coordinates,
            xytext=(5, 5),
            textcoords="offset points",
            fontsize=8,
            bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "alpha": 0.8, "lw": 0},
            zorder=6,
        )


def contour(
    surface: Float[np.ndarray, "p q"],
    axes: Sequence[Float[np.ndarray, "_"]],
    names: Sequence[str],
    colours: Scale,
    *,
    filled: bool,
    title: str,
    value: str = "loss",
    marks: Sequence[Mark] = (),
) -> Figure:
    """Contour lines, or a filled map; points that are not finite stay white, the centre is a cross.

    The first axis of the surface runs to the right.
    """
    figure = figures.new(6.4, 5.2)
    plot = figure.add_subplot()
    shown = np.ma.masked_invalid(surface.T)
    if filled:
        extend = "max" if np.nanmax(surface) > colours.high else "neither"
        levels = np.array(colours.levels)
        drawn = plot.contourf(
            *axes, shown, levels=levels, cmap=CMAP, norm=colours.norm, extend=extend
        )
        bar = figure.colorbar(drawn, ax=plot, label=value)
        bar.ax.yaxis.set_major_formatter(ticker.FuncFormatter(_short))
        bar.set_ticks(levels[:: len(levels) // 6])
        bar.minorticks_off()
    else:
        drawn = plot.contour(
            *axes, shown, levels=colours.levels, cmap=CMAP, norm=colours.norm, linewidths=1
        )
        plot.clabel(drawn, drawn.levels[::3], fontsize=7, fmt=_short)
    plot.plot(0, 0, "+", color="red", markersize=9, zorder=7)
    _way(plot, marks)
    _labels(plot, names)
    plot.set_title(title, fontsize=10)
    return figure


def surface_3d(
    surface: Float[np.ndarray, "p q"],
    axes: Sequence[Float[np.ndarray, "_"]],
    names: Sequence[str],
    colours: Scale,
    *,
    title: str,
    value: str = "loss",
) -> Figure:
    """The surface from the side, its height the logarithm of the value on a logarithmic scale."""
    figure = figures.new(7.2, 5.8)
    plot = figure.add_subplot(projection="3d", computed_zorder=False)
    height = np.clip(surface, colours.low, colours.high)
    if colours.log:
        height = np.log10(height)
    inside = colors.Normalize(*(np.log10([*colours[:2]]) if colours.log else colours[:2]))
    x, y = np.meshgrid(*axes, indexing="ij")
    plot.plot_surface(
        x, y, height, cmap=CMAP, norm=inside, rstride=1, cstride=1, linewidth=0.15, edgecolor="0.3"
    )
    if colours.log:
        places = _round(colours)
        plot.set_zticks(np.log10(places), [_short(x) for x in places])
    plot.set_zlim(inside.vmin, inside.vmax)
    plot.view_init(elev=35, azim=-55)
    plot.set_box_aspect(None, zoom=0.85)
    _labels(plot, names)
    for axis in (plot.xaxis, plot.yaxis, plot.zaxis):
        axis.labelpad = 8
        axis.label.set_size(8)
        axis.set_tick_params(labelsize=8)
    plot.set_zlabel(value)
    plot.set_title(title, fontsize=10)
    return figure


def line(
    curves: Mapping[str, Float[np.ndarray, "p"]],
    axis: Float[np.ndarray, "p"],
    name: str,
    *,
    title: str,
    value: str = "loss",
    marks: Mapping[str, float] | None = None,
    log: bool = False,
) -> Figure:
    """Curves over one direction; `marks` are named places on it."""
    figure = figures.new(6.4, 4.2)
    plot = figure.add_subplot()
    many = len(curves) > 1
    palette = figures.palette(len(curves))
    for colour, (label, values) in zip(palette, curves.items()):
        there = np.isfinite(values)
        style = "-" if there.sum() > len(axis) // 2 else "-o"
        name_of = label if many else None
        plot.plot(axis[there], values[there], style, color=colour, linewidth=1.5, label=name_of)
    for label, where in (marks or {}).items():
        plot.axvline(where, color="0.5", linewidth=0.8, linestyle=":")
        plot.annotate(
            label, (where, 1), xycoords=("data", "axes fraction"), xytext=(3, -10),
            textcoords="offset points", fontsize=8, color="0.35",
        )  # fmt: skip
    if log:
        plot.set_yscale("log")
    if many:
        plot.legend(fontsize=8)
    plot.set_xlabel(name)
    plot.set_ylabel(value)
    plot.set_title(title, fontsize=10)
    plot.grid(alpha=0.3)
    return figure


def coarse(
    surface: Float[np.ndarray, "p q"],
    axes: Sequence[Float[np.ndarray, "_"]],
    names: Sequence[str],
    *,
    title: str,
    value: str,
    low: float | None = None,
    high: float | None = None,
) -> Figure:
    """A map of few points, each a cell with its figure written in it."""
    figure = figures.new(6.4, 5.2)
    plot = figure.add_subplot()
    drawn = plot.pcolormesh(*axes, surface.T, shading="nearest", cmap=CMAP, vmin=low, vmax=high)
    figure.colorbar(drawn, ax=plot, label=value)
    middle = drawn.norm(surface) < 0.6
    for i, j in np.ndindex(surface.shape):
        if np.isfinite(surface[i, j]) and surface.size <= 144:
            colour = "white" if middle[i, j] else "black"
            text = f"{surface[i, j]:.3g}"
            plot.text(axes[0][i], axes[1][j], text, ha="center", va="center", color=colour, size=7)
    _labels(plot, names)
    plot.set_title(title, fontsize=10)
    return figure


def html(
    surface: Float[np.ndarray, "p q"],
    axes: Sequence[Float[np.ndarray, "_"]],
    names: Sequence[str],
    colours: Scale,
    path: pathlib.Path,
    *,
    title: str,
    value: str = "loss",
) -> None:
    """A page with the surface, which turns under the mouse; plotly's script is put beside it once.

    Nothing is loaded from the network.
    """
    import plotly.graph_objects as go  # slow to import

    height = np.clip(surface, colours.low, colours.high)
    plot = go.Figure(
        go.Surface(
            x=axes[0],
            y=axes[1],
            z=height.T,
            colorscale="Viridis",
            surfacecolor=np.log10(height).T if colours.log else height.T,
            showscale=False,
            customdata=surface.T,
            hovertemplate="%{x:.3g}, %{y:.3g}: %{customdata:.5g}<extra></extra>",
        )
    )
    plot.update_layout(
        title=title,
        scene={
            "xaxis_title": names[0],
            "yaxis_title": names[1],
            "zaxis_title": value,
            "zaxis_type": "log" if colours.log else "linear",
        },
        margin={"l": 0, "r": 0, "b": 0, "t": 40},
    )
    page = plot.to_html(include_plotlyjs="directory", full_html=True)
    script = path.with_name("plotly.min.js")
    if not script.exists():
        from plotly.offline import get_plotlyjs

        files.write_text(script, get_plotlyjs())
    files.write_text(path, page)
