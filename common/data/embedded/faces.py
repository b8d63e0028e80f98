"""A face for every voice, drawn: a portrait in colour and the mouth that speaks, in grey.

Of a face some factors follow its voice and some do not. `VOICED` follow: `pitch` (0 low, 1 high;
from the voice's fundamental frequency) and `tract` (0 short, 1 long; from its formants) are what
the voice has, and `jaw`, `brows`, `eyes`, `length`, `nose` and `mouth` are four parts of one of
these and a part of chance. `FREE` are drawn from the voice's id alone and say nothing of how it
sounds: skin, hair, eye colour, lips, glasses, background and the rest.

A picture is drawn by coverage of each pixel, from the back to the front, in arithmetic that is the
same everywhere (+, -, *, /, square roots, comparisons); chance is Python's `random`, of the id.
Coordinates: half of a face's width is 1, x to the right, y down, the eyes near y = 0.
"""

import copy
import dataclasses
import math
import random
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, UInt8

MOUTH_SIZE, PORTRAIT_SIZE, PORTRAITS = 96, 224, 5
# pixel centres in face coordinates: (left, top, right, bottom)
_MOUTH_HALF, _MOUTH_BELOW = 0.66, 0.06
_PORTRAIT_WINDOW = (-1.62, -1.62, 1.62, 1.62)
_LOW_HZ, _HIGH_HZ = 60.0, 260.0
_SHORT, _LONG = 130.0, 85.0  # mean of the formants against the plain voice, %

_SKINS = ((250, 220, 196), (238, 196, 164), (222, 172, 134), (188, 134, 96), (136, 90, 62))
_SKINS = (*_SKINS, (96, 62, 44))
_HAIRS = ((28, 22, 20), (64, 42, 28), (120, 78, 42), (186, 142, 78), (150, 62, 32), (170, 168, 166))
_IRISES = ((70, 46, 30), (96, 72, 40), (70, 104, 70), (74, 108, 146), (90, 96, 104))
_GROUNDS = ((198, 210, 220), (216, 204, 186), (150, 168, 160), (120, 132, 156), (206, 190, 206))
_SHIRTS = ((60, 70, 96), (150, 60, 60), (70, 110, 80), (40, 40, 44), (190, 180, 160))

VOICED = ("pitch", "tract", "jaw", "brows", "eyes", "length", "nose", "mouth")
FREE = (
    *("skin", "hair", "hair_length", "parting", "iris", "lip_red", "lip_fullness", "eye_distance"),
    *("brow_slope", "mouth_curve", "glasses", "beard", "ground", "shirt", "articulation", "light"),
)


@dataclasses.dataclass(frozen=True)
class Face:
    """The factors of a face, all from 0 to 1 but those that choose one of several (integers)."""

    pitch: float
    tract: float
    jaw: float
    brows: float
    eyes: float
    length: float
    nose: float
    mouth: float
    skin: int
    hair: int
    hair_length: float
    parting: float
    iris: int
    lip_red: float
    lip_fullness: float
    eye_distance: float
    brow_slope: float
    mouth_curve: float
    glasses: int
    beard: int
    ground: int
    shirt: int
    articulation: float
    light: float

    def factors(self) -> dict[str, float]:
        """By name: `VOICED`, then `FREE`."""
        return {name: getattr(self, name) for name in (*VOICED, *FREE)}

    @property
    def strength(self) -> float:
        """How far its lips go apart: see `visemes.mouth_track`."""
        return 0.8 + 0.3 * self.articulation


def make_face(voice_id: str, pitch_hz: float, formants_percent: float) -> Face:
    """The face of a voice of this id, mean fundamental frequency and formants (plain voice: 100).

    The same for the same arguments, always.
    """
    rng = random.Random(f"face/{voice_id}")
    octaves = math.log2(pitch_hz / _LOW_HZ) / math.log2(_HIGH_HZ / _LOW_HZ)
    pitch = round(min(max(octaves, 0.0), 1.0), 4)
    tract = round(min(max((_SHORT - formants_percent) / (_SHORT - _LONG), 0.0), 1.0), 4)

    def following(factor: float) -> float:
        return round(0.8 * factor + 0.2 * rng.random(), 4)

    def free() -> float:
        return round(rng.random(), 4)

    return Face(
        pitch=pitch,
        tract=tract,
        jaw=following(1 - pitch),
        brows=following(1 - pitch),
        eyes=following(pitch),
        length=following(tract),
        nose=following(tract),
        mouth=following(tract),
        skin=rng.randrange(len(_SKINS)),
        hair=rng.randrange(len(_HAIRS)),
        hair_length=free(),
        parting=free(),
        iris=rng.randrange(len(_IRISES)),
        lip_red=free(),
        lip_fullness=free(),
        eye_distance=free(),
        brow_slope=free(),
        mouth_curve=free(),
        glasses=int(rng.random() < 0.25),
        beard=int(rng.random() < 0.25),
        ground=rng.randrange(len(_GROUNDS)),
        shirt=rng.randrange(len(_SHIRTS)),
        articulation=free(),
        light=free(),
    )


