"""Detection metrics of scored trials: EER, DCF, Cllr, their intervals by speakers, DET plots.

A trial is accepted when its score is at or above the threshold. P_miss is the share of target
trials rejected, P_fa the share of non-target trials accepted, both fractions. n trials cost one
O(n log n) sort and a few arrays of n; no threshold is tried in a loop. Scores may be infinite, but
not NaN.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.optimize
import scipy.special
from jaxtyping import Bool, Float, Shaped

from common import errors, files
from common import metrics as common_metrics

P_TARGETS = (0.05, 0.01, 0.001)
_FORMATS = ("png", "pdf", "svg")
# Rates in %, those of NIST's plots and beyond for good and for poor systems.
_TICKS = (0.001, 0.01, 0.1, 0.5, 1, 2, 5, 10, 20, 40, 60, 80, 90, 95, 99)


class ScoreError(errors.UserError, ValueError):
    """These scores cannot be evaluated; the message says why."""


@dataclasses.dataclass(frozen=True)
class ErrorCurve:
    """P_miss and P_fa at every distinct score: the vertices of the ROC, from (0, 1) to (1, 0).

    At vertex j all scores >= thresholds[j] are accepted; the last vertex rejects everything, its
    threshold is +inf. `p_miss` never falls and `p_fa` never rises along the curve.
    """

    thresholds: Float[np.ndarray, "k"]
    p_miss: Float[np.ndarray, "k"]
    p_fa: Float[np.ndarray, "k"]


def check(scores: Float[np.ndarray, "n"], is_target: Bool[np.ndarray, "n"]) -> None:
    """Raises ScoreError unless both kinds of trial are there and every score is a number."""
    if scores.shape != is_target.shape or scores.ndim != 1:
        raise ScoreError(
            f"there are {scores.shape} scores for {is_target.shape} labels; give one score a trial"
        )
    num_target = int(np.count_nonzero(is_target))
    if not num_target or num_target == len(is_target):
        missing = "non-target" if num_target else "target"
        raise ScoreError(
            f"none of the {len(is_target)} trials is a {missing} trial: error rates need both "
            "kinds. Check the labels of the trial list."
        )
    bad = np.isnan(scores)
    if bad.any():
        raise ScoreError(
            f"{np.count_nonzero(bad)} of {len(scores)} scores are NaN, the first is that of trial "
            f"{int(np.argmax(bad))} (from 0). Leave out the trials that could not be scored, or "
            "repair their embeddings."
        )


def error_curve(scores: Float[np.ndarray, "n"], is_target: Bool[np.ndarray, "n"]) -> ErrorCurve:
    """The ROC of the trials. Trials with equal scores are accepted or rejected together."""
    check(scores, is_target)
    order = np.argsort(scores)
    ascending = scores[order]
    targets_below = np.cumsum(is_target[order])
    # The vertex of a distinct score lies before the first trial that has it.
    starts = np.flatnonzero(np.concatenate([[True], ascending[1:] != ascending[:-1]]))
    misses = np.append(np.where(starts > 0, targets_below[starts - 1], 0), targets_below[-1])
    num_target = int(targets_below[-1])
    num_nontarget = len(scores) - num_target
    false_alarms = num_nontarget - (np.append(starts, len(scores)) - misses)
    return ErrorCurve(
        np.append(ascending[starts].astype(np.float64), np.inf),
        misses / num_target,
        false_alarms / num_nontarget,
    )


def eer(curve: ErrorCurve) -> float:
    """Equal error rate: where the polyline through the vertices of the ROC has P_miss = P_fa.

    Between vertices the line is straight, which is what a random choice between the two thresholds
    achieves; so trials of equal score count as if their order were drawn by lot, and without such
    ties the value is where the staircase itself crosses the diagonal. This is the default here
    because published figures (mean of both rates at the nearest vertex, or interpolated) differ
    from it by less than one trial's share, while `eer_rocch` is lower by construction.
    """
    gap = curve.p_miss - curve.p_fa  # from -1 to 1, never falling
    j = int(np.argmax(gap >= 0))
    share = -gap[j - 1] / (gap[j] - gap[j - 1])
    return float(curve.p_miss[j - 1] + share * (curve.p_miss[j] - curve.p_miss[j - 1]))


def eer_threshold(curve: ErrorCurve) -> float:
    """The score from which on to accept for P_miss and P_fa nearest to each other."""
    gap = np.abs(curve.p_miss - curve.p_fa)[:-1]  # the last vertex accepts nothing
    return float(curve.thresholds[np.argmin(gap)])


def convex_hull(curve: ErrorCurve) -> ErrorCurve:
    """The lower convex hull of the ROC (ROCCH): its vertices are those of optimal thresholds.

    Pool adjacent violators on the slope of the curve finds it in linear time (Fawcett and
    Niculescu-Mizil, PAV and the ROC convex hull, Machine Learning 68, 2007).
    """
    targets, nontargets = np.diff(curve.p_miss), -np.diff(curve.p_fa)
    weights = targets + nontargets
    kept = np.flatnonzero(weights > 0)  # resampled trials can have no weight at some score
    pooled = scipy.optimize.isotonic_regression(
        targets[kept] / weights[kept], weights=weights[kept]
    )
    vertices = np.append(kept[pooled.blocks[:-1]], len(weights))
    return ErrorCurve(curve.thresholds[vertices], curve.p_miss[vertices], curve.p_fa[vertices])


def eer_rocch(curve: ErrorCurve) -> float:
    """Equal error rate on the convex hull: the worst minimum Bayes error over all priors.

    Never above `eer` (Brümmer, Measuring, refining and calibrating speaker and language
    information extracted from speech, PhD thesis, Stellenbosch 2010).
    """
    return eer(convex_hull(curve))


def min_dcf(curve: ErrorCurve, p_target: float) -> float:
    """Lowest detection cost over all thresholds, divided by that of the better trivial decision.

    DCF = (p_target P_miss + (1 - p_target) P_fa) / min(p_target, 1 - p_target) (NIST SRE 2016
    evaluation plan, both costs 1); in [0, 1].
    """
    return float(_dcf(curve.p_miss, curve.p_fa, p_target).min())


def _dcf(p_miss, p_fa, p_target):
    if not 0 < p_target < 1:
        raise ValueError(f"p_target is a probability between 0 and 1, got {p_target}")
    return (p_target * p_miss + (1 - p_target) * p_fa) / min(p_target, 1 - p_target)


def error_rates(
    scores: Float[np.ndarray, "n"], is_target: Bool[np.ndarray, "n"], threshold: float | int
) -> tuple[float, float]:
    """(P_miss, P_fa) when scores >= `threshold` are accepted."""
    check(scores, is_target)
    accepted = scores >= threshold
    return float(1 - accepted[is_target].mean()), float(accepted[~is_target].mean())


def bayes_threshold(p_target: float) -> float:
    """The log-likelihood ratio (natural) from which on accepting has the lower expected cost."""
    return float(-scipy.special.logit(p_target))


def act_dcf(
    llrs: Float[np.ndarray, "n"], is_target: Bool[np.ndarray, "n"], p_target: float
) -> float:
    """Normalised cost of deciding natural-log likelihood ratios at Bayes' threshold.

    Cost as in `min_dcf` and at least that; the difference is what calibration loses. May exceed 1.
    """
    rates = error_rates(llrs, is_target, bayes_threshold(p_target))
    return float(_dcf(*rates, p_target))


def cllr(llrs: Float[np.ndarray, "n"], is_target: Bool[np.ndarray, "n"]) -> float:
    """Cost of natural-log likelihood ratios over all priors, in bits; 1 for a useless system.

    Brümmer and du Preez, Application-independent evaluation of speaker detection, Computer Speech
    and Language 20, 2006: mean log2(1 + 1/LR) of targets and log2(1 + LR) of
    non-targets, halved. +inf if a trial is infinitely sure and wrong.
    """
    check(llrs, is_target)
    llrs = llrs.astype(np.float64)
    misses, false_alarms = np.logaddexp(0, -llrs[is_target]), np.logaddexp(0, llrs[~is_target])
    return float((misses.mean() + false_alarms.mean()) / (2 * np.log(2)))


def min_cllr(curve: ErrorCurve) -> float:
    """Cllr, in bits, after the best non-decreasing map of the scores (PAV; the same paper)."""
    hull = convex_hull(curve)
    targets, nontargets = np.diff(hull.p_miss), -np.diff(hull.p_fa)
    # Within a block LR = targets / nontargets. A block of one kind has LR 0 or inf and costs
    # nothing, so its logarithm, of no weight, may be left at 0.
    log_bits = [
        a * np.log2(1 + np.divide(b, a, out=np.zeros_like(a), where=a > 0))
        for a, b in ((targets, nontargets), (nontargets, targets))
    ]
    return float(sum(log_bits).sum() / 2)


def det_points(
    curve: ErrorCurve, max_points: int = 2000
) -> tuple[Float[np.ndarray, "m"], Float[np.ndarray, "m"]]:
    """(P_fa, P_miss) for a detection error trade-off plot, at most `max_points` of them.

    Vertices with a rate of 0 or 1, which normal-deviate axes cannot show, are left out, so a
    system without errors gives empty arrays. The rest are evenly spaced along the curve as drawn
    on such axes (`probit`; Martin et al., The DET curve, Eurospeech 1997).
    """
    inside = (curve.p_miss > 0) & (curve.p_miss < 1) & (curve.p_fa > 0) & (curve.p_fa < 1)
    p_fa, p_miss = curve.p_fa[inside], curve.p_miss[inside]
    if len(p_fa) > max_points:
        # Both coordinates are monotone: their difference is the length walked, up to the metric.
        walked = probit(p_miss) - probit(p_fa)
        wanted = np.linspace(walked[0], walked[-1], max_points)
        kept = np.unique(np.searchsorted(walked, wanted).clip(max=len(walked) - 1))
        p_fa, p_miss = p_fa[kept], p_miss[kept]
    return p_fa, p_miss


def probit(rate: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Normal deviate of a rate, the axis of DET plots; -inf at 0, +inf at 1."""
    return scipy.special.ndtri(rate)


