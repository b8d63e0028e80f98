"""What an evaluation shows: a grid of pictures, a column a person, of sounds also the sounds.

Of many people the grid goes on below.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from common import pictures
from generation import directions

_SCALE = 2  # of pictures in grids
_COLUMNS = 16  # people beside each other


def kept(
    direction: directions.Direction, outputs: Mapping[str, Any], people: int
) -> dict[str, np.ndarray]:
    """What `of_outputs` takes of a batch: the first rows of the first `people`."""
    shown = outputs["mask"] & (outputs["turn"] == 0) & (outputs["person"] < people)
    return {"grid_person": outputs["person"][shown], **direction.shown(outputs, shown)}


def of_outputs(
    made: str, outputs: Sequence[Mapping[str, np.ndarray]], rate_hz: int
) -> tuple[dict[str, UInt8[np.ndarray, "h w c"]], dict[str, tuple[Float[np.ndarray, "t"], int]]]:
    """The grid, and the sounds with their rate, by name; what was `made`: a face, a voice."""
    names = [name for name in ("grid", "grid_person", "sound") if name in outputs[0]]
    shown = {name: np.concatenate([batch[name] for batch in outputs]) for name in names}
    people = shown["grid_person"]
    rows = shown["grid"][np.argsort(people)].swapaxes(0, 1)
    starts = range(0, len(people), _COLUMNS)
    lines = [list(row[start : start + _COLUMNS]) for start in starts for row in rows]
    grid = pictures.tiled(lines, scale=_SCALE)
    heard = {
        f"{made}_{person}": (sound, rate_hz)
        for person, sound in zip(people.tolist(), shown.get("sound", ()))
    }
    return {f"{made}s": grid}, heard
