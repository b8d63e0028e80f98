"""Pictures of an analysis: drawn with matplotlib without a display, kept whole, sent on."""

import pathlib
from typing import Any

import jax
import numpy as np
import PIL.Image
from jaxtyping import UInt8
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from common import files, writers


def new(width: float = 6.4, height: float = 4.8) -> Figure:
    """An empty figure of so many inches at 150 dots, outside of pyplot's global state."""
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def pixels(figure: Figure) -> UInt8[np.ndarray, "h w 3"]:
    """The figure as a picture."""
    figure.canvas.draw()
    return np.ascontiguousarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])


def save(
    figure: Figure, path: pathlib.Path, writer: writers.Writers | None = None, step: int = 0
) -> UInt8[np.ndarray, "h w 3"]:
    """Writes the figure as PNG, and to TensorBoard and wandb under analysis/<name>."""
    image = pixels(figure)
    with files.replacing(path) as temporary:
        PIL.Image.fromarray(image).save(temporary, format="png")
    if writer is not None:
        writer.image(step, f"analysis/{path.stem}", image)
    return image


def palette(count: int) -> list[tuple[float, ...]]:
    """So many colours, dark to bright, as they go in time."""
    return [colormaps["viridis"](x) for x in np.linspace(0, 0.9, max(count, 1))]


def writer(workdir: pathlib.Path, config: Any) -> writers.Writers:
    """Where pictures of a trained model go: to the dashboards of its run, beside its curves."""
    settings = config.writers
    return writers.Writers(
        workdir,
        config=config.to_dict(),
        jsonl=False,
        tensorboard=settings.tensorboard,
        wandb=settings.wandb,
        project=settings.wandb_project,
        is_writer=jax.process_index() == 0,
    )
