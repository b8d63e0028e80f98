"""Fundamental frequencies: known ones, librosa's on speech, padding."""

import jax
import librosa
import numpy as np
import pytest

from common.audio import pitch

CONFIG = pitch.PitchConfig()
yin = jax.jit(lambda audio, lengths: pitch.yin(audio, lengths, CONFIG))


def voice(hertz, samples=8000):
    """A pulse train behind a slow decay."""
    phase = np.cumsum(np.broadcast_to(hertz, (samples,))) / 16000
    pulses = np.diff(np.floor(phase), prepend=0.0)
    return np.convolve(pulses, 0.95 ** np.arange(200))[:samples].astype(np.float32)


def found(audio, length=None):
    padded = np.zeros((1, 16000), np.float32)
    padded[0, : len(audio)] = audio
    hertz, periodicity = yin(padded, np.array([length or len(audio)], np.int32))
    return np.asarray(hertz)[0], np.asarray(periodicity)[0]


@pytest.mark.parametrize("hertz", [70.0, 111.3, 230.0, 450.0])
def test_heights_are_known(hertz):
    got, periodicity = found(voice(hertz))
    np.testing.assert_allclose(got[3:45], hertz, rtol=0.01)
    assert periodicity[3:45].min() > 0.8


def test_a_glide_is_followed():
    hertz = np.geomspace(100, 200, 8000)
    got, _ = found(voice(hertz))
    middles = CONFIG.middle + CONFIG.hop_size * np.arange(3, 45)
    np.testing.assert_allclose(got[3:45], hertz[middles], rtol=0.03)


def test_noise_and_silence_have_no_height():
    rng = np.random.default_rng(0)
    _, periodicity = found(rng.normal(size=8000).astype(np.float32))
    assert periodicity.max() < 0.6
    for audio in (np.zeros(8000), 1e-5 * rng.normal(size=8000), 1e-5 * voice(100.0)):
        hertz, periodicity = found(audio.astype(np.float32))
        np.testing.assert_array_equal(periodicity, 0)
        np.testing.assert_array_equal(hertz, 0)


def test_a_padded_row_gives_what_it_gives_alone():
    rows = np.stack([voice(120.0), voice(200.0)]) + 0.01
    lengths = np.array([8000, 3300], np.int32)
    rows[1, 3300:] = np.nan
    together = yin(rows, lengths)
    alone = yin(rows[1:, :3300], lengths[1:])
    for both, one in zip(together, alone):
        assert both.shape == (2, 50)
        assert one.shape == (1, 21)
        np.testing.assert_allclose(both[1, :21], one[0], rtol=1e-3)
        np.testing.assert_array_equal(both[1, 21:], 0)


def test_it_agrees_with_librosa_on_a_voice():
    """pYIN, with a Viterbi search behind it, of a voice with an open and closing mouth."""
    rng = np.random.default_rng(0)
    slow = np.interp(np.arange(16000), np.arange(0, 16001, 1600), rng.uniform(90, 180, 11))
    audio = voice(slow, 16000) * np.interp(np.arange(16000), [0, 8000, 15999], [0.2, 1, 0.2])
    audio = (audio + 0.02 * rng.normal(size=16000)).astype(np.float32)
    theirs, voiced, _ = librosa.pyin(audio, fmin=60, fmax=500, sr=16000, hop_length=160)
    got, periodicity = found(audio)
    late = 1  # frame i has its middle at i * hop + 200, theirs at i * hop
    theirs, voiced = theirs[late : late + 96], voiced[late : late + 96]
    away = 12 * np.abs(np.log2(got[:96][voiced] / theirs[voiced]))
    assert voiced.mean() > 0.8
    assert np.median(away) < 0.5
    assert np.mean(away > 2) < 0.12
    assert np.median(periodicity[:96][voiced]) > 0.7


@pytest.mark.parametrize("wrong", [{"low_hz": 0.0}, {"high_hz": 5000.0}, {"hop_size": 0}])
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match=r"need 0 <|have to be positive"):
        pitch.PitchConfig(**wrong)
