"""A voice of a face: sizes, stretches of sound, who learns what, the grid, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import errors, evaluation, parallel, parameters, workdir
from configs.generation import face2voice
from generation import blocks, directions, images, model, sounds, voice
from tests.generation import people as toy

SMALL = {
    **{"model.kind": "face2voice", "picture.size": 64, "model.frames": 16},
    **{"model.embedding": 16, "model.matcher.colour": 0.0},  # people are told apart by colour
}


@pytest.mark.parametrize(
    ("size", "first", "steps"),
    [
        ((32, 32), (4, 4), 3),
        ((28, 28), (4, 4), 3),
        ((8, 8), (4, 4), 1),
        ((128, 80), (4, 3), 5),
        ((128, 64), (8, 4), 4),
    ],
)
def test_doublings_lead_to_every_height_and_width(size, first, steps):
    assert blocks.first_of(size) == (first, steps)
    whole = jnp.zeros((1, first[0] << steps, first[1] << steps, 2))
    assert blocks.cut(whole, size).shape == (1, *size, 2)
    ones = blocks.padded(jnp.ones((1, *size, 2)), whole.shape[1:3])
    assert ones.shape == whole.shape
    np.testing.assert_array_equal(blocks.cut(ones, size), 1)
    assert ones.sum() == 2 * size[0] * size[1]


def test_the_networks_of_the_config_have_the_sizes_that_it_says():
    config = workdir.freeze(face2voice.get_config())
    model.check(config)
    networks = model.make_gan(config, None, 0)
    variables = jax.eval_shape(networks.init, jax.random.key(0))
    # Of Wen et al.'s face network, but 8 numbers for 64 come out of its last layer.
    face = parameters.count(variables["params"]["face"]["look"])
    assert face == 3_310_720 - 56 * (4 * 4 * 512 + 1)
    seen = jax.eval_shape(networks.look, variables, jnp.zeros((5, 64, 64, 3)))
    assert seen.shape == (5, networks.condition_size) == (5, 8)
    made = jax.eval_shape(networks.generate, variables, seen, jnp.zeros((5, 64)))
    assert (made.shape, made.dtype) == ((5, 128, 80, 1), jnp.float32)
    judged, _ = jax.eval_shape(lambda *given: networks.judge(*given, None), variables, made, seen)
    assert judged.real.shape == (5,)
    heard = networks.stretches
    assert heard.samples == 127 * 160 + 512
    stretch = jax.eval_shape(
        heard.sounds, variables[sounds.SCALES], made, jax.random.split(jax.random.key(0), 5)
    )
    assert stretch.shape == (5, heard.samples)
    # A trained encoder's vectors are those that faces have to lie near: no layer between.
    encoded = face2voice.get_config()
    encoded.voice.update({"kind": "encoder", "size": 48})
    encoded = workdir.freeze(encoded)
    networks = model.make_gan(encoded, encoded, 0)
    variables = jax.eval_shape(networks.init, jax.random.key(0))
    assert (set(variables["params"]["face"]), networks.condition_size) == ({"look"}, 48)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return toy.make_task(tmp_path_factory.mktemp("small"), {**SMALL, "ema_decay": 0.5})


@pytest.fixture(scope="module")
def fresh(task):
    return jax.jit(task.init)(jax.random.key(0))


def test_a_stretch_is_scaled_by_the_training_recordings_and_turned_back(task, fresh):
    scales, stretches = fresh[sounds.SCALES], task.networks.stretches
    audio = jnp.asarray(np.stack([toy.voice(person, 0.5, 0) for person in range(6)]))
    found = stretches.pictures(scales, audio)
    assert found.shape == (6, 16, 24, 1)
    # These are the training recordings, or their beginnings: mean 0 and a third of deviation.
    assert np.abs(found.mean((0, 1))).max() < 0.1
    assert found.std((0, 1)).mean() == pytest.approx(1 / 3, abs=0.05)
    assert np.abs(found).max() <= 1
    keys = jax.random.split(jax.random.key(0), 6)
    sound = jax.jit(stretches.sounds)(scales, found, keys)
    again = stretches.pictures(scales, sound)
    # In decibels; bands of tones have deep valleys between harmonics.
    span = 3 * 10 / np.log(10) * np.asarray(scales["deviation"])
    assert (np.abs(again - found)[..., 0] * span).mean() < 2
    loud = stretches.sounds(scales, jnp.ones((1, 16, 24, 1)), keys[:1])
    assert np.abs(loud).max() == pytest.approx(1)


def test_each_player_moves_its_own_and_the_scales_stay(task, fresh):
    state, sums = toy.trained(task, 2)  # the first step has a rate of 0
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), fresh["params"], state.params)
    assert set(moved) == {"face", "discriminator", "generator"}
    assert all(max(jax.tree.leaves(side)) > 1e-5 for side in moved.values())
    jax.tree.map(
        np.testing.assert_array_equal, state.model_state[sounds.SCALES], fresh[sounds.SCALES]
    )
    assert set(state.ema["params"]) == {"face", "generator"}
    assert {"face_contrast", "face_accuracy", "face_grad_norm", "wrong_loss"} <= set(sums)
    assert set(task.schedule(5)) == {f"learning_rate_{side}" for side in moved}


def test_the_sides_of_the_game_see_the_condition_of_the_pair(task, fresh):
    """A wrong pair is the row's voice with another's face."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (2, 3, 64, 64, 3)).astype(np.uint8)
    audio = np.stack([toy.voice(person, 0.5, 0) for person in range(3)])
    batch = {"audio": audio, "face": pictures[0], "other_face": pictures[1], "label": np.arange(3)}
    batch = jax.tree.map(jnp.asarray, batch)
    way = task.direction
    assert (way.known, way.made) == (directions.FACE, directions.VOICE)
    own = way.condition(fresh, batch, None)
    real, labels = way.real(fresh, batch)
    wrong, other = way.wrong(fresh, batch, own)
    np.testing.assert_array_equal(real, wrong)
    np.testing.assert_array_equal(labels, np.arange(3))
    swapped = way.condition(fresh, {**batch, "face": batch["other_face"]}, None)
    np.testing.assert_array_equal(other, swapped)
    assert np.abs(other - own).max() > 0
    np.testing.assert_allclose(np.square(own).mean(1), 1, rtol=1e-4)


