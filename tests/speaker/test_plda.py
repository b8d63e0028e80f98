"""PLDA against ratios of joint Gaussians, against known covariances, and its file."""

import logging

import numpy as np
import pytest
import scipy.stats

from speaker import metrics, plda

D = 4


def covariance(rng, scale=1.0):
    root = rng.normal(size=(D, D + 2))
    return scale * root @ root.T / D


def model(seed=0):
    rng = np.random.default_rng(seed)
    return plda.Plda(rng.normal(size=D), covariance(rng), covariance(rng, 0.5))


def draw(truth, num_speakers, counts, seed=0):
    rng = np.random.default_rng(seed)
    speaker = np.repeat(np.arange(num_speakers), counts)
    y = rng.multivariate_normal(truth.mean, truth.between, size=num_speakers)
    noise = rng.multivariate_normal(np.zeros(D), truth.within, size=len(speaker))
    return y[speaker] + noise, speaker


def joint_log_density(truth, rows):
    """All rows of one speaker: one Gaussian of n d dimensions, written out."""
    n = len(rows)
    cov = np.kron(np.ones((n, n)), truth.between) + np.kron(np.eye(n), truth.within)
    return scipy.stats.multivariate_normal.logpdf(rows.ravel(), np.tile(truth.mean, n), cov)


def direct_ratio(truth, enrol, test):
    same = joint_log_density(truth, np.concatenate([enrol, test]))
    return same - joint_log_density(truth, enrol) - joint_log_density(truth, test)


def test_scores_equal_the_ratio_of_joint_gaussians():
    truth, rng = model(), np.random.default_rng(1)
    enrol = [rng.normal(size=(n, D)) for n in (1, 2, 5, 1, 3)]
    test = [rng.normal(size=(n, D)) for n in (1, 1, 4, 2)]
    expected = np.array([[direct_ratio(truth, e, t) for t in test] for e in enrol])
    enrol_means, test_means = (np.stack([x.mean(0) for x in side]) for side in (enrol, test))
    counts = {
        "enrol_counts": np.array([len(e) for e in enrol]),
        "test_counts": np.array([len(t) for t in test]),
    }
    got = plda.score_matrix(truth, enrol_means, test_means, **counts)
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)
    i, j = (index.ravel() for index in np.indices(expected.shape))
    pairs = plda.score_trials(truth, enrol_means, test_means, i, j, block=7, **counts)
    np.testing.assert_allclose(pairs, expected.ravel(), rtol=1e-9, atol=1e-9)
    # One utterance on each side, the ratio is symmetric.
    singles = rng.normal(size=(3, D))
    square = plda.score_matrix(truth, singles, singles)
    np.testing.assert_allclose(square, square.T, rtol=1e-9, atol=1e-9)
    # Counting an average as one utterance is another model.
    assert abs(plda.score_matrix(truth, enrol_means, test_means)[2, 0] - expected[2, 0]) > 0.05


def test_likelihood_equals_the_joint_gaussians():
    truth = model()
    x, speaker = draw(truth, 5, [1, 2, 3, 1, 6])
    expected = sum(joint_log_density(truth, x[speaker == s]) for s in range(5))
    assert plda.log_likelihood(truth, x, speaker) == pytest.approx(expected, rel=1e-10)


def test_training_recovers_known_covariances():
    truth = model(2)
    rng = np.random.default_rng(3)
    x, speaker = draw(truth, 4000, rng.integers(1, 9, size=4000), seed=4)
    got = plda.train(x.astype(np.float32), np.array([f"s{s}" for s in speaker]))
    # A covariance from 4,000 speakers is off by about sqrt(2 / 4000) = 2.2 % of its scale; the one
    # of 18,000 utterances by half of that. Four times as much is allowed.
    np.testing.assert_allclose(got.between, truth.between, atol=0.09 * truth.between.max())
    np.testing.assert_allclose(got.within, truth.within, atol=0.05 * truth.within.max())
    np.testing.assert_allclose(got.mean, truth.mean, atol=0.09)
    assert plda.log_likelihood(got, x, speaker) > plda.log_likelihood(truth, x, speaker)


def test_em_never_lowers_the_likelihood_and_ends_at_a_maximum(caplog):
    x, speaker = draw(model(5), 30, np.random.default_rng(0).integers(1, 6, size=30))
    values = [
        plda.log_likelihood(plda.train(x, speaker, max_iterations=n, tolerance=0.0), x, speaker)
        for n in range(1, 40)
    ]
    assert np.all(np.diff(values) > -1e-9)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        best = plda.train(x, speaker, max_iterations=3000, tolerance=1e-12)
    assert "still rising" not in caplog.text
    top = plda.log_likelihood(best, x, speaker)
    rng = np.random.default_rng(0)
    for _ in range(50):  # no neighbour is better
        a, b = (rng.normal(size=(D, D)) * 1e-2 for _ in range(2))
        a, b = np.eye(D) + a, np.eye(D) + b
        other = plda.Plda(
            best.mean + 1e-2 * rng.normal(size=D), a @ best.between @ a.T, b @ best.within @ b.T
        )
        assert plda.log_likelihood(other, x, speaker) < top


def test_scores_are_calibrated_and_more_enrolment_helps():
    truth = model(6)
    x = draw(truth, 300, 4, seed=7)[0].reshape(300, 4, D)
    is_target = np.eye(300, dtype=bool).ravel()
    costs = []
    for n in (1, 3):
        counts = np.full(300, n)
        llrs = plda.score_matrix(truth, x[:, :n].mean(1), x[:, 3], enrol_counts=counts).ravel()
        costs.append(metrics.cllr(llrs, is_target))
        assert costs[-1] - metrics.min_cllr(metrics.error_curve(llrs, is_target)) < 0.03
    assert costs[1] < costs[0] - 0.05
    averaged = plda.score_matrix(truth, x[:, :3].mean(1), x[:, 3]).ravel()
    assert metrics.cllr(averaged, is_target) > costs[1]


def test_unusable_data_are_refused():
    x, speaker = draw(model(), 30, 3)
    with pytest.raises(plda.PldaError, match=r"needs more than 4 speakers.*Reduce the dimension"):
        plda.train(x[:12], speaker[:12])
    with pytest.raises(plda.PldaError, match="needs more than"):
        plda.train(x, np.arange(len(x)))  # nobody speaks twice
    with pytest.raises(plda.PldaError, match="singular"):
        plda.train(np.concatenate([x[:, :3], x[:, :1]], 1), speaker)
    x[5, 0] = np.nan
    with pytest.raises(plda.PldaError, match=r"1 of 90 embeddings hold NaN.*row 5"):
        plda.train(x, speaker)
    with pytest.raises(plda.PldaError, match=r"takes embeddings of 4 dimensions, got \(2, 3\)"):
        plda.score_matrix(model(), np.zeros((2, 3)), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="at least one utterance"):
        plda.score_matrix(
            model(), np.zeros((1, 4)), np.zeros((1, 4)), enrol_counts=np.zeros(1, int)
        )
