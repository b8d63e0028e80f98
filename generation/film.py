"""A film over training, of the sample grids that its evaluations left."""

import logging
import pathlib
import re

import numpy as np
import PIL.Image

from common.analysis import video

log = logging.getLogger(__name__)

_FPS = 5.0
_GRID = re.compile(r"(?P<series>.+)-(?P<step>\d{7,})\.png")


def over_training(samples: pathlib.Path) -> list[pathlib.Path]:
    """Films beside the grids <series>-<step>.png of a folder: <series>.mp4 and .gif, by step.

    A series of one grid has none. Grids of another size than the last one's, of other settings of
    the same run, and such as cannot be read are left out, and counted in a warning.
    """
    series: dict[str, list[tuple[int, pathlib.Path]]] = {}
    for path in samples.glob("*.png"):
        if found := _GRID.fullmatch(path.name):
            series.setdefault(found["series"], []).append((int(found["step"]), path))
    films = []
    for name, steps in sorted(series.items()):
        read = [_read(path) for _, path in sorted(steps)]
        size = next((grid.shape for grid in reversed(read) if grid is not None), None)
        grids = [grid for grid in read if grid is not None and grid.shape == size]
        if len(grids) < len(read):
            log.warning(
                "%s/%s: %d of %d grids are of another size or cannot be read: they are not in the "
                "film.",
                *(samples, name, len(read) - len(grids), len(read)),
            )
        if len(grids) > 1:
            films += video.write(grids, samples / name, fps=_FPS)
    return films


def _read(path: pathlib.Path) -> np.ndarray | None:
    try:
        with PIL.Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except OSError:
        return None