@dataclasses.dataclass(frozen=True)
class Summary:
    """All figures of one scored trial list; rates are fractions, DCF is normalised, Cllr in bits.

    `act_dcf` is empty and `cllr` None where the scores are no log-likelihood ratios.
    """

    num_target: int
    num_nontarget: int
    eer: float
    eer_rocch: float
    min_dcf: Mapping[float, float]
    min_cllr: float
    act_dcf: Mapping[float, float]
    cllr: float | None

    def flat(self) -> dict[str, float]:
        """Name -> value for metrics.jsonl; `resample` has some of the names."""
        figures = {"eer": self.eer, "eer_rocch": self.eer_rocch, "min_cllr": self.min_cllr}
        figures |= {f"min_dcf_{p:g}": value for p, value in self.min_dcf.items()}
        figures |= {f"act_dcf_{p:g}": value for p, value in self.act_dcf.items()}
        return figures if self.cllr is None else figures | {"cllr": self.cllr}


def summarise(
    scores: Float[np.ndarray, "n"],
    is_target: Bool[np.ndarray, "n"],
    *,
    p_targets: Sequence[float] = P_TARGETS,
    are_llrs: bool = False,
) -> Summary:
    """Every metric of this file at once. `are_llrs`: the scores are natural-log ratios."""
    curve = error_curve(scores, is_target)
    num_target = int(np.count_nonzero(is_target))
    return Summary(
        num_target,
        len(scores) - num_target,
        eer(curve),
        eer_rocch(curve),
        {p: min_dcf(curve, p) for p in p_targets},
        min_cllr(curve),
        {p: act_dcf(scores, is_target, p) for p in p_targets} if are_llrs else {},
        cllr(scores, is_target) if are_llrs else None,
    )