def evaluated(task, variables):
    """The outputs of all rows of dev."""
    mesh = parallel.make_mesh(jax.devices()[:1])
    step = evaluation.make_eval_step(task, task.config, mesh)
    (batches,) = task.eval_data().values()
    rows = [
        jax.device_get(step(variables, parallel.global_batch(batch, mesh))[1]) for batch in batches
    ]
    real = np.concatenate([row["mask"] for row in rows])
    return rows, {name: np.concatenate([row[name] for row in rows])[real] for name in rows[0]}


def test_the_grid_has_the_face_the_voice_and_what_is_made(task, fresh):
    rows, found = evaluated(task, fresh)
    report = task.report("dev", [task.keep("dev", row) for row in rows])
    grid = report.samples["voices"]
    # Four people in columns; the face, a real stretch and two made ones in rows, doubled.
    assert grid.shape == (4 * (2 * 24 + 2) - 2, 4 * (2 * 16 + 2) - 2, 3)
    assert set(report.audio) == {f"voice_{person}" for person in range(4)}
    sound, rate = report.audio["voice_1"]
    first = (found["person"] == 1) & (found["turn"] == 0)
    np.testing.assert_array_equal(sound, found["sound"][first][0])
    assert (rate, sound.shape) == (16000, (15 * 160 + 640,))
    upright = images.to_bytes(found["stretch"][first][0])[::1, ::-1, 0].T
    np.testing.assert_array_equal(grid[50:98:2, 34:66:2, 0], upright)
    # A judge is given sounds, and real ones of the same length.
    assert found["probe"].shape == found["sound"].shape == (12, 15 * 160 + 640)


