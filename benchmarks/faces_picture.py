"""The picture of the README: faces of the embedded corpus, and a mouth while it speaks.

python -m benchmarks.faces_picture --out=docs/faces.png
"""

import argparse
import pathlib

import numpy as np
from PIL import Image, ImageDraw

from common import command_line
from common.data import records, splits

CONFIG = "configs/separation/audiovisual_quickstart.py"
_PEOPLE, _MOUTHS, _EVERY, _TILE = 7, 14, 2, 60  # _EVERY: pictures of 40 ms from one to the next
_WAVE = 60  # pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--utterance", type=int, default=1, help="of dev, from 0")
    parser.add_argument("--first", type=int, default=4, help="picture of its film")
    parser.add_argument("--out", type=pathlib.Path, default="docs/faces.png")
    args = parser.parse_args()
    config = command_line.read_config(CONFIG, [])
    rate, source = config.data.sample_rate_hz, splits.open_source(config.data, ["dev"])
    by_pitch = sorted(source.speakers, key=lambda name: source.speakers[name]["pitch_hz"])
    chosen = [by_pitch[k] for k in np.linspace(0, len(by_pitch) - 1, _PEOPLE).round().astype(int)]
    faces = [Image.fromarray(np.asarray(source.portraits(name))[0]) for name in chosen]
    record = source[args.utterance]
    audio, film = records.load_record(record, rate), np.asarray(record["video"])
    film = film[args.first : args.first + _MOUTHS * _EVERY]
    mouths = [Image.fromarray(mouth).convert("RGB") for mouth in film[::_EVERY]]
    page = Image.new("RGB", (_MOUTHS * _TILE, 3 * _TILE + _WAVE), "white")
    for k, face in enumerate(faces):
        page.paste(face.resize((2 * _TILE, 2 * _TILE)), (2 * k * _TILE, 0))
    for k, mouth in enumerate(mouths):
        page.paste(mouth.resize((_TILE, _TILE)), (k * _TILE, 2 * _TILE))
    grain = rate // 25
    heard = audio[args.first * grain : (args.first + len(film)) * grain]
    scale = _WAVE / 2 / max(np.abs(heard).max(), 1e-6)
    draw, middle = ImageDraw.Draw(page), 3 * _TILE + _WAVE / 2
    for x, some in enumerate(np.array_split(heard, len(mouths) * _TILE)):
        low, high = scale * some.min(), scale * some.max()
        draw.line((x, middle - high, x, middle - low), fill="black")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    page.quantize(256).save(args.out, optimize=True)
    print(f"{args.out}: {record['text']!r}, {', '.join(chosen)}")


if __name__ == "__main__":
    main()
