"""Responses of filters that are known: bands, modulations, ranks."""

import numpy as np
import pytest

from asr import responses


def test_a_filter_of_one_modulation_and_one_band():
    """u is a cosine of 12.5 Hz at 100 frames a second, v one band of 20."""
    u = np.cos(2 * np.pi * 12.5 * np.arange(64) / 100)
    v = np.zeros(20)
    v[7] = 3.0
    found = responses.layer("x", np.stack([np.outer(u, v), -2 * np.outer(u, v)]), 100.0)
    assert found.hz[-1] == 50.0
    assert found.hz[np.argmax(found.modulation)] == pytest.approx(12.5, abs=0.5)
    assert found.modulation.sum() == pytest.approx(1.0)
    assert found.spectral[7] == pytest.approx(1.0)
    assert found.channels_used == pytest.approx(1.0)
    assert found.best_share == pytest.approx(1.0)
    assert found.stable_rank == pytest.approx(1.0)
    assert responses.share_below(found, 16.0) > 0.9
    assert responses.share_below(found, 8.0) < 0.1
    np.testing.assert_array_equal(found.filters[1], -2 * np.outer(u, v))


def test_a_filter_of_full_rank():
    """Orthonormal rows of equal size: every direction counts alike."""
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))
    found = responses.layer("x", q[None, :4], 100.0)
    assert found.best_share == pytest.approx(1 / 4)
    assert found.stable_rank == pytest.approx(4.0)


def test_bands_of_a_filter_bank():
    time = np.arange(400) / 16000
    window = np.hanning(400)
    filters = np.stack([window * np.cos(2 * np.pi * f * time) for f in (500, 3000)], axis=1)
    found = responses.bands(np.concatenate([filters, np.zeros((400, 1))], axis=1), 16000)
    assert len(found.power) == 2  # that of no energy is left out
    np.testing.assert_allclose(found.centres, [500, 3000], atol=5)
    assert (found.widths < 60).all()
    wide = responses.bands(filters[::8] * window[::8, None], 16000)
    assert (wide.widths > found.widths).all()
