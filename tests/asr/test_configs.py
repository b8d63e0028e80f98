"""The experiments of configs/asr: shapes at full size, steps at debug size."""

import dataclasses
import importlib
import math

import jax
import numpy as np
import pytest

from asr import contextnet, settings
from asr import task as asr_task
from asr import tokenizer as tokenizer_lib
from common import metrics, parallel, starting, trainer, workdir


def load(name, *argument):
    return importlib.import_module(f"configs.asr.{name}").get_config(*argument)


def test_every_setting_of_a_section_has_a_taker():
    """`sections.build` goes by names: a setting that is renamed on one side would be left out."""
    encoder = set(settings.default_config().encoder)
    fields = {field.name for field in dataclasses.fields(contextnet.ContextNetConfig)}
    assert encoder - fields == {"alpha", "num_convs", "kernel_size", "strided_blocks"}


def shape_of_batch(rows=8, seconds=4, labels=20):
    audio = jax.ShapeDtypeStruct((rows, 16000 * seconds), np.float32)
    integers = jax.ShapeDtypeStruct((rows,), np.int32)
    return {
        "audio": audio,
        "audio_lengths": integers,
        "labels": jax.ShapeDtypeStruct((rows, labels), np.int32),
        "labels_lengths": integers,
        "mask": jax.ShapeDtypeStruct((rows,), np.bool_),
        "index": integers,
        "row": integers,
    }


def full_size(tmp_path, name, *argument):
    """A task without data, and its state's shapes: nothing is computed."""
    config = workdir.freeze(load(name, *argument))
    letters = tokenizer_lib.TokenizerConfig("char", 0, case="upper")
    tokenizer_lib.train_tokenizer(("THE QUICK BROWN FOX",), letters, tmp_path / "tokenizer")
    task = asr_task.AsrTask(config, tmp_path, {})
    return task, jax.eval_shape(lambda key: task.create_state(task.init(key)), jax.random.key(0))


@pytest.mark.parametrize("name", ["an4", "librispeech"])
def test_a_step_of_the_full_size_gives_a_state_of_the_same_shape(tmp_path, name):
    task, state = full_size(tmp_path, name)
    step = trainer.make_train_step(task, task.config, parallel.make_mesh(jax.devices()[:1]))
    new, sums = jax.eval_shape(step, state, shape_of_batch())
    shapes, new_shapes = (jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (state, new))
    assert shapes == new_shapes
    assert {"loss", "transducer_loss"} <= set(sums)


def test_low_rank_experiments_change_the_size_of_the_network_as_they_say(tmp_path):
    def size(*experiment):
        _, state = full_size(tmp_path, *experiment)
        return sum(leaf.size for leaf in jax.tree.leaves(state.params["encoder"]))

    names = ("wave", "original2", "filter4", "pointwise")
    found = {name: size("librispeech_lowrank", name) for name in names}
    whole = size("librispeech", "s")
    assert found["wave"] == whole  # the front end is no part of the encoder
    assert found["filter4"] > found["original2"] > whole > found["pointwise"]


def test_the_encoder_of_synthetic_voices_fits_that_of_an4(tmp_path):
    encoders = []
    for argument in ("", "synthetic"):
        task, state = full_size(tmp_path / argument, "an4", argument)
        encoders.append(jax.tree.map(lambda x: (x.shape, x.dtype), state.params["encoder"]))
    assert encoders[0] == encoders[1]
    assert task.config.data.kind == "embedded"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["an4", "librispeech", "librispeech_lowrank"])
def test_steps_of_the_debug_size_train(tmp_path, name):
    """Of quickstart.py:debug, test_main.py does all of a run."""
    config = load(name, "debug")
    config.data.batch_seconds = 48.0  # rows for each of the eight devices of the tests
    config = workdir.freeze(config)
    mesh = parallel.make_mesh(jax.devices()[:1])
    task = asr_task.make_task(config, tmp_path)
    task.prepare()
    state = starting.first_state(task, config, mesh)
    before = jax.device_get(state.params)
    step = trainer.make_train_step(task, config, mesh)
    batch = parallel.global_batch(next(iter(task.train_data())), mesh)
    for _ in range(2):  # the rate of the first step is 0
        state, sums = step(state, batch)
    assert math.isfinite(metrics.finalize(sums)["loss"])
    pairs = list(zip(jax.tree.leaves(before), jax.tree.leaves(state.params)))
    assert all(np.isfinite(new).all() for _, new in pairs)
    moved = [(old != new).any() for old, new in pairs]
    assert np.mean(moved) > 0.9