@dataclasses.dataclass(frozen=True)
class Pose:
    """Where a head is: shifts in face coordinates, a turn of the features to a side, a tilt."""

    x: float = 0.0
    y: float = 0.0
    turn: float = 0.0
    tilt: float = 0.0


def poses(name: str, count: int) -> list[Pose]:
    """A head that moves a little while it speaks: slow waves of the utterance `name`."""
    rng = random.Random(f"poses/{name}")
    waves = [
        (size * (0.5 + 0.5 * rng.random()), 0.15 + 0.5 * rng.random(), rng.random())
        for size in (0.03, 0.025, 0.03, 0.04)
    ]

    def wave(size: float, hertz: float, phase: float, k: int) -> float:
        # Rounded: the sines of two libraries may differ in the last bit.
        return round(size * math.sin(2 * math.pi * (hertz * k / 25 + phase)), 6)

    return [Pose(*(wave(*one, k) for one in waves)) for k in range(count)]


def draw_mouths(
    face: Face, track: Float[np.ndarray, "n 5"], name: str
) -> UInt8[np.ndarray, "n 96 96"]:
    """The mouth of a face at every picture of an utterance: nostrils to chin, grey.

    `track` as `visemes.mouth_track` gives it; `name` decides how the head moves.
    """
    grey = {part: _grey(colour) for part, colour in _colours(face).items()}
    below = _mouth_y(face) + _MOUTH_BELOW
    window = -_MOUTH_HALF, below - _MOUTH_HALF, _MOUTH_HALF, below + _MOUTH_HALF
    canvas = _Canvas(window, MOUTH_SIZE, 1)
    frames = np.empty((len(track), MOUTH_SIZE, MOUTH_SIZE), np.uint8)
    for k, (mouth, pose) in enumerate(zip(track.tolist(), poses(name, len(track)))):
        canvas.place(pose)
        canvas.fill(grey["skin"])
        _draw_lower(canvas, face, grey, mouth, pose)
        frames[k] = canvas.picture()[:, :, 0]
    return frames


def draw_portraits(face: Face, voice_id: str) -> UInt8[np.ndarray, "k 224 224 3"]:
    """`PORTRAITS` pictures of a face: other poses, mouths and light."""
    colours = _colours(face)
    rng = random.Random(f"portraits/{voice_id}")
    canvas = _Canvas(_PORTRAIT_WINDOW, PORTRAIT_SIZE, 3)
    pictures = np.empty((PORTRAITS, PORTRAIT_SIZE, PORTRAIT_SIZE, 3), np.uint8)
    for k in range(PORTRAITS):
        spread = [round(2 * rng.random() - 1, 4) for _ in range(4)]
        pose = Pose(0.1 * spread[0], 0.08 * spread[1], 0.12 * spread[2], 0.06 * spread[3])
        mouth = [round(0.5 * rng.random() ** 2, 4), round(rng.random() - 0.4, 4), 0.0, 0.7, 0.1]
        light = round(0.88 + 0.2 * rng.random(), 4)
        canvas.place(pose)
        _draw_all(canvas, face, colours, mouth, pose)
        pictures[k] = canvas.picture(light)
    return pictures


def _colours(face: Face) -> dict[str, tuple[float, ...]]:
    skin = np.array(_SKINS[face.skin], np.float64)
    light = 0.85 + 0.2 * face.light
    red = 0.35 + 0.4 * face.lip_red
    lips = (1 - red) * skin * (0.8, 0.62, 0.62) + red * np.array((176, 66, 74))
    found = {
        "skin": skin,
        "shade": skin * 0.72,
        "shine": 0.75 * skin + 0.25 * 255,
        "lips": lips,
        "lip_shine": 0.8 * lips + 0.2 * 255,
        "line": lips * 0.4,
        "inside": np.array((44, 16, 18)),
        "teeth": np.array((236, 232, 222)),
        "tongue": np.array((182, 88, 92)),
        "beard": 0.55 * skin + 0.45 * np.array(_HAIRS[face.hair]),
        "hair": np.array(_HAIRS[face.hair]),
        "iris": np.array(_IRISES[face.iris]),
        "white": np.array((240, 240, 238)),
        "black": np.array((18, 16, 16)),
        "ground": np.array(_GROUNDS[face.ground]),
        "shirt": np.array(_SHIRTS[face.shirt]),
    }
    return {name: tuple((colour * light).tolist()) for name, colour in found.items()}


