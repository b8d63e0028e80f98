"""Transforms and cosine against scikit-learn and loops."""

import numpy as np
import pytest
import sklearn.discriminant_analysis

from speaker import backend, metrics


def speakers_in_noise(seed=0, num_speakers=20, per_speaker=6, d=10):
    rng = np.random.default_rng(seed)
    speaker = np.repeat(np.arange(num_speakers), per_speaker)
    means = rng.normal(size=(num_speakers, d)) * np.linspace(0.1, 2, d)
    noise = rng.normal(size=(len(speaker), d)) * np.linspace(3, 0.5, d)
    return means[speaker] + noise + 5, speaker


def test_length_normalisation():
    x, _ = speakers_in_noise()
    unit = backend.length_normalise(x.astype(np.float32))
    assert unit.dtype == np.float64
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(unit[3], x[3] / np.sqrt(np.sum(x[3] ** 2)), rtol=1e-6)
    for value in (0.0, np.nan, np.inf):
        bad = x.copy()
        bad[4] = value
        with pytest.raises(backend.EmbeddingError, match=r"1 of 120 embeddings .* row 4"):
            backend.length_normalise(bad)


def test_mean_subtraction():
    x, _ = speakers_in_noise()
    transform, centred = backend.fit_mean(x), x - x.mean(0)
    expected = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    np.testing.assert_allclose(transform(x[:2]), expected[:2], atol=1e-12)
    with pytest.raises(backend.EmbeddingError, match="takes embeddings of 10 dimensions, got 3"):
        transform(x[:, :3])


def projected(transform, x):
    """What comes before the length normalisation."""
    return (x - transform.mean) @ transform.projection


def test_lda_equals_scikit_learn():
    x, speaker = speakers_in_noise()
    transform = backend.fit_lda(x, speaker, 5)
    oracle = sklearn.discriminant_analysis.LinearDiscriminantAnalysis(n_components=5)
    expected = oracle.fit(x, speaker).transform(x)
    np.testing.assert_allclose(projected(transform, x), expected, atol=1e-8)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(transform(x), expected, atol=1e-8)


def test_lda_whitens_within_speakers_and_helps():
    x, speaker = speakers_in_noise()
    y = projected(backend.fit_lda(x, speaker, 4), x)
    _, means, counts = backend.speaker_means(y, speaker)
    residual = y - means[speaker]
    within = residual.T @ residual / len(y)  # the divisor of scikit-learn
    np.testing.assert_allclose(within, np.eye(4), atol=1e-9)
    between = means.var(0)
    assert np.all(np.diff(between) < 0)
    assert set(counts) == {6}

    test, test_speaker = speakers_in_noise(seed=0, per_speaker=12)
    i, j = np.triu_indices(len(test), 1)
    is_target = test_speaker[i] == test_speaker[j]
    rates = []
    for transform in (backend.fit_mean(x), backend.fit_lda(x, speaker, 6)):
        z = transform(test)
        scores = backend.cosine_trials(z, z, i, j)
        rates.append(metrics.eer(metrics.error_curve(scores, is_target)))
    assert rates[1] < 0.7 * rates[0]


def test_lda_limits_are_named():
    x, speaker = speakers_in_noise(num_speakers=5)
    with pytest.raises(backend.EmbeddingError, match="5 speakers allow 1 to 4"):
        backend.fit_lda(x, speaker, 5)
    with pytest.raises(backend.EmbeddingError, match="several utterances"):
        backend.fit_lda(x, np.arange(len(x)), 5)
    flat = np.concatenate([x[:, :2], x[:, :2], x[:, :2]], axis=1)
    assert backend.fit_lda(flat, speaker, 2).projection.shape == (6, 2)
    with pytest.raises(backend.EmbeddingError, match="only 2 directions"):
        backend.fit_lda(flat, speaker, 4)


def test_speaker_means_take_any_order_and_labels():
    x, _ = speakers_in_noise()
    names = np.random.default_rng(0).choice(["c", "a", "b"], size=len(x))
    got_names, means, counts = backend.speaker_means(x, names)
    assert got_names.tolist() == ["a", "b", "c"]
    for name, mean, count in zip(got_names, means, counts):
        np.testing.assert_allclose(mean, x[names == name].mean(0), rtol=1e-12)
        assert count == (names == name).sum()


def test_cosine_equals_a_loop():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(7, 5)), rng.normal(size=(4, 5)).astype(np.float32)
    expected = [[x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in b.astype(float)] for x in a]
    np.testing.assert_allclose(backend.cosine_matrix(a, b), expected, rtol=1e-12)
    i, j = rng.integers(7, size=50), rng.integers(4, size=50)
    got = backend.cosine_trials(a, b, i, j, block=8)
    np.testing.assert_allclose(got, np.array(expected)[i, j], rtol=1e-12)
