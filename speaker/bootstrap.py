"""Intervals of detection metrics when the speakers are drawn anew.

Trials that share a speaker err together, on either side, so drawing trials gives intervals that are
far too narrow for other speakers. Here speakers are drawn with replacement, for both sides at once:
a target trial counts as often as its speaker was drawn (subsets bootstrap: Bolle, Ratha and
Pankanti, Error analysis of pattern recognition systems, CVIU 93, 2004), a non-target trial as often
as the product over its two speakers (pigeonhole bootstrap: Owen, Annals of Applied Statistics 1,
2007, slightly too wide by construction). The copies of one speaker are never paired with each other
as non-targets.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import scipy.special
from jaxtyping import Bool, Float, Shaped

from speaker import detection


def resample(
    scores: Float[np.ndarray, "n"],
    is_target: Bool[np.ndarray, "n"],
    enrol_speakers: Shaped[np.ndarray, "n"],
    test_speakers: Shaped[np.ndarray, "n"],
    *,
    p_targets: Sequence[float] = detection.P_TARGETS,
    are_llrs: bool = False,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Float[np.ndarray, "r"]]:
    """Each metric under `num_resamples` draws of the speakers: "eer", "min_dcf_0.01", ...

    With `are_llrs` also "act_dcf_<p>" and "cllr". The draws depend on `seed` and on the set of
    speakers only: for two systems on the same trials subtract their values, `interval` of the
    difference then tells whether they differ. A draw that leaves one kind of trial without weight
    gives NaN. Speakers may be any labels; integers are quickest. Time is linear in the trials.

    The lowest cost over thresholds is fitted to each draw, so with few speakers the interval of
    minDCF leans to low values.

    Raises ScoreError as `detection.check` does, and where labels and speakers contradict.
    """
    detection.check(scores, is_target)
    _check_speakers(is_target, enrol_speakers, test_speakers)
    speakers, members = np.unique(
        np.concatenate([enrol_speakers, test_speakers]), return_inverse=True
    )
    enrol, test = members.astype(np.int32).reshape(2, -1)
    order = np.argsort(scores)
    groups, thresholds = _corners(scores[order], is_target[order])
    target_rows, nontarget_rows = order[is_target[order]], order[~is_target[order]]
    target_sums = _GroupSums(groups[is_target[order]], len(thresholds))
    nontarget_sums = _GroupSums(groups[~is_target[order]], len(thresholds))
    target_speaker = enrol[target_rows]
    enrol, test = enrol[nontarget_rows], test[nontarget_rows]
    costs = {}  # name -> (cost of each target trial, of each non-target trial)
    if are_llrs:
        costs = _trial_costs(scores[target_rows], scores[nontarget_rows], p_targets)

    rng = np.random.default_rng(seed)
    names = ["eer", *(f"min_dcf_{p:g}" for p in p_targets), *costs]
    values = {name: np.full(num_resamples, np.nan) for name in names}
    for r in range(num_resamples):
        drawn = np.bincount(
            rng.integers(len(speakers), size=len(speakers)), minlength=len(speakers)
        )
        drawn = drawn.astype(np.float64)
        target_weights = drawn[target_speaker]
        nontarget_weights = drawn[enrol] * drawn[test]
        targets, nontargets = target_sums(target_weights), nontarget_sums(nontarget_weights)
        if not targets.any() or not nontargets.any():
            continue
        curve = detection.ErrorCurve(
            np.append(thresholds, np.inf),
            np.append(0, np.cumsum(targets)) / targets.sum(),
            np.append(np.cumsum(nontargets[::-1])[::-1], 0) / nontargets.sum(),
        )
        values["eer"][r] = detection.eer(curve)
        for p in p_targets:
            values[f"min_dcf_{p:g}"][r] = detection.min_dcf(curve, p)
        for name, (target_costs, nontarget_costs) in costs.items():
            values[name][r] = (
                target_weights @ target_costs / targets.sum()
                + nontarget_weights @ nontarget_costs / nontargets.sum()
            )
    return values


def interval(values: Float[np.ndarray, "r"], confidence: float = 0.95) -> tuple[float, float]:
    """Percentile interval of resampled values; (NaN, NaN) if none is a number."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def intervals(
    values: Mapping[str, Float[np.ndarray, "r"]], confidence: float = 0.95
) -> dict[str, tuple[float, float]]:
    """`interval` of every metric, as `detection.describe` takes them."""
    return {name: interval(v, confidence) for name, v in values.items()}


def _check_speakers(is_target, enrol_speakers, test_speakers):
    wrong = (enrol_speakers == test_speakers) != is_target
    if np.any(wrong):
        i = int(np.argmax(wrong))
        label = "target" if is_target[i] else "non-target"
        raise detection.ScoreError(
            f"{np.count_nonzero(wrong)} trials contradict their speakers: trial {i} (from 0) is a "
            f"{label} trial of speakers {enrol_speakers[i]} and {test_speakers[i]}. Check the "
            "speaker labels."
        )


def _corners(scores, is_target):
    """(group of each trial, lowest score of each group); the trials come in ascending order.

    Between two target scores only non-targets lie, and the reverse: along such a run the ROC is a
    straight line for any weights, so its trials make one group. No metric changes, and millions of
    non-targets shrink to at most about twice the number of distinct target scores.
    """
    first = np.concatenate([[True], scores[1:] != scores[:-1]])
    starts = np.flatnonzero(first)
    has_target = np.logical_or.reduceat(is_target, starts)
    has_nontarget = np.logical_or.reduceat(~is_target, starts)
    same = (has_target[1:] == has_target[:-1]) & (has_nontarget[1:] == has_nontarget[:-1])
    mixed = has_target[1:] & has_nontarget[1:]
    opens = np.concatenate([[True], ~same | mixed])
    group_of_score = np.cumsum(opens) - 1
    return group_of_score[np.cumsum(first) - 1], scores[starts[opens]].astype(np.float64)


class _GroupSums:
    """Sums of trial weights a group, for trials sorted by group; quicker than a bincount."""

    def __init__(self, groups, num_groups):
        self._starts = np.flatnonzero(np.concatenate([[True], groups[1:] != groups[:-1]]))
        self._present = groups[self._starts]
        self._num_groups = num_groups

    def __call__(self, weights):
        sums = np.zeros(self._num_groups)
        sums[self._present] = np.add.reduceat(weights, self._starts)
        return sums


def _trial_costs(target_llrs, nontarget_llrs, p_targets):
    """What each trial adds to actDCF and Cllr, which are means over targets and non-targets."""
    costs = {}
    for p in p_targets:
        threshold, scale = detection.bayes_threshold(p), min(p, 1 - p)
        miss, fa = target_llrs < threshold, nontarget_llrs >= threshold
        costs[f"act_dcf_{p:g}"] = (miss * (p / scale), fa * ((1 - p) / scale))
    costs["cllr"] = tuple(
        -scipy.special.log_expit(x.astype(np.float64)) / (2 * np.log(2))
        for x in (target_llrs, -nontarget_llrs)
    )
    return costs
