"""Talking faces of the embedded corpus as a sheet to look at: portraits, and a second of mouths.

    python -m benchmarks.faces_sheet --out=sheet.png [--people=3] [--first=10]

Of the first utterance of each of so many people of `dev` (audiovisual_quickstart.py:debug, which is
rendered in seconds). Printed are the phones of that second by the number of the picture, from 0 on
the sheet, in which they begin.
"""

import argparse
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from common import command_line, errors
from common.data import splits
from common.data.embedded import visemes

CONFIG = "configs/separation/audiovisual_quickstart.py:debug"
SECOND = visemes.FRAMES_PER_SECOND
_MOUTH, _GAP, _TEXT, _COLUMNS = 96, 4, 20, 13


def sheet(records: Sequence[Mapping[str, Any]], first: int) -> Image.Image:
    """Records (`id`, `text`, `face`, `video`) below each other: their portraits, and `SECOND`
    mouths from picture `first` on."""
    step, portrait = _MOUTH + _GAP, 2 * _MOUTH
    height = _TEXT + portrait + _GAP + 2 * step
    page = Image.new("RGB", (_COLUMNS * step, len(records) * height), "white")
    draw = ImageDraw.Draw(page)
    for row, record in enumerate(records):
        top = row * height
        draw.text((_GAP, top + _GAP), f"{record['id']}: {record['text']}", fill="black")
        for k, face in enumerate(np.asarray(record["face"])):
            tile = Image.fromarray(face).resize((portrait, portrait))
            page.paste(tile, (k * (portrait + _GAP), top + _TEXT))
        for k, mouth in enumerate(np.asarray(record["video"])[first : first + SECOND]):
            left, down = k % _COLUMNS * step, top + _TEXT + portrait + _GAP + k // _COLUMNS * step
            page.paste(Image.fromarray(mouth), (left, down))
            draw.text((left + 2, down + 1), str(k), fill="white")
    return page


def phones_of(entry: Mapping[str, Any], first: int) -> str:
    """The phones of that second, each with the picture in which it begins."""
    places = [(ms * SECOND / 1000 - first, phone) for ms, phone in entry["phones"]]
    return " ".join(f"{phone} {place:.1f}" for place, phone in places if 0 <= place < SECOND)


def main() -> None:
    """Writes the sheet and prints the phones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--people", type=int, default=3)
    parser.add_argument("--first", type=int, default=10, help="picture of each film")
    args = parser.parse_args()
    source = splits.open_source(command_line.read_config(CONFIG, []).data, ["dev"])
    chosen: dict[str, int] = {}
    for index in range(len(source)):
        record = source[index]
        if len(np.asarray(record["video"])) >= args.first + SECOND:
            chosen.setdefault(record["speaker"], index)
    places = list(chosen.values())[: args.people]
    if not places:
        raise errors.UserError(f"No film of dev has {args.first + SECOND} pictures.")
    page = sheet([source[index] for index in places], args.first)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    page.save(args.out)
    for index in places:
        entry = source.speech.entry(index)
        print(f"{source[index]['id']}, {source[index]['text']!r}: {phones_of(entry, args.first)}")


if __name__ == "__main__":
    main()
