"""Detection metrics against brute force over thresholds, and against published figures."""

import gzip
import itertools
import math

import numpy as np
import pytest

from speaker import metrics


def brute_vertices(scores, is_target):
    """(threshold, P_miss, P_fa) at every distinct score and above the highest, one by one."""
    targets, nontargets = scores[is_target], scores[~is_target]
    for threshold in [*sorted(set(scores.tolist())), math.inf]:
        miss = sum(s < threshold for s in targets) / len(targets)
        fa = sum(s >= threshold for s in nontargets) / len(nontargets)
        yield threshold, miss, fa


def brute_eer(scores, is_target):
    """Crossing of the diagonal with each segment in turn."""
    vertices = list(brute_vertices(scores, is_target))
    for (_, m0, f0), (_, m1, f1) in itertools.pairwise(vertices):
        if m0 <= f0 and m1 >= f1:
            share = (f0 - m0) / (f0 - m0 + m1 - f1)
            return m0 + share * (m1 - m0)
    raise AssertionError


def brute_pav(scores, is_target):
    """Target share of each trial after merging neighbours that violate the order, by lists."""
    blocks = []  # [sum of targets, count]
    for score in sorted(set(scores.tolist())):
        here = is_target[scores == score]
        blocks.append([int(here.sum()), len(here), score])
        while len(blocks) > 1 and blocks[-2][0] * blocks[-1][1] >= blocks[-1][0] * blocks[-2][1]:
            top = blocks.pop()
            blocks[-1][0] += top[0]
            blocks[-1][1] += top[1]
    return blocks


def trials(seed, num_target=23, num_nontarget=60, levels=None, gap=1.5):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=num_target + num_nontarget)
    is_target = np.arange(len(scores)) < num_target
    scores[is_target] += gap
    if levels:  # many ties
        scores = np.round(scores * levels) / levels
    order = rng.permutation(len(scores))
    return scores[order], is_target[order]


SETS = [
    trials(0),
    trials(1, levels=2),
    trials(2, 1, 1),
    trials(3, 40, 3, levels=1),
    trials(4, gap=-1),
]


@pytest.mark.parametrize("scored", SETS)
def test_curve_eer_and_costs_equal_brute_force(scored):
    curve = metrics.error_curve(*scored)
    expected = np.array(list(brute_vertices(*scored)))
    np.testing.assert_array_equal(curve.thresholds, expected[:, 0])
    np.testing.assert_allclose(curve.p_miss, expected[:, 1], atol=1e-15)
    np.testing.assert_allclose(curve.p_fa, expected[:, 2], atol=1e-15)
    assert metrics.eer(curve) == pytest.approx(brute_eer(*scored), abs=1e-14)
    for p in metrics.P_TARGETS:
        costs = [(p * m + (1 - p) * f) / min(p, 1 - p) for _, m, f in expected]
        assert metrics.min_dcf(curve, p) == pytest.approx(min(costs), abs=1e-14)


@pytest.mark.parametrize("scored", SETS)
def test_eer_threshold_has_the_nearest_rates(scored):
    scores, is_target = scored
    gaps = {t: abs(miss - fa) for t, miss, fa in brute_vertices(scores, is_target)}
    threshold = metrics.eer_threshold(metrics.error_curve(scores, is_target))
    assert np.isfinite(threshold)
    assert gaps[threshold] == pytest.approx(min(g for t, g in gaps.items() if t < math.inf))


@pytest.mark.parametrize("scored", SETS)
def test_rocch_and_min_cllr_equal_brute_force(scored):
    _, is_target = scored
    num_target, num_nontarget = int(is_target.sum()), int((~is_target).sum())
    curve = metrics.error_curve(*scored)
    blocks = brute_pav(*scored)
    hull = metrics.convex_hull(curve)
    t = np.array([b[0] for b in blocks]) / num_target
    n = np.array([b[1] - b[0] for b in blocks]) / num_nontarget
    np.testing.assert_allclose(np.diff(hull.p_miss), t, atol=1e-12)
    np.testing.assert_allclose(-np.diff(hull.p_fa), n, atol=1e-12)
    np.testing.assert_array_equal(hull.thresholds[:-1], [b[2] for b in blocks])
    with np.errstate(divide="ignore"):
        llrs = np.log(t) - np.log(n)
    bits = sum(x * np.logaddexp(0, -v) for x, v in zip(t, llrs) if x)
    bits += sum(x * np.logaddexp(0, v) for x, v in zip(n, llrs) if x)
    assert metrics.min_cllr(curve) == pytest.approx(bits / 2 / math.log(2), abs=1e-12)
    # ROCCH-EER = max over priors of the minimum Bayes error.
    costs = [
        min(p * m + (1 - p) * f for m, f in zip(curve.p_miss, curve.p_fa))
        for p in np.linspace(0.001, 0.999, 999)
    ]
    assert metrics.eer_rocch(curve) == pytest.approx(max(costs), abs=2e-3)
    assert max(costs) <= metrics.eer_rocch(curve) + 1e-12
    assert metrics.eer_rocch(curve) <= metrics.eer(curve) + 1e-12


