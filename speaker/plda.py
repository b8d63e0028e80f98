"""Two-covariance PLDA: training by EM, log-likelihood ratios of enrolment and test.

Model: x_ij = mean + y_i + e_ij for utterance j of speaker i, with y_i ~ N(0, between) and
e_ij ~ N(0, within), both covariances of full rank (Brümmer and de Villiers, The speaker
partitioning problem, Odyssey 2010; Sizov, Lee and Kinnunen, Unifying probabilistic
linear discriminant analysis variants, S+SSPR 2014). It is trained and applied on
embeddings that `backend` has centred, projected and length-normalised.

Everything is computed in coordinates in which `within` is the identity and `between` diagonal, so a
speaker's posterior costs O(d) and scores are matrix products.
"""

import dataclasses
import functools
import logging
from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Float, Int, Shaped

from common import errors
from speaker import backend

log = logging.getLogger(__name__)

_BLOCK = 65536  # rows


class PldaError(errors.UserError, ValueError):
    """The model cannot be trained or applied; the message says why and what to do."""


@dataclasses.dataclass(frozen=True, eq=False)
class Plda:
    """mean f64[d], covariances `between` and `within` f64[d, d], symmetric positive definite."""

    mean: Float[np.ndarray, "d"]
    between: Float[np.ndarray, "d d"]
    within: Float[np.ndarray, "d d"]

    @functools.cached_property
    def _axes(self) -> tuple[np.ndarray, np.ndarray]:
        return _diagonalise(self.between, self.within)


def train(
    embeddings: Float[np.ndarray, "n d"],
    speakers: Shaped[np.ndarray, "n"],
    *,
    max_iterations: int = 100,
    tolerance: float = 1e-6,
) -> Plda:
    """Maximum likelihood by EM from a moment estimate; `speakers` are labels of any kind.

    Stops when the log-likelihood an utterance rises by less than `tolerance` (nats). The mean is
    set to its maximum given both covariances in each round (an ECME step: Liu and Rubin,
    Biometrika 81, 1994), so the likelihood never falls. Speakers may have different numbers of
    utterances, those with one tell only about the sum of the covariances.

    Raises PldaError: too few speakers or repeated utterances for d dimensions, values not finite.
    """
    stats = _Statistics.of(embeddings, speakers)
    between, within = _moment_estimate(stats)
    rounds, previous = 0, -np.inf
    while True:
        mean, likelihood, next_covariances = _em_step(stats, between, within)
        likelihood /= stats.num_utterances
        if rounds == max_iterations or likelihood - previous < tolerance:
            break
        previous, (between, within), rounds = likelihood, next_covariances, rounds + 1
    log.info(
        "PLDA: %d speakers, %d utterances, log-likelihood %.6f an utterance after %d rounds%s",
        len(stats.counts),
        stats.num_utterances,
        likelihood,
        rounds,
        " (still rising)" if rounds == max_iterations else "",
    )
    return Plda(mean, between, within)


def log_likelihood(
    plda: Plda, embeddings: Float[np.ndarray, "n d"], speakers: Shaped[np.ndarray, "n"]
) -> float:
    """Log-likelihood (nats) of all utterances under the model, those of a speaker jointly."""
    stats = _Statistics.of(embeddings, speakers)
    axes, spread = plda._axes
    return _log_likelihood(stats, plda.mean, plda.within, axes, spread)


def score_matrix(
    plda: Plda,
    enrol: Float[np.ndarray, "m d"],
    test: Float[np.ndarray, "n d"],
    *,
    enrol_counts: Int[np.ndarray, "m"] | None = None,
    test_counts: Int[np.ndarray, "n"] | None = None,
) -> Float[np.ndarray, "m n"]:
    """Natural-log likelihood ratio, same speaker against different, of every pair of rows.

    Rows are means of `enrol_counts` (`test_counts`) utterances each, one if not given. The mean and
    the count are all that the model needs: log p(both | same) - log p(enrol) - log p(test)
    with noise within/count on each side. Passing 1 for averaged rows ("scoring the average") treats
    them as single noisy utterances: not the model's ratio, and poorly calibrated for it.
    """
    scores = np.empty((len(enrol), len(test)))
    for columns, part in _ratios(plda, enrol, test, enrol_counts, test_counts):
        products = part.square @ (part.test**2).T + part.linear @ part.test.T
        scores[:, columns] = products + part.enrol_term[:, None] + part.test_term
    return scores


