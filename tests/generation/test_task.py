"""The GAN's task: it learns, devices, what is averaged and shown, checkpoints that do not fit."""

import functools
import shlex
import types

import jax
import numpy as np
import pytest

from common import errors, evaluation, metrics, parallel
from generation import images, voice
from generation import task as generation_task
from tests.generation import people as toy
from tests.generation import test_matching as matched

LEARN = {
    "model.width": 16,
    "model.most": 32,
    "optimizer.learning_rate": 4e-3,
    "discriminator_optimizer.learning_rate": 4e-3,
}


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    task = toy.make_task(tmp_path_factory.mktemp("learned"), LEARN)
    return task, *toy.trained(task, 150)


def test_faces_follow_the_voices(learned):
    """Red rises and blue falls from the first person to the last, as the colours do."""
    task, state, sums = learned
    assert min(toy.followed(task, state)) > 0.8
    said = metrics.finalize(sums)
    assert {"real_loss", "fake_loss", "wrong_loss", "r1", "generator_loss"} <= set(said)
    assert np.isfinite(list(said.values())).all()


def test_the_generator_alone_is_averaged(learned):
    _, state, _ = learned
    assert set(state.ema["params"]) == {"generator"}
    now = state.params["generator"]["picture"]["kernel"]
    assert np.abs(now - state.ema["params"]["generator"]["picture"]["kernel"]).max() > 0


def test_the_grid_shows_the_same_inputs_at_a_fixed_contrast(learned):
    task, state, _ = learned
    mesh = parallel.make_mesh(jax.devices()[:1])
    step = evaluation.make_eval_step(task, task.config, mesh)
    evaluate = functools.partial(evaluation.evaluate, task, step)
    reports = [
        evaluate(variables, "dev", task.eval_data()["dev"], mesh)
        for variables in (state.eval_variables, state.eval_variables, state.variables)
    ]
    grids = [report.samples["faces"] for report in reports]
    np.testing.assert_array_equal(grids[0], grids[1])
    # Four people in columns, the real face and two fakes in rows, doubled, 2 pixels between.
    assert grids[0].shape == (3 * 18 - 2, 4 * 18 - 2, 3)
    assert (grids[0] != grids[2]).any()
    np.testing.assert_array_equal(grids[0][:16], grids[2][:16])
    face = task.parts.faces("dev")("bob", 0)
    np.testing.assert_array_equal(grids[0][:16:2, 18:34:2], images.resized(face, 8, 3))


def test_a_recording_that_is_taken_again_has_other_noises(tmp_path):
    """Of three recordings the fourth turn has the first one: another draw, no copy of it."""
    task = toy.make_task(tmp_path, {"data.eval_turns": 4})
    batch = next(iter(task.eval_data()["dev"]))
    np.testing.assert_array_equal(batch["audio"][0], batch["audio"][3])
    made = jax.jit(lambda key, batch: task.eval_step(task.init(key), batch)[1]["fakes"])
    own = made(jax.random.key(0), {name: x for name, x in batch.items() if name != "id"})[:4]
    flat = np.asarray(own).reshape(8, -1)  # two faces of each turn
    assert len(np.unique(flat, axis=0)) == 8


@pytest.mark.parametrize(
    "changes",
    [
        {"loss.identity": 0.5, "data.batch_rows": 24},  # an epoch of 18 leaves rows empty
        {"discriminator_updates": 2, "loss.kind": "hinge", "accumulate": 1},
    ],
)
def test_eight_devices_equal_one(tmp_path, changes):
    task = toy.make_task(tmp_path, {**toy.PLAIN, **changes})
    (one, said), (eight, said_eight) = (toy.trained(task, 3, devices=d) for d in (1, 8))
    # Sums of some hundreds of float32 numbers of order 1 in another order, three times over.
    compare = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(compare, one.params, eight.params)
    said, said_eight = metrics.finalize(said), metrics.finalize(said_eight)
    for name in ("real_loss", "fake_loss", "fooled_loss", "r1"):
        assert said[name] == pytest.approx(said_eight[name], rel=1e-3), name