def test_eer_of_known_lists():
    def rate(targets, nontargets):
        scores = np.array([*targets, *nontargets], np.float64)
        return metrics.eer(metrics.error_curve(scores, np.arange(len(scores)) < len(targets)))

    assert rate([2, 3], [0, 1]) == 0
    assert rate([0, 1], [2, 3]) == 1
    assert rate([1, 3], [0, 2]) == 0.5
    assert rate([1] * 5, [1] * 7) == 0.5  # scores that say nothing, by lot
    assert rate([1, 2, 2, 2], [2, 0, 0, 0]) == pytest.approx(0.25)
    assert rate([math.inf, 1], [-math.inf, 0]) == 0


def test_act_dcf_and_cllr_of_true_and_of_shifted_ratios():
    scores, is_target = trials(5, 3000, 9000, gap=2.0)
    llrs = 2 * scores - 2  # N(2, 1) against N(0, 1): the true ratio
    curve = metrics.error_curve(llrs, is_target)
    p = 0.05
    threshold = math.log((1 - p) / p)
    miss = np.mean([x < threshold for x in llrs[is_target]])
    fa = np.mean([x >= threshold for x in llrs[~is_target]])
    assert metrics.act_dcf(llrs, is_target, p) == pytest.approx((p * miss + (1 - p) * fa) / p)
    assert metrics.min_dcf(curve, p) <= metrics.act_dcf(llrs, is_target, p)
    bits = 0.5 * np.mean([math.log2(1 + math.exp(-x)) for x in llrs[is_target]])
    bits += 0.5 * np.mean([math.log2(1 + math.exp(x)) for x in llrs[~is_target]])
    assert metrics.cllr(llrs, is_target) == pytest.approx(bits, rel=1e-12)
    # True ratios lose next to nothing (PAV overfits a little); shifted ones lose much.
    assert 0 < metrics.cllr(llrs, is_target) - metrics.min_cllr(curve) < 0.01
    assert metrics.cllr(llrs + 3, is_target) > metrics.cllr(llrs, is_target) + 0.1
    assert metrics.cllr(np.zeros_like(llrs), is_target) == pytest.approx(1)
    assert metrics.min_cllr(metrics.error_curve(np.zeros(4), is_target[:4])) == pytest.approx(1)
    assert metrics.bayes_threshold(0.5) == 0
    assert metrics.bayes_threshold(0.1) == pytest.approx(math.log(9))


def test_eer_of_normal_scores_is_the_known_value():
    scores, is_target = trials(6, 40_000, 40_000, gap=2.0)
    # N(2, 1) against N(0, 1) cross at 1: EER = Phi(-1); 4 standard errors of 40,000 trials.
    expected = 0.158655
    tolerance = 4 * math.sqrt(expected * (1 - expected) / 40_000)
    curve = metrics.error_curve(scores, is_target)
    assert metrics.eer(curve) == pytest.approx(expected, abs=tolerance)
    p_fa, p_miss = metrics.det_points(curve, 300)
    assert len(p_fa) <= 300
    assert np.all(np.diff(p_fa) <= 0)
    assert np.all(np.diff(p_miss) >= 0)
    # On normal-deviate axes normal scores give a straight line of slope -1.
    x, y = metrics.probit(p_fa), metrics.probit(p_miss)
    middle = np.abs(x) < 1.5
    np.testing.assert_allclose(x[middle] + y[middle], -2, atol=0.1)
    assert np.max(np.diff(y - x)) < 4 * (y - x)[-1] / 300 + 0.2


def test_det_points_of_a_perfect_system_are_none():
    scores, is_target = np.array([0.0, 1.0]), np.array([False, True])
    p_fa, p_miss = metrics.det_points(metrics.error_curve(scores, is_target))
    assert len(p_fa) == len(p_miss) == 0


