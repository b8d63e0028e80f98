"""Whether made faces are like real ones, as a set: distances with floor, ceiling and intervals.

Features are shifted and scaled alike, so that those of real faces have mean 0 and, on average, the
variance 1: the unit of a network's features says nothing. Intervals (95 %) are over people.
"""

import numpy as np
from jaxtyping import Float, Int

from common import metrics
from common.task import Report
from generation import distances, matching

_LEAST = 8  # people: fewer say nothing
_RESAMPLED = 200  # times: a second's work
_SEED = 0  # of halves and of intervals
_SHARES = ("precision", "recall", "density", "coverage")


def report(
    split: str, made: Float[np.ndarray, "p t d"], real: Float[np.ndarray, "p t d"]
) -> Report:
    """Faces made of people's voices against real faces, by features of the judge.

    The people are divided by lot into two halves, and faces made for the one are compared with real
    faces of the other. The floor is what the real faces of the one get in their place: as many, of
    the same people. A ceiling is one face for all, the average one. Of few people the Frechet
    distance is large, and larger for faces that differ more; the kernel distance is right on
    average, and takes all people: of faces like the real ones it is 0.
    """
    people, turns, size = made.shape
    needed = max(_LEAST, 2 * (distances.DENSITY // turns + 1))
    if people < needed:
        return Report({}, [f"{split}: distances between sets of faces take {needed} people."])
    real = np.asarray(real, np.float64)
    mean, scale = real.mean((0, 1)), np.sqrt(real.var((0, 1)).mean())
    made, real = (made - mean) / scale, (real - mean) / scale
    order, half = np.random.default_rng(_SEED).permutation(people), people // 2
    halves = order[:half], order[half : 2 * half]
    found = [_frechet(made, real, *halves), _kernel(made, real, *halves)]
    found.append(_shares(made, real, *halves))
    numbers = {name: x for figures, _ in found for name, x in figures.items()}
    titles = (
        f"Frechet distance on the judge's last hidden layer ({size}), "
        f"{half * turns} faces of {half} people",
        f"kernel distance on the same, {people * turns} faces of {people} people",
        "on the same by halves",
    )
    return Report(numbers, [f"{split} {title}: {said}" for title, (_, said) in zip(titles, found)])


def _flat(faces: Float[np.ndarray, "p t d"]) -> Float[np.ndarray, "n d"]:
    return faces.reshape(-1, faces.shape[-1])


def _frechet(
    made: Float[np.ndarray, "p t d"],
    real: Float[np.ndarray, "p t d"],
    first: Int[np.ndarray, "m"],
    second: Int[np.ndarray, "m"],
) -> tuple[dict[str, float], str]:
    """The mean of both directions. When people are drawn anew all distances are larger, as there
    are fewer different ones: what is taken of them is their spread."""

    def directed(one: np.ndarray, other: np.ndarray) -> Float[np.ndarray, "3"]:
        own, against = _flat(real[one]), _flat(real[other])
        average = np.broadcast_to(own.mean(0), own.shape)
        sides = (_flat(made[one]), own, average)
        return np.array([distances.frechet(faces, against) for faces in sides])

    def values(one: np.ndarray, other: np.ndarray) -> Float[np.ndarray, "4"]:
        found = (directed(one, other) + directed(other, one)) / 2
        return np.append(found, found[0] - found[1])

    rng = np.random.default_rng(_SEED)
    drawn = np.stack([values(_anew(first, rng), _anew(second, rng)) for _ in range(_RESAMPLED)])
    found = values(first, second)
    moved = (drawn + found - drawn.mean(0)).T
    made_said, real_said, _, more = (_said(*each) for each in zip(found, moved))
    numbers = dict(zip(("frechet", "real_frechet", "one_face_frechet"), found.tolist()))
    return numbers, (
        f"{made_said}; real faces {real_said}, above them by {more}; one face for all "
        f"{found[2]:.3g}"
    )


def _kernel(
    made: Float[np.ndarray, "p t d"],
    real: Float[np.ndarray, "p t d"],
    first: Int[np.ndarray, "m"],
    second: Int[np.ndarray, "m"],
) -> tuple[dict[str, float], str]:
    """Of all people; of the real faces between the halves."""
    people = len(real)
    average = np.broadcast_to(real.mean((0, 1)), real.shape)
    reals = distances.kernel_means(real, real)

    def between(faces: np.ndarray, one: np.ndarray, other: np.ndarray) -> Float[np.ndarray, "r"]:
        """Of rows of how often people are taken."""
        own, mixed = distances.kernel_means(faces, faces), distances.kernel_means(faces, real)
        rows = zip(one, other)
        return np.array([distances.kernel_distance(own, reals, mixed, *row) for row in rows])

    def taken(*groups: np.ndarray) -> Float[np.ndarray, "r p"]:
        return np.stack([np.bincount(group, minlength=people) for group in groups]).astype(float)

    rng, everybody = np.random.default_rng(_SEED), np.arange(people)
    drawn = taken(everybody, *(_anew(everybody, rng) for _ in range(_RESAMPLED)))
    found = between(made, drawn, drawn)
    numbers = {
        "kernel": float(found[0]),
        "real_kernel": float(between(real, taken(first), taken(second))[0]),
        "one_face_kernel": float(between(average, drawn[:1], drawn[:1])[0]),
    }
    return numbers, (
        f"{_said(found[0], found[1:])}; halves of the real faces {numbers['real_kernel']:.3g}; one "
        f"face for all {numbers['one_face_kernel']:.3g}"
    )


def _anew(group: Int[np.ndarray, "m"], rng: np.random.Generator) -> Int[np.ndarray, "m"]:
    """People drawn with replacement, two different ones at least."""
    found = group[rng.integers(len(group), size=len(group))]
    return found if len(set(found.tolist())) > 1 else _anew(group, rng)


def _said(value: float, resampled: Float[np.ndarray, "r"]) -> str:
    low, high = metrics.percentile_interval(resampled)
    return f"{value:.3g} ({low:.3g} to {high:.3g})"


def _shares(
    made: Float[np.ndarray, "p t d"],
    real: Float[np.ndarray, "p t d"],
    first: Int[np.ndarray, "m"],
    second: Int[np.ndarray, "m"],
) -> tuple[dict[str, float], str]:
    """`distances.Inside` in both directions; intervals are with the balls as they are."""
    turns, numbers, said = made.shape[1], {}, {}
    for prefix, faces in (("", made), ("real_", real)):
        found = [
            distances.compared(_flat(faces[one]), _flat(real[other]))
            for one, other in ((first, second), (second, first))
        ]
        for name in _SHARES:
            each = [getattr(one, name).reshape(-1, turns).mean(1) for one in found]
            values = np.concatenate(each)  # by person
            numbers[f"{prefix}{name}"] = float(values.mean())
            low, high = matching.interval(values)
            said[f"{prefix}{name}"] = f"{values.mean():.2f} ({low:.2f} to {high:.2f})"
    lines = (f"{name} {said[name]}, real {said[f'real_{name}']}" for name in _SHARES)
    return numbers, "; ".join(lines)