def describe(summary: Summary, intervals: Mapping[str, tuple[float, float]] | None = None) -> str:
    """`EER 0.99 % [0.80, 1.21]  minDCF(0.01) 0.110 ... (7355 target, 63882 non-target trials)`."""
    intervals = intervals or {}

    def shown(title: str, name: str, value: float) -> str:
        scale, digits, unit = (100, 2, " %") if name == "eer" else (1, 3, "")
        low, high = intervals.get(name, (np.nan, np.nan))
        bounds = f" [{scale * low:.{digits}f}, {scale * high:.{digits}f}]" if low == low else ""
        return f"{title} {scale * value:.{digits}f}{unit}{bounds}"

    parts = [shown("EER", "eer", summary.eer)]
    for kind, values in (("min", summary.min_dcf), ("act", summary.act_dcf)):
        parts += [shown(f"{kind}DCF({p:g})", f"{kind}_dcf_{p:g}", v) for p, v in values.items()]
    parts += [shown("minCllr", "min_cllr", summary.min_cllr)]
    if summary.cllr is not None:
        parts += [shown("Cllr", "cllr", summary.cllr)]
    counts = f"({summary.num_target} target, {summary.num_nontarget} non-target trials)"
    return "  ".join([*parts, counts])


def resample(
    scores: Float[np.ndarray, "n"],
    is_target: Bool[np.ndarray, "n"],
    enrol_speakers: Shaped[np.ndarray, "n"],
    test_speakers: Shaped[np.ndarray, "n"],
    *,
    p_targets: Sequence[float] = P_TARGETS,
    are_llrs: bool = False,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Float[np.ndarray, "r"]]:
    """Each metric under `num_resamples` draws of the speakers: "eer", "min_dcf_0.01", ...

    Trials that share a speaker err together, on either side, so drawing trials gives intervals that
    are far too narrow for other speakers. Here speakers are drawn with replacement, for both sides
    at once: a target trial counts as often as its speaker was drawn (subsets bootstrap: Bolle,
    Ratha and Pankanti, Error analysis of pattern recognition systems, CVIU 93, 2004), a non-target
    trial as often as the product over its two speakers (pigeonhole bootstrap: Owen, Annals of
    Applied Statistics 1, 2007, slightly too wide by construction). The copies of one speaker are
    never paired with each other as non-targets.

    With `are_llrs` also "act_dcf_<p>" and "cllr". The draws depend on `seed` and on the set of
    speakers only: for two systems on the same trials subtract their values, `intervals` of the
    difference then tell whether they differ. A draw that leaves one kind of trial without weight
    gives NaN. Speakers may be any labels; integers are quickest. Time is linear in the trials.

    The lowest cost over thresholds is fitted to each draw, so with few speakers the interval of
    minDCF leans to low values.

    Raises ScoreError as `check` does, and where labels and speakers contradict.
    """
    check(scores, is_target)
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
        curve = ErrorCurve(
            np.append(thresholds, np.inf),
            np.append(0, np.cumsum(targets)) / targets.sum(),
            np.append(np.cumsum(nontargets[::-1])[::-1], 0) / nontargets.sum(),
        )
        values["eer"][r] = eer(curve)
        for p in p_targets:
            values[f"min_dcf_{p:g}"][r] = min_dcf(curve, p)
        for name, (target_costs, nontarget_costs) in costs.items():
            values[name][r] = (
                target_weights @ target_costs / targets.sum()
                + nontarget_weights @ nontarget_costs / nontargets.sum()
            )
    return values


