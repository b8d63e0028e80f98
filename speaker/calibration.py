"""From scores to log-likelihood ratios, and from those to probabilities.

Affine logistic calibration, optionally with quality measures of the trial: a short or faint
recording gets a ratio nearer to what it can support.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.optimize
import scipy.special
from jaxtyping import Bool, Float, Int

from common import errors
from speaker import detection

VOICE_MEASURES = ("score_per_recording", "one_per_recording")


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


def fit(
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

    Raises ScoreError as `detection.check` does; CalibrationError where a higher score does not mean
    the same speaker, or quality is not finite.
    """
    if not 0 < p_target < 1:
        raise ValueError(f"p_target is a probability between 0 and 1, got {p_target}")
    detection.check(scores, is_target)
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
    weight, doubt = _weights(is_target, p_target)
    prior = scipy.special.logit(p_target)

    def objective(parameters):
        logits = standard @ parameters[:-1] + parameters[-1] + prior
        slopes = weight * (scipy.special.expit(logits) - np.where(is_target, 1 - doubt, doubt))
        gradient = np.append(slopes @ standard, slopes.sum())
        return _cost(logits, is_target, weight, doubt), gradient

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


def _weights(is_target, p_target):
    """The weight of each trial, and the share to which it counts as one of the other kind."""
    counts = np.where(is_target, np.count_nonzero(is_target), np.count_nonzero(~is_target))
    return np.where(is_target, p_target, 1 - p_target) / counts, 1 / (counts + 2)


def _cost(logits, is_target, weight, doubt):
    """Weighted cross-entropy, nats."""
    right = np.where(is_target, logits, -logits)
    costs = (1 - doubt) * np.logaddexp(0, -right) + doubt * np.logaddexp(0, right)
    return weight @ costs


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
