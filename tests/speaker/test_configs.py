"""The experiments of configs/speaker: sizes of networks, and the page for Simple-tklia's users."""

import importlib
import pathlib
import re

import jax
import pytest

from common import workdir
from speaker import model, pooling, settings

PAGE = pathlib.Path(__file__).parents[2] / "speaker" / "SIMPLE_TKLIA.md"


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
    assert (first.data.crop_seconds, second.data.crop_seconds) == (2.0, 6.0)
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