def test_a_checkpoint_of_another_resolution_is_refused(tmp_path):
    small = toy.make_task(tmp_path)
    meta = small.checkpoint_meta()
    small.check_checkpoint(meta)
    large = toy.make_task(tmp_path, {"picture.size": 16})
    with pytest.raises(errors.UserError, match=r"pictures of 8 x 8 x 3 .* asks for 16 x 16 x 3"):
        large.check_checkpoint(meta)
    with pytest.raises(errors.UserError, match="of kind 'voice2face'"):
        small.check_checkpoint({**meta, "kind": "voice2face"})
    with pytest.raises(errors.UserError, match="other people than the 6"):
        small.check_checkpoint({**meta, "people": "x"})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.kind": "dcgan"}, "choose one of gan, voice2face, voice2face_plus, vanilla_gan"),
        ({"loss.kind": "wasserstein"}, "choose one of non_saturating, hinge, least_squares"),
        ({"loss.kind": "began"}, "is of model.kind=began"),
        ({"loss.augment": ("color",)}, "color is unknown"),
        ({"model.kind": "r3gan", "loss.contrast": 1.0}, "a discriminator with vectors of voices"),
        ({"model.kind": "cgan"}, "makes 28, 32, 64, 128"),
        ({"model.kind": "cgan", "picture.size": 32}, "no picture has a gradient of its own"),
        ({"model.kind": "vanilla_gan", "picture.size": 32}, "vanilla_gan does not: set loss.wrong"),
        ({"model.kind": "r3gan", "loss.identity": 1.0}, "only gan, voice2face, voice2face_plus"),
        (
            {"model.kind": "voice2face_plus", "model.residual": False},
            "64 x 64 only; use that, or model.residual",
        ),
        ({"picture.channels": 2}, r"1 \(grey\) or 3"),
        ({"picture.size": 4}, "makes 8 to 256"),
        ({"model.kind": "voice2face"}, "64 x 64 only"),
        ({"model.conditional": False}, "needs a discriminator that hears the voice"),
        ({"data.independent": True}, "cannot teach"),
        ({"voice.kind": "encoder"}, "train an encoder of voices first"),
        (
            {"voice.kind": "none", "model.conditional": False, "loss.wrong_pairs": False}
            | {"loss.contrast": 1.0},
            r"loss\.contrast=1\.0 compares faces with what is heard",
        ),
        ({"data.vad": "kaldi"}, "choose none, energy or webrtc"),
        ({"dtype": "float16"}, "choose float32 or bfloat16"),
        (
            {"model.kind": "matcher", "picture.size": 32, "dtype": "bfloat16"},
            "a network of kind matcher computes in float32",
        ),
        ({"loss.r1_every": 0}, r"config\.loss\.r1_every=0: 1 at least"),
        ({"discriminator_updates": 0}, "discriminator_updates=0: 1 at least"),
        ({"samples.faces": 0}, "samples.faces=0: 1 at least"),
        ({"data.crop_seconds": 0.0}, "crop_seconds=0 has to be positive"),
        ({"features.num_mels": 0}, r"features\.num_mels=0: 1 at least"),
        ({"features.hop_ms": 0.0}, r"features\.hop_ms=0 has to be positive"),
        ({"features.window_ms": -1.0}, r"features\.window_ms=-1 has to be positive"),
        ({"model.matcher.temperature": 0.0}, r"model\.matcher\.temperature=0 has to be positive"),
        ({"loss.r1": -0.1}, r"loss\.r1=-0\.1 has to be 0 or more"),
        ({"loss.r2": float("nan")}, r"loss\.r2=nan has to be 0"),
        ({"loss.identity": -1.0}, r"loss\.identity=-1 has to be 0"),
        ({"loss.contrast": -1.0}, r"loss\.contrast=-1 has to be 0"),
        ({"loss.began_rate": -1.0}, r"loss\.began_rate=-1 has to be 0"),
        ({"voice.crop_frames": (800, 300)}, r"crop_frames=\(800, 300\): the fewest and the most"),
        ({"voice.crop_frames": (50,)}, r"crop_frames=\(50,\): the fewest and the most"),
        ({"model.kind": "matcher", "picture.size": -8}, "a matcher takes multiples of 8"),
    ],
)
def test_settings_that_cannot_be_are_said(tmp_path, changes, words):
    with pytest.raises(errors.UserError, match=words):
        toy.make_task(tmp_path, changes).networks  # noqa: B018 - made when first asked for


def test_figures_of_people_who_were_learned_from_are_said_to_be_such(tmp_path):
    task = toy.make_task(tmp_path)
    for judge, own, said in (
        (("bob", "cid", "zoe"), toy.NAMES, "the judge has learned from 2 of these 6 (bob, ...), "),
        ((), ("ann", "x"), "people: the network has learned from 1 of these 6 (ann, ...)."),
        (("x",), ("y",), ""),
    ):
        vars(task).update(judge=types.SimpleNamespace(people=judge), classes=own)
        lines = task._judgement("dev", matched.outputs(6, 2)).lines
        found = [line for line in lines if "has learned from" in line]
        assert len(found) == bool(said)
        assert all(said in line for line in found)


def test_the_last_words_can_be_typed_as_they_are(tmp_path, capsys):
    task = toy.make_task(tmp_path, {"voice.kind": "class"})
    vars(task).update(classes=("big cat", "dog"))
    generation_task.close(task, tmp_path, {})
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "Next: " in line]
    assert "--voice=big cat" in shlex.split(line)


def test_a_batch_that_updates_cannot_share_is_said(tmp_path):
    task = toy.make_task(tmp_path, {"discriminator_updates": 5, "data.batch_rows": 24})
    with pytest.raises(errors.UserError, match=r"batch_rows=24 .* x config.discriminator_updates"):
        task.train_data()


def test_a_frozen_encoder_stays_as_it_is(tmp_path, monkeypatch):
    """voice2face in small: the encoder is neither trained nor averaged."""
    voices = toy.make_task(tmp_path / "voice", {"model.kind": "voice", "loss.wrong_pairs": False})
    trained = jax.device_get(jax.jit(voices.init)(jax.random.key(5)))
    encoder = {name: tree[voice.ENCODER] for name, tree in trained.items()}
    monkeypatch.setattr(voice, "settings_of", lambda folder, defaults: voices.config)
    monkeypatch.setattr(voice, "of_run", lambda package, folder: encoder)
    changes = {
        **{"model.kind": "voice2face", "picture.size": 64, "loss.wrong_pairs": False},
        **{"loss.r1": 0.0, "loss.identity": 1.0, "data.independent": True},
        **{"voice.kind": "encoder", "voice.workdir": "runs/voice", "voice.crop_frames": (20, 40)},
    }
    task = toy.make_task(tmp_path / "faces", changes)
    state, sums = toy.trained(task, 1)
    jax.tree.map(np.testing.assert_array_equal, state.model_state[voice.FROZEN], encoder)
    assert set(state.ema) == {"params"}
    assert {"identity_loss", "fake_identity_loss", "identity_accuracy"} <= set(sums)
    # Of six people at the start.
    assert metrics.finalize(sums)["identity_loss"] == pytest.approx(np.log(6), rel=0.2)
