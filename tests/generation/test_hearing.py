"""What is known of a row beside noise: cepstra against librosa, their sizes and scales; classes."""

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from common import errors
from generation import hearing
from tests.generation import people as toy
from tests.generation import test_layouts as tasks


def cepstra(coefficients, samples=80_000):
    return hearing.Mfcc(coefficients, 2048, 1024, toy.RATE_HZ, samples)


@pytest.mark.parametrize(("coefficients", "size"), [(16, 640), (98, 3920)])
def test_cepstra_are_those_of_librosa_in_the_seeds_sizes(coefficients, size):
    heard = cepstra(coefficients)
    assert heard.size == size
    audio = np.stack([toy.voice(k, 5.0, 0) for k in range(2)])
    audio[1, 30_000:] = 0  # 80 dB below the loudest, in part
    found, frames = jax.jit(heard.cepstra)(audio, jnp.array([80_000, 80_000]))
    assert frames.tolist() == [40, 40]
    for row, one in zip(np.asarray(found), audio):
        wanted = librosa.feature.mfcc(
            y=one, sr=toy.RATE_HZ, n_mfcc=coefficients, n_fft=1024, hop_length=2048
        )
        # Decibels, of which float32 has four digits behind the point after a sum of 128.
        np.testing.assert_allclose(row.T, wanted, atol=0.02)


@pytest.mark.parametrize("bands", [40, 64, 80])
def test_statistics_are_of_as_many_bands_as_are_asked_for(tmp_path, bands):
    heard = tasks.make_task(tmp_path, features__num_mels=bands).networks.hearing
    audio = jnp.asarray(np.stack([toy.voice(k, 0.5, 0) for k in range(2)]))
    found = heard(None, {"audio": audio}, None)
    assert found.shape == (2, heard.size) == (2, 2 * bands)
    assert np.abs(found[0] - found[1]).max() > 0.1


def test_a_padded_row_has_the_cepstra_that_it_has_alone():
    heard = cepstra(16)
    audio = jnp.asarray(toy.voice(2, 5.0, 1))
    count = 41_000
    found, frames = heard.cepstra(audio[None], jnp.array([count]))
    alone, _ = cepstra(16, count).cepstra(audio[None, :count], jnp.array([count]))
    assert frames.tolist() == [1 + count // 2048]
    np.testing.assert_allclose(found[0, : alone.shape[1]], alone[0], atol=1e-3)
    assert not np.asarray(found[0, alone.shape[1] :]).any()
    scales = {"mean": jnp.ones(16), "deviation": jnp.full(16, 2.0)}
    vector = heard(scales, {"audio": audio[None]}, jnp.array([count]))[0].reshape(40, 16)
    np.testing.assert_allclose(vector[: alone.shape[1]], (alone[0] - 1) / 2, atol=1e-3)
    assert not np.asarray(vector[alone.shape[1] :]).any()


def test_they_are_scaled_by_the_training_recordings(tmp_path):
    """The mean of each coefficient is 0 there and its variance 1: asariri's were not scaled."""
    task = toy.make_task(tmp_path, {"voice.kind": "mfcc", "voice.mfcc.hop_samples": 512})
    variables = jax.jit(task.init)(jax.random.key(0))
    assert task.networks.condition_size == 16 * (1 + 8000 // 512)
    audio = np.stack([
        np.resize(row["audio"], 8000) for row in (task.train_split.source[i] for i in range(18))
    ])  # fmt: skip
    found = np.asarray(task.networks.condition(variables, {"audio": jnp.asarray(audio)})).reshape(
        -1, 16
    )
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(found.std(0), 1, atol=1e-3)


def test_a_class_is_one_hot_and_nothing_is_nothing(tmp_path):
    batch = {"label": jnp.array([2, 0]), "mask": jnp.ones(2, bool)}
    found = hearing.OfClass(3)(None, batch, None)
    np.testing.assert_array_equal(found, [[0, 0, 1], [1, 0, 0]])
    assert not np.asarray(hearing.Nothing()(None, batch, None)).any()
    changes = {"voice.kind": "class"}
    task = toy.make_task(tmp_path, changes)
    task.prepare()  # the same people in training and in evaluation
    assert task.networks.condition_size == 6
    other = toy.make_task(tmp_path / "other", changes, train=toy.corpus(toy.NAMES[:4]))
    with pytest.raises(errors.UserError, match="dev has other people than the training"):
        other.prepare()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"voice__kind": "wave"}, "choose one of statistics, encoder, mfcc, class, none"),
        ({"voice__mfcc__coefficients": 129}, "coefficients=129: 1 to 128"),
        ({"voice__mfcc__hop_samples": 0}, "has to be positive"),
        ({"data__eval_seconds": 1.0}, "eval_seconds=1 has to be config.data.crop_seconds=0.5"),
        ({"voice__crop_frames": (10, 20)}, "leave config.voice.crop_frames"),
        ({"voice__kind": "class", "data__split_by": "letter"}, "none of those whom the network"),
        ({"voice__kind": "none"}, "nothing for the discriminator to hear"),
    ],
)
def test_settings_that_cannot_be_are_said(tmp_path, changes, words):
    with pytest.raises(errors.UserError, match=words):
        tasks.make_task(tmp_path, **{"voice__kind": "mfcc", **changes})