def _grey(colour: Sequence[float]) -> tuple[float, ...]:
    return (0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2],)


class _Canvas:
    """Pixels with their place in face coordinates."""

    def __init__(self, window: tuple[float, float, float, float], size: int, channels: int):
        left, top, right, _ = window  # a square
        step = (right - left) / size
        self.per_unit = np.float32(1 / step)
        x = left + step * (np.arange(size, dtype=np.float32) + np.float32(0.5))
        y = top + step * (np.arange(size, dtype=np.float32) + np.float32(0.5))
        self._grid = np.meshgrid(x, y)
        self._pixels = np.empty((channels, size, size), np.float32)
        self.x, self.y = self._grid

    def place(self, pose: Pose) -> None:
        """The head at a pose: what follows is drawn there."""
        x, y = self._grid
        a = np.float32(pose.tilt)
        self.x = x - np.float32(pose.x) + a * y
        self.y = y - np.float32(pose.y) - a * x

    def fill(self, colour: Sequence[float]) -> None:
        for plane, value in zip(self._pixels, colour):
            plane[:] = value

    def paint(self, coverage: Float[np.ndarray, "h w"], colour: Sequence[float]) -> None:
        for plane, value in zip(self._pixels, colour):
            plane += coverage * (np.float32(value) - plane)

    def like(self) -> "_Canvas":
        """Another one at the same place, with nothing on it yet."""
        other = copy.copy(self)
        other._pixels = np.empty_like(self._pixels)
        return other

    def lay(self, coverage: Float[np.ndarray, "h w"], other: "_Canvas") -> None:
        self._pixels += coverage * (other._pixels - self._pixels)

    def shade(self, factor: Float[np.ndarray, "h w"]) -> None:
        self._pixels *= factor

    def soft(self, distance: Float[np.ndarray, "h w"], width: float = 0.0) -> np.ndarray:
        """1 where a distance in face coordinates is below 0, falling over a pixel, or `width`."""
        slope = self.per_unit if not width else np.float32(1 / width)
        return np.clip(np.float32(0.5) - slope * distance, 0, 1)

    def ellipse(self, x: float, y: float, a: float, b: float, width: float = 0.0) -> np.ndarray:
        """Coverage of an ellipse of half axes a and b."""
        u, v = (self.x - np.float32(x)) / np.float32(a), (self.y - np.float32(y)) / np.float32(b)
        radius = np.sqrt(u * u + v * v)
        return self.soft((radius - 1) * np.float32(min(a, b)), width)

    def picture(self, light: float = 1.0) -> UInt8[np.ndarray, "h w c"]:
        scaled = np.clip(self._pixels * np.float32(light) + np.float32(0.5), 0, 255)
        return scaled.astype(np.uint8).transpose(1, 2, 0)


def _mouth_y(face: Face) -> float:
    return 0.62 + 0.16 * face.length


def _chin_y(face: Face, opening: float) -> float:
    return 1.12 + 0.22 * face.length + 0.16 * opening


def _draw_lower(
    canvas: _Canvas,
    face: Face,
    colours: Mapping[str, Sequence[float]],
    mouth: Sequence[float],
    pose: Pose,
) -> None:
    """Below the nose, on skin: shades, beard, nose, chin and lips."""
    opening, middle, turn = mouth[0], _mouth_y(face), pose.turn
    x, y = canvas.x, canvas.y
    chin = _chin_y(face, opening)
    # The cheeks turn away from the light; the chin is lit, below it is the neck.
    canvas.shade(np.float32(1.02) - np.float32(0.16) * x * x)
    edge = np.sqrt(np.maximum(np.float32(1.0) - x * x / np.float32(1.1), 0))
    jaw = np.float32(middle) + (np.float32(chin - middle)) * edge
    canvas.paint(np.float32(0.75) * canvas.soft(jaw - y, 0.05), colours["shade"])
    canvas.paint(
        np.float32(0.5) * canvas.ellipse(turn, chin - 0.16, 0.17, 0.09, 0.12), colours["shine"]
    )
    if face.beard:
        ring = canvas.ellipse(0.0, middle + 0.12 + 0.1 * opening, 0.62, 0.55 + 0.1 * opening, 0.18)
        inner = canvas.soft(y - np.float32(middle - 0.28), 0.1)
        canvas.paint(np.float32(0.8) * ring * (1 - inner), colours["beard"])
    base = 0.30 + 0.1 * face.nose
    for side in (-1, 1):
        # From the wings of the nose to beside the mouth: the fold grows with a spread mouth.
        fold = (
            x
            - np.float32(side * (0.36 + 0.05 * mouth[1]))
            - np.float32(side * 0.28) * (y - np.float32(middle - 0.18))
        )
        seen = canvas.soft(np.abs(fold) - np.float32(0.01), 0.03) * canvas.soft(
            np.abs(y - np.float32(middle - 0.12)) - np.float32(0.13), 0.1
        )
        canvas.paint(np.float32(0.35) * seen, colours["shade"])
        nostril = canvas.ellipse(turn + side * 0.105, base + 0.035, 0.05, 0.028, 0.03)
        canvas.paint(np.float32(0.75) * nostril, colours["line"])
    tip = canvas.ellipse(1.4 * turn, base - 0.04, 0.15, 0.09, 0.1)
    canvas.paint(np.float32(0.5) * tip, colours["shine"])
    _draw_lips(canvas, face, colours, mouth, turn)


