"""From eSpeak NG's phonemes and their times to a mouth: the shapes that lips take in turn.

A shape has five numbers (`SHAPE`): how far the lips are apart (0 closed, 1 wide), how far the
corners are drawn apart (-1 to 1), how round and protruded they are, how much of the upper teeth and
of the tongue shows (0 to 1). Every phoneme wants a shape, with more or less weight in each number;
what is seen is the mean of what the neighbours want, weighted by how near they are (dominance
functions: Cohen and Massaro 1993, "Modeling coarticulation in synthetic visual speech"), so that a
vowel rounds the consonant before it. Lips that have to meet do meet, however short the phoneme.

Only +, -, *, / and comparisons: the same numbers on every machine.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

FRAMES_PER_SECOND = 25
SHAPE = ("opening", "width", "rounding", "teeth", "tongue")
BILABIAL = frozenset("pbm")
STOPS = frozenset("pbtdkg")
_AFFRICATES = ("tS", "dZ")

_MARKS = "',%=-#[2;"  # stress and variants of a phoneme: the mouth is the same
# The event of a stop is its burst. Before it the sound is 30 dB down for as long (measured).
_HOLD_MS, _BURST_MS = 50.0, 5.0
_NEAR_MS = 35.0  # of a phoneme, at least: lips are slow
_CLOSING_MS, _RESTING_MS = 45.0, 120.0  # that lips take to meet, and to come to rest


class _Wish(NamedTuple):
    """What a phoneme wants, and how much it insists on opening, width and rounding, the rest."""

    opening: float
    width: float
    rounding: float
    teeth: float
    tongue: float
    insists: tuple[float, float, float] = (1.0, 1.0, 1.0)


_LOOSE, _FIRM = (0.35, 0.3, 0.4), (2.0, 0.6, 1.5)
_ROUND = (1.0, 2.0, 1.5)
_VOWELS = {
    "a": _Wish(0.90, 0.35, 0.0, 0.55, 0.15),
    "A": _Wish(1.00, 0.00, 0.0, 0.35, 0.15),
    "0": _Wish(0.90, -0.10, 0.2, 0.30, 0.10),
    "V": _Wish(0.70, 0.10, 0.0, 0.45, 0.15),
    "E": _Wish(0.65, 0.45, 0.0, 0.65, 0.15),
    "e": _Wish(0.55, 0.50, 0.0, 0.65, 0.15),
    "I": _Wish(0.45, 0.50, 0.0, 0.70, 0.15),
    "i": _Wish(0.32, 0.90, 0.0, 0.85, 0.15),
    "@": _Wish(0.45, 0.10, 0.0, 0.50, 0.15, (0.7, 0.6, 0.6)),
    "3": _Wish(0.45, -0.10, 0.35, 0.45, 0.15),
    "O": _Wish(0.75, -0.35, 0.6, 0.10, 0.05),
    "o": _Wish(0.60, -0.40, 0.7, 0.10, 0.05),
    "U": _Wish(0.35, -0.40, 0.7, 0.10, 0.05),
    "u": _Wish(0.28, -0.60, 1.0, 0.00, 0.00, _ROUND),
    "L": _Wish(0.40, 0.10, 0.0, 0.40, 0.90),
}
_CONSONANTS = {
    **dict.fromkeys("pbm", _Wish(0.0, 0.0, 0.0, 0.0, 0.0, (4.0, 0.5, 2.0))),
    **dict.fromkeys("fv", _Wish(0.14, 0.15, 0.0, 1.0, 0.0, (3.0, 0.6, 3.0))),
    **dict.fromkeys("TD", _Wish(0.28, 0.10, 0.0, 0.75, 1.0, _FIRM)),
    **dict.fromkeys("tdn", _Wish(0.28, 0.20, 0.0, 0.80, 0.45, (0.8, 0.4, 0.8))),
    **dict.fromkeys("sz", _Wish(0.18, 0.45, 0.0, 1.0, 0.05, (1.5, 0.7, 1.5))),
    "l": _Wish(0.40, 0.20, 0.0, 0.50, 0.95, (0.8, 0.4, 1.5)),
    **dict.fromkeys("SZ", _Wish(0.26, -0.45, 0.75, 0.90, 0.0, _ROUND)),
    **dict.fromkeys("kgNx", _Wish(0.32, 0.10, 0.0, 0.40, 0.10, _LOOSE)),
    **dict.fromkeys("h?", _Wish(0.40, 0.10, 0.0, 0.40, 0.10, _LOOSE)),
    **dict.fromkeys("rR", _Wish(0.28, -0.30, 0.6, 0.35, 0.05, (0.9, 1.0, 0.8))),
    "w": _Wish(0.12, -0.65, 1.0, 0.0, 0.0, (2.0, 2.5, 1.5)),
    "j": _Wish(0.28, 0.65, 0.0, 0.70, 0.10, (0.8, 0.8, 0.8)),
}
_REST = _Wish(0.0, 0.0, 0.0, 0.0, 0.0, (1.5, 1.0, 1.0))
_KNOWN = {**_VOWELS, **_CONSONANTS}


def shapes_of(phoneme: str) -> tuple[_Wish, ...]:
    """What a mnemonic wants: one shape, of a diphthong two or three, of an affricate its end.

    Pauses ("_", "_:") want rest; what has no letter that is known hardly wants anything.
    """
    name = phoneme.strip(_MARKS).replace(":", "")
    if name.startswith("_"):
        return (_REST,)
    if name[:2] in _AFFRICATES:
        name = name[1:]
    return tuple(_KNOWN[letter] for letter in name if letter in _KNOWN) or (_KNOWN["?"],)


def num_frames(samples: int, rate_hz: int) -> int:
    """Pictures of so many samples: the last one may stand for less than 40 ms."""
    return -(-samples * FRAMES_PER_SECOND // rate_hz)


def spans(
    phones: Sequence[tuple[float, str]], milliseconds: float
) -> list[tuple[float, float, str]]:
    """(start, end, mnemonic) in ms of what the mouth does for each phoneme, in order.

    From one event to the next, but for a stop: its closure comes before its event, which is the
    release, and takes that time from the phoneme before; what follows the burst is the opening.
    """
    found: list[tuple[float, float, str]] = []
    following = [ms for ms, _ in phones[1:]] + [milliseconds]
    for (start, phone), end in zip(phones, following):
        name = phone.strip(_MARKS)
        if name[:1] in STOPS and name[:2] not in _AFFRICATES:
            release, floor = start, found[-1][0] + 1 if found else 0.0
            start = min(max(start - _HOLD_MS, floor), release)
            if found:
                found[-1] = found[-1][0], min(found[-1][1], start), found[-1][2]
            end = min(release + _BURST_MS, end)
        found.append((start, max(end, start + 1), phone))
    return found


def mouth_track(
    phones: Sequence[tuple[float, str]], milliseconds: float, *, strength: float = 1.0
) -> Float[np.ndarray, "n 5"]:
    """The mouth at every picture of an utterance, in the order of `SHAPE`.

    Picture k stands for the sound from 40 k to 40 (k + 1) ms and shows its middle, 40 k + 20 ms.
    `phones`: (ms at which it starts, mnemonic), as the worker gives them. `strength` scales how far
    the lips go apart. Before the first and after the last phoneme the mouth rests, closed.
    """
    stretches = spans(phones, milliseconds)
    count = num_frames(round(milliseconds * 16), 16_000)
    time = 1000 / FRAMES_PER_SECOND * (np.arange(count) + 0.5)
    total, weight = np.zeros((count, 5)), np.full((count, 5), 1e-6)
    gate = np.ones(count)
    for start, end, phone in stretches:
        wishes = shapes_of(phone)
        length = (end - start) / len(wishes)
        louder = 1.1 if phone[:1] == "'" else 1.0 if phone[:1] == "," else 0.9
        for part, wish in enumerate(wishes):
            middle, near = start + (part + 0.5) * length, max(length / 2, _NEAR_MS)
            away = np.square(np.square((time - middle) / near))
            opening, lips, rest = wish.insists
            shape = np.array(wish[:5])
            shape[0] *= louder
            dominance = np.array([opening, lips, lips, rest, rest]) / (1 + away[:, None])
            total, weight = total + dominance * shape, weight + dominance
        if phone.strip(_MARKS)[:1] in BILABIAL:
            gate = np.minimum(gate, _away(time, start + 5, end - 5) / _CLOSING_MS)
        elif wishes == (_REST,):
            gate = np.minimum(gate, _away(time, start + _RESTING_MS, end) / _RESTING_MS)
    first = stretches[0][0] if stretches else milliseconds
    gate = np.minimum(gate, np.maximum(time - first + 40.0, 0.0) / 80.0)
    gate = np.minimum(gate, np.maximum(milliseconds - time, 0.0) / 80.0)
    track = total / weight
    track[:, 0] *= strength * np.clip(gate, 0.0, 1.0)
    track = np.clip(track, (0.0, -1.0, 0.0, 0.0, 0.0), 1.0)
    return np.round(track * 1024) / 1024


def _away(time: Float[np.ndarray, "n"], start: float, end: float) -> Float[np.ndarray, "n"]:
    """How far from a stretch, 0 inside of it."""
    return np.maximum(np.maximum(start - time, time - end), 0.0)
