"""The experiments of configs/speaker: sizes of networks, and the page for Simple-tklia's users."""

import dataclasses
import importlib
import math
import pathlib
import re

import jax
import numpy as np
import pytest

from common import metrics, parallel, starting, trainer, workdir
from speaker import margins, model, pooling, settings
from speaker import task as speaker_task

PAGE = pathlib.Path(__file__).parents[2] / "speaker" / "SIMPLE_TKLIA.md"


def test_every_setting_of_a_section_has_a_taker():
    """`sections.build` goes by names: a setting that is renamed on one side would be left out."""
    fields = {field.name for field in dataclasses.fields(margins.MarginConfig)}
    schedule = {"margin_start_step", "margin_end_step", "growth", "start_scale"}
    assert set(settings.default_config().loss) - fields == {"sharded", *schedule}


def load(name, *argument):
    return importlib.import_module(f"configs.speaker.{name}").get_config(*argument)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        # speaker/xvector.py: wespeaker prints 4.61 M, 6.63 M and 6.19 M.
        ("voxceleb_xvector", 4_610_524),
        ("voxceleb_resnet34", 6_634_336),
        ("voxceleb_ecapa", 6_190_000),
        # 30 features: 4 instead of 10 rows of 256 channels in mean and deviation; a batch norm.
        ("kaldi_example", 6_634_336 - 2 * 256 * 256 * (10 - 4) + 2 * 256),
    ],
)
def test_networks_have_the_published_sizes(name, count):
    config = workdir.freeze(load(name))
    net = model.make_model(config, 5994)
    params = jax.eval_shape(lambda: model.init(net, jax.random.key(0)))["params"]
    found = sum(leaf.size for leaf in jax.tree.leaves(params["encoder"]))
    assert found == pytest.approx(count, rel=1e-3 if name == "voxceleb_ecapa" else 0)
    assert params["head"]["weights"].shape[0] == 5994


def test_the_large_margin_stage_continues_the_recipe():
    first, second = load("voxceleb_resnet34"), load("voxceleb_resnet34", "lm")
    assert first.model == second.model
    assert (first.augment.speeds, second.augment.speeds) == ((1.0, 0.9, 1.1), (1.0,))
    assert (first.loss.margin, second.loss.margin) == (0.2, 0.5)
    assert (first.data.crop_seconds, second.data.crop_seconds) == (2.015, 6.015)
    for config, frames in ((first, 200), (second, 600)):  # conf/resnet.yaml and resnet_lm.yaml
        front_end = model.make_model(workdir.freeze(config), 2).front_end
        assert front_end.num_frames(round(config.data.crop_seconds * 16000)) == frames
        assert front_end.window == "hamming"
    # wespeaker's rates are of 64 rows a card; the large-margin stage warms up for its first epoch.
    for config, peak in ((first, 0.1), (second, 1e-4)):
        assert config.optimizer.learning_rate == pytest.approx(peak * config.data.batch_rows / 64)
    assert second.optimizer.warmup_steps == second.evaluate_every == 1_092_009 // 128


@pytest.mark.parametrize(
    "name", ["voxceleb_xvector", "voxceleb_resnet34", "voxceleb_ecapa", "kaldi_example", "an4"]
)
def test_every_experiment_has_a_debug_size_and_refuses_other_arguments(name):
    config = load(name, "debug")
    assert config.total_steps == 30
    assert config.data.kind == "embedded"
    with pytest.raises(ValueError, match="the argument is"):
        load(name, "large")


def test_every_checkpoint_of_the_kaldi_example_stays():
    config = load("kaldi_example", "1280")
    assert config.keep_every == config.checkpoint_every == config.evaluate_every == 100


@pytest.mark.parametrize("name", ["voxceleb_resnet34", "voxceleb_ecapa"])
def test_a_step_of_the_full_size_gives_a_state_of_the_same_shape(tmp_path, name):
    (tmp_path / "speakers.txt").write_text("".join(f"{i:04d}\n" for i in range(5994)))
    config = workdir.freeze(load(name))
    task = speaker_task.SpeakerTask(config, tmp_path, {})
    state = jax.eval_shape(lambda key: task.create_state(task.init(key)), jax.random.key(0))
    rows = 8
    integers = jax.ShapeDtypeStruct((rows,), np.int32)
    batch = {name: integers for name in ("audio_lengths", "label", "index", "row")}
    batch["audio"] = jax.ShapeDtypeStruct((rows, 32000), np.float32)
    batch["mask"] = jax.ShapeDtypeStruct((rows,), np.bool_)
    step = trainer.make_train_step(task, config, parallel.make_mesh(jax.devices()[:1]))
    new, sums = jax.eval_shape(step, state, batch)
    shapes, new_shapes = (jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (state, new))
    assert shapes == new_shapes
    assert {"loss", "accuracy"} <= set(sums)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["voxceleb_ecapa", "kaldi_example"])
def test_steps_of_the_debug_size_train(tmp_path, name):
    """Of quickstart.py:debug, test_main.py does all of a run."""
    config = workdir.freeze(load(name, "debug"))
    mesh = parallel.make_mesh(jax.devices()[:1])
    task = speaker_task.make_task(config, tmp_path)
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
    # Of a residual branch that starts at 0 (kaldi_example) only the last layer moves.
    assert np.mean([(old != new).any() for old, new in pairs]) > 0.4


def test_the_page_for_simple_tklia_names_settings_that_exist():
    known = settings.default_config()
    table = [line.split("|")[1:4] for line in PAGE.read_text("utf-8").splitlines() if "`[" in line]
    assert len(table) == 27
    for theirs, ours, remark in table:
        for name in re.findall(r"`([^`]+)`", ours):
            *path, last = name.split(".")
            part = known
            for step in path:
                part = part[step]
            assert last in part, (theirs, name)
        assert ours.strip() != "-" or remark.strip(), theirs
    for kinds in ("min", "max", "mean", "std", "mean+std", "std+skew", "std+kurtosis"):
        pooling.parse_kinds(kinds)
