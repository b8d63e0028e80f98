"""Pictures of people: decoded, cut to a square of one size; bytes and values in [-1, 1]."""

import io
import pathlib
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import Float, UInt8

from common import errors

LEAST_PIXELS = 16  # of the shorter side: below, there is no face to be seen


class ImageError(errors.UserError, OSError):
    """A picture cannot be used; the message names it and says why."""

    def __init__(self, name: object, reason: str) -> None:
        super().__init__(f"{name}: {reason}")


def read(source: pathlib.Path | bytes, name: object = None) -> UInt8[np.ndarray, "h w 3"]:
    """The picture of a file, or of its bytes, as RGB.

    Raises ImageError: no picture, cut short, or less than `LEAST_PIXELS` wide or high.
    """
    name = source if name is None else name
    try:
        with PIL.Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            found = np.asarray(image.convert("RGB"))
    except FileNotFoundError as error:
        raise ImageError(name, "there is no such picture.") from error
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise ImageError(name, f"this is no picture that can be read ({error}).") from error
    if min(found.shape[:2]) < LEAST_PIXELS:
        height, width, _ = found.shape
        raise ImageError(
            name,
            f"{width} x {height} pixels are too few, it takes {LEAST_PIXELS} x {LEAST_PIXELS}.",
        )
    return found


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


def to_bytes(values: Float[np.ndarray, "*b h w c"]) -> UInt8[np.ndarray, "*b h w c"]:
    """Values to bytes: -1 is 0, 1 is 255, whatever else is in the picture."""
    return np.round(127.5 * (np.clip(np.asarray(values, np.float32), -1, 1) + 1)).astype(np.uint8)