@pytest.mark.slow
def test_voices_follow_the_faces(tmp_path):
    """What is made of a face comes near the real stretches of its person's voice."""
    narrow = {"model.width": 8, "model.face_widths": (4, 4, 8, 8, 8), "data.batch_rows": 8}
    task = toy.make_task(tmp_path, {**SMALL, **narrow})
    before = jax.jit(task.init)(jax.random.key(0))
    state, _ = toy.trained(task, 200)

    def distances(variables):
        _, found = evaluated(task, variables)
        made = found["fakes"].mean((1, 2))[..., 0]
        real = found["stretch"].mean(1)[..., 0]
        own = np.stack([real[found["person"] == person].mean(0) for person in range(6)])
        return np.abs(made[:, None] - own[None]).mean(2), found["person"]

    (fresh, people), (learned, _) = distances(before), distances(state.eval_variables)
    rows = np.arange(len(people))
    assert learned[rows, people].mean() < 0.9 * fresh[rows, people].mean()
    assert learned[rows, people].mean() < 0.75 * learned.mean()
    assert (learned.argmin(1) == people).mean() >= 0.5  # chance: 1 in 6


def test_a_checkpoint_of_other_stretches_is_refused(tmp_path):
    task = toy.make_task(tmp_path, SMALL)
    meta = task.checkpoint_meta()
    task.check_checkpoint(meta)
    longer = toy.make_task(tmp_path, {**SMALL, "model.frames": 24})
    with pytest.raises(errors.UserError, match=r"stretches of 16 x 24 \(frames, bands\).* 24 x 24"):
        longer.check_checkpoint(meta)
    grey = toy.make_task(tmp_path, {**SMALL, "picture.channels": 1})
    with pytest.raises(errors.UserError, match=r"looks at pictures of 64 x 64 x 3 .* 64 x 64 x 1"):
        grey.check_checkpoint(meta)
    faces = toy.make_task(tmp_path)
    with pytest.raises(errors.UserError, match="of kind 'face2voice'"):
        faces.check_checkpoint(meta)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"picture.size": 32}, "looks at pictures of 64 x 64"),
        ({"features.normalize": "utterance"}, "loses the level"),
        ({"model.frames": 4}, "8 at least"),
        ({"model.frames": 64}, r"are 0\.67 s of a voice: .*crop_seconds=0\.5"),
        ({"loss.augment": ("colour",)}, "is of pictures"),
        ({"voice.kind": "none"}, "learns of voices"),
        ({"voice.kind": "class", "data.split_by": "recording"}, "learns of voices"),
        ({"voice.kind": "encoder"}, "train an encoder of voices first"),
        ({"data.independent": True}, "cannot teach"),
        ({"model.conditional": False}, "needs a discriminator that hears"),
    ],
)
def test_settings_that_cannot_be_are_said(tmp_path, changes, words):
    with pytest.raises(errors.UserError, match=words):
        toy.make_task(tmp_path, {**SMALL, **changes}).networks  # noqa: B018 - made when asked for


def test_a_frozen_encoder_is_kept_beside_the_scales(tmp_path, monkeypatch):
    voices = toy.make_task(tmp_path / "voice", {"model.kind": "voice", "loss.wrong_pairs": False})
    trained = jax.device_get(jax.jit(voices.init)(jax.random.key(5)))
    encoder = {name: tree[voice.ENCODER] for name, tree in trained.items()}
    monkeypatch.setattr(voice, "settings_of", lambda folder, defaults: voices.config)
    monkeypatch.setattr(voice, "of_run", lambda package, folder: encoder)
    changes = {**SMALL, "voice.kind": "encoder", "voice.workdir": "runs/voice"}
    task = toy.make_task(tmp_path / "voices", changes)
    found = jax.device_get(jax.jit(task.init)(jax.random.key(0)))
    jax.tree.map(np.testing.assert_array_equal, found[voice.FROZEN], encoder)
    assert np.abs(found[sounds.SCALES]["mean"]).max() > 0
    heard = jnp.eye(2, 8)
    _, said = task.networks.meet(found, jnp.ones((2, 64, 64, 3)), heard)
    np.testing.assert_allclose(said, heard, atol=1e-6)
