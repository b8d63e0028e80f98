"""Energy VAD against Kaldi's rule as a loop, energies against Kaldi's features; WebRTC's VAD."""

import sys

import jax
import numpy as np
import pytest
import soxr

from common import errors
from common.audio import io, kaldi, vad

RATE_HZ = 16000


def decide(log_energy: np.ndarray, config: vad.EnergyVad) -> list[bool]:
    """The rule, frame by frame."""
    threshold = config.energy_threshold + config.energy_mean_scale * log_energy.mean()
    decisions = []
    for t in range(len(log_energy)):
        around = [
            log_energy[u] > threshold
            for u in range(t - config.frames_context, t + config.frames_context + 1)
            if 0 <= u < len(log_energy)
        ]
        share = np.float32(len(around)) * np.float32(config.proportion_threshold)
        decisions.append(sum(around) >= share)
    return decisions


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"energy_threshold": 5.0, "frames_context": 0, "proportion_threshold": 0.6},
        {"frames_context": 2, "proportion_threshold": 0.6},
        {"frames_context": 40, "proportion_threshold": 0.5},
        {"energy_threshold": 10.0, "energy_mean_scale": 0.0, "frames_context": 7},
    ],
)
@pytest.mark.parametrize("frames", [1, 2, 5, 60])
def test_decisions_are_those_of_the_loop(changes, frames):
    config = vad.EnergyVad(**changes)
    rng = np.random.default_rng(frames)
    seen = set()
    for _ in range(20):
        energies = rng.normal(10.0, 4.0, frames).astype(np.float32)
        found = vad.energy_vad(energies, config)
        assert found.tolist() == decide(energies, config)
        seen |= set(found.tolist())
    assert seen == {True, False} or frames < 60


def test_three_of_five_are_six_tenths():
    config = vad.EnergyVad(
        energy_threshold=0.5, energy_mean_scale=0.0, frames_context=2, proportion_threshold=0.6
    )
    loud = np.array([0, 1, 1, 0, 1, 0, 0, 0], np.float32)
    # 2 of 3, 2 of 4, 3 of 5, 3 of 5, 2 of 5, 1 of 5, 1 of 4, 0 of 3
    expected = [True, False, True, True, False, False, False, False]
    assert vad.energy_vad(loud, config).tolist() == expected


@pytest.mark.parametrize(
    ("rate", "samples"),
    [(RATE_HZ, 15999), (RATE_HZ, 16080), (RATE_HZ, 300), (RATE_HZ, 80), (8000, 4041)],
)
def test_energies_are_those_of_kaldi(rate, samples):
    rng = np.random.default_rng(samples)
    audio = (0.1 * rng.normal(size=samples) + 0.05).astype(np.float32)  # with an offset
    config = kaldi.KaldiConfig(sample_rate_hz=rate, snip_edges=False)
    expected, lengths = kaldi.spectrogram(
        jax.numpy.asarray(audio)[None], jax.numpy.array([samples]), config
    )
    found = vad.log_energy(audio, rate)
    assert len(found) == int(lengths[0])
    # Column 0 is the raw log energy; float32 sums in another order.
    np.testing.assert_allclose(found, expected[0, :, 0], atol=2e-4)


def burst(seconds: float, level: float) -> np.ndarray:
    rng = np.random.default_rng(int(1000 * seconds))
    return (level * rng.normal(size=round(seconds * RATE_HZ))).astype(np.float32)


def test_pauses_are_cut_out():
    parts = [burst(0.5, 1e-4), burst(0.7, 0.1), burst(0.6, 1e-4), burst(0.4, 0.1), burst(0.3, 1e-4)]
    kept = vad.keep_speech(np.concatenate(parts), RATE_HZ)
    # Frames half in a burst are loud, and two more on each side belong to it.
    assert 1.1 * RATE_HZ <= len(kept) <= 1.1 * RATE_HZ + 4 * 4 * 160
    strict = vad.EnergyVad(frames_context=0, proportion_threshold=0.6)
    kept = vad.keep_speech(np.concatenate(parts), RATE_HZ, strict)
    assert abs(len(kept) - 1.1 * RATE_HZ) <= 4 * 160
    # What is kept is made of stretches of the recording, in order.
    speech = np.concatenate([parts[1], parts[3]])
    assert np.isin(speech[400:-400], kept).mean() > 0.97


def test_the_rest_of_the_last_frame_goes_with_it():
    audio = burst(1.0, 0.1)[: 16000 - 90]  # 99 frames of 160 and 70 samples more
    assert len(vad.log_energy(audio, RATE_HZ)) == 99
    # Even noise: every frame is above 5.5 + half of about 16.
    np.testing.assert_array_equal(vad.keep_speech(audio, RATE_HZ), audio)


