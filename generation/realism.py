"""Whether made faces are like real ones, as a set: distances with floor, ceiling and intervals.

Features are shifted and scaled alike, so that those of real faces have mean 0 and, on average, the
variance 1: the unit of a network's features says nothing. Intervals (95 %) are over people.

A set of faces stays the same when they are given to other voices; a set of pairs does not, and it
is pairs of which a joint distance is: the FJD of DeVries et al. (2019), "On the evaluation of
conditional GANs", of another network than theirs.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from common import metrics
from common.task import Report
from generation import distances, matching

_LEAST = 8  # people: fewer say nothing
_RESAMPLED = 200  # times: a second's work
_SEED = 0  # of halves and of intervals
_SHARES = ("precision", "recall", "density", "coverage")

Side = Callable[[Int[np.ndarray, "m"]], Float[np.ndarray, "m t d"]]  # what there is of people


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
    made, real = _scaled(real, made, real)
    halves = _halves(people)
    half = len(halves[0])
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


def report_of_pairs(
    split: str,
    title: str,
    known: Float[np.ndarray, "p t d"],
    made: Float[np.ndarray, "p t e"],
    real: Float[np.ndarray, "p t e"],
) -> Report:
    """Pairs of people's voices and the faces made of them against pairs with real faces: unit
    vectors of the judge end to end, so that neither outweighs the other. `title`: "voices and
    faces", or what else they are of.

    By halves as in `report`. The floor is what pairs with real faces get in their place; the
    ceiling what the same made faces get with the voice of somebody else of their half. As these are
    the same faces and the same voices, the pairs are below it only by belonging together. How far
    below they could be is what real faces say, shuffled alike.
    """
    people, turns, size = made.shape
    if people < _LEAST:
        return Report({}, [f"{split}: joint distances of {title} take {_LEAST} people."])
    halves = _halves(people)
    half = len(halves[0])
    order = matching.deranged(np.isin(np.arange(people), halves[1]))
    faces = {"joint": made, "real_joint": real}
    faces |= {"shuffled_joint": made[order], "shuffled_real_joint": real[order]}
    pairs = {name: np.concatenate([known, some], axis=2) for name, some in faces.items()}
    pairs = dict(zip(pairs, _scaled(pairs["real_joint"], *pairs.values())))
    true, rng = pairs["real_joint"], np.random.default_rng(_SEED)
    drawn = [halves, *([_anew(some, rng) for some in halves] for _ in range(_RESAMPLED))]
    directions = [[(one, other), (other, one)] for one, other in drawn]
    both = {
        "frechet": _frechets({name: x.__getitem__ for name, x in pairs.items()}, true, *halves),
        "kernel": _kernels(pairs, true, directions),
    }
    titles = (
        f"Frechet distance on the judge's vectors of {title} ({known.shape[2]} + {size}), "
        f"{half * turns} pairs of {half} people",
        "kernel distance on the same",
    )
    numbers, lines = {}, []
    for (kind, found), words in zip(both.items(), titles):
        numbers |= {f"{name}_{kind}": float(x[0]) for name, x in found.items()}
        own, floor, ceiling, real_ceiling = found.values()
        lines.append(
            f"{split} joint {words}: {_said(own)}; real pairs {_said(floor)}, above them by "
            f"{_said(own - floor)}; shuffled {_said(ceiling)}, above the made ones by "
            f"{_said(ceiling - own)}; real pairs shuffled {real_ceiling[0]:.3g}"
        )
    return Report(numbers, lines)


def _scaled(
    real: Float[np.ndarray, "p t d"], *some: Float[np.ndarray, "p t d"]
) -> list[Float[np.ndarray, "p t d"]]:
    """Those by which the real ones have mean 0 and, on average, the variance 1."""
    real = np.asarray(real, np.float64)
    mean, scale = real.mean((0, 1)), np.sqrt(real.var((0, 1)).mean())
    return [(faces - mean) / scale for faces in some]


def _halves(people: int) -> tuple[Int[np.ndarray, "m"], Int[np.ndarray, "m"]]:
    """By lot; one of an odd number is in neither."""
    order, half = np.random.default_rng(_SEED).permutation(people), people // 2
    return order[:half], order[half : 2 * half]


def _flat(faces: Float[np.ndarray, "p t d"]) -> Float[np.ndarray, "n d"]:
    return faces.reshape(-1, faces.shape[-1])


def _frechets(
    sides: Mapping[str, Side],
    real: Float[np.ndarray, "p t d"],
    first: Int[np.ndarray, "m"],
    second: Int[np.ndarray, "m"],
) -> dict[str, Float[np.ndarray, "r"]]:
    """Of each side the distance, the mean of both directions, and what it is when people are drawn
    anew. Then all are larger, as there are fewer different people: what is taken of them is their
    spread."""

    def directed(one: np.ndarray, other: np.ndarray) -> Float[np.ndarray, "s"]:
        against = _flat(real[other])
        return np.array([distances.frechet(_flat(of(one)), against) for of in sides.values()])

    def values(one: np.ndarray, other: np.ndarray) -> Float[np.ndarray, "s"]:
        return (directed(one, other) + directed(other, one)) / 2

    rng = np.random.default_rng(_SEED)
    drawn = np.stack([values(_anew(first, rng), _anew(second, rng)) for _ in range(_RESAMPLED)])
    found = values(first, second)
    moved = np.concatenate([found[None], drawn + found - drawn.mean(0)])
    return dict(zip(sides, moved.T))


def _frechet(
    made: Float[np.ndarray, "p t d"],
    real: Float[np.ndarray, "p t d"],
    first: Int[np.ndarray, "m"],
    second: Int[np.ndarray, "m"],
) -> tuple[dict[str, float], str]:
    def average(people: Int[np.ndarray, "m"]) -> Float[np.ndarray, "m t d"]:
        own = real[people]
        return np.broadcast_to(own.mean((0, 1)), own.shape)

    sides = {"frechet": made.__getitem__, "real_frechet": real.__getitem__}
    found = _frechets({**sides, "one_face_frechet": average}, real, first, second)
    own, floor, one_face = found.values()
    return {name: float(x[0]) for name, x in found.items()}, (
        f"{_said(own)}; real faces {_said(floor)}, above them by {_said(own - floor)}; one face "
        f"for all {one_face[0]:.3g}"
    )


def _kernels(
    sides: Mapping[str, Float[np.ndarray, "p t d"]],
    real: Float[np.ndarray, "p t d"],
    drawn: Sequence[Sequence[tuple[Int[np.ndarray, "m"], Int[np.ndarray, "n"]]]],
) -> dict[str, Float[np.ndarray, "r"]]:
    """Of each side, for everything drawn: the mean distance of its people to the real ones."""

    def often(people: Int[np.ndarray, "m"]) -> Float[np.ndarray, "p"]:
        return np.bincount(people, minlength=len(real)).astype(float)

    counted = [[tuple(map(often, pair)) for pair in pairs] for pairs in drawn]
    reals, found = distances.kernel_means(real, real), {}
    for name, faces in sides.items():
        means = distances.kernel_means(faces, faces), reals, distances.kernel_means(faces, real)
        each = [[distances.kernel_distance(*means, *pair) for pair in pairs] for pairs in counted]
        found[name] = np.mean(each, axis=1)
    return found


def _kernel(
    made: Float[np.ndarray, "p t d"],
    real: Float[np.ndarray, "p t d"],
    first: Int[np.ndarray, "m"],
    second: Int[np.ndarray, "m"],
) -> tuple[dict[str, float], str]:
    """Of all people; of the real faces between the halves."""
    average = np.broadcast_to(real.mean((0, 1)), real.shape)
    people, rng = np.arange(len(real)), np.random.default_rng(_SEED)
    anew = (_anew(people, rng) for _ in range(_RESAMPLED))
    drawn = [[(some, some)] for some in (people, *anew)]
    found = _kernels({"kernel": made}, real, drawn)
    found |= _kernels({"real_kernel": real}, real, [[(first, second)]])
    found |= _kernels({"one_face_kernel": average}, real, drawn[:1])
    numbers = {name: float(x[0]) for name, x in found.items()}
    return numbers, (
        f"{_said(found['kernel'])}; halves of the real faces {numbers['real_kernel']:.3g}; one "
        f"face for all {numbers['one_face_kernel']:.3g}"
    )


def _anew(group: Int[np.ndarray, "m"], rng: np.random.Generator) -> Int[np.ndarray, "m"]:
    """People drawn with replacement, two different ones at least."""
    found = group[rng.integers(len(group), size=len(group))]
    return found if len(set(found.tolist())) > 1 else _anew(group, rng)


def _said(values: Float[np.ndarray, "r"]) -> str:
    """The first one, with the interval of the others."""
    low, high = metrics.percentile_interval(values[1:])
    return f"{values[0]:.3g} ({low:.3g} to {high:.3g})"


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
