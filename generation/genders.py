"""Whose voice is a woman's and whose a man's, as the data say it, and which made faces agree.

The words are those of the data (`records`: "f" and "m"); nobody's is guessed from a voice or a
face but to say how far made faces keep it.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from common import metrics
from common.data import splits
from common.task import Report
from generation import images, people

GENDERS = ("f", "m")
_SHRINKING = 0.1  # of the ridge regression, of features of deviation 1
_LEAST = 4  # people of a gender, to learn it
_MOST = 1000  # people that are looked at,
_PICTURES = 2  # and pictures of each
_AT_ONCE = 64


def of_people(
    split: splits.Split, names: Sequence[str], listed: Mapping[str, str]
) -> tuple[str, ...]:
    """The gender of each of the people `names`: that of their recordings, else the one `listed`.

    "" where neither says it, or recordings disagree.
    """
    said: dict[str, set[str]] = {}
    for row in split.written:
        if row["gender"] in GENDERS:
            said.setdefault(row["speaker"], set()).add(row["gender"])
    found = []
    for name in names:
        own = said.get(name, set()) or {listed.get(name, "")}
        found.append(own.pop() if len(own) == 1 else "")
    return tuple(found)


class Regression(NamedTuple):
    """A linear function of features that is above 0 for the first of `GENDERS`."""

    weights: Float[np.ndarray, "d"]
    offset: float
    people: int  # of whom it was learned

    def of(self, features: Float[np.ndarray, "*b d"]) -> Bool[np.ndarray, "*b"]:
        """Whether they are taken for the first one."""
        return features @ self.weights + self.offset > 0


def learned(
    features: Float[np.ndarray, "n d"], first: Bool[np.ndarray, "n"], count: int
) -> Regression:
    """Ridge regression (Hoerl and Kennard 1970) of +1 and -1, both weighing the same, on features
    of `count` people that are brought to mean 0 and deviation 1."""
    share = np.where(first, 0.5 / first.sum(), 0.5 / (~first).sum())
    mean = share @ features
    centred = features - mean
    deviation = np.sqrt(share @ np.square(centred))
    scaled = centred / np.where(deviation > 0, deviation, 1)
    target = np.where(first, 1.0, -1.0)  # of mean 0
    gram = scaled.T @ (share[:, None] * scaled) + _SHRINKING * np.eye(scaled.shape[1])
    weights = np.linalg.solve(gram, scaled.T @ (share * target))
    weights /= np.where(deviation > 0, deviation, 1)
    return Regression(weights, -float(mean @ weights), count)


def learned_from(
    faces: people.Faces,
    genders: Mapping[str, str],
    picture: Any,
    features: Callable[[UInt8[np.ndarray, "b h w c"]], Float[np.ndarray, "b d"]],
) -> Regression | None:
    """From some pictures of people, at the size and in the colours of `picture`; None for too few
    people of either gender. Pictures that cannot be read are left out."""
    small = people.Small(faces, picture.size, picture.channels)
    known = sorted(person for person, gender in genders.items() if gender in GENDERS)
    pictures, owners = [], []
    for person in known[:: -(-len(known) // _MOST) or 1]:  # spread over all of them
        for number in range(min(small.count(person), _PICTURES)):
            with contextlib.suppress(images.ImageError):  # Named where training meets it.
                pictures.append(small(person, number))
                owners.append(person)
    counts = [len({p for p in owners if genders[p] == gender}) for gender in GENDERS]
    if min(counts) < _LEAST:
        return None
    found = []
    for start in range(0, len(pictures), _AT_ONCE):
        some = np.stack(pictures[start : start + _AT_ONCE])
        whole = np.resize(some, (_AT_ONCE, *some.shape[1:]))  # one program for all
        found.append(features(whole)[: len(some)])
    first = np.array([genders[person] == GENDERS[0] for person in owners])
    return learned(np.concatenate(found).astype(np.float64), first, sum(counts))


def report(
    split: str,
    regression: Regression,
    genders: Sequence[str],
    made: Float[np.ndarray, "p t d"],
    real: Float[np.ndarray, "p t d"],
) -> Report:
    """How many made faces are taken for the gender of their voice, and real ones of their person.

    The mean over both genders, so that chance is 50 %, with 95 % intervals over people.
    """
    names = np.array(genders)
    numbers, said = {}, []
    known = np.isin(names, GENDERS)
    counts = {gender: (names == gender).sum() for gender in GENDERS}
    if min(counts.values()) < 2:
        return Report({})
    weight = np.array([1 / counts[name] for name in names[known]])
    for prefix, title, faces in (("", "made", made), ("real_", "real", real)):
        right = regression.of(faces[known]) == (names[known] == GENDERS[0])[:, None]
        share = right.mean(1)
        low, high = metrics.percentile_interval(metrics.resampled_rates(weight * share, weight))
        value = weight @ share / weight.sum()
        numbers[f"{prefix}gender_accuracy"] = float(value)
        said.append(f"{title} {100 * value:.1f} ({100 * low:.1f} to {100 * high:.1f})")
    return Report(
        numbers,
        [
            f"{split} faces of the voice's gender, by a regression on {regression.people} training "
            f"people's, %: {', '.join(said)}, chance 50"
        ],
    )
