"""Checkpoints of networks that this version no longer builds."""

import dataclasses

import jax
import numpy as np
import pytest

from common import checkpoint, errors, parallel, trained, trainer, workdir
from common.package import Package
from tests.common import test_starting

WIDE = (("encoder", 5), ("head", 2))


def package(widths=test_starting.Parts.widths, for_losses=()):
    """A task whose network has these parts."""
    return Package(
        "toy",
        trainer.default_config,
        lambda config, _: test_starting.make(widths=widths),
        lambda *_: None,
        for_losses=for_losses,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The work directory of an encoder and a head, and their variables."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    return folder, test_starting.saved(folder, test_starting.make())[3]


def load(package, folder, **options):
    options = {"config": test_starting.make().config, **options}
    return trained.load(package, folder, mesh=parallel.make_mesh(jax.devices()[:1]), **options)


def test_variables_of_another_network_are_one_message(run):
    folder, variables = run
    found = load(package(), folder).variables
    jax.tree.map(np.testing.assert_array_equal, found, variables)
    with pytest.raises(checkpoint.CheckpointError, match="an earlier version trained it") as told:
        load(package(WIDE), folder)
    for line in (
        str(folder / "checkpoints" / "3"),
        "params/encoder/Dense_0/kernel: checkpoint float32[3, 4], config float32[3, 5]",
        "batch_stats/encoder/BatchNorm_0/mean: checkpoint float32[4], config float32[5]",
        "another --workdir",
    ):
        assert line in str(told.value)
    assert "head" not in str(told.value)
    with pytest.raises(checkpoint.CheckpointError, match="checkpoint absent, config float32"):
        load(package((*test_starting.Parts.widths, ("cue", 1))), folder)
    with pytest.raises(checkpoint.CheckpointError, match="config absent"):
        load(package((("encoder", 4),)), folder)
    many = tuple((f"part_{i}", 1) for i in range(9))
    with pytest.raises(checkpoint.CheckpointError, match=r"\.\.\. and 46 more"):
        load(package(many), folder)


def test_setting_that_names_it_is_said(run):
    folder, _ = run
    with pytest.raises(errors.UserError, match=r"^config\.judge=.*run: The variables"):
        workdir.of_setting(
            "config.judge", str(folder), "toy", lambda path: load(package(WIDE), path)
        )


@pytest.mark.parametrize("widths", [(("encoder", 4),), (("encoder", 4), ("head", 9))])
def test_what_only_losses_need_may_be_another(run, widths):
    folder, _ = run
    one = package(widths, for_losses=("head",))
    assert load(one, folder).step == 3
    with pytest.raises(checkpoint.CheckpointError, match="params/head"):
        load(one, folder, losses=True)


def test_the_network_is_traced_and_not_computed(run):
    folder, _ = run
    keys = []

    class Watched(test_starting.Parts):
        def init(self, key):
            keys.append(key)
            return super().init(key)

    task = Watched(test_starting.make().config)
    load(dataclasses.replace(package(), make_task=lambda *_: task), folder)
    assert [isinstance(key, jax.core.Tracer) for key in keys] == [True]
