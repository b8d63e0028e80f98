"""Films: a list of pictures as GIF and MP4."""

import pathlib
from collections.abc import Sequence

import numpy as np
import PIL.Image
from jaxtyping import UInt8

from common import files


def write(
    frames: Sequence[UInt8[np.ndarray, "h w 3"]], path: pathlib.Path, *, fps: float
) -> list[pathlib.Path]:
    """`path`.gif of pictures of one size, `fps` a second."""
    pictures = [PIL.Image.fromarray(frame) for frame in frames]
    target = path.with_name(f"{path.name}.gif")
    with files.replacing(target) as temporary:
        options = {"save_all": True, "append_images": pictures[1:], "loop": 0}
        pictures[0].save(temporary, format="gif", duration=round(1000 / fps), **options)
    return [target]
