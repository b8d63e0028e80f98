"""From embeddings to decisions: transforms, cosine, score normalisation, calibration.

The usual order is: subtract the mean of the training set, project by LDA, scale to unit length,
then cosine or `plda`. Networks trained with a margin do best with mean and cosine alone; LDA and
PLDA help across domains. S-norm and AS-norm score each side of a trial against a cohort of other
speakers; the trial's score is then measured in standard deviations from what that side gets from
impostors, and the two views are averaged. Affine logistic calibration makes log-likelihood ratios
of scores, optionally with quality measures of the trial: a short or faint recording gets a ratio
nearer to what it can support.
"""

import dataclasses
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import scipy.optimize
import scipy.sparse
import scipy.special
import sklearn.discriminant_analysis
from jaxtyping import Bool, Float, Int, Shaped

from common import errors
from speaker import metrics

VOICE_MEASURES = ("score_per_recording", "one_per_recording")


class EmbeddingError(errors.UserError, ValueError):
    """These embeddings cannot be used as asked; the message says why and what to do."""


@dataclasses.dataclass(frozen=True, eq=False)
class Transform:
    """x -> (x - mean) @ projection, then to unit length.

    mean f64[d]; projection f64[d, p], the identity for mean subtraction alone.
    """

    mean: Float[np.ndarray, "d"]
    projection: Float[np.ndarray, "d p"]

    def __call__(self, embeddings: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n p"]:
        """Transformed rows in float64. Raises EmbeddingError for rows that cannot be scaled."""
        if embeddings.shape[1] != len(self.mean):
            raise EmbeddingError(
                f"this transform takes embeddings of {len(self.mean)} dimensions, got "
                f"{embeddings.shape[1]}. Use the model that it was fitted with."
            )
        return length_normalise((embeddings - self.mean) @ self.projection)


def length_normalise(embeddings: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Rows of unit Euclidean length, in float64.

    Makes the embeddings of a Gaussian model more Gaussian (Garcia-Romero and Espy-Wilson, Analysis
    of i-vector length normalization, Interspeech 2011). Raises EmbeddingError for zero rows and for
    values that are not finite, which would become NaN scores.
    """
    embeddings = np.asarray(embeddings, np.float64)
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    bad = ~(np.isfinite(lengths[:, 0]) & (lengths[:, 0] > 0))
    if bad.any():
        raise EmbeddingError(
            f"{np.count_nonzero(bad)} of {len(bad)} embeddings are zero or not finite, the first "
            f"is row {int(np.argmax(bad))}. Look at the recordings that they come from."
        )
    return embeddings / lengths


def fit_mean(embeddings: Float[np.ndarray, "n d"]) -> Transform:
    """Subtracts the mean embedding of a training set."""
    mean = np.mean(embeddings, axis=0, dtype=np.float64)
    return Transform(mean, np.eye(len(mean)))


def fit_lda(
    embeddings: Float[np.ndarray, "n d"],
    speakers: Shaped[np.ndarray, "n"],
    dimensions: int,
) -> Transform:
    """Fisher's linear discriminants, fitted by scikit-learn, `dimensions` of them.

    In the new coordinates the covariance within speakers (over n) is the identity, and directions
    come in falling order of the variance between speakers. Takes five times the memory of the
    embeddings in float64.

    Raises EmbeddingError when there are too few speakers, utterances or dimensions.
    """
    embeddings = np.asarray(embeddings, np.float64)
    num_speakers = len(np.unique(speakers))
    limit = min(embeddings.shape[1], num_speakers - 1)
    if not 1 <= dimensions <= limit:
        raise EmbeddingError(
            f"LDA to {dimensions} dimensions is impossible: embeddings of {embeddings.shape[1]} "
            f"dimensions from {num_speakers} speakers allow 1 to {limit}. Set fewer dimensions or "
            "give more speakers."
        )
    if len(embeddings) == num_speakers:
        raise EmbeddingError(
            f"LDA needs speakers with several utterances, but each of the {num_speakers} has one."
        )
    discriminants = sklearn.discriminant_analysis.LinearDiscriminantAnalysis()
    with warnings.catch_warnings():  # collinear dimensions are dropped, which is what is wanted
        warnings.filterwarnings("ignore", "Variables are collinear")
        # A speaker with one utterance says nothing about the covariance within; that is no fault.
        warnings.filterwarnings("ignore", "Only one sample available")
        discriminants.fit(embeddings, speakers)
    projection = discriminants.scalings_[:, :dimensions]
    if projection.shape[1] < dimensions:
        raise EmbeddingError(
            f"LDA finds only {projection.shape[1]} directions that tell the speakers apart, not "
            f"{dimensions}: the embeddings span few dimensions. Set fewer dimensions."
        )
    return Transform(embeddings.mean(0), projection)


def speaker_means(
    embeddings: Float[np.ndarray, "n d"], speakers: Shaped[np.ndarray, "n"]
) -> tuple[Shaped[np.ndarray, "s"], Float[np.ndarray, "s d"], Int[np.ndarray, "s"]]:
    """(labels in sorted order, mean embedding, number of utterances) of each speaker.

    The means of unit rows are not of unit length; `cosine_matrix` does not care.
    """
    names, member, counts = np.unique(speakers, return_inverse=True, return_counts=True)
    return names, group_sums(embeddings, member, len(names)) / counts[:, None], counts


def group_sums(
    rows: Float[np.ndarray, "n d"], group: Int[np.ndarray, "n"], num_groups: int
) -> Float[np.ndarray, "g d"]:
    """Sum of the rows of each group in float64, without a sorted copy of them."""
    n = len(rows)
    member = scipy.sparse.csr_array((np.ones(n), (group, np.arange(n))), shape=(num_groups, n))
    return member @ np.asarray(rows, np.float64)


def cosine_matrix(
    enrol: Float[np.ndarray, "m d"], test: Float[np.ndarray, "n d"]
) -> Float[np.ndarray, "m n"]:
    """Cosine of every pair of rows. Raises EmbeddingError as `length_normalise` does."""
    return length_normalise(enrol) @ length_normalise(test).T


def cosine_trials(
    enrol: Float[np.ndarray, "m d"],
    test: Float[np.ndarray, "n d"],
    enrol_index: Int[np.ndarray, "k"],
    test_index: Int[np.ndarray, "k"],
    *,
    block: int = 4096,
) -> Float[np.ndarray, "k"]:
    """Cosine of the given pairs of rows, `block` trials at a time."""
    enrol, test = length_normalise(enrol), length_normalise(test)
    scores = np.empty(len(enrol_index))
    for start in range(0, len(scores), block):
        rows = slice(start, start + block)
        scores[rows] = np.einsum("kd,kd->k", enrol[enrol_index[rows]], test[test_index[rows]])
    return scores


# Scores of every row of one side against every row of the cohort; may take `enrol_counts`.
ScoreMatrix = Callable[..., np.ndarray]


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
    score: ScoreMatrix = cosine_matrix,
    counts: Int[np.ndarray, "n"] | None = None,
    block: int = 1024,
) -> CohortStatistics:
    """Statistics over the `top_k` highest cohort scores of each row (AS-norm), or over all (None).

    `cohort` is best one mean embedding a speaker (`speaker_means` of the training set, in
    the same space as `embeddings`), none of them in the trials. Only `block` rows of scores exist
    at a time. `score` may be any matrix of scores, for PLDA a `functools.partial` of
    `plda.score_matrix`; it is told where rows are means of several utterances, `counts`.

    Raises EmbeddingError for a cohort smaller than `top_k` or than two, or scores without spread.
    """
    used = len(cohort) if top_k is None else top_k
    if not 2 <= used <= len(cohort):
        raise EmbeddingError(
            f"score normalisation over the top {used} needs a cohort of that many and at least 2, "
            f"but it has {len(cohort)}. Lower top_k or enlarge the cohort."
        )
    mean, deviation = np.empty(len(embeddings)), np.empty(len(embeddings))
    for start in range(0, len(embeddings), block):
        rows = slice(start, start + block)
        told = {} if counts is None else {"enrol_counts": counts[rows]}
        scores = score(embeddings[rows], cohort, **told)
        if used < len(cohort):
            # Selection is linear; the order among the selected does not matter.
            scores = np.partition(scores, len(cohort) - used, axis=1)[:, len(cohort) - used :]
        mean[rows], deviation[rows] = scores.mean(1), scores.std(1)
    flat = ~(deviation > 1e-9 * np.maximum(np.abs(mean), 1e-3))
    if flat.any():
        raise EmbeddingError(
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
    return normalise_scores(scores, *sides, enrol_index, test_index)


def normalise_scores(
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


class CalibrationError(errors.UserError, ValueError):
    """No calibration can be had from these trials; the message says why."""


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Natural-log likelihood ratio = slope * score + offset + sum of weights * quality.

    `p_target` is the prior that the fit was weighted to; the ratios hold for any prior.
    """

    slope: float
    offset: float
    p_target: float
    quality_names: tuple[str, ...] = ()
    quality_weights: tuple[float, ...] = ()

    def __call__(
        self, scores: Float[np.ndarray, "n"], quality: Float[np.ndarray, "n q"] | None = None
    ) -> Float[np.ndarray, "n"]:
        """Log-likelihood ratios of the scores; `quality` in the columns of the fit."""
        columns = 0 if quality is None else quality.shape[1]
        if columns != len(self.quality_names):
            raise CalibrationError(
                f"this calibration takes {len(self.quality_names)} quality measures "
                f"({', '.join(self.quality_names) or 'none'}), got {columns}"
            )
        llrs = self.slope * scores.astype(np.float64) + self.offset
        return llrs if quality is None else llrs + quality @ np.array(self.quality_weights)


def fit_calibration(
    scores: Float[np.ndarray, "n"],
    is_target: Bool[np.ndarray, "n"],
    quality: Float[np.ndarray, "n q"] | None = None,
    *,
    quality_names: Sequence[str] = (),
    p_target: float = 0.5,
) -> Calibration:
    """Logistic regression with the two kinds of trial weighted to `p_target`, by L-BFGS.

    Minimises p mean_targets log(1 + exp(-(llr + logit p))) + (1 - p) mean_nontargets
    log(1 + exp(llr + logit p)) (Brümmer and du Preez 2006; Brümmer and de Villiers, The BOSARIS
    toolkit, 2013, arXiv:1304.2865), for p = 0.5 Cllr itself; a small p looks after few false
    alarms. The problem is convex, so there is one answer and no seed. Labels are smoothed as in
    Platt, Probabilistic outputs for support vector machines, 1999: n trials of a kind count as
    wrong with the share 1 / (n + 2). So the ratios of separable trials stay near log(n + 1), and
    other fits to many trials hardly change. Fit on trials of other speakers than those to be
    judged.

    Raises ScoreError as `metrics.check` does; CalibrationError where a higher score does not mean
    the same speaker, or quality is not finite.
    """
    if not 0 < p_target < 1:
        raise ValueError(f"p_target is a probability between 0 and 1, got {p_target}")
    metrics.check(scores, is_target)
    inputs = scores.astype(np.float64)[:, None]
    if quality is not None:
        inputs = np.concatenate([inputs, quality], axis=1)
    if inputs.shape[1] != 1 + len(quality_names):
        raise ValueError(
            f"{inputs.shape[1] - 1} quality measures with {len(quality_names)} names: name each"
        )
    for name, column in zip(("score", *quality_names), inputs.T):
        if not np.isfinite(column).all():
            row = int(np.argmin(np.isfinite(column)))
            raise CalibrationError(
                f"the {name} of trial {row} (from 0) is not finite. Leave such trials out."
            )
        if column.min() == column.max():
            raise CalibrationError(
                f"the {name} is the same in all {len(column)} trials: nothing to calibrate by."
            )
    centre, scale = inputs.mean(0), inputs.std(0)
    standard = (inputs - centre) / scale
    counts = np.where(is_target, np.count_nonzero(is_target), np.count_nonzero(~is_target))
    weight = np.where(is_target, p_target, 1 - p_target) / counts
    wanted = np.where(is_target, counts + 1, 1) / (counts + 2)  # how much of a target each is
    prior = scipy.special.logit(p_target)

    def objective(parameters):
        """Weighted cross-entropy in nats, and its gradient."""
        logits = standard @ parameters[:-1] + parameters[-1] + prior
        costs = wanted * np.logaddexp(0, -logits) + (1 - wanted) * np.logaddexp(0, logits)
        slopes = weight * (scipy.special.expit(logits) - wanted)
        return weight @ costs, np.append(slopes @ standard, slopes.sum())

    found = scipy.optimize.minimize(
        objective,
        np.zeros(standard.shape[1] + 1),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 1000, "ftol": 1e-15, "gtol": 1e-9},
    )
    weights = found.x[:-1] / scale
    if weights[0] <= 0:
        raise CalibrationError(
            f"the best calibration falls with the score (slope {weights[0]:.3g}): higher scores do "
            "not mean the same speaker. Check the labels, or the sign of the scores."
        )
    return Calibration(
        float(weights[0]),
        float(found.x[-1] - weights @ centre),
        float(p_target),
        tuple(quality_names),
        tuple(float(w) for w in weights[1:]),
    )


def quality_measures(
    enrol_magnitudes: Float[np.ndarray, "m"],
    test_magnitudes: Float[np.ndarray, "n"],
    enrol_index: Int[np.ndarray, "k"],
    test_index: Int[np.ndarray, "k"],
    seconds: tuple[Float[np.ndarray, "m"], Float[np.ndarray, "n"]] | None = None,
    *,
    max_seconds: float | int = 20,
) -> tuple[tuple[str, ...], Float[np.ndarray, "k q"]]:
    """Names and columns of quality measures of each trial: its poorer and its better side.

    Log of the length of the embedding before normalisation, which is low for unclear speech, and,
    where the durations of both sides are given, log of the seconds, cut at `max_seconds` beyond
    which more speech hardly helps (Thienpondt, Desplanques and Demuynck, The IDLab VoxSRC-20
    submission, ICASSP 2021, arXiv:2010.11255). Minimum and maximum keep the ratio the same when
    enrolment and test change places.

    Raises CalibrationError unless durations and magnitudes are positive.
    """
    names, columns = [], []
    measured = [("magnitude", enrol_magnitudes, test_magnitudes, np.inf)]
    if seconds is not None:
        measured.append(("seconds", *seconds, float(max_seconds)))
    for name, enrol, test, limit in measured:
        if not ((enrol > 0).all() and (test > 0).all()):
            raise CalibrationError("durations and magnitudes must be positive to take logarithms")
        left = np.log(np.minimum(enrol, limit))[enrol_index]
        right = np.log(np.minimum(test, limit))[test_index]
        names += [f"min_log_{name}", f"max_log_{name}"]
        columns += [np.minimum(left, right), np.maximum(left, right)]
    return tuple(names), np.stack(columns, axis=1).astype(np.float64)


def voice_measures(
    scores: Float[np.ndarray, "n"], counts: Int[np.ndarray, "n"]
) -> Float[np.ndarray, "n 2"]:
    """VOICE_MEASURES: slope and offset become linear in 1 / recordings of the enrolled voice.

    The mean of more recordings has higher cosines, and those of one kind of trial spread less.
    """
    return np.stack([scores / counts, 1 / counts], axis=1)


def probability(llrs: Float[np.ndarray, "..."], p_target: float) -> Float[np.ndarray, "..."]:
    """Posterior probability of the same speaker, given natural-log ratios and the prior."""
    if not 0 < p_target < 1:
        raise ValueError(f"p_target is a probability between 0 and 1, got {p_target}")
    return scipy.special.expit(llrs.astype(np.float64) + scipy.special.logit(p_target))