def score_trials(
    plda: Plda,
    enrol: Float[np.ndarray, "m d"],
    test: Float[np.ndarray, "n d"],
    enrol_index: Int[np.ndarray, "k"],
    test_index: Int[np.ndarray, "k"],
    *,
    enrol_counts: Int[np.ndarray, "m"] | None = None,
    test_counts: Int[np.ndarray, "n"] | None = None,
    block: int = 4096,
) -> Float[np.ndarray, "k"]:
    """`score_matrix` at the given pairs of rows only, `block` trials at a time."""
    scores = np.empty(len(enrol_index))
    for rows, part in _ratios(plda, enrol, test, enrol_counts, test_counts):
        position = np.full(len(test), -1)
        position[rows] = np.arange(len(rows))
        trials = np.flatnonzero(position[test_index] >= 0)
        for start in range(0, len(trials), block):
            chosen = trials[start : start + block]
            i, j = enrol_index[chosen], position[test_index[chosen]]
            x = part.test[j]
            products = np.einsum("kd,kd->k", part.square[i] * x + part.linear[i], x)
            scores[chosen] = products + part.enrol_term[i] + part.test_term[j]
    return scores


@dataclasses.dataclass(frozen=True)
class _Statistics:
    """What the likelihood needs: utterances and mean of each speaker, scatter about the means."""

    counts: np.ndarray  # f64[s]
    means: np.ndarray  # f64[s, d]
    scatter: np.ndarray  # f64[d, d]
    num_utterances: int

    @classmethod
    def of(cls, embeddings, speakers):
        embeddings = np.asarray(embeddings, np.float64)
        bad = ~np.isfinite(embeddings).all(1)
        if bad.any():
            raise PldaError(
                f"{np.count_nonzero(bad)} of {len(bad)} embeddings hold NaN or infinity, the first "
                f"is row {int(np.argmax(bad))}. Leave them out or extract them again."
            )
        _, member, counts = np.unique(speakers, return_inverse=True, return_counts=True)
        means = backend.group_sums(embeddings, member, len(counts)) / counts[:, None]
        scatter = np.zeros((means.shape[1], means.shape[1]))
        for start in range(0, len(embeddings), _BLOCK):  # no second copy of millions of rows
            rows = slice(start, start + _BLOCK)
            residual = embeddings[rows] - means[member[rows]]
            scatter += residual.T @ residual
        return cls(counts.astype(np.float64), means, scatter, len(embeddings))


def _moment_estimate(stats):
    """Unbiased (ANOVA) covariances; directions where `between` comes out tiny are raised."""
    num_speakers, d = stats.means.shape
    free = stats.num_utterances - num_speakers
    if free < d or num_speakers <= d:
        raise PldaError(
            f"PLDA in {d} dimensions needs more than {d} speakers and at least {d} utterances "
            f"beyond the first of each, but there are {num_speakers} speakers with {free}. "
            "Reduce the dimension by LDA first, or give more data."
        )
    mean = stats.counts @ stats.means / stats.num_utterances
    within = stats.scatter / free
    variances = np.linalg.eigvalsh(within)
    if variances[0] <= 1e-10 * variances[-1]:  # float32 embeddings leave noise of about 1e-14
        raise PldaError(
            f"the within-speaker covariance is singular (variances {variances[0]:.1e} to "
            f"{variances[-1]:.1e}): some direction never varies within a speaker. Reduce the "
            "dimension by LDA first."
        )
    centred = stats.means - mean
    scatter = (centred * stats.counts[:, None]).T @ centred
    effective = stats.num_utterances - (stats.counts**2).sum() / stats.num_utterances
    between = (scatter - (num_speakers - 1) * within) / effective
    axes, spread = _diagonalise(between, within)
    # EM cannot leave zero, and the estimate may be negative: start at a hundredth of `within`.
    back = np.linalg.inv(axes)
    return (back.T * np.maximum(spread, 0.01)) @ back, within


