"""Attributions of a small speaker network: complete, the chosen class, a trial's cosine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import errors, parallel
from common.analysis import explaining
from speaker import backend
from tests.asr.test_targets import check_linearity, explained
from tests.speaker import test_task as voices
from tests.speaker.test_task import corpus  # noqa: F401 - a fixture


@pytest.fixture(scope="module")
def task(corpus, tmp_path_factory):  # noqa: F811
    return voices.make_task(corpus, tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="module")
def variables(task):
    return jax.jit(task.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def batch(task):
    audio = [voices.voice(0, 0.6, 0), voices.voice(2, 0.9, 1)]
    return task.recordings(audio)


def against(batch, audio):
    rows = len(batch["mask"])
    return {
        **batch,
        "against": np.tile(audio, (rows, 1)),
        "against_lengths": np.full(rows, len(audio), np.int32),
    }


@pytest.mark.parametrize("target", ["speaker", "cosine"])
def test_it_is_complete(task, variables, batch, target):
    other = against(batch, voices.voice(1, 0.7, 3))
    found, _, _ = explained(task, variables, target, other, max_nodes=4096)
    for row in found:
        assert row.converged
        assert row.gap_percent <= 0.1
        wanted = row.score[0] - row.baseline_score[0]
        assert row.values.sum() == pytest.approx(wanted, rel=1.1e-3)


def test_it_is_linear(task, variables, batch):
    other = against(batch, voices.voice(1, 0.7, 3))
    check_linearity(task, variables, "speaker", "cosine", other)


def test_scores_are_those_of_the_network(task, variables, batch):
    other = against(batch, batch["audio"][0, : batch["audio_lengths"][0]])
    mesh = parallel.make_mesh(jax.devices()[:1])
    made = explaining.Explainer(task, "log_mel", "cosine", mesh)
    chosen = made.chosen(variables, other)
    values, _, _ = made.read(variables, chosen)
    embeddings = task.model.apply(
        variables,
        *(jnp.asarray(batch[name]) for name in ("audio", "audio_lengths")),
        train=False,
        mask=jnp.asarray(batch["mask"]),
        method="embed",
    )
    expected = backend.cosine_matrix(np.asarray(embeddings), np.asarray(embeddings[:1]))
    found = made.score(variables, chosen, values)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found[0, 0] == pytest.approx(1, abs=1e-5)
    made = explaining.Explainer(task, "waveform", "speaker", mesh)
    chosen = made.chosen(variables, batch)
    assert [parts[0].text for parts in made.parts(chosen)] == [
        task.classes[i % 4].strip() for i in chosen["class"]
    ]
    values, lengths, silence = made.read(variables, chosen)
    assert lengths.tolist() == batch["audio_lengths"].tolist()
    assert not silence.any()
    np.testing.assert_array_equal(values, batch["audio"])


def test_alone_equals_padded(task, variables, batch):
    together, _, lengths = explained(task, variables, "speaker", batch)
    own = explaining.trim({name: array[:1] for name, array in batch.items()})
    (alone,), _, _ = explained(task, variables, "speaker", own)
    most = np.abs(alone.values).max()
    values = together[0].values
    np.testing.assert_allclose(values[:, : lengths[0]], alone.values, atol=1e-4 * most)
    assert not values[:, lengths[0] :].any()


def test_a_cosine_needs_another_recording(task, variables, batch):
    with pytest.raises(errors.UserError, match="--against=FILE"):
        explained(task, variables, "cosine", batch)
    with pytest.raises(errors.UserError, match=r"speaker .*cosine"):
        explaining.find_target(task, "transcript")
