"""S-norm and AS-norm against loops, and what they are for: one threshold for all speakers."""

import functools

import numpy as np
import pytest

from speaker import backend, metrics, plda


def parts(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(9, 6)), rng.normal(size=(5, 6)), rng.normal(size=(40, 6))


@pytest.mark.parametrize("top_k", [None, 7, 40])
def test_equals_a_loop(top_k):
    enrol, test, cohort = parts()
    i, j = (index.ravel() for index in np.indices((9, 5)))
    raw = backend.cosine_matrix(enrol, test).ravel()
    sides = [backend.cohort_statistics(x, cohort, top_k=top_k, block=4) for x in (enrol, test)]
    got = backend.normalise_scores(raw, *sides, i, j)

    def standardised(score, x):
        scores = sorted(x @ c / np.linalg.norm(x) / np.linalg.norm(c) for c in cohort)[
            -(top_k or 40) :
        ]
        return (score - np.mean(scores)) / np.std(scores)

    expected = [
        0.5 * (standardised(s, enrol[a]) + standardised(s, test[b])) for s, a, b in zip(raw, i, j)
    ]
    np.testing.assert_allclose(got, expected, rtol=1e-10)


def test_block_size_changes_nothing():
    enrol, _, cohort = parts()
    one = backend.cohort_statistics(enrol, cohort, top_k=5, block=1)
    all_rows = backend.cohort_statistics(enrol, cohort, top_k=5)
    np.testing.assert_allclose(one.mean, all_rows.mean, rtol=1e-12)
    np.testing.assert_allclose(one.deviation, all_rows.deviation, rtol=1e-12)


def test_plda_scores_are_normalised_alike():
    enrol, _, cohort = parts()
    model = plda.Plda(np.zeros(6), np.eye(6), 0.5 * np.eye(6))
    counts = np.full(len(enrol), 3)
    got = backend.cohort_statistics(
        cohort,
        enrol,
        top_k=4,
        score=functools.partial(plda.score_matrix, model, test_counts=counts),
    )
    scores = np.sort(plda.score_matrix(model, cohort, enrol, test_counts=counts), axis=1)[:, -4:]
    np.testing.assert_allclose(got.mean, scores.mean(1), rtol=1e-12)


def test_helps_where_one_threshold_does_not_fit_two_channels():
    """Through one of two channels everyone sounds alike: impostors score higher there."""
    rng = np.random.default_rng(0)

    def through_channels(x):
        channel = np.arange(len(x)) % 2
        return x + 4 * channel[:, None] * np.eye(16)[0], channel

    speaker = np.repeat(np.arange(40), 6)
    x, channel = through_channels(
        rng.normal(size=(40, 16))[speaker] + 0.8 * rng.normal(size=(240, 16))
    )
    cohort, _ = through_channels(rng.normal(size=(300, 16)))
    i, j = np.triu_indices(240, 1)
    i, j = i[channel[i] == channel[j]], j[channel[i] == channel[j]]
    raw = backend.cosine_trials(x, x, i, j)
    rates = [metrics.eer(metrics.error_curve(raw, speaker[i] == speaker[j]))]
    for top_k in (None, 100):
        side = backend.cohort_statistics(x, cohort, top_k=top_k)
        scores = backend.normalise_scores(raw, side, side, i, j)
        rates.append(metrics.eer(metrics.error_curve(scores, speaker[i] == speaker[j])))
    plain, s_norm, as_norm = rates
    # The whole cohort mixes both channels, its top scores are of the channel at hand.
    assert as_norm < s_norm
    assert as_norm < 0.7 * plain


def test_cohort_limits_are_named():
    enrol, _, cohort = parts()
    with pytest.raises(backend.EmbeddingError, match=r"top 300 needs .* it has 40"):
        backend.cohort_statistics(enrol, cohort)
    with pytest.raises(backend.EmbeddingError, match="all alike, first those of row 0"):
        backend.cohort_statistics(enrol, np.repeat(cohort[:1], 5, axis=0), top_k=None)
