"""Every kind of GAN in the trainer's step: state, devices, what is switched off, what it learns."""

import functools

import jax
import numpy as np
import pytest

from common import metrics
from generation import blocks, losses
from tests.generation import people as toy

SEED = {"picture.size": 28, "picture.channels": 1, "loss.wrong_pairs": False, "loss.r1": 0.0}
PLUS = {
    **{"model.kind": "voice2face_plus", "loss.kind": "relativistic", "loss.r2": 0.2},
    **{"loss.identity": 0.3, "loss.contrast": 0.3, "loss.r1_every": 1},
    "loss.augment": ("colour", "translation", "cutout"),
}
KINDS = {
    "vanilla_gan": {**SEED, "model.kind": "vanilla_gan"},
    "began": {**SEED, "model.kind": "began", "loss.kind": "began", "loss.began_rate": 0.1},
    "sngan_projection": {
        **{"model.kind": "sngan_projection", "loss.kind": "hinge", "loss.r1": 0.0},
        **{"discriminator_updates": 2, "loss.wrong_pairs": False},
    },
    "gan": {"loss.contrast": 0.3, "loss.augment": ("colour",), "loss.identity": 0.1},
    "voice2face_plus": PLUS,
    "face2voice": {
        **{"model.kind": "face2voice", "picture.size": 64, "model.frames": 16},
        **{"model.embedding": 8, "loss.contrast": 0.3},
    },
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_two_devices_equal_one(tmp_path, kind):
    """State, dropout, augmentation and contrast are those of the global batch."""
    changes = {**toy.PLAIN, **KINDS[kind], "data.batch_rows": 24}  # an epoch leaves rows empty
    if kind == "sngan_projection":  # two updates on eight devices, of which two are used
        changes["data.batch_rows"] = 32
    task = toy.make_task(tmp_path, changes)
    (one, said), (two, said_two) = (toy.trained(task, 2, devices=d) for d in (1, 2))
    # Sums of some hundreds of float32 numbers of order 1 in another order, twice over.
    compare = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=2e-5)
    jax.tree.map(compare, one.params, two.params)
    jax.tree.map(compare, one.model_state, two.model_state)
    said, said_two = metrics.finalize(said), metrics.finalize(said_two)
    assert np.isfinite(list(said.values())).all()
    for name in set(said) - {"pictures"}:
        assert said[name] == pytest.approx(said_two[name], rel=2e-3, abs=1e-5), name


def test_a_step_in_bfloat16_is_near_one_in_float32(tmp_path):
    """Convolutions, penalties and their gradients; parameters and moments stay float32."""
    found = {}
    for dtype in ("float32", "bfloat16"):
        changes = {**toy.PLAIN, "dtype": dtype, "loss.r1_every": 1, "loss.r2": 0.2}
        task = toy.make_task(tmp_path / dtype, changes)
        state, sums = toy.trained(task, 2)  # the first one has a rate of 0
        found[dtype] = state, metrics.finalize(sums)
    (exact, wanted), (state, said) = found.values()
    for tree in (state.params, state.ema, state.opt_state):
        kinds = {x.dtype for x in jax.tree.leaves(tree) if np.issubdtype(x.dtype, np.inexact)}
        assert kinds <= {np.dtype(np.float32)}
    assert set(said) == set(wanted)
    for name in (name for name in wanted if "loss" in name or name in ("r1", "r2")):
        # Factors of 8 bits, a 256th apart; sums of many of them are nearer.
        assert said[name] == pytest.approx(wanted[name], rel=0.01), name
    assert said["fake_loss"] != wanted["fake_loss"]
    start = jax.device_get(jax.jit(task.init)(jax.random.key(0)))["params"]
    moved = jax.tree.map(lambda new, old: new - old, state.params, start)
    right = jax.tree.map(lambda new, old: new - old, exact.params, start)
    for side in ("generator", "discriminator"):
        one, other = (
            np.concatenate([x.ravel() for x in jax.tree.leaves(tree[side])])
            for tree in (moved, right)
        )
        assert one @ other > 0.99 * np.linalg.norm(one) * np.linalg.norm(other), side