def test_stretches_are_what_is_kept():
    audio = np.concatenate([burst(0.5, 1e-4), burst(0.7, 0.1), burst(0.6, 1e-4), burst(0.405, 0.1)])
    stretches = vad.speech_stretches(audio, RATE_HZ)
    assert stretches.shape == (2, 2)
    assert (stretches.ravel()[:3] % 160 == 0).all()
    assert stretches[1, 1] == len(audio)
    kept = np.concatenate([audio[start:end] for start, end in stretches])
    np.testing.assert_array_equal(vad.keep_speech(audio, RATE_HZ), kept)
    assert vad.speech_stretches(np.zeros(800, np.float32), RATE_HZ).shape == (0, 2)


@pytest.mark.parametrize("samples", [0, 1, 79, 16000])
def test_silence_and_nothing_hold_no_speech(samples):
    audio = np.zeros(samples, np.float32)
    assert len(vad.keep_speech(audio, RATE_HZ)) == 0
    assert vad.keep_speech(audio, RATE_HZ).dtype == np.float32


@pytest.mark.parametrize(
    "changes",
    [
        {"frames_context": -1},
        {"energy_mean_scale": -0.5},
        {"proportion_threshold": 0.0},
        {"proportion_threshold": 1.0},
    ],
)
def test_what_kaldi_refuses_is_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        vad.EnergyVad(**changes)


def test_real_speech_is_mostly_kept(speech_data):
    path = speech_data / "sentences" / "an4" / "train" / "fash" / "fash-an251.flac"
    audio = io.load_audio(path, sample_rate_hz=RATE_HZ)
    share = len(vad.keep_speech(audio, RATE_HZ)) / len(audio)
    assert 0.3 < share < 1.0


def hum(seconds: float) -> np.ndarray:
    """A voiced sound at 120 Hz whose level moves like syllables."""
    t = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    tones = sum(np.sin(2 * np.pi * 120 * k * t + k) / k for k in range(1, 30))
    return (0.05 * tones * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * t))).astype(np.float32)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100])
def test_webrtc_finds_voices_at_every_rate(rate):
    """In 0.5 s pause, 1 s voice, 0.75 s pause, 0.5 s voice, 0.5 s pause; it stays on for a bit."""
    pytest.importorskip("webrtcvad")
    gaps = [burst(s, 1e-3) for s in (0.5, 0.75, 0.5)]
    audio = np.concatenate([gaps[0], hum(1.0), gaps[1], hum(0.5), gaps[2]])
    audio = soxr.resample(audio, RATE_HZ, rate).astype(np.float32)
    stretches = vad.speech_stretches(audio, rate, vad.WebRtcVad(aggressiveness=3))
    seconds = stretches[-2:] / rate
    np.testing.assert_allclose(seconds, [[0.5, 1.5], [2.25, 2.75]], atol=0.16)
    assert (seconds[:, 0] < [0.52, 2.28]).all()
    assert (seconds[:, 1] > [1.48, 2.73]).all()
    kept = vad.keep_speech(audio, rate, vad.WebRtcVad(3))
    assert len(kept) == (stretches[:, 1] - stretches[:, 0]).sum()


@pytest.mark.parametrize("samples", [0, 1, 479, 481, 16000])
def test_webrtc_hears_nothing_in_silence(samples):
    pytest.importorskip("webrtcvad")
    kept = vad.keep_speech(np.zeros(samples, np.float32), RATE_HZ, vad.WebRtcVad())
    assert (kept.dtype, len(kept)) == (np.float32, 0)


def test_webrtc_loud_recordings_do_not_wrap():
    """Samples beyond full scale are clipped, so that they stay the same voice."""
    pytest.importorskip("webrtcvad")
    audio = np.concatenate([burst(0.5, 1e-3), 30 * hum(1.0)])
    clipped = np.clip(audio, -1, 1)
    loud, expected = (vad.speech_stretches(x, RATE_HZ, vad.WebRtcVad()) for x in (audio, clipped))
    np.testing.assert_array_equal(loud, expected)


@pytest.mark.parametrize("changes", [{"aggressiveness": 4}, {"hop_ms": 25}])
def test_webrtc_refuses_what_it_does_not_take(changes):
    with pytest.raises(ValueError, match="aggressiveness is 0 to 3, hop_ms 10, 20 or 30"):
        vad.WebRtcVad(**changes)


def test_webrtc_without_its_package_is_one_message(monkeypatch):
    monkeypatch.setitem(sys.modules, "webrtcvad", None)
    with pytest.raises(errors.UserError, match="pip install webrtcvad-wheels, or choose energy"):
        vad.WebRtcVad()
