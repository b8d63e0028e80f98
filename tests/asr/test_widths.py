"""Widths at equal cost: counts against traced products and init, deviations, the command."""

import functools
import itertools

import jax
import jax.numpy as jnp
import pytest

from asr import contextnet, model, settings, widths
from common import command_line, errors, flops
from common.nn import conv
from configs.asr import an4
from tests import commands

FEATURES = 24
CONFIG = contextnet.reduced(((1, 96, 2), (2, 128, 2), (2, 192, 1), (1, 128, 1)))


def counted(config, monkeypatch):
    """Parameters of init, and MACs a frame of the traced products and convolutions."""
    # Shifted products are elementwise: as a grouped convolution they are counted.
    monkeypatch.setattr(conv, "MAX_SHIFTED_TAPS", 0)
    frames = 64  # a multiple of all strides
    features, lengths = jnp.zeros((1, frames, FEATURES)), jnp.array([frames])
    module = contextnet.ContextNet(config)
    variables = jax.eval_shape(
        functools.partial(module.init, train=False), jax.random.key(0), features, lengths
    )
    apply = functools.partial(module.apply, train=False)
    macs = flops.count(jax.make_jaxpr(apply)(variables, features, lengths)) / 2
    for block in variables["params"].values():  # once an utterance
        macs -= 2 * block["se"]["squeeze"]["kernel"].size
    return contextnet.count_parameters(variables["params"]), macs / frames


@pytest.mark.parametrize(
    ("name", "by"), list(zip(widths.VARIANTS, itertools.cycle(widths.MEASURES)))
)
def test_costs_are_those_of_the_traced_network(name, by, monkeypatch):
    found = widths.equal(CONFIG, name, FEATURES, by=by)
    reference = widths.cost(CONFIG, FEATURES)
    value = getattr(found.cost, widths.MEASURES[by])
    assert found.deviation == pytest.approx(
        value / getattr(reference, widths.MEASURES[by]) - 1, abs=1e-12
    )
    assert abs(found.deviation) < 0.05  # of so narrow blocks, 8 channels are much
    assert all(block.channels % 8 == 0 for block in found.config.blocks)
    assert found.config.blocks[-1].channels == 128
    parameters, macs = counted(found.config, monkeypatch)
    assert found.cost.parameters == parameters
    # The masks' products (two by two a frame) are all that is not of a layer.
    assert macs * 100 == pytest.approx(found.cost.macs_per_second, rel=1e-3)


def test_the_form_itself_comes_back():
    for by in widths.MEASURES:
        found = widths.equal(CONFIG, "separable", FEATURES, by=by)
        assert (found.config, found.deviation) == (CONFIG, 0.0)


def test_nearest_of_a_known_measure():
    """Widths are worth their sum: 8 * 13 is met, 107 is 3 away from it, 109 is 3 from 112."""

    def total_of(table):
        return float(sum(table))

    for wanted, total in ((104.0, 104), (107.0, 104), (109.0, 112)):
        found = widths._nearest((16, 32, 32, 8), total_of, wanted)
        assert sum(found) == total
        assert found[-1] == 8
    assert widths._nearest((16, 32, 8), total_of, 23.0) is None
    assert widths._nearest((16, 32, 8), total_of, 24.0) == (8, 8, 8)


def test_unknown_and_unreachable():
    with pytest.raises(errors.UserError, match="choose one of separable"):
        widths.equal(CONFIG, "tucker", FEATURES)
    with pytest.raises(errors.UserError, match="choose one of params, macs"):
        widths.equal(CONFIG, "dense", FEATURES, by="time")
    narrow = contextnet.reduced(((1, 8, 1), (1, 8, 1)))
    with pytest.raises(errors.UserError, match="even with 8 channels"):
        widths.equal(narrow, "rank_4", FEATURES)


def test_the_command_gives_settings_that_make_it():
    done = commands.run(
        "asr.widths", "--config=configs/asr/an4.py", "--only", "rank_2", "--by=macs"
    )
    header, reference, row = done.stdout.splitlines()
    assert header.split()[0] == "form"
    config = an4.get_config()
    words = [word.replace('"', "") for word in row[row.index("--config") :].split()]
    changed = command_line.read_config(an4.get_config(), words)
    found = widths.of_config(config, "rank_2", "macs")
    assert model.encoder_config(changed) == found.config
    assert f"{100 * found.deviation:+.2f} %" in row
    assert reference.split()[2] == f"{widths.cost(model.encoder_config(config), 80).parameters:,d}"


def test_a_broken_config_gives_one_message(tmp_path):
    own = tmp_path / "own.py"
    own.write_text("def get_config():\n    return oops\n")
    assert "NameError" in commands.message("asr.widths", f"--config={own}")
    assert "There is no setting" in commands.message(
        "asr.widths", "--config=configs/asr/an4.py", "--config.encoder.alhpa=1"
    )
    config = settings.default_config()
    config.encoder.num_convs = 1
    with pytest.raises(errors.UserError, match="num_convs"):
        widths.settings(widths.Found("x", model.encoder_config(config), widths.Cost(0, 0.0), 0.0))
