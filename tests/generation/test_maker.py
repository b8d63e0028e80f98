"""Loading what was trained: samples of one channel, and networks of earlier versions."""

import jax.numpy as jnp
import numpy as np
import pytest

import generation
from common import checkpoint, errors, state, workdir
from tests import commands
from tests.generation import makers
from tests.generation import people as toy


def saved(folder, found, without):
    """A run with the variables of a network, but for the parameters at a path, which an earlier
    version did not have."""
    *parts, last = without.split("/")
    variables = dict(found.variables)
    below = params = variables.pop("params")
    for part in parts:
        below = below[part]
    del below[last]
    workdir.save_config(folder, "generation", found.config)
    saver = checkpoint.Checkpointer(folder / "checkpoints")
    train_state = state.TrainState(jnp.zeros((), jnp.int32), params, variables, (), None)
    saver.save(3, train_state, None, {**found.task.checkpoint_meta(), "evaluated": -1}, None)
    saver.close()


def test_a_run_of_an_earlier_network_is_one_message(tmp_path):
    saved(tmp_path, makers.untrained(tmp_path, makers.REVOICE), "speaking/height")
    with pytest.raises(errors.UserError, match="an earlier version trained it") as told:
        generation.load(tmp_path)
    assert f"{tmp_path / 'checkpoints' / '3'} do not fit" in str(told.value)
    assert "params/speaking/height/bias: checkpoint absent, config float32[16]" in str(told.value)


def test_faces_are_drawn_without_the_discriminator_of_today_and_of_the_second_channel(tmp_path):
    network = makers.untrained(tmp_path, {"data.channel": "1"})
    said = makers.maker.FaceMaker(network)(voice := toy.voice(0, 0.6, 0), count=2)
    saved(tmp_path, network, "discriminator/real")
    found = generation.load(tmp_path)
    np.testing.assert_array_equal(found(voice, count=2), said)
    stereo = np.stack([np.zeros_like(voice), voice], axis=1)
    np.testing.assert_array_equal(found(stereo, count=2), said)


def test_a_film_is_not_asked_for_a_number_of_faces(tmp_path):
    ends = ("--interpolate", "a.wav", "b.wav", f"--out={tmp_path / 'film.mp4'}")
    said = commands.message("generation.sample", f"--workdir={tmp_path}", *ends, "--n=5")
    assert "a film has --frames pictures" in said
    grid = f"--voice={tmp_path / 'a.wav'}", f"--out={tmp_path / 'grid.png'}", "--frames=9"
    said = commands.message("generation.sample", f"--workdir={tmp_path}", *grid)
    assert "--frames is of the film of --interpolate" in said