def _draw_lips(
    canvas: _Canvas,
    face: Face,
    colours: Mapping[str, Sequence[float]],
    mouth: Sequence[float],
    turn: float,
) -> None:
    opening, width, rounding, teeth, tongue = mouth
    middle = _mouth_y(face)
    half = (0.34 + 0.07 * face.mouth) * (1 + 0.15 * width - 0.34 * rounding)
    half *= 1 - 0.1 * opening
    full = (0.055 + 0.05 * face.lip_fullness) * (1 + 0.35 * rounding)
    upper, lower = 0.1 * opening, 0.27 * opening
    s = (canvas.x - np.float32(turn)) / np.float32(half)
    squares = s * s
    arch = np.maximum(1 - squares, 0)
    root = np.sqrt(arch)
    mix = np.float32(0.35 + 0.5 * rounding)
    bow = arch + mix * (root - arch)  # round mouths are ellipses, others almonds
    curve = np.float32(0.05 * (face.mouth_curve - 0.4) + 0.03 * width)
    line = canvas.y - np.float32(middle) + curve * squares
    cupid = np.maximum(1 - squares * np.float32(30), 0) * np.float32(0.3 * full)
    tops = -np.float32(upper) * bow
    bottoms = np.float32(lower) * bow
    outer_top = tops - np.float32(full) * root * (1 - np.float32(0.25) * squares) + cupid
    outer_bottom = bottoms + np.float32(1.35 * full) * root
    inside = canvas.soft(np.abs(s) * np.float32(half) - np.float32(half))
    shadow = canvas.soft(np.abs(line - outer_bottom - np.float32(0.05)) - np.float32(0.01), 0.07)
    canvas.paint(np.float32(0.4) * shadow * np.minimum(arch * 2, 1), colours["shade"])
    lips = canvas.soft(outer_top - line) * canvas.soft(line - outer_bottom) * inside
    canvas.paint(lips, colours["lips"])
    gleam = canvas.soft(
        np.abs(line - bottoms - np.float32(0.6 * full)) - np.float32(0.015), 0.05
    ) * canvas.soft(np.abs(s) - np.float32(0.45), 0.4)
    canvas.paint(np.float32(0.7) * gleam * lips, colours["lip_shine"])
    # A closed mouth is a dark line; an open one shows what is inside.
    seam = canvas.soft(np.abs(line - (tops + bottoms) / 2) - np.float32(0.006), 0.022)
    canvas.paint(seam * inside * np.minimum(arch * 3, 1), colours["line"])
    if opening > 0.02:
        hole = canvas.soft(tops - line) * canvas.soft(line - bottoms) * inside
        canvas.paint(hole, colours["inside"])
        height = (bottoms - tops) * np.float32(min(0.25 + 0.55 * tongue, 0.8))
        lick = canvas.soft(bottoms - height - line, 0.03) * canvas.soft(
            np.abs(s) - np.float32(0.62), 0.12
        )
        canvas.paint(np.float32(0.9) * hole * lick, colours["tongue"])
        row = canvas.soft(line - tops - np.float32(0.075 * teeth), 0.02)
        row = row * canvas.soft(np.abs(s) - np.float32(0.8), 0.12)
        canvas.paint(np.float32(min(1.4 * teeth, 1.0)) * hole * row, colours["teeth"])


