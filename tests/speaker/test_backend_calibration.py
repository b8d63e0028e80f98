"""Calibration recovers known maps, reaches min Cllr, and says when it cannot."""

import math

import numpy as np
import pytest
import scipy.optimize

from speaker import backend, embed, evaluation, metrics


def ratios(seed=0, num_target=20_000, num_nontarget=20_000, separation=8.0):
    """True log-likelihood ratios of two normals: N(+-separation / 2, separation)."""
    rng = np.random.default_rng(seed)
    is_target = np.arange(num_target + num_nontarget) < num_target
    mean = np.where(is_target, separation / 2, -separation / 2)
    return mean + math.sqrt(separation) * rng.normal(size=len(mean)), is_target


@pytest.mark.parametrize("p_target", [0.5, 0.05])
def test_recovers_a_known_affine_map(p_target):
    llrs, is_target = ratios()
    fitted = backend.fit_calibration((llrs + 7) / 30, is_target, p_target=p_target)
    # Spread over 20 seeds: 0.012 and 0.087 (prior .5), 0.017 and 0.136 (.05); four times as much.
    scale = 1 if p_target == 0.5 else 2
    assert fitted.slope / 30 == pytest.approx(1, abs=0.05 * scale)
    assert fitted.offset == pytest.approx(-7, abs=0.35 * scale)
    np.testing.assert_allclose(fitted((llrs + 7) / 30), llrs, atol=0.6 * scale)


def test_cllr_is_near_its_minimum_on_other_trials():
    llrs, is_target = ratios(1, 2000, 10_000)
    fitted = backend.fit_calibration(np.tanh(llrs / 12), is_target)
    others, other_target = ratios(2, 2000, 10_000)
    scores = np.tanh(others / 12)
    out = fitted(scores)
    best = metrics.min_cllr(metrics.error_curve(scores, other_target))
    raw = metrics.cllr(scores, other_target)
    assert metrics.cllr(out, other_target) < best + 0.02
    assert raw > best + 0.2
    assert metrics.act_dcf(out, other_target, 0.05) < 1.1 * metrics.min_dcf(
        metrics.error_curve(scores, other_target), 0.05
    )


def test_is_the_minimum_of_the_weighted_cross_entropy():
    llrs, is_target = ratios(3, 300, 900)
    rng = np.random.default_rng(0)
    quality = rng.normal(size=(1200, 2)) * [1, 30] + [0, 100]
    p = 0.1
    fitted = backend.fit_calibration(llrs, is_target, quality, quality_names=("a", "b"), p_target=p)

    def cost(slope, offset, a, b):
        logits = slope * llrs + offset + quality @ np.array([a, b]) + math.log(p / (1 - p))
        cross = 0.0
        for kind, share, sign in ((is_target, p, 1), (~is_target, 1 - p, -1)):
            wrong, right = (np.logaddexp(0, s * sign * logits[kind]).mean() for s in (1, -1))
            n = np.count_nonzero(kind)  # a trial of the other label at every score: Platt
            cross += share * ((n + 1) * right + wrong) / (n + 2)
        return cross

    found = np.array([fitted.slope, fitted.offset, *fitted.quality_weights])
    least = cost(*found)
    for _ in range(200):
        assert cost(*(found + rng.normal(size=4) * [1e-3, 1e-3, 1e-3, 1e-5])) >= least - 1e-10


def test_quality_measures_help_where_they_matter():
    rng = np.random.default_rng(0)
    n = 6000
    is_target = np.arange(2 * n) < n
    shift = rng.choice([0.0, 4.0], size=2 * n)  # a condition that moves all scores of a trial
    scores = np.where(is_target, 2.0, -2.0) + shift + 1.5 * rng.normal(size=2 * n)
    plain = backend.fit_calibration(scores, is_target)
    aware = backend.fit_calibration(scores, is_target, shift[:, None], quality_names=["shift"])
    assert metrics.cllr(aware(scores, shift[:, None]), is_target) < 0.8 * metrics.cllr(
        plain(scores), is_target
    )
    # -slope * shift undoes it.
    assert aware.quality_weights[0] == pytest.approx(-aware.slope, rel=0.1)
    with pytest.raises(backend.CalibrationError, match=r"takes 1 quality measures \(shift\)"):
        aware(scores)


def test_quality_measures_are_those_of_the_poorer_and_better_side():
    enrol_seconds, test_seconds = np.array([2.0, 60.0]), np.array([5.0, 30.0])
    enrol_magnitudes, test_magnitudes = np.array([10.0, 20.0]), np.array([15.0, 16.0])
    i, j = np.array([0, 1, 1]), np.array([0, 0, 1])
    names, got = backend.quality_measures(
        enrol_magnitudes, test_magnitudes, i, j, (enrol_seconds, test_seconds)
    )
    expected = np.log([[10, 15, 2, 5], [15, 20, 5, 20], [16, 20, 20, 20]])
    np.testing.assert_allclose(got, expected)
    _, swapped = backend.quality_measures(
        test_magnitudes, enrol_magnitudes, j, i, (test_seconds, enrol_seconds)
    )
    np.testing.assert_array_equal(got, swapped)
    assert names == ("min_log_magnitude", "max_log_magnitude", "min_log_seconds", "max_log_seconds")
    alone = backend.quality_measures(enrol_magnitudes, test_magnitudes, i, j)
    assert alone[0] == names[:2]
    np.testing.assert_array_equal(alone[1], got[:, :2])
    with pytest.raises(backend.CalibrationError, match="positive"):
        backend.quality_measures(
            enrol_magnitudes, test_magnitudes, i, j, (np.zeros(2), test_seconds)
        )


