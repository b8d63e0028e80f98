"""From log-mel back to sound: heard again by librosa's front end."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.audio import frontend, inverse, io
from tests.common import test_frontend

CONFIG = frontend.LogMelConfig(normalize="none")
FRAMES = 64


@functools.cache
def made():
    return jax.jit(lambda log_mel, keys: inverse.sound(log_mel, CONFIG, keys))


def test_a_recording_comes_back_with_its_level(speech_data):
    path = next((speech_data / "sentences" / "an4").rglob("*.flac"))
    samples = inverse.num_samples(FRAMES, CONFIG)
    assert samples == 63 * 160 + 400
    audio = io.load_audio(path, sample_rate_hz=16000)[4000 : 4000 + samples]
    silent = np.zeros_like(audio)
    both = jnp.asarray(np.stack([audio, silent]))
    log_mel, _ = frontend.log_mel(both, jnp.full(2, samples), CONFIG)
    keys = jax.random.split(jax.random.key(0), 2)
    found = np.asarray(made()(log_mel[:, :FRAMES], keys))
    assert found.shape == (2, samples)
    before, after = (test_frontend.librosa_log_mel(x, CONFIG)[:FRAMES] for x in (audio, found[0]))
    # 80 bands do not say all of 257 bins, and no phases.
    assert 10 / np.log(10) * np.abs(after - before).mean() < 1.2
    assert 20 * np.log10(found[0].std() / audio.std()) == pytest.approx(0, abs=1)
    # Silence is at the floor of the log-mel spectrum.
    assert np.abs(found[1]).max() < 1e-3
    # A row is by its own key what it is alone, but for rounding, which the phases may enlarge.
    alone = np.asarray(made()(log_mel[:1, :FRAMES], keys[:1]))
    again, _ = frontend.log_mel(
        jnp.asarray(np.stack([alone[0], found[0]])), jnp.full(2, samples), CONFIG
    )
    np.testing.assert_allclose(again[0, :FRAMES], again[1, :FRAMES], atol=0.05)


@pytest.mark.parametrize("change", [{"normalize": "utterance"}, {"compat": "kaldi"}])
def test_what_has_lost_the_level_is_refused(change):
    config = dataclasses.replace(CONFIG, **change)
    with pytest.raises(ValueError, match='only "none" and "default" lead back'):
        inverse.sound(jnp.zeros((1, 8, 80)), config, jax.random.split(jax.random.key(0), 1))
