"""Mouths and portraits cut out of pictures, steady, upright where landmarks are known.

Both ways give the scale and place of VisualVoice's mouth crops (arXiv 2101.03149; 96 x 96 of a face
that is aligned to 256 x 256), so that one network reads both.
"""

import dataclasses

import numpy as np
import PIL.Image
import scipy.ndimage
from jaxtyping import Complex, Float, UInt8

from common.video import finding
from common.video.tracking import Track

MOUTH_SIZE, FACE_SIZE = 96, 224
_AROUND = 6  # places before and after that steady a crop: half a second in all
_FACE_WIDTHS = 1.5  # of a portrait, in widths of the face's box
# Where the landmarks of a mean face lie in 256 x 256 pixels: that to which lip-reading crops are
# aligned (Martinez et al., ICASSP 2020), rounded, by their numbers in iBUG's 68.
_MEAN_FACE = {33: 129 + 137j, 36: 92.5 + 94.5j, 39: 113 + 95j, 42: 145.5 + 94.5j, 45: 166.5 + 93.5j}
# The same for five landmarks: the eyes and the tip of the nose.
_MEAN_FIVE = (102 + 94.5j, 156.5 + 93.5j, 128.5 + 127.5j)
_MOUTH = slice(48, 68)
# Without landmarks, in widths of the box: the size of the mouth's crop gives a mean mouth as many
# pixels as the above; the place was measured against another finder's mouth on 3,525 pictures.
_MOUTH_WIDTHS = 0.69
_MOUTH_RIGHT, _MOUTH_DOWN = 0.01, 0.312


@dataclasses.dataclass(frozen=True)
class Views:
    """Where square crops lie in each picture: around `centres`, x + iy in pixels of the picture.

    `steps` say by how many pixels of the picture (as a complex number: turned by its angle) one
    pixel of the crop goes to the right.
    """

    centres: Complex[np.ndarray, "n"]
    steps: Complex[np.ndarray, "n"]
    size: int

    def box(self, k: int) -> tuple[float, float, float, float]:
        """Left, top, width, height of the k-th, not turned."""
        side = abs(self.steps[k]) * self.size
        centre = self.centres[k]
        return float(centre.real - side / 2), float(centre.imag - side / 2), side, side

    def cut(self, picture: PIL.Image.Image, k: int) -> PIL.Image.Image:
        """The k-th crop; outside of the picture its edge goes on: a black bar would move there."""
        step, size = complex(self.steps[k]), self.size
        reach = abs(step) * size  # more than half a diagonal
        picture, shift = _extended(picture, complex(self.centres[k]), reach)
        # Several pixels of the picture make one: each is looked at, then they are averaged.
        finer = max(1, int(np.ceil(abs(step) - 1e-6)))
        step /= finer
        corner = complex(self.centres[k]) + shift - step * (1 + 1j) * size * finer / 2
        matrix = (step.real, -step.imag, corner.real, step.imag, step.real, corner.imag)
        large = picture.transform(
            (size * finer, size * finer),
            PIL.Image.Transform.AFFINE,
            matrix,
            PIL.Image.Resampling.BILINEAR,
        )
        return large.reduce(finer) if finer > 1 else large


def _extended(
    picture: PIL.Image.Image, centre: complex, reach: float
) -> tuple[PIL.Image.Image, complex]:
    """A picture in which so many pixels around a place are there, and by how much all moved."""
    low = np.floor([centre.real - reach, centre.imag - reach]).astype(int)
    high = np.ceil([centre.real + reach, centre.imag + reach]).astype(int)
    if (low >= 0).all() and (high <= picture.size).all():
        return picture, 0j
    x, y = (np.clip(np.arange(a, b), 0, n - 1) for a, b, n in zip(low, high, picture.size))
    patch = np.asarray(picture)[y[:, None], x]
    return PIL.Image.fromarray(patch), complex(-low[0], -low[1])


def mouth_views(track: Track) -> Views:
    """The mouth in every picture of a track."""
    if track.landmarks is None:
        boxes = _steady_boxes(track)
        widths = boxes[:, 2]
        centres = _middles(boxes) + widths * complex(_MOUTH_RIGHT, _MOUTH_DOWN)
        return Views(centres, (widths * _MOUTH_WIDTHS / MOUTH_SIZE).astype(complex), MOUTH_SIZE)
    points = scipy.ndimage.uniform_filter1d(
        track.landmarks, 2 * _AROUND + 1, axis=0, mode="reflect"
    )
    points = points[..., 0] + 1j * points[..., 1]
    if points.shape[1] == 5:
        fixed, mean, mouth = points[:, :3], np.array(_MEAN_FIVE), points[:, 3:]
    else:
        fixed, mean = points[:, list(_MEAN_FACE)], np.array(list(_MEAN_FACE.values()))
        mouth = points[:, _MOUTH]
    # From the mean face to the picture, the least squares of a turn and a scale.
    apart = mean - mean.mean()
    steps = (fixed * apart.conj()).sum(1) / np.square(np.abs(apart)).sum()
    return Views(mouth.mean(1), steps, MOUTH_SIZE)


def face_views(track: Track) -> Views:
    """A portrait in every picture of a track: the face's box and as much again around it."""
    boxes = _steady_boxes(track)
    sides = np.maximum(boxes[:, 2], boxes[:, 3]) * _FACE_WIDTHS
    return Views(_middles(boxes), (sides / FACE_SIZE).astype(complex), FACE_SIZE)


def _steady_boxes(track: Track) -> Float[np.ndarray, "n 4"]:
    """A running median, which a single odd box does not move."""
    size = (2 * _AROUND + 1, 1)
    return scipy.ndimage.median_filter(track.boxes, size=size, mode="reflect")


def _middles(boxes: Float[np.ndarray, "n 4"]) -> Complex[np.ndarray, "n"]:
    return boxes[:, 0] + boxes[:, 2] / 2 + 1j * (boxes[:, 1] + boxes[:, 3] / 2)


def sharpness(face: PIL.Image.Image) -> float:
    """How much a portrait changes from pixel to pixel; less where it is blurred or dark."""
    grey = np.asarray(face.convert("L").resize((64, 64)), np.float32)
    return float(scipy.ndimage.laplace(grey).var())


def intruded(track: Track, others: list[Track]) -> float:
    """The share of a track's pictures in whose mouth crop another face stands, too."""
    views = mouth_views(track)
    hit = np.zeros(len(track), bool)
    for other in others:
        for place in range(max(track.first, other.first), min(track.last, other.last)):
            left, top, width, height = other.boxes[place - other.first]
            # The features of a face; its box holds much of what is round it.
            inner = (left + 0.2 * width, top + 0.2 * height, 0.6 * width, 0.6 * height)
            box = views.box(place - track.first)
            hit[place - track.first] |= finding.shared(box, inner) > 0.1 * box[2] * box[3]
    return float(hit.mean())


def as_array(image: PIL.Image.Image) -> UInt8[np.ndarray, "..."]:
    """The bytes of a picture."""
    return np.asarray(image, np.uint8)