def _diagonalise(between, within):
    """(V, s): V' within V = I and V' between V = diag(s)."""
    spread, axes = scipy.linalg.eigh(between, within)
    return axes, spread


def _em_step(stats, between, within):
    """(best mean for these covariances, log-likelihood, the next covariances)."""
    axes, spread = _diagonalise(between, within)
    counts = stats.counts[:, None]
    means = stats.means @ axes
    # Var of a speaker's mean is spread + 1/count: the best common mean weighs by its inverse.
    precision = counts / (counts * spread + 1)
    centre = (precision * means).sum(0) / precision.sum(0)
    back = np.linalg.inv(axes)
    mean = centre @ back
    likelihood = _log_likelihood(stats, mean, within, axes, spread)
    expected, variance = _posterior(means - centre, spread, counts[:, 0])
    residual = means - centre - expected
    new_between = expected.T @ expected + np.diag(variance.sum(0))
    new_within = (
        axes.T @ stats.scatter @ axes
        + (residual * counts).T @ residual
        + np.diag((counts * variance).sum(0))
    )
    new_between = back.T @ (new_between / len(counts)) @ back
    new_within = back.T @ (new_within / stats.num_utterances) @ back
    return mean, likelihood, (_symmetric(new_between), _symmetric(new_within))


def _log_likelihood(stats, mean, within, axes, spread):
    counts = stats.counts[:, None]
    total = counts * spread + 1
    centred = (stats.means - mean) @ axes
    d = len(mean)
    return -0.5 * float(
        stats.num_utterances * (d * np.log(2 * np.pi) + np.linalg.slogdet(within)[1])
        + np.log(total).sum()
        + np.einsum("ij,ik,kj->", axes, stats.scatter, axes)
        + (counts * centred**2 / total).sum()
    )


def _posterior(centred, spread, counts):
    """Mean and variance of the speaker variable, diagonal, given the mean of `counts` rows."""
    total = counts[:, None] * spread + 1
    return counts[:, None] * spread / total * centred, spread / total


class _Ratio(NamedTuple):
    """Ratio of rows e and t: square_e . t^2 + linear_e . t + enrol_term_e + test_term_t."""

    test: np.ndarray  # f64[n, d], diagonal coordinates
    square: np.ndarray  # f64[m, d]
    linear: np.ndarray  # f64[m, d]
    enrol_term: np.ndarray  # f64[m]
    test_term: np.ndarray  # f64[n]


def _ratios(plda, enrol, test, enrol_counts, test_counts):
    """(rows of `test`, their _Ratio) for each count in `test_counts`.

    The ratio is log N(t; mean_e, noise_e + 1/count) - log N(t; 0, spread + 1/count), e being the
    posterior of the enrolled speaker. With one count the variances depend on e alone, so both
    Gaussians are products.
    """
    enrol, test = _check_rows(plda, enrol), _check_rows(plda, test)
    axes, spread = plda._axes
    mean, noise = _posterior((enrol - plda.mean) @ axes, spread, _counts(enrol_counts, enrol))
    centred, counts = (test - plda.mean) @ axes, _counts(test_counts, test)
    for count in np.unique(counts):
        rows = np.flatnonzero(counts == count)
        x, variance, total = centred[rows], noise + 1 / count, spread + 1 / count
        yield (
            rows,
            _Ratio(
                x,
                -0.5 / variance,
                mean / variance,
                -0.5 * (mean**2 / variance + np.log(variance)).sum(1),
                0.5 * (x**2 / total + np.log(total)).sum(1),
            ),
        )


def _symmetric(matrix):
    return (matrix + matrix.T) / 2


def _check_rows(plda, rows):
    d = len(plda.mean)
    if rows.ndim != 2 or rows.shape[1] != d:
        raise PldaError(
            f"the PLDA model takes embeddings of {d} dimensions, got {rows.shape}. Apply the same "
            "transform as in its training."
        )
    return np.asarray(rows, np.float64)


def _counts(counts, rows):
    if counts is None:
        return np.ones(len(rows))
    if np.any(counts < 1):
        raise ValueError("every row is the mean of at least one utterance, got a count below 1")
    return np.asarray(counts, np.float64)
