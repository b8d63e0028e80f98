"""Where harmonics lie in log-mel bands; how high a voice is, and moved."""

import jax.numpy as jnp
import numpy as np
import pytest

from common.audio import frontend
from generation import harmonics

RATE_HZ = 16000
FRONT_END = frontend.LogMelConfig(
    num_mels=80, max_hz=7600.0, window_ms=32.0, normalize="none", floor=1e-12, preemphasis=0.0
)


def buzz(hertz, samples):
    """Harmonics of one strength."""
    phase = 2 * np.pi * np.cumsum(np.broadcast_to(hertz, (samples,))) / RATE_HZ
    count = int(RATE_HZ / 2 / np.max(hertz))
    return sum(np.cos(k * phase + k * k) for k in range(1, count + 1)).astype(np.float32)


@pytest.mark.parametrize("hertz", [97.0, 203.0, 411.0])
def test_combs_are_those_of_a_real_buzz(hertz):
    """Less the spectrum of noise, which is measured; where the comb is not cut off."""
    lengths = jnp.array([RATE_HZ // 2])
    heard, _ = frontend.log_mel(jnp.asarray(buzz(hertz, RATE_HZ // 2)[None]), lengths, FRONT_END)
    noise = np.random.default_rng(0).normal(size=(1, 10 * RATE_HZ)).astype(np.float32)
    noise, _ = frontend.log_mel(jnp.asarray(noise), jnp.array([10 * RATE_HZ]), FRONT_END)
    expected = heard[0, 20] - jnp.log(jnp.exp(noise[0]).mean(0))
    frames = jnp.array([[hertz, hertz, 0.0]])
    comb = np.asarray(harmonics.combs(frames, jnp.array([1]), FRONT_END))
    np.testing.assert_array_equal(comb[0, 1:], 0)
    clear = comb[0, 0] > -1.5
    assert clear.sum() > 25
    apart = np.asarray(expected)[clear] - comb[0, 0][clear]
    assert np.abs(apart - np.median(apart)).max() < 0.25  # a level is not a height
    assert np.corrcoef(expected, comb[0, 0])[0, 1] > 0.85


def test_heights_are_those_of_the_frames_of_a_front_end():
    """A step in the middle is found where the log-mel frames have it."""
    hertz = np.where(np.arange(RATE_HZ) < 8000, 120.0, 200.0)
    audio, lengths = jnp.asarray(0.01 * buzz(hertz, RATE_HZ)[None]), jnp.array([RATE_HZ])
    found, periodicity = (np.asarray(x)[0] for x in harmonics.heights(audio, lengths, FRONT_END))
    _, frames = frontend.log_mel(audio, lengths, FRONT_END)
    assert found.shape == (int(frames[0]),)
    at = (8000 - FRONT_END.window_size // 2) / FRONT_END.hop_size  # half of the window each
    assert at - 3 <= np.argmax(found > 150) <= at + 3
    np.testing.assert_allclose(found[2:45], 120, rtol=0.01)
    np.testing.assert_allclose(found[52:95], 200, rtol=0.01)
    assert periodicity[2:45].min() > 0.9


def test_means_and_moves_are_in_octaves():
    hertz = jnp.array([[100.0, 200.0, 333.0, 0.0], [0.0] * 4])
    periodicity = jnp.array([[1.0, 1.0, 0.3, 0.0], [0.0] * 4])
    mean, count = harmonics.mean(hertz, periodicity)
    np.testing.assert_allclose(mean, [np.log2(100) + 0.5, harmonics.MIDDLE], rtol=1e-6)
    np.testing.assert_allclose(count, [2, 0])
    moved = harmonics.moved(hertz, jnp.array([1.0, 1.0]))
    np.testing.assert_allclose(moved, [[200, 400, harmonics.HIGH_HZ, 0], [0] * 4], rtol=1e-6)
