"""Score normalisation against a cohort of other speakers: S-norm and AS-norm.

Each side of a trial is scored against the cohort; the trial's score is then measured in standard
deviations from what that side gets from impostors, and the two views are averaged.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from speaker import backend

# Scores of every row of one side against every row of the cohort.
ScoreMatrix = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class CohortStatistics:
    """Mean and standard deviation (over n, not n - 1) of the cohort scores of each embedding."""

    mean: Float[np.ndarray, "n"]
    deviation: Float[np.ndarray, "n"]


def cohort_statistics(
    embeddings: Float[np.ndarray, "n d"],
    cohort: Float[np.ndarray, "c d"],
    *,
    top_k: int | None = 300,
    score: ScoreMatrix = backend.cosine_matrix,
    block: int = 1024,
) -> CohortStatistics:
    """Statistics over the `top_k` highest cohort scores of each row (AS-norm), or over all (None).

    `cohort` is best one mean embedding a speaker (`backend.speaker_means` of the training set, in
    the same space as `embeddings`), none of them in the trials. Only `block` rows of scores exist
    at a time. `score` may be any matrix of scores, for PLDA a `functools.partial` of
    `plda.score_matrix`.

    Raises EmbeddingError for a cohort smaller than `top_k` or than two, or scores without spread.
    """
    used = len(cohort) if top_k is None else top_k
    if not 2 <= used <= len(cohort):
        raise backend.EmbeddingError(
            f"score normalisation over the top {used} needs a cohort of that many and at least 2, "
            f"but it has {len(cohort)}. Lower top_k or enlarge the cohort."
        )
    mean, deviation = np.empty(len(embeddings)), np.empty(len(embeddings))
    for start in range(0, len(embeddings), block):
        rows = slice(start, start + block)
        scores = score(embeddings[rows], cohort)
        if used < len(cohort):
            # Selection is linear; the order among the selected does not matter.
            scores = np.partition(scores, len(cohort) - used, axis=1)[:, len(cohort) - used :]
        mean[rows], deviation[rows] = scores.mean(1), scores.std(1)
    flat = ~(deviation > 1e-9 * np.maximum(np.abs(mean), 1e-3))
    if flat.any():
        raise backend.EmbeddingError(
            f"the cohort scores of {np.count_nonzero(flat)} embeddings are all alike, first those "
            f"of row {int(np.argmax(flat))}: nothing to normalise by. The cohort must hold "
            "different speakers."
        )
    return CohortStatistics(mean, deviation)


def as_norm(
    scores: Float[np.ndarray, "k"],
    enrol: Float[np.ndarray, "m d"],
    test: Float[np.ndarray, "n d"],
    enrol_index: Int[np.ndarray, "k"],
    test_index: Int[np.ndarray, "k"],
    cohort: Float[np.ndarray, "c d"],
) -> Float[np.ndarray, "k"]:
    """AS-norm of cosines against the nearest quarter of a cohort."""
    top_k = max(len(cohort) // 4, 2)
    sides = (cohort_statistics(rows, cohort, top_k=top_k) for rows in (enrol, test))
    return normalise(scores, *sides, enrol_index, test_index)


def normalise(
    scores: Float[np.ndarray, "k"],
    enrol: CohortStatistics,
    test: CohortStatistics,
    enrol_index: Int[np.ndarray, "k"],
    test_index: Int[np.ndarray, "k"],
) -> Float[np.ndarray, "k"]:
    """Mean of the two standardised scores of each trial.

    With statistics of the whole cohort this is S-norm (Kenny, Bayesian speaker verification with
    heavy-tailed priors, Odyssey 2010), with those of the top scores of each side AS-norm
    (AS-norm1 in Matějka et al., Analysis of score normalization in multilingual speaker
    recognition, Interspeech 2017).
    """
    left = (scores - enrol.mean[enrol_index]) / enrol.deviation[enrol_index]
    right = (scores - test.mean[test_index]) / test.deviation[test_index]
    return (left + right) / 2
