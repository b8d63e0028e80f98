"""Films of pictures: GIF by Pillow, MP4 (H.264) by PyAV."""

import pathlib
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
import PIL.Image
from jaxtyping import UInt8

from common import files


def write(
    frames: Sequence[UInt8[np.ndarray, "h w 3"]], path: pathlib.Path, *, fps: float
) -> list[pathlib.Path]:
    """Writes `path`.gif and `path`.mp4, frames being of one size; returns where they are.

    The last frame stands for a second longer, so that an end can be told from a beginning. H.264
    has no odd sizes: a last odd row or column is left out of the MP4. Raises ValueError for no
    frames, or frames of several sizes.
    """
    if not frames or len({frame.shape for frame in frames}) != 1:
        raise ValueError(f"a film has frames of one size, got {[x.shape for x in frames]}")
    gif, mp4 = (path.with_name(f"{path.name}{suffix}") for suffix in (".gif", ".mp4"))
    pictures = [PIL.Image.fromarray(np.ascontiguousarray(frame)) for frame in frames]
    milliseconds = [round(1000 / fps)] * (len(frames) - 1) + [round(1000 / fps) + 1000]
    with files.replacing(gif) as temporary:
        pictures[0].save(
            temporary,
            format="gif",
            save_all=True,
            append_images=pictures[1:],
            duration=milliseconds,
            loop=0,
        )
    with files.replacing(mp4) as temporary, av.open(str(temporary), "w", format="mp4") as out:
        height, width = (size // 2 * 2 for size in frames[0].shape[:2])
        stream = out.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "18"}
        for frame in [*frames, *[frames[-1]] * round(fps)]:
            cut = np.ascontiguousarray(frame[:height, :width])
            out.mux(stream.encode(av.VideoFrame.from_ndarray(cut, format="rgb24")))
        out.mux(stream.encode(None))
    return [gif, mp4]
