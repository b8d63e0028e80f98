"""Detection metrics against llreval, the implementation of the metrics' own authors."""

import gzip

import numpy as np
import pytest
from llreval import bayes_error_rate, pav_rocch
from llreval import cllr as cross_entropy
from scipy.special import logit

from speaker import metrics


def draw(seed, num_target, num_nontarget, gap, levels):
    """Normal scores; with `levels`, rounded to so many values a unit, so that most are tied."""
    rng = np.random.default_rng(seed)
    is_target = rng.permutation(np.arange(num_target + num_nontarget) < num_target)
    scores = rng.normal(size=len(is_target)) + gap * is_target
    return (np.round(scores * levels) / levels if levels else scores), is_target


def compare(scores, is_target):
    """All that both compute; scores are taken for natural-log likelihood ratios."""
    curve, pav = metrics.error_curve(scores, is_target), pav_rocch.PAV(scores, is_target * 1)
    hull = pav_rocch.ROCCH(pav)
    # Theirs is searched for numerically: minimize_scalar stops 1.5e-8 (relative) from the place.
    assert metrics.eer_rocch(curve) == pytest.approx(hull.EER(), rel=1e-6, abs=1e-8)
    log_odds = logit(np.sort(metrics.P_TARGETS))
    rates, trivial, _, _ = bayes_error_rate.fast_Bayes_error_rate(
        scores, is_target, log_odds, return_der_Pmiss_Pfa=True
    )
    for p, odds, rate, default in zip(sorted(metrics.P_TARGETS), log_odds, rates, trivial):
        best = hull.Bayes_error_rate(float(odds))
        assert metrics.min_dcf(curve, p) == pytest.approx(best / default, rel=1e-11)
        actual = metrics.act_dcf(scores, is_target, p)
        assert actual == pytest.approx(rate / default, rel=1e-9)
    targets, nontargets = scores[is_target], scores[~is_target]
    ours = metrics.cllr(scores, is_target)
    assert ours == pytest.approx(cross_entropy.cllr(targets, nontargets), rel=1e-12)
    assert metrics.min_cllr(curve) == pytest.approx(cross_entropy.min_cllr(pav), rel=1e-11)


@pytest.mark.parametrize("levels", [0, 4, 1])
@pytest.mark.parametrize(
    ("num_target", "num_nontarget", "gap"),
    [(300, 5000, 2.0), (50, 40, 0.3), (7, 900, 4.0), (200, 200, -1.0)],
)
def test_random_and_tied_scores(num_target, num_nontarget, gap, levels):
    seed = num_target + levels
    compare(*draw(seed, num_target, num_nontarget, gap, levels))


def test_asvspoof2019_scores_of_aasist_l(speech_data):
    folder = speech_data / "reference" / "scores"
    with gzip.open(folder / "aasist_l_asvspoof2019la_eval.txt.gz", "rt") as file:
        rows = [line.split() for line in file]
    compare(
        np.array([row[3] for row in rows], np.float64),
        np.array([row[2] for row in rows]) == "bonafide",
    )


@pytest.mark.parametrize("name", ["dev-1.txt", "test-1.txt"])
def test_scores_of_bob_measure(speech_data, name):
    label, scores = np.loadtxt(speech_data / "reference/scores/bob_measure" / name).T
    known = ~np.isnan(scores)  # nan: nothing was acquired
    compare(scores[known], label[known] > 0)