FAST = {"optimizer.learning_rate": 4e-3, "discriminator_optimizer.learning_rate": 4e-3}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        (
            {"model.kind": "r3gan", "loss.kind": "relativistic", "loss.r1_every": 4}
            | {"model.width": 8, "model.most": 8},
            60,
        ),
        (
            {**PLUS, "loss.kind": "non_saturating", "loss.augment": (), "loss.r1_every": 8}
            | {"loss.identity": 0.1, "loss.contrast": 0.1, "model.width": 8}
            | {"model.discriminator_width": 8, "model.discriminator_most": 16},
            200,
        ),
    ],
)
def test_faces_follow_the_voices(tmp_path, changes, steps):
    """With the relativistic loss, and with all that voice2face_plus adds."""
    task = toy.make_task(tmp_path, {**FAST, **changes})
    state, _ = toy.trained(task, steps)
    assert min(toy.followed(task, state)) > 0.8


def test_each_side_moves_its_own_state(tmp_path):
    task = toy.make_task(tmp_path, KINDS["began"])
    fresh = jax.device_get(jax.jit(task.init)(jax.random.key(0)))
    state, sums = toy.trained(task, 1)
    assert set(state.model_state) == {"batch_stats", losses.BALANCE}
    for side, before in fresh["batch_stats"].items():
        now = state.model_state["batch_stats"][side]
        moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before, now)
        assert all(move > 0 for move in jax.tree.leaves(moved)), side
    assert set(state.ema["batch_stats"]) == {"generator"}
    # 0 before the first step, in which fakes cost the discriminator nothing.
    said = metrics.finalize(sums)
    expected = np.clip(0.1 * (0.75 * said["real_loss"] - said["fake_loss"]), 0, 1)
    assert float(state.model_state[losses.BALANCE]["k"]) == pytest.approx(expected, rel=1e-5)
    assert said["discriminator_loss"] == pytest.approx(said["real_loss"], rel=1e-5)


def test_everything_of_voice2face_plus_can_be_left_out(tmp_path):
    """What each setting adds: terms of the losses, or parameters."""
    off = {"model.kind": "voice2face_plus", "model.conditional": False}
    off |= {"loss.wrong_pairs": False, "loss.r1": 0.0, "ema_decay": 0.0}

    def named(changes):
        task = toy.make_task(tmp_path, changes)
        variables = jax.eval_shape(task.init, jax.random.key(0))
        return set(variables["params"]["discriminator"])

    assert "places" in named(off)  # where things lie is what tells a face's voice
    assert named(PLUS) - named(off) == {"projection", "people", "face", "voice", "heard"}
    with_contrast = named({"loss.contrast": 0.1}) - named({})
    assert with_contrast == {"face", "known", "said"}  # of the small GAN
    alone = toy.make_task(tmp_path, off)
    state, sums = toy.trained(alone, 1)
    assert state.ema is None
    assert set(metrics.finalize(sums)) >= {"real_loss", "fake_loss", "fooled_loss"}
    extra = {"wrong_loss", "r1", "r2", "identity_loss", "contrast_loss", "fake_identity_loss"}
    assert not extra & set(sums)


def test_the_state_of_the_power_iteration_is_the_discriminators(tmp_path):
    task = toy.make_task(tmp_path, KINDS["sngan_projection"])
    fresh = jax.device_get(jax.jit(task.init)(jax.random.key(0)))
    state, _ = toy.trained(task, 1)
    assert set(fresh[blocks.SPECTRAL]) == {"discriminator"}
    moved = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max()),
        fresh[blocks.SPECTRAL],
        state.model_state[blocks.SPECTRAL],
    )
    wide = {name: move for name, move in moved["discriminator"].items() if name != "real"}
    assert all(move > 0 for move in jax.tree.leaves(wide))  # "real" has one column, of length 1
