"""Made faces beside those of the people whose voices they were made of: how alike, how varied."""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.spatial import distance

from common.task import Report
from generation import matching

_SAME = 1e-5  # between unit vectors of one picture in two batches


def cosines(
    made: Sequence[Float[np.ndarray, "p d"]], real: Sequence[Float[np.ndarray, "p d"]]
) -> tuple[Float[np.ndarray, "p"], Float[np.ndarray, "p"]]:
    """Of unit vectors, turn by turn: with the real face of the same person, and the mean over those
    of the others."""
    scores = np.mean([one @ other.T for one, other in zip(made, real)], axis=0)
    own = np.diagonal(scores)
    return own, (scores.sum(1) - own) / (len(scores) - 1)


def of_two_pictures(turns: Sequence[Float[np.ndarray, "p d"]]) -> Float[np.ndarray, "q"]:
    """The mean cosine of two different ones of the turns of everybody who has two; where pictures
    are fewer than turns, some are there again."""
    if len(turns) < 2:
        return np.zeros(0)
    pairs = list(itertools.combinations(turns, 2))
    cosine = np.stack([(one * other).sum(1) for one, other in pairs])
    differ = np.stack([np.abs(one - other).max(1) > _SAME for one, other in pairs])
    several = differ.any(0)
    return cosine[:, several].mean(0, where=differ[:, several])


def within(faces: Float[np.ndarray, "p n d"]) -> Float[np.ndarray, "p"]:
    """The mean distance between two faces of one voice."""
    return np.array([distance.pdist(some).mean() for some in faces])


def between(faces: Float[np.ndarray, "p d"]) -> Float[np.ndarray, "p"]:
    """The mean distance of each face to those of the others."""
    return distance.cdist(faces, faces).sum(1) / (len(faces) - 1)


def report(
    split: str,
    vectors: tuple[Sequence[Float[np.ndarray, "p d"]], Sequence[Float[np.ndarray, "p d"]]],
    features: tuple[Sequence[Float[np.ndarray, "p n k"]], Sequence[Float[np.ndarray, "p k"]]],
) -> Report:
    """Cosines and distances between faces, of `vectors` and `features` of the judge.

    Each of made faces (of which features are of n faces of a voice) and of real ones, turn by turn.
    Intervals (95 %) are over people.
    """
    own, others = cosines(*vectors)
    made, real = features
    scale = np.mean([between(faces).mean() for faces in real])
    apart = np.mean([between(faces[:, 0]) for faces in made], axis=0) / scale
    numbers = {
        "cosine": float(own.mean()),
        "others_cosine": float(others.mean()),
        "spread": float(apart.mean()),
    }
    low, high = matching.interval(own - others)
    line = (
        f"{split} cosine of made and real face: the same person's {own.mean():.3f}, another's "
        f"{others.mean():.3f}; {(own - others).mean():.3f} more ({low:.3f} to {high:.3f})"
    )
    true = of_two_pictures(vectors[1])
    if len(true):
        numbers["real_cosine"] = float(true.mean())
        line += f"; two real faces of a person {true.mean():.3f}"
    lines = [line]
    said = f"of different voices {_share(apart)}"
    if made[0].shape[1] > 1:
        same = np.mean([within(faces) for faces in made], axis=0) / scale
        numbers["diversity"] = float(same.mean())
        said = f"of one voice {_share(same)}, {said}"
    lines.append(f"{split} how different made faces are, % of real people's: {said}")
    return Report(numbers, lines)


def _share(values: Float[np.ndarray, "p"]) -> str:
    """In per cent, with its interval."""
    low, high = matching.interval(values)
    return f"{100 * values.mean():.1f} ({100 * low:.1f} to {100 * high:.1f})"
