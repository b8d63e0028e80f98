"""`asr.load`: a work directory as a function from recordings to transcripts."""

import dataclasses
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import asr
from asr import task as asr_task
from asr import tokenizer as tokenizer_lib
from asr import transcriber
from common import checkpoint, errors, parallel, workdir
from common.audio import frontend, io
from configs.asr import quickstart

RATE_HZ = 16000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A recogniser that was never trained, of few labels, which says something of anything."""
    folder = tmp_path_factory.mktemp("run")
    config = quickstart.get_config("debug")
    config.decoder.update({"loss": "ctc", "max_symbols": 1})
    config.ema_decay = 0.0
    config = workdir.freeze(config)
    wanted = tokenizer_lib.TokenizerConfig("char", 0, case="upper")
    tokenizer_lib.train_tokenizer(["ABC DE"], wanted, folder / "tokenizer")
    workdir.save_config(folder, "asr", config)
    task = asr_task.make_task(config, folder)
    state = task.create_state(jax.jit(task.init)(jax.random.key(3)))
    saver = checkpoint.Checkpointer(folder / "checkpoints")
    state = parallel.place(state, parallel.make_mesh(jax.devices()[:1]))
    saver.save(7, state, None, {**task.checkpoint_meta(), "evaluated": -1}, None)
    saver.close()
    return folder


@pytest.fixture(scope="module")
def recognizer(folder):
    return asr.load(folder)


def noise(seconds, seed=0):
    rng = np.random.default_rng(seed)
    shape = np.sin(np.arange(int(seconds * RATE_HZ)) / 900.0)
    return (0.1 * shape * rng.normal(size=len(shape))).astype(np.float32)


def test_a_transcript_says_when_and_how_sure(recognizer):
    audio = noise(2.0)
    found = recognizer(audio, RATE_HZ)
    assert found.seconds == 2.0
    assert "".join(found.tokens).replace("▁", " ").split() == found.text.split()
    assert len(found.tokens) == len(found.times) == len(found.probabilities) > 0
    assert list(found.times) == sorted(found.times)
    assert 0 <= found.times[0] <= found.times[-1] < 2.0
    assert all(0 < p <= 1 for p in found.probabilities)
    assert min(found.probabilities) <= found.confidence <= max(found.probabilities)


def test_a_file_is_worth_its_samples(recognizer, tmp_path):
    audio = np.round(noise(1.5, seed=1) * 32768) / 32768
    io.write_wav(tmp_path / "a.wav", audio, RATE_HZ)
    assert recognizer(tmp_path / "a.wav") == recognizer(audio.astype(np.float32), RATE_HZ)


def test_several_are_worth_what_each_is_worth(recognizer):
    audio = [noise(1.0, seed=2), noise(3.0, seed=3), noise(0.3, seed=4)]
    together = recognizer.many(audio)
    for samples, found in zip(audio, together):
        alone = recognizer(samples, RATE_HZ)
        assert (found.text, found.times) == (alone.text, alone.times)


def test_a_short_recording_costs_what_it_is_long(recognizer, monkeypatch):
    """One of 3 s is one row of 4 s on each device, not 64 s; many fill batches of 64 s."""
    shapes = []
    search = recognizer._search

    def watched(variables, batch):
        shapes.append(batch["audio"].shape)
        return search(variables, batch)

    monkeypatch.setattr(recognizer, "_search", watched)
    recognizer(noise(3.0), RATE_HZ)
    assert shapes == [(jax.device_count(), 4 * RATE_HZ)]
    batches = list(transcriber._batches([noise(0.5)] * 17 + [noise(5.0)] * 3, RATE_HZ, 1))
    assert [batch["audio"].shape for batch in batches] == [
        *[(16, 4 * RATE_HZ)] * 2,
        (4, 8 * RATE_HZ),
    ]
    assert [int(batch["mask"].sum()) for batch in batches] == [16, 1, 3]


def test_times_go_on_over_the_pieces_of_a_long_recording(recognizer):
    found = recognizer(noise(50.0, seed=5), RATE_HZ)
    assert list(found.times) == sorted(found.times)
    assert 30 < found.times[-1] < 50


def test_segments_and_words_have_the_times_of_the_recording(recognizer):
    pause = 1e-4 * noise(1.0, seed=8)
    found = recognizer(np.concatenate([noise(9.0, seed=6), pause, noise(9.0, seed=7)]), RATE_HZ)
    assert " ".join(part.text for part in found.segments) == found.text
    assert any(abs(part.start - 9.5) < 0.4 for part in found.segments)
    assert all(0 <= part.start < part.end <= 19.0 for part in found.segments)
    assert " ".join(word.text for word in found.words) == found.text
    assert all(0 <= word.start <= word.end <= 19.0 for word in found.words)
    assert all(0 < word.confidence <= 1 for word in found.words)


def test_digital_silence_has_no_words(recognizer):
    found = recognizer(np.zeros(2 * RATE_HZ, np.float32), RATE_HZ)
    assert (found.text, found.tokens, found.seconds) == ("", (), 2.0)
    assert math.isnan(found.confidence)


def features_of(recognizer, pieces):
    """As its own front end has them before it normalises them."""
    config = dataclasses.replace(recognizer.front_end, normalize="none")
    compute = jax.jit(lambda x: frontend.log_mel(x, jnp.array([x.shape[1]]), config)[0][0])
    return [np.asarray(compute(x[None])) for x in pieces]


def test_features_are_worth_the_sound_that_they_are_of(recognizer):
    """Padded with other shapes: rounding moves probabilities, not words."""
    audio = [noise(1.0, seed=2), noise(3.0, seed=3), np.zeros(RATE_HZ, np.float32)]
    plain = recognizer.many(audio)
    assert plain[0].text != plain[1].text
    for found, same in zip(
        recognizer.many(audio, lambda pieces: features_of(recognizer, pieces)), plain
    ):
        assert (found.text, found.times) == (same.text, same.times)
        np.testing.assert_allclose(found.probabilities, same.probabilities, rtol=1e-4)
    # Whole, where `many` leaves silence at the ends out.
    assert recognizer.texts_of(features_of(recognizer, audio[:2])) == [x.text for x in plain[:2]]
    assert recognizer.texts_of([]) == []
    with pytest.raises(ValueError, match=r"33\.0 s at once"):
        recognizer.texts_of([np.zeros((3300, 40), np.float32)])


def test_learned_features_are_not_given(recognizer, monkeypatch):
    bank = types.SimpleNamespace(model=types.SimpleNamespace(front_end="a learned one"))
    monkeypatch.setattr(recognizer, "_task", bank)
    with pytest.raises(errors.UserError, match=r"config\.features\.kind=learned\) and takes no"):
        recognizer.texts_of([np.zeros((10, 40), np.float32)])


def test_what_is_no_recogniser_is_one_message(folder, tmp_path):
    with pytest.raises(errors.UserError, match="is no work directory"):
        asr.load(tmp_path)
    with pytest.raises(errors.UserError, match="no checkpoint of step 5"):
        asr.load(folder, step=5)