def test_probability_is_bayes_rule():
    llrs, prior = np.array([-2.0, 0.0, 3.0]), 0.2
    expected = 0.2 * np.exp(llrs) / (0.2 * np.exp(llrs) + 0.8)
    np.testing.assert_allclose(backend.probability(llrs, prior), expected)
    assert backend.probability(np.array([-2000.0, 2000.0]), 0.5).tolist() == [0, 1]
    # Of the trials given probability p, a share of p are targets.
    llrs, is_target = ratios(5)
    p = backend.probability(llrs, 0.5)
    for low in (0.1, 0.4, 0.7):
        inside = (p >= low) & (p < low + 0.2)
        error = 4 * math.sqrt(0.25 / inside.sum())
        assert is_target[inside].mean() == pytest.approx(p[inside].mean(), abs=error)


@pytest.mark.parametrize(("num_target", "num_nontarget"), [(2, 2), (15, 100), (3000, 40_000)])
def test_separable_trials_are_no_surer_than_their_number_allows(num_target, num_nontarget):
    """Platt's targets: at two scores that tell everything, ratios of log(n + 1) exactly."""
    is_target = np.arange(num_target + num_nontarget) < num_target
    found = backend.fit_calibration(np.where(is_target, 0.7, 0.1), is_target)(np.array([0.1, 0.7]))
    expected = [-math.log(num_nontarget + 1), math.log(num_target + 1)]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_fit_to_many_trials_hardly_changes():
    """Maximum likelihood alone, by another method, from the same trials."""
    llrs, is_target = ratios(4)

    def cost(line):
        right = np.where(is_target, 1, -1) * (line[0] * llrs + line[1])
        return np.logaddexp(0, -right).mean()

    found = scipy.optimize.minimize(cost, [1.0, 0.0], method="Nelder-Mead", tol=1e-8).x
    fitted = backend.fit_calibration(llrs, is_target)
    assert fitted.slope == pytest.approx(found[0], rel=0.004)
    assert fitted.offset == pytest.approx(found[1], abs=0.004)


def test_what_cannot_be_calibrated_is_refused():
    llrs, is_target = ratios(6, 50, 50)
    with pytest.raises(backend.CalibrationError, match="falls with the score"):
        backend.fit_calibration(-llrs, is_target)
    with pytest.raises(backend.CalibrationError, match="same in all 100"):
        backend.fit_calibration(np.ones(100), is_target)
    with pytest.raises(metrics.ScoreError, match="non-target"):
        backend.fit_calibration(llrs, np.ones(100, bool))
    quality = np.ones((100, 1))
    quality[3] = -np.inf
    with pytest.raises(backend.CalibrationError, match="the seconds of trial 3 "):
        backend.fit_calibration(llrs, is_target, quality, quality_names=["seconds"])
    with pytest.raises(ValueError, match="1 quality measures with 0 names"):
        backend.fit_calibration(llrs, is_target, quality)
    with pytest.raises(ValueError, match="p_target"):
        backend.fit_calibration(llrs, is_target, p_target=1.0)


@pytest.mark.parametrize("recordings", [1, 3, 5, 8])
def test_voices_of_any_number_of_recordings_are_calibrated(recordings):
    """Two-covariance embeddings: fitted on 100 speakers, measured on 150 others."""
    rng = np.random.default_rng(5)
    spread = np.exp(-np.arange(32) / 20)

    def draw(num_speakers):
        means = rng.normal(size=(num_speakers, 1, 32)) * spread
        rows = means + rng.normal(size=(num_speakers, 12, 32)) * spread**0.5
        return rows.reshape(-1, 32), np.repeat([f"s{i}" for i in range(num_speakers)], 12)

    rows, speakers = draw(100)
    wanted = evaluation.all_pairs(speakers.tolist(), 20_000)
    said = evaluation.measure(rows, np.ones(len(rows), bool), wanted, speakers).decision
    decision = embed.decision(said, "")
    rows, speakers = draw(150)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    voices, own, other = evaluation.draw_voices(speakers, recordings, 20_000)
    means = rows[voices].mean(1)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    scores = np.concatenate([np.einsum("kd,kd->k", means, rows[i]) for i in (own, other)])
    target = np.arange(40_000) < 20_000
    found = decision.ratios(scores, np.full(40_000, recordings))
    best = metrics.min_cllr(metrics.error_curve(scores, target))
    # Over three seeds 0.003 to 0.016 above the best, with 8 recordings the most.
    assert metrics.cllr(found, target) < best + 0.02
    if recordings > 1:  # what was calibrated to pairs accepts too easily
        pairs = decision.calibration(scores)
        assert metrics.cllr(pairs, target) > metrics.cllr(found, target) + 0.02
        p_fa, before = (metrics.error_rates(x, target, 0.0)[1] for x in (found, pairs))
        assert before > 1.5 * p_fa


def test_voices_are_drawn_with_one_more_recording_and_somebody_else():
    speakers = np.array(["a"] * 3 + ["b"] * 4 + ["c"])
    voices, own, other = evaluation.draw_voices(speakers, 3, 50)
    assert (speakers[voices] == "b").all()  # who alone has four
    assert (np.sort(np.column_stack([voices, own]), axis=1) == [3, 4, 5, 6]).all()
    assert set(speakers[other]) == {"a", "c"}
    assert evaluation.draw_voices(speakers, 4, 50) is None
    assert evaluation.draw_voices(speakers[3:7], 2, 50) is None
