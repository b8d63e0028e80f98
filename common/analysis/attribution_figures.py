"""Pictures of attributions: spectrogram, signed map, and the tokens where they lie."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from common.analysis import figures
from common.task import Part

COLOURS = "RdBu_r"  # red raises the score
_MOST_ROWS = 48  # of single maps of tokens
_STRIP_COLUMNS = 200


def limit(values: Float[np.ndarray, "..."]) -> float:
    """A symmetric colour limit: that of the 99.5th percentile of the size, so that one cell does
    not leave all others white."""
    size = np.abs(values)
    return float(np.percentile(size, 99.5) or size.max() or 1.0)


def one(
    title: str,
    spectrogram: Float[np.ndarray, "l f"],
    hop_seconds: float,
    values: Float[np.ndarray, "l *f"],
    seconds: float,
    parts: Sequence[Part] = (),
    colour_limit: float | None = None,
    scores: Float[np.ndarray, "n"] | None = None,
) -> Figure:
    """The recording above, its signed map below, with the parts on top.

    A map of a waveform is drawn as its sums over short stretches. `scores` stand at their parts.
    """
    figure = figures.new(9.0, 5.2)
    ratios = (1, 1) if values.ndim > 1 else (1, 0.35)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=ratios)
    _spectrogram(above, spectrogram, hop_seconds)
    _words(above, parts, scores)
    image = _map(below, values, seconds, colour_limit)
    below.set_xlabel("seconds")
    for axis in (above, below):
        for part in parts:
            if part.end > part.start:
                axis.axvspan(part.start, part.end, ymin=0.985, color="black")
    figure.colorbar(image, ax=below, pad=0.01, label="attribution")
    figure.suptitle(title, fontsize=10)
    return figure


def each(
    title: str,
    spectrogram: Float[np.ndarray, "l f"],
    hop_seconds: float,
    values: Float[np.ndarray, "n l *f"],
    seconds: float,
    parts: Sequence[Part],
    scores: Float[np.ndarray, "n"],
) -> Figure:
    """One strip a token or word: its map summed over frequency, where it lies marked by a line."""
    shown = min(len(parts), len(values), _MOST_ROWS)
    strips = values[:shown].reshape(shown, values.shape[1], -1).sum(axis=2)
    if strips.shape[1] > _STRIP_COLUMNS:
        strips, seconds = _pooled(strips, seconds)
    figure = figures.new(9.0, 3.2 + 0.17 * shown)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 0.6 + 0.17 * shown))
    _spectrogram(above, spectrogram, hop_seconds)
    most = limit(strips)
    image = below.imshow(
        strips,
        cmap=COLOURS,
        vmin=-most,
        vmax=most,
        aspect="auto",
        interpolation="nearest",
        extent=(0, strips.shape[1] * seconds, shown - 0.5, -0.5),
    )
    for row, part in enumerate(parts[:shown]):
        if part.end > part.start:
            outline = {"color": "black", "linewidth": 1.2}
            below.plot([part.start] * 2, [row - 0.5, row + 0.5], **outline)
            below.plot([part.end] * 2, [row - 0.5, row + 0.5], **outline)
    labels = [
        f"{_shown(part.text)}  {score:.2f}" for part, score in zip(parts[:shown], scores[:shown])
    ]
    below.set_yticks(range(shown), labels, fontsize=7, family="monospace")
    below.set_xlabel("seconds")
    figure.colorbar(image, ax=below, pad=0.01, label="attribution")
    figure.suptitle(title, fontsize=10)
    return figure


def panel(
    rows: Sequence[dict[str, Any]], columns: Sequence[str], hop_seconds: float, seconds: float
) -> Figure:
    """Recordings below each other, their maps of several targets side by side.

    A row has `title`, `spectrogram`, and `maps` in the order of the columns. A column has one
    colour range, so that voices can be compared.
    """
    figure = figures.new(4.2 * (1 + len(columns)), 2.6 * len(rows) + 0.4)
    axes = figure.subplots(len(rows), 1 + len(columns), squeeze=False, sharex="row")
    for k, column in enumerate(columns):
        most = limit(np.concatenate([row["maps"][k].ravel() for row in rows]))
        for axis, row in zip(axes[:, 1 + k], rows):
            image = _map(axis, row["maps"][k], seconds, most)
        figure.colorbar(image, ax=axes[:, 1 + k], pad=0.01)
        axes[0, 1 + k].set_title(column, fontsize=10)
    axes[0, 0].set_title("spectrogram", fontsize=10)
    for axis, row in zip(axes[:, 0], rows):
        _spectrogram(axis, row["spectrogram"], hop_seconds)
        axis.set_ylabel(row["title"], fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("seconds")
    return figure


def curves(title: str, shares: np.ndarray, found: dict[str, dict[str, np.ndarray]]) -> Figure:
    """Deletion and insertion, each with the curves of several orders."""
    figure = figures.new(9.0, 3.6)
    axes = figure.subplots(1, 2, sharey=True)
    styles = {"attribution": "-", "energy": "--", "random": ":"}
    for axis, kind in zip(axes, ("deletion", "insertion")):
        for order, curve in found[kind].items():
            axis.plot(100 * shares, curve, styles.get(order, "-."), label=order)
        axis.set_title(kind, fontsize=10)
        axis.set_xlabel(f"per cent of the cells {'replaced' if kind == 'deletion' else 'shown'}")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("score")
    axes[0].legend()
    figure.suptitle(title, fontsize=10)
    return figure


def _spectrogram(axis: Any, values: np.ndarray, hop_seconds: float) -> None:
    axis.imshow(
        values.T,
        origin="lower",
        aspect="auto",
        cmap="magma",
        interpolation="nearest",
        extent=(0, len(values) * hop_seconds, 0, values.shape[1]),
    )
    axis.set_ylabel("mel band")


def _map(axis: Any, values: np.ndarray, seconds: float, colour_limit: float | None) -> Any:
    if values.ndim == 1:
        values, seconds = _pooled(values[None], seconds)
        values = values.T
    most = limit(values) if colour_limit is None else colour_limit
    image = axis.imshow(
        values.T,
        origin="lower",
        aspect="auto",
        cmap=COLOURS,
        vmin=-most,
        vmax=most,
        interpolation="nearest",
        extent=(0, len(values) * seconds, 0, values.shape[1]),
    )
    if values.shape[1] == 1:
        axis.set_yticks([])
        axis.set_ylabel("samples")
    else:
        axis.set_ylabel("mel band")
    return image


def _pooled(values: np.ndarray, seconds: float) -> tuple[np.ndarray, float]:
    """[n, l] summed over stretches, so that there are at most `_STRIP_COLUMNS`."""
    size = -(-values.shape[1] // _STRIP_COLUMNS)
    padded = np.pad(values, ((0, 0), (0, -values.shape[1] % size)))
    return padded.reshape(len(values), -1, size).sum(axis=2), size * seconds


def _words(axis: Any, parts: Sequence[Part], scores: np.ndarray | None) -> None:
    """The parts on top, each at its middle; a place too close to the one before is moved up."""
    last, high = -np.inf, False
    width = axis.get_xlim()[1]
    for k, part in enumerate(parts):
        if part.end <= part.start:
            continue
        middle = (part.start + part.end) / 2
        high = not high if middle - last < 0.012 * width * max(len(part.text), 2) else False
        last = middle
        text = _shown(part.text)
        if scores is not None and k < len(scores):
            text += f"\n{scores[k]:.2g}"
        axis.annotate(
            text,
            (middle, 1.0),
            (0, 11 if high else 2),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            fontsize=7,
            annotation_clip=False,
        )


def _shown(text: str) -> str:
    return text.replace(" ", "␣") if not text.strip() else text.strip()
