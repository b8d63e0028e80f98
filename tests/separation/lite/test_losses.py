"""The losses of VoiceFilter-Lite against NumPy, and where a voice counts as heard."""

import jax.numpy as jnp
import numpy as np
import pytest

from common import errors
from separation.lite import losses


def test_too_much_is_worse_than_too_little():
    apart = jnp.array([-2.0, -0.5, 0.0, 0.5, 2.0])
    np.testing.assert_allclose(losses.asymmetric(apart, 3.0), [-2.0, -0.5, 0.0, 1.5, 6.0])
    np.testing.assert_allclose(losses.asymmetric(apart, 1.0), apart)


def test_the_terms_are_those_of_loops_over_true_frames():
    rng = np.random.default_rng(0)
    enhanced, wanted = rng.normal(size=(2, 3, 6, 4))
    logits, overlapped = rng.normal(size=(3, 6)), rng.random((3, 6)) < 0.5
    frames, config = np.array([6, 2, 0]), losses.LiteLossConfig(0.5, 2.0, 1.5)
    total = entropy = 0.0
    for b in range(3):
        for t in range(frames[b]):
            for f in range(4):
                x = wanted[b, t, f] - enhanced[b, t, f]
                total += x**2 if x <= 0 else (1.5 * x) ** 2
            probability = 1 / (1 + np.exp(-logits[b, t]))
            entropy -= np.log(probability if overlapped[b, t] else 1 - probability)
    # What lies beyond the lengths may be anything.
    enhanced[1, 2:], logits[2] = np.nan, np.inf
    given = (jnp.float32(x) for x in (enhanced, wanted, logits))
    found = losses.terms(*given, jnp.array(overlapped), jnp.array(frames), config)
    assert found["feature_loss"].total == pytest.approx(total, rel=1e-5)
    assert (found["feature_loss"].count, found["feature_loss"].weight) == (32, 0.5)
    assert found["noise_type_loss"].total == pytest.approx(entropy, rel=1e-5)
    assert (found["noise_type_loss"].count, found["noise_type_loss"].weight) == (8, 2.0)


def test_no_more_is_asked_of_a_mask_than_it_can():
    clean, mixture = jnp.array([[[0.0, -20.0]]]), jnp.array([[[1.0, 2.0]]])
    found = losses.reachable(clean, mixture, 1e-3)
    np.testing.assert_allclose(found, [[[0.0, 2.0 + np.log(1e-3)]]], rtol=1e-6)


def test_a_voice_is_heard_within_30_db_of_the_loudest_frame():
    db = np.log(10) / 10
    mixture = np.full((2, 4, 3), -50.0 * db)
    mixture[:, 0] = 0.0
    mixture[0, 3] = 40 * db  # beyond the length
    own = np.stack([[0.0, -29.0, -31.0, 0.0], [-31.0, -60.0, -29.0, -1.0]]) * db
    own = np.repeat(own[:, :, None], 3, axis=2)
    found = losses.active(jnp.float32(own), jnp.float32(mixture), jnp.array([3, 4]))
    np.testing.assert_array_equal(found, [[1, 1, 0, 0], [0, 0, 1, 1]])


def test_weights_that_cannot_be():
    for settings in ({"features": 0}, {"noise_type": -1}, {"alpha": 0.5}):
        with pytest.raises(errors.UserError, match=r"config\.loss\.lite"):
            losses.LiteLossConfig(**settings)
