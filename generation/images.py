"""Pictures of people: decoded, cut to a square of one size; bytes and values in [-1, 1]; shown."""

import io
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import PIL.ExifTags
import PIL.Image
from jaxtyping import Float, UInt8

from common import errors, files, pictures
from common.data import facts, records

_SHOWN_PIXELS = 128  # of the side of a face that is shown, at least
LEAST_PIXELS = 16  # of the shorter side: below, there is no face to be seen
SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".webp")
# images_bw_64x64, Images_bw_back_32x32, cifar10_c_32x32
_FORM = re.compile(r"(?:.*_)?(bw|c|colou?r)_(?:.*_)?(\d+)x(\d+)", re.IGNORECASE)

_TURN = PIL.Image.Transpose
# Of a picture by what a camera says of how it was held (EXIF, Orientation), to be upright.
_UPRIGHT = {
    **{2: _TURN.FLIP_LEFT_RIGHT, 3: _TURN.ROTATE_180, 4: _TURN.FLIP_TOP_BOTTOM},
    **{5: _TURN.TRANSPOSE, 6: _TURN.ROTATE_270, 7: _TURN.TRANSVERSE, 8: _TURN.ROTATE_90},
}


class ImageError(errors.UserError, OSError):
    """A picture cannot be used; the message names it and says why."""

    def __init__(self, name: object, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.reason = reason


class Form(NamedTuple):
    """Of square pictures: pixels of a side, and 1 (grey) or 3 channels."""

    size: int
    channels: int


def form_of(folder: str | os.PathLike) -> Form | None:
    """What the name of a folder says of its pictures: images_bw_64x64; None where it says nothing.

    Raises UserError for pictures that are not square.
    """
    name = pathlib.Path(folder).name
    if (found := _FORM.fullmatch(name)) is None:
        return None
    kind, height, width = found.groups()
    if height != width:
        raise errors.UserError(
            f"{folder} is named as one of pictures of {height} x {width}: they have to be square. "
            "Under a name without a size any pictures will do, their middle square is taken."
        )
    return Form(int(height), 1 if kind.lower() == "bw" else 3)


def read(source: pathlib.Path | bytes, name: object = None) -> UInt8[np.ndarray, "h w 3"]:
    """The picture of a file, or of its bytes, as RGB, upright: cameras state how they were held.

    Of 16 bits the upper 8. Raises ImageError: no picture, cut short, of values of another kind, or
    less than `LEAST_PIXELS` wide or high.
    """
    name = source if name is None else name
    try:
        with PIL.Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            turned = _UPRIGHT.get(image.getexif().get(PIL.ExifTags.Base.Orientation))
            found = _rgb(image if turned is None else image.transpose(turned))
    except FileNotFoundError as error:
        raise ImageError(name, "there is no such picture.") from error
    except PIL.UnidentifiedImageError as error:
        reason = "its format is not known, or its header is damaged"
        raise ImageError(name, f"this is no picture that can be read ({reason}).") from error
    except Exception as error:  # whatever the bytes make it do
        raise ImageError(name, f"this is no picture that can be read ({error}).") from error
    if min(found.shape[:2]) < LEAST_PIXELS:
        height, width, _ = found.shape
        raise ImageError(
            name,
            f"{width} x {height} pixels are too few, it takes {LEAST_PIXELS} x {LEAST_PIXELS}.",
        )
    return found


def _rgb(image: PIL.Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """Values of 16 bits are scaled: Pillow's own way is to cut them off at 255."""
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError(f"its values are of Pillow's mode {image.mode}, not of 8 or 16 bits")
    return np.asarray(image.convert("RGB"))


def inspect_picture(record: records.Record, channel: str | int, max_seconds: float) -> facts.Fact:
    """For `indexing.build_index(inspect=...)`: can the picture `face` of a record be used?"""
    del channel, max_seconds
    try:
        found = read(pathlib.Path(record["face"]))
    except ImageError as error:
        return facts.Fact(problem=f"bad picture ({error.reason.removesuffix('.')})")
    return facts.Fact(min(found.shape[:2]), 1)


def resized(
    image: UInt8[np.ndarray, "h w 3"], size: int, channels: int
) -> UInt8[np.ndarray, "size size channels"]:
    """The middle square of a picture at `size` pixels, antialiased; with one channel its grey."""
    side = min(image.shape[:2])
    top, left = ((length - side) // 2 for length in image.shape[:2])
    square = PIL.Image.fromarray(image[top : top + side, left : left + side])
    if channels == 1:
        square = square.convert("L")
    # A triangle as wide as what a pixel stands for: no ringing, as sharper filters have.
    small = np.asarray(square.resize((size, size), PIL.Image.Resampling.BILINEAR))
    return small.reshape(size, size, channels)


def to_values(image: Any) -> Any:
    """Bytes to values in [-1, 1], (x - 127.5) / 127.5; on NumPy and JAX arrays."""
    return image.astype(np.float32) / 127.5 - 1.0


def of_face(
    face: pathlib.Path | str | bytes | UInt8[np.ndarray, "h w 3"], picture: Any, name: object
) -> Float[np.ndarray, "1 s s c"]:
    """A face (a file, its bytes, or the bytes of its pixels) as networks see it: values, of the
    size and channels of `config.picture`. `name` is what messages call bytes. Raises ImageError."""
    if isinstance(face, bytes):
        face = read(face, name)
    elif not isinstance(face, np.ndarray):
        face = read(pathlib.Path(face))
    return to_values(resized(face, picture.size, picture.channels))[None]


def to_bytes(values: Float[np.ndarray, "*b h w c"]) -> UInt8[np.ndarray, "*b h w c"]:
    """Values to bytes: -1 is 0, 1 is 255, whatever else is in the picture."""
    return np.round(127.5 * (np.clip(np.asarray(values, np.float32), -1, 1) + 1)).astype(np.uint8)


def sheet(rows: Sequence[Sequence[UInt8[np.ndarray, "h w c"]]]) -> UInt8[np.ndarray, "y x 3"]:
    """Faces in rows, each pixel as large as it has to be to be seen."""
    return pictures.tiled(rows, scale=max(1, _SHOWN_PIXELS // rows[0][0].shape[0]))


def frames(faces: Sequence[UInt8[np.ndarray, "h w c"]]) -> list[UInt8[np.ndarray, "y x 3"]]:
    """Faces as a film shows them, one after another."""
    return [sheet([[face]]) for face in faces]


def write_png(path: pathlib.Path, image: UInt8[np.ndarray, "h w 3"]) -> pathlib.Path:
    """Puts a picture in the place of the file `path`, at once. Raises UserError."""
    with files.replacing(path) as temporary:
        temporary.write_bytes(pictures.png(image))
    return path