def test_summary_and_its_line():
    scores, is_target = trials(0)
    plain = metrics.summarise(scores, is_target)
    assert plain.flat().keys() == {
        "eer", "eer_rocch", "min_cllr", "min_dcf_0.05", "min_dcf_0.01", "min_dcf_0.001"
    }  # fmt: skip
    ratios = metrics.summarise(scores, is_target, p_targets=[0.01], are_llrs=True)
    assert ratios.flat()["cllr"] == metrics.cllr(scores, is_target)
    assert ratios.flat()["act_dcf_0.01"] == metrics.act_dcf(scores, is_target, 0.01)
    line = metrics.describe(ratios, {"eer": (0.1, 0.25)})
    assert f"EER {100 * ratios.eer:.2f} % [10.00, 25.00]" in line
    assert "actDCF(0.01)" in line
    assert "(23 target, 60 non-target trials)" in line


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.0, 1.0], [True, True], "non-target trial"),
        ([0.0, 1.0], [False, False], "a target trial"),
        ([0.0, np.nan, np.nan], [True, False, False], "2 of 3 scores are NaN.*trial 1 "),
    ],
)
def test_unusable_scores_are_refused(scores, labels, message):
    with pytest.raises(metrics.ScoreError, match=message):
        metrics.error_curve(np.array(scores), np.array(labels))


def nearest_vertex(curve):
    """The published convention: mean of both rates where they are closest."""
    j = np.argmin(np.abs(curve.p_miss - curve.p_fa))
    return (curve.p_miss[j] + curve.p_fa[j]) / 2


def test_published_eer_of_aasist_l_on_asvspoof2019(speech_data):
    folder = speech_data / "reference" / "scores"
    with gzip.open(folder / "aasist_l_asvspoof2019la_eval.txt.gz", "rt") as file:
        rows = [line.split() for line in file]
    attack = np.array([row[1] for row in rows])
    bona_fide = np.array([row[2] for row in rows]) == "bonafide"
    scores = np.array([row[3] for row in rows], np.float64)
    published = {}
    for line in (folder / "aasist_l_published.txt").read_text().splitlines():
        if "EER" in line and "%" in line:
            name, value = line.split("=")[0].split(), float(line.split("=")[1].split("%")[0])
            published[name[1] if len(name) > 1 else ""] = value / 100
    assert len(published) == 14
    for name, value in published.items():
        used = bona_fide | (attack == name) if name else np.ones_like(bona_fide)
        curve = metrics.error_curve(scores[used], bona_fide[used])
        assert nearest_vertex(curve) == pytest.approx(
            value, abs=1e-11
        )  # nine decimals of a percent
        # The interpolated rate is off the nearest vertex by less than a trial of the smaller side.
        step = 1 / min(bona_fide.sum(), (used & ~bona_fide).sum())
        assert metrics.eer(curve) == pytest.approx(value, abs=step)
        assert metrics.eer_rocch(curve) <= metrics.eer(curve)


def test_published_rates_of_bob_measure(speech_data):
    def read(name):
        table = np.loadtxt(speech_data / "reference" / "scores" / "bob_measure" / name)
        table = table[~np.isnan(table[:, 1])]  # failures to acquire are counted apart there
        return table[:, 1], table[:, 0] > 0

    # Printed in test_m1.txt: threshold of the development set, and counts of errors.
    threshold = -8.025286e-03
    for name, (fa, nontargets), (miss, targets) in (
        ("dev-1.txt", (31, 495), (28, 451)),
        ("test-1.txt", (27, 479), (29, 473)),
    ):
        scores, is_target = read(name)
        rates = metrics.error_rates(scores, is_target, threshold)
        np.testing.assert_allclose(rates, (miss / targets, fa / nontargets), rtol=1e-12)
    curve = metrics.error_curve(*read("dev-1.txt"))
    assert nearest_vertex(curve) == pytest.approx((31 / 495 + 28 / 451) / 2)
    assert metrics.eer(curve) == pytest.approx((31 / 495 + 28 / 451) / 2, abs=1 / 451)


@pytest.mark.slow
def test_millions_of_trials():
    """As many as CN-Celeb's 3.7 million. Memory is a few arrays of n, not n times thresholds."""
    rng = np.random.default_rng(0)
    num_target, num_nontarget = 18_000, 3_700_000
    scores = rng.normal(size=num_target + num_nontarget).astype(np.float32)
    is_target = np.arange(len(scores)) < num_target
    scores[is_target] += 3
    llrs = 3 * scores - np.float32(4.5)
    summary = metrics.summarise(llrs, is_target, are_llrs=True)
    expected = 0.0668072  # Phi(-1.5)
    tolerance = 4 * math.sqrt(expected * (1 - expected) / num_target)
    assert summary.eer == pytest.approx(expected, abs=tolerance)
    assert summary.eer_rocch == pytest.approx(expected, abs=tolerance)
    # The scores are true ratios: nothing to gain by calibration but noise.
    assert summary.cllr - summary.min_cllr == pytest.approx(0, abs=2e-3)
    for p in metrics.P_TARGETS:
        assert summary.act_dcf[p] == pytest.approx(summary.min_dcf[p], abs=0.02)
