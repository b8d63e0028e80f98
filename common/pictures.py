"""Pictures as the writers take them: RGB bytes, upright."""

import io
from collections.abc import Sequence

import numpy as np
import PIL.Image
from jaxtyping import Shaped, UInt8

# Nine equidistant colours of viridis: even in lightness, readable in grey and to the colour-blind.
_VIRIDIS = bytes.fromhex("440154 472c7a 3b518b 2c718e 21908d 27ad81 5cc863 aadc32 fde725")


def rgb(image: Shaped[np.ndarray, "..."]) -> UInt8[np.ndarray, "h w 3"]:
    """The bytes of a picture, [h,w,3], [h,w,1] or [h,w], as uint8 or floats in 0..1; NaN is black.

    Raises ValueError for other shapes and types.
    """
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise ValueError(f"a picture is [h,w,3], [h,w,1] or [h,w], got shape {image.shape}")
    if image.dtype != np.uint8:
        if not np.issubdtype(image.dtype, np.floating):
            raise ValueError(f"a picture is of uint8 or floats in 0..1, got {image.dtype}")
        image = np.round(255 * np.clip(np.nan_to_num(image), 0, 1)).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))


def png(image: Shaped[np.ndarray, "..."]) -> bytes:
    """A PNG file of what `rgb` takes."""
    file = io.BytesIO()
    PIL.Image.fromarray(rgb(image)).save(file, format="png")
    return file.getvalue()


def tiled(
    rows: Sequence[Sequence[Shaped[np.ndarray, "..."]]], *, scale: int = 1, gap: int = 2
) -> UInt8[np.ndarray, "y x 3"]:
    """Pictures of one size (`rgb`) in rows, with white between; each pixel is `scale` wide.

    What is missing at the end of a row is white. Raises ValueError for pictures of several sizes.
    """
    tiles = [[rgb(np.asarray(one)) for one in row] for row in rows]
    shapes = {tile.shape for row in tiles for tile in row}
    if len(shapes) != 1:
        raise ValueError(f"pictures of one size are needed, got {sorted(shapes)}")
    height, width, _ = (scale * size for size in shapes.pop())
    columns = max(map(len, tiles))
    size = len(tiles) * (height + gap) - gap, columns * (width + gap) - gap, 3
    whole = np.full(size, 255, np.uint8)
    for i, row in enumerate(tiles):
        for j, tile in enumerate(row):
            top, left = i * (height + gap), j * (width + gap)
            large = tile.repeat(scale, 0).repeat(scale, 1)
            whole[top : top + height, left : left + width] = large
    return whole


def spectrogram(features: Shaped[np.ndarray, "l f"]) -> UInt8[np.ndarray, "f l 3"]:
    """A picture of frames: time to the right, f upwards, in colours that span it."""
    return _colours(np.asarray(features).T[::-1])


def stacked(
    features: Sequence[Shaped[np.ndarray, "l _"]], gap: int = 2
) -> UInt8[np.ndarray, "h l 3"]:
    """Spectrograms of one length in one picture, in its colours: the first is on top."""
    rows = []
    for one in features:
        rows += [np.full((gap, len(one)), np.nan), np.asarray(one, np.float64).T[::-1]]
    return _colours(np.concatenate(rows[1:]))


def _colours(values: Shaped[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Viridis from the least to the greatest finite value; NaN is black."""
    values = np.asarray(values, np.float64)
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    place = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    anchors = np.linspace(0, 1, len(_VIRIDIS) // 3)
    channels = [np.interp(place, anchors, list(_VIRIDIS[c::3])) for c in range(3)]
    coloured = np.where(np.isnan(values)[..., None], 0, np.nan_to_num(np.stack(channels, -1)))
    return np.round(coloured).astype(np.uint8)
