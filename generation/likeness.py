"""Made faces beside those of the people whose voices they were made of: how alike, how varied."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.spatial import distance

from common.task import Report
from generation import matching


def cosines(
    made: Sequence[Float[np.ndarray, "p d"]], real: Sequence[Float[np.ndarray, "p d"]]
) -> tuple[Float[np.ndarray, "p"], Float[np.ndarray, "p"]]:
    """Of unit vectors, turn by turn: with the real face of the same person, and the mean over those
    of the others."""
    scores = np.mean([one @ other.T for one, other in zip(made, real)], axis=0)
    own = np.diagonal(scores)
    return own, (scores.sum(1) - own) / (len(scores) - 1)


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
    pictures = vectors[1]
    several = np.any(pictures[0] != pictures[-1], axis=1)  # else a picture follows itself
    if several.any():
        true, _ = cosines([*pictures[1:], pictures[0]], pictures)
        numbers["real_cosine"] = float(true[several].mean())
        line += f"; two real faces of a person {true[several].mean():.3f}"
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
