"""Contact sheets: portraits and mouths of many recordings on one page, for an eye to check."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from common import files
from common.data import stored_faces

ROWS = 24  # of a page
_TILE, _GAP, _TEXT = 96, 4, 230
_PORTRAITS, _MOUTHS = 3, 8


def write_sheets(folder: pathlib.Path, rows: Sequence[Mapping[str, Any]], pages: int) -> list[str]:
    """Writes sheet-01.png, ... with `ROWS` recordings each; of more than fit on `pages`, some
    spread over all. Returns their names; what else is called so is removed.

    `rows` have id, mouth, face and portraits as `preparing.prepare` gives them, below `folder`.
    """
    count = min(len(rows), pages * ROWS)
    chosen = [rows[i] for i in np.linspace(0, len(rows) - 1, count).round().astype(int)]
    names = []
    for page, start in enumerate(range(0, count, ROWS), start=1):
        names.append(f"sheet-{page:02d}.png")
        picture = _sheet(folder, chosen[start : start + ROWS])
        with files.replacing(folder / names[-1]) as temporary:
            picture.save(temporary, format="png")
    for old in folder.glob("sheet-*.png"):
        if old.name not in names:
            old.unlink()
    return names


def _sheet(folder: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> PIL.Image.Image:
    step = _TILE + _GAP
    size = (_TEXT + (_PORTRAITS + _MOUTHS) * step + _GAP, len(rows) * step + _GAP)
    page = PIL.Image.new("RGB", size, "white")
    draw = PIL.ImageDraw.Draw(page)
    font = PIL.ImageFont.load_default(12)
    for number, row in enumerate(rows):
        top = _GAP + number * step
        lines = [
            str(row["id"])[-34:],
            f"from {float(row['offset']):.2f} s, {float(row['duration']):.2f} s",
            f"{row['frames']} pictures, {row['held']} held, motion {float(row['motion']):.1f}",
            f"face {row['face_px']} px, found in {float(row['found']):.0%}",
            f"others in view: {row['others']}",
        ]
        draw.multiline_text((_GAP, top + 8), "\n".join(lines), fill="black", font=font, spacing=3)
        for place, tile in enumerate(_tiles(folder, row)):
            page.paste(tile, (_TEXT + place * step, top))
    return page


def _tiles(folder: pathlib.Path, row: Mapping[str, Any]) -> list[PIL.Image.Image]:
    portraits = stored_faces.Portraits(str(folder / row["face"]), int(row["portraits"]))
    mouths = stored_faces.Mouths(str(folder / row["mouth"]))
    pictures = np.asarray(portraits)[_spread(len(portraits), _PORTRAITS)]
    tiles = [PIL.Image.fromarray(one).resize((_TILE, _TILE)) for one in pictures]
    tiles += [tiles[-1]] * (_PORTRAITS - len(tiles))
    tiles += [PIL.Image.fromarray(mouths[k : k + 1][0]) for k in _spread(len(mouths), _MOUTHS)]
    return tiles


def _spread(count: int, wanted: int) -> list[int]:
    return [int(count * (2 * k + 1) / (2 * wanted)) for k in range(min(count, wanted))]
