"""Cues of a speaker network: its own embeddings, kept as they were, and without its folder."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import checkpoint, errors, parallel, trainer
from common import trained as trained_lib
from separation import cue
from separation import task as separation_task
from speaker import load as load_speaker
from tests.separation import test_task, voices
from tests.separation.test_judges import speaker_folder  # noqa: F401 - a fixture


def copied(folder, to):
    """At the rate of the corpus, which changes no weight's shape."""
    shutil.copytree(folder, to)
    saved = json.loads((to / "config.json").read_text())
    saved["config"]["data"]["sample_rate_hz"] = voices.RATE_HZ
    (to / "config.json").write_text(json.dumps(saved))
    return to


def make_task(folder, workdir):
    return test_task.make_task(folder, **{"cue.workdir": str(workdir), "ema_decay": 0.9})


def network_of(variables):
    return variables[cue.FROZEN]["cue_encoder"]["network"]


def test_the_network_is_kept_as_it_was_and_outlives_its_folder(tmp_path, speaker_folder):  # noqa: F811
    other, folder = copied(speaker_folder, tmp_path / "speaker"), tmp_path / "separation"
    folder.mkdir()
    task = make_task(folder, other)
    task.prepare()
    rng = np.random.default_rng(0)
    audio = jnp.float32(0.1 * rng.normal(size=(2, 16000)))
    lengths = jnp.array([12000, 0])
    expected = load_speaker(other).embed(np.asarray(audio[0, :12000]), voices.RATE_HZ)
    mesh = parallel.make_mesh(jax.devices()[:1])
    state = parallel.place(task.create_state(jax.jit(task.init)(jax.random.key(0))), mesh)
    first = jax.device_get(network_of(state.variables))
    found = jax.jit(task.known_voice.embed)(first, audio, lengths)
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-4)
    assert not found[1].any()

    step = trainer.make_train_step(task, task.config, mesh)
    before, batches = jax.device_get(state.params), iter(task.train_data())
    for _ in range(2):  # the first one's rate is 0
        state, _ = step(state, parallel.global_batch(next(batches), mesh))
    for variables in (state.variables, state.eval_variables):
        jax.tree.map(np.testing.assert_array_equal, first, jax.device_get(network_of(variables)))
    averages = [set(tree) for tree in (state.ema["params"], state.params)]
    assert averages[0] == averages[1]
    assert cue.FROZEN not in state.ema
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, jax.device_get(state.params))
    assert moved["cue_encoder"]["cue"]["kernel"]  # the linear layer behind it learns

    saver = checkpoint.Checkpointer(folder / "checkpoints")
    saver.save(1, state, None, {**task.checkpoint_meta(), "evaluated": -1}, None)
    saver.close()
    shutil.rmtree(other)
    again = make_task(folder, other)
    again.prepare()
    shapes = jax.eval_shape(again.init, jax.random.key(0))
    assert jax.tree.structure(shapes) == jax.tree.structure(jax.device_get(state.variables))
    package = separation_task.PACKAGE
    loaded = trained_lib.load(package, folder, config=again.config, mesh=mesh)
    encode = jax.jit(lambda v, *x: again.model.apply(v, *x, method="cue"))
    cues = encode(loaded.variables, audio, lengths)
    np.testing.assert_array_equal(
        cues, encode(jax.device_get(state.eval_variables), audio, lengths)
    )
    with pytest.raises(errors.UserError, match="holds that network"):
        make_task(folder, tmp_path / "third").check_checkpoint(loaded.meta)


def test_folders_that_cannot_give_cues_are_said(tmp_path, speaker_folder):  # noqa: F811
    with pytest.raises(errors.UserError, match=r"cue\.workdir=.*is no work directory"):
        make_task(tmp_path, tmp_path / "nothing").prepare()
    with pytest.raises(errors.UserError, match=r"at 16000 Hz, and the mixtures are at .*=8000"):
        make_task(tmp_path, speaker_folder).prepare()


def test_a_start_from_a_run_with_other_cues_has_its_own(tmp_path, speaker_folder):  # noqa: F811
    """The extractor is that run's; what makes cues is this run's."""
    task = make_task(tmp_path, copied(speaker_folder, tmp_path / "speaker"))
    fresh = jax.jit(task.init)(jax.random.key(0))
    other = test_task.make_task(tmp_path)
    found = jax.jit(other.init)(jax.random.key(1))
    started = task.adopt(fresh, found, other.checkpoint_meta())
    assert jax.tree.structure(started) == jax.tree.structure(fresh)
    own, theirs = started["params"], found["params"]
    for name in ("extractor", "null_cue"):
        jax.tree.map(np.testing.assert_array_equal, own[name], theirs[name])
    encoder = fresh["params"]["cue_encoder"]
    jax.tree.map(np.testing.assert_array_equal, own["cue_encoder"], encoder)
    jax.tree.map(np.testing.assert_array_equal, started[cue.FROZEN], fresh[cue.FROZEN])
    back = other.adopt(found, fresh, task.checkpoint_meta())
    assert jax.tree.structure(back) == jax.tree.structure(found)
