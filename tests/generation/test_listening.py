"""`generation.listening`: a voice that comes in pieces, with pauses and noise."""

import numpy as np
import pytest

from common import errors
from common.audio import io
from generation import listening
from tests.generation import makers
from tests.generation import people as toy

RATE_HZ = toy.RATE_HZ


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return makers.make(tmp_path_factory.mktemp("network"))


def noise(seconds: float, level: float, seed: int = 0) -> np.ndarray:
    samples = np.random.default_rng(seed).normal(size=round(seconds * RATE_HZ))
    return (level * samples).astype(np.float32)


def babble(seconds: float) -> np.ndarray:
    """One pitch, another sound every 0.15 s."""
    rng, time = np.random.default_rng(0), np.arange(round(0.15 * RATE_HZ)) / RATE_HZ
    buzz = sum(np.sin(2 * np.pi * 120 * k * time) / k for k in range(1, 12))
    parts = [
        0.1 * buzz + rng.uniform(0.02, 0.2) * np.sin(2 * np.pi * rng.uniform(300, 4000) * time)
        for _ in range(round(seconds / 0.15))
    ]
    return np.concatenate(parts).astype(np.float32)


def vectors(network, audio: np.ndarray) -> tuple[listening.Listener, list[np.ndarray]]:
    """Who has heard it second by second, and the vector after each that was not a pause."""
    voice, found = listening.Listener(network), []
    for first in range(0, len(audio), RATE_HZ):
        voice.gather(audio[first : first + RATE_HZ])
        if voice.listen():
            found.append(voice.vector())
    return voice, found


def test_what_comes_in_pieces_of_any_size_is_what_comes_at_once(network):
    """And, of no more than is heard in evaluations, what those hear of it."""
    audio = toy.voice(1, 0.5, 0)
    sizes = np.random.default_rng(1).integers(0, 3000, size=20)
    voice = listening.Listener(network, step_seconds=0.1)
    heard = 0
    for size in sizes:
        if voice.gather(audio[heard : heard + size]):
            voice.listen()
        heard += size
    voice.listen(last=True)
    assert voice.heard_seconds == len(audio) / RATE_HZ
    np.testing.assert_array_equal(voice.vector(), listening.heard(network, audio, "a.wav"))
    # 1e-5: what is padded is summed in another order.
    np.testing.assert_allclose(voice.vector(), network.heard(audio), atol=1e-5)


def test_the_vector_settles(network):
    _, found = vectors(network, babble(24.0))
    steps = np.linalg.norm(np.diff(found, axis=0), axis=1)
    assert steps[-5:].max() < 0.1 * steps[0]
    one, other = (
        network.vector(babble(24.0)[first : first + RATE_HZ]) for first in (0, 19 * RATE_HZ)
    )
    assert np.linalg.norm(other - one) > 3 * steps[-5:].max()


def test_pauses_change_nothing_and_noise_before_a_voice_goes(network):
    speech = babble(6.0)
    hiss, pause = noise(2.0, 0.001, seed=1), noise(3.0, 0.001, seed=2)
    voice, found = vectors(network, np.concatenate([hiss, speech, pause]))
    assert 5.5 < voice.voice_seconds < 6.5
    assert len(found) <= 2 + 6 + 1  # the end of the last sound may ring on into the pause
    expected = vectors(network, speech)[1][-1]
    assert np.linalg.norm(found[-1] - expected) < 0.1 * np.linalg.norm(found[0] - expected)
    voice.gather(np.zeros(RATE_HZ, np.float32))
    assert voice.face() is None


def test_only_the_last_half_minute_is_kept(network):
    voice, found = vectors(network, np.concatenate([toy.voice(0, 6, 0), toy.voice(5, 31, 1)]))
    assert voice.voice_seconds == 30.0
    other = listening.heard(network, toy.voice(5, 31, 1)[-30 * RATE_HZ :], "a.wav")
    np.testing.assert_allclose(found[-1], other, atol=1e-5)
    assert np.abs(found[5] - other).max() > 0.1


def test_cepstra_are_of_a_fixed_time(tmp_path):
    """In samples that are whole frames."""
    mfcc = {"voice.kind": "mfcc", "voice.mfcc.hop_samples": 500}
    network = makers.make(tmp_path, mfcc)
    audio = toy.voice(2, 2.0, 0)
    voice, _ = vectors(network, audio)
    assert voice.voice_seconds == 0.5
    expected = network.heard(audio[-RATE_HZ // 2 :])
    np.testing.assert_allclose(voice.vector(), expected, atol=1e-4)


def test_a_recording_without_a_voice_is_one_message(network, tmp_path):
    for audio, message in (
        (np.zeros(RATE_HZ, np.float32), "a.wav: is silent"),
        (noise(1.0, 1e-5), "a.wav: is silent"),
        (toy.voice(0, 0.3, 0), "a.wav: 0.30 s of speech are too short .* 0.4 s"),
    ):
        with pytest.raises(io.AudioError, match=message):
            listening.heard(network, audio, "a.wav")
    with pytest.raises(io.AudioError, match=r"array: 0\.30 s are too short to make a face of"):
        network.heard(toy.voice(0, 0.3, 0), "array")
    of_classes = makers.make(tmp_path, {"voice.kind": "class"})
    with pytest.raises(errors.UserError, match=r"takes one of ann, .*, and hears nothing: draw"):
        listening.Listener(of_classes)
