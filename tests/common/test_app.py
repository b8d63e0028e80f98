"""What the processes of a run do together before the first step."""

import types

import numpy as np
import pytest

from common import app, errors, hosts, parallel, trainer, workdir
from common.package import Context, Package
from tests.common import toy


def train(folder):
    make = (lambda config, _: toy.ToyTask(config)), (lambda *_: None)
    context = Context(folder, toy.make_config(), parallel.make_mesh(), None)
    app.MODES["train"].run(Package("toy", trainer.default_config, *make), context)


def test_a_process_that_cannot_prepare_ends_the_others(tmp_path, monkeypatch):
    """It raises its own message; the others, which could, would wait for it in a collective."""
    monkeypatch.setattr(hosts, "gather", lambda grade: np.stack([grade, np.int32(1)]))
    with pytest.raises(errors.UserError, match="preparing the training failed on process 1, whose"):
        train(tmp_path)
    with workdir.Lock(tmp_path):  # the directory is free
        assert not list(tmp_path.glob("checkpoints"))


def test_programs_of_several_cpu_devices_are_not_kept(monkeypatch):
    """They may crash when they come from the cache."""
    kept = []

    def use(devices: int, flags: str) -> list:
        kept.clear()
        config = types.SimpleNamespace(
            jax_num_cpu_devices=devices, update=lambda *given: kept.append(given[0])
        )
        monkeypatch.setattr(app, "jax", types.SimpleNamespace(config=config))
        monkeypatch.setenv("XLA_FLAGS", flags)
        app.use_compile_cache()
        return kept

    assert "jax_compilation_cache_dir" in use(-1, "")
    assert "jax_compilation_cache_dir" in use(1, "")
    assert not use(8, "")
    assert not use(-1, "--xla_force_host_platform_device_count=2")
