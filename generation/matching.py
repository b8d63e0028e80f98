"""Which face belongs to a voice: chances of being right, exact, without drawing galleries.

Scores s[i, j]: voice i against the face of person j. The own face is compared with all others once;
1:N is then the expectation over all galleries of N faces in which the own one is, 1:2 as in Nagrani
et al. 2018 ("Seeing voices and hearing faces", section 4).
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from common import metrics

GALLERIES = (2, 5, 10)
RECALLS = (1, 5, 10)
_SEED = 0  # of derangements


class Ranked(NamedTuple):
    """Of every voice: other people's faces that score below its own, those that score the same
    (of these half count as below), and how many others there are."""

    below: Int[np.ndarray, "p"]
    ties: Int[np.ndarray, "p"]
    others: Int[np.ndarray, "p"]


def ranked(
    scores: Float[np.ndarray, "p p"], among: Bool[np.ndarray, "p p"] | None = None
) -> Ranked:
    """From the scores of people against people; `among`: whose faces are in whose galleries."""
    others = ~np.eye(len(scores), dtype=bool)
    if among is not None:
        others &= among
    own = np.diagonal(scores)[:, None]
    return Ranked(
        *(which.sum(1) for which in (others & (scores < own), others & (scores == own), others))
    )


def one_of(found: Ranked, size: int) -> Float[np.ndarray, "p"]:
    """Each voice's chance to be given its own face out of `size`; NaN with fewer people.

    With b others below of m, C(b, size - 1) / C(m, size - 1); ties are broken by lot.
    """

    def chance(below: int, ties: int, others: int) -> float:
        if others < size - 1:
            return np.nan
        # The place of the own face among its t ties is any of t + 1.
        won = [math.comb(below + k, size - 1) for k in range(ties + 1)]
        return np.mean(won) / math.comb(others, size - 1)

    return np.array([chance(*row) for row in zip(*(x.tolist() for x in found))])


def recall(found: Ranked, at: int) -> Float[np.ndarray, "p"]:
    """Each voice's chance that its own face is among the best `at` of all."""
    above = found.others - found.below - found.ties
    # Of t + 1 equal places those from above + 1 to `at` count.
    return np.clip((at - above) / (found.ties + 1), 0, 1)


def deranged(groups: Shaped[np.ndarray, "p"]) -> Int[np.ndarray, "p"]:
    """Somebody else for everybody, by lot, of the same group (a name of each person's); everybody
    is taken once. Who is alone in a group stays."""
    found, rng = np.arange(len(groups)), np.random.default_rng(_SEED)
    for name in np.unique(groups):
        circle = rng.permutation(np.flatnonzero(groups == name))
        found[circle] = np.roll(circle, 1)
    return found


def interval(values: Float[np.ndarray, "p"]) -> tuple[float, float]:
    """95 % interval of the mean when the people whose voices are heard are drawn anew."""
    return metrics.percentile_interval(metrics.resampled_rates(values, np.ones(len(values))))
