"""Speaker bootstrap against trials that are really repeated, and its coverage."""

import numpy as np
import pytest

from speaker import metrics


def population(seed, num_speakers=12, per_speaker=4, decimals=1):
    """All pairs of utterances; speakers differ in how well their models fit."""
    rng = np.random.default_rng(seed)
    speaker = np.repeat(np.arange(num_speakers), per_speaker)
    embeddings = rng.normal(size=(num_speakers, 6))[speaker] + rng.gamma(2, 0.4, size=num_speakers)[
        speaker, None
    ] * rng.normal(size=(len(speaker), 6))
    i, j = np.triu_indices(len(speaker), 1)
    scores = np.round(-np.linalg.norm(embeddings[i] - embeddings[j], axis=1), decimals)
    return scores, speaker[i] == speaker[j], speaker[i], speaker[j]


def test_equals_metrics_of_repeated_trials():
    scores, is_target, enrol, test = population(0)
    got = metrics.resample(scores, is_target, enrol, test, num_resamples=30, seed=3, are_llrs=True)
    rng = np.random.default_rng(3)
    for r in range(30):
        drawn = np.bincount(rng.integers(12, size=12), minlength=12)
        times = np.where(is_target, drawn[enrol], drawn[enrol] * drawn[test])
        repeated = np.repeat(np.arange(len(scores)), times)
        expected = metrics.summarise(scores[repeated], is_target[repeated], are_llrs=True).flat()
        for name, values in got.items():
            assert values[r] == pytest.approx(expected[name], rel=1e-10), name
    assert got.keys() == expected.keys() - {"eer_rocch", "min_cllr"}


def test_labels_may_be_strings_and_draws_repeat():
    scores, is_target, enrol, test = population(1)
    first = metrics.resample(scores, is_target, enrol, test, num_resamples=20)
    names = np.array([f"id{i:02d}" for i in range(12)])
    second = metrics.resample(scores, is_target, names[enrol], names[test], num_resamples=20)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    other = metrics.resample(scores, is_target, enrol, test, num_resamples=20, seed=1)
    assert not np.array_equal(first["eer"], other["eer"])
    # Same draws for a better system: the paired difference is far narrower than either interval.
    better = metrics.resample(scores + 0.1 * is_target, is_target, enrol, test, num_resamples=20)
    assert np.all(better["eer"] <= first["eer"])


def test_interval_holds_the_rate_and_narrows_with_more_speakers():
    widths = []
    for num_speakers in (8, 40):
        scores, is_target, enrol, test = population(2, num_speakers, decimals=6)
        values = metrics.resample(scores, is_target, enrol, test, num_resamples=200)
        low, high = metrics.intervals(values)["eer"]
        assert low < metrics.eer(metrics.error_curve(scores, is_target)) < high
        widths.append(high - low)
    assert widths[1] < 0.7 * widths[0]


def test_one_speaker_and_no_speakers_say_nothing():
    assert all(np.isnan(metrics.intervals({"eer": np.full(5, np.nan)})["eer"]))
    scores, is_target, enrol, test = population(3, num_speakers=2)
    values = metrics.resample(scores, is_target, enrol, test, num_resamples=50)
    assert 0 < np.isnan(values["eer"]).sum() < 50  # both draws the same speaker: no non-targets


def test_contradicting_speakers_are_refused():
    scores, is_target, enrol, test = population(4)
    test = test.copy()
    test[1] = (test[1] + 1) % 12
    with pytest.raises(
        metrics.ScoreError,
        match=r"1 trials contradict.*trial 1 .*a target trial of speakers 0 and 1",
    ):
        metrics.resample(scores, is_target, enrol, test, num_resamples=2)


@pytest.mark.slow
def test_coverage_of_the_eer_of_all_speakers():
    """95 % intervals from 30 speakers hold the EER of the population nearly that often."""
    truth = []
    for seed in range(3):
        scores, is_target, *_ = population(1000 + seed, 300, 4, decimals=6)
        truth.append(metrics.eer(metrics.error_curve(scores, is_target)))
    held = 0
    for seed in range(100):
        scores, is_target, enrol, test = population(seed, 30, 4, decimals=6)
        values = metrics.resample(
            scores, is_target, enrol, test, p_targets=[0.01], num_resamples=200
        )
        low, high = metrics.intervals(values)["eer"]
        held += low <= np.mean(truth) <= high
    # Percentile intervals of 30 clusters run a little narrow; 3 standard errors of 100 draws = 7.
    assert 85 <= held <= 100