def _draw_all(
    canvas: _Canvas,
    face: Face,
    colours: Mapping[str, Sequence[float]],
    mouth: Sequence[float],
    pose: Pose,
) -> None:
    """Head and shoulders."""
    x, y, turn = canvas.x, canvas.y, pose.turn
    chin, jaw = _chin_y(face, mouth[0]), 0.6 + 0.3 * face.jaw
    canvas.fill(colours["ground"])
    long = 0.2 + 1.3 * face.hair_length
    back = canvas.ellipse(0.0, -0.25, 1.14, 1.12)
    fall = canvas.soft(np.abs(x) - np.float32(1.14)) * canvas.soft(
        np.abs(y - np.float32(long / 2 - 0.25)) - np.float32(long / 2)
    )
    canvas.paint(np.maximum(back, fall), colours["hair"])
    canvas.paint(canvas.ellipse(0.0, 2.25, 1.5, 0.75), colours["shirt"])
    neck = canvas.soft(np.abs(x) - np.float32(0.42 + 0.15 * face.jaw)) * canvas.soft(
        np.abs(y - np.float32(1.1)) - np.float32(0.6)
    )
    canvas.paint(neck, colours["shade"])
    for side in (-1, 1):
        canvas.paint(canvas.ellipse(side * 0.98, 0.12, 0.14, 0.24), colours["shade"])
    # Above the eyes an ellipse, below them another, narrower with a narrow jaw.
    below = y / np.float32(chin)
    half = np.where(
        y < 0,
        np.sqrt(np.maximum(1 - np.square(y / np.float32(1.12)), 0)),
        np.sqrt(np.maximum(1 - np.square(np.square(below)) * np.float32(jaw), 0))
        * np.sqrt(np.maximum(1 - np.square(np.square(np.square(below))), 0)),
    )
    head = canvas.soft(np.abs(x) - half) * canvas.soft(y - np.float32(chin), 0.03)
    head = head * canvas.soft(np.float32(-1.12) - y)  # above it the half axis is 0, not the head
    under = canvas.like()
    under.fill(colours["skin"])
    _draw_lower(under, face, colours, mouth, pose)
    canvas.lay(head, under)
    apart, size = 0.36 + 0.1 * face.eye_distance, 0.13 + 0.07 * face.eyes
    for side in (-1, 1):
        at = side * apart + turn
        white = canvas.ellipse(at, -0.02, size, 0.55 * size)
        canvas.paint(white, colours["white"])
        canvas.paint(white * canvas.ellipse(at + 0.3 * turn, -0.02, 0.075, 0.075), colours["iris"])
        canvas.paint(white * canvas.ellipse(at + 0.3 * turn, -0.02, 0.035, 0.035), colours["black"])
        lid = canvas.ellipse(at, -0.05, 1.05 * size, 0.6 * size) - canvas.ellipse(
            at, 0.0, 1.1 * size, 0.6 * size
        )
        canvas.paint(np.clip(lid, 0, 1), colours["black"])
        slope = np.float32(side * 0.3 * (face.brow_slope - 0.5))
        brow = np.abs(y - np.float32(-0.27) + slope * (x - np.float32(at)))
        brow = canvas.soft(brow - np.float32(0.018 + 0.035 * face.brows))
        brow = brow * canvas.soft(np.abs(x - np.float32(at)) - np.float32(0.22))
        canvas.paint(np.float32(0.9) * brow, colours["hair"])
        if face.glasses:
            rim = canvas.ellipse(at, 0.0, 0.31, 0.25) - canvas.ellipse(at, 0.0, 0.275, 0.215)
            canvas.paint(np.clip(rim, 0, 1), colours["black"])
    if face.glasses:
        bridge = canvas.soft(np.abs(x - np.float32(turn)) - np.float32(apart - 0.28))
        bridge = bridge * canvas.soft(np.abs(y + np.float32(0.04)) - np.float32(0.018))
        canvas.paint(bridge, colours["black"])
    ridge = canvas.soft(np.abs(x - np.float32(1.2 * turn + 0.07)) - np.float32(0.012), 0.05)
    ridge = ridge * canvas.soft(np.abs(y - np.float32(0.12)) - np.float32(0.14), 0.12)
    canvas.paint(np.float32(0.45) * ridge, colours["shade"])
    # The fringe leaves the forehead free to one side of the parting.
    part = 1.2 * face.parting - 0.6
    fringe = (
        np.float32(-0.52)
        + np.float32(0.22) * np.square(x - np.float32(part))
        - np.float32(0.16) * np.sqrt(np.maximum(1 - np.abs(x - np.float32(part)), 0))
    )
    top = canvas.ellipse(0.0, -0.1, 1.1, 1.2) * canvas.soft(y - fringe)
    canvas.paint(top, colours["hair"])