def intervals(values: Mapping[str, Float[np.ndarray, "r"]]) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals of resampled values; (NaN, NaN) where none is a number."""
    return {k: common_metrics.percentile_interval(v[~np.isnan(v)]) for k, v in values.items()}


def _check_speakers(is_target, enrol_speakers, test_speakers):
    wrong = (enrol_speakers == test_speakers) != is_target
    if np.any(wrong):
        i = int(np.argmax(wrong))
        label = "target" if is_target[i] else "non-target"
        raise ScoreError(
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
        threshold, scale = bayes_threshold(p), min(p, 1 - p)
        miss, fa = target_llrs < threshold, nontarget_llrs >= threshold
        costs[f"act_dcf_{p:g}"] = (miss * (p / scale), fa * ((1 - p) / scale))
    costs["cllr"] = tuple(
        -scipy.special.log_expit(x.astype(np.float64)) / (2 * np.log(2))
        for x in (target_llrs, -nontarget_llrs)
    )
    return costs


def draw_det(axes: Any, curves: Mapping[str, ErrorCurve]) -> None:
    """Draws each curve on matplotlib's axes with its equal error rate marked, titles in the legend.

    Coordinates are `probit` of the rates; the marks lie on the curve up to the bend that
    these axes give to a straight line of the ROC, which many tied scores make visible. The axes
    show all curves and at least 1 to 40 %. A curve without a point inside (0, 1) x (0, 1), that of
    a system without errors, is named in the legend and not drawn.
    """
    low, high = probit(np.array([0.01, 0.40]))
    for name, curve in curves.items():
        p_fa, p_miss = det_points(curve)
        x, y = probit(p_fa), probit(p_miss)
        rate = eer(curve)
        (line,) = axes.plot(x, y, linewidth=1.2, label=f"{name}  (EER {100 * rate:.2f} %)")
        if 0 < rate < 1:
            point = probit(np.array([rate]))
            axes.plot(point, point, "o", markersize=5, color=line.get_color())
        low = min([low, *x, *y])
        high = max([high, *x, *y])
    room = 0.03 * (high - low)
    ticks = np.array(_TICKS)
    axes.set_xlabel("false alarm rate (%)")
    axes.set_ylabel("miss rate (%)")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(probit(ticks / 100), [f"{tick:g}" for tick in ticks])
    axes.set_xlim(low - room, high + room)
    axes.set_ylim(low - room, high + room)
    axes.set_aspect("equal")
    axes.axline((0, 0), slope=1, color="grey", linewidth=0.6, linestyle=":")
    axes.grid(linewidth=0.4, alpha=0.6)
    axes.legend(loc="upper right", fontsize="small")


def plot_format(path: pathlib.Path) -> str:
    """png, pdf or svg, by the ending of a name. Raises errors.UserError for any other."""
    kind = path.suffix[1:].lower()
    if kind not in _FORMATS:
        raise errors.UserError(
            f"{path}: a plot cannot be written as {kind!r}; end the name with .png, .pdf or .svg."
        )
    return kind


def save_det(path: pathlib.Path | str, curves: Mapping[str, ErrorCurve]) -> None:
    """Writes the DET plot of named systems; the name's ending says the format (png, pdf, svg).

    The file is there whole or not at all. Raises errors.UserError: no curves, a format that is not
    known, or a place that cannot be written.
    """
    path = pathlib.Path(path)
    if not curves:
        raise errors.UserError(f"{path}: there is no curve to draw.")
    kind = plot_format(path)
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(6, 6), layout="constrained")
    draw_det(figure.add_subplot(), curves)
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=150)
