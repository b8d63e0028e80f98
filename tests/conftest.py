"""Eight host devices, no silent rank promotion, warnings are errors (pyproject.toml)."""

import collections
import os
import pathlib

import jax
import pytest
from absl import flags

from common import app, cache
from tests import commands

# Compiling takes most of the tests' time, and what is compiled runs for milliseconds: it is done
# without optimisation and kept where the commands keep it, for all workers and later runs.
XLA_FLAGS = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{XLA_FLAGS} --xla_backend_optimization_level=0"
for name, value in {
    "jax_compilation_cache_dir": str(cache.folder() / "xla"),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
}.items():
    jax.config.update(name, value)
    os.environ[name.upper()] = str(value)  # for the processes that tests start
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Grain's worker processes read absl flags; outside app.run nobody parses them.
flags.FLAGS.mark_as_parsed()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no process is left alone with one at the end."""
    slow = collections.Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="session")
def speech_data() -> pathlib.Path:
    """The folder of small real corpora named by SPEECH_DATA; without it such tests are skipped."""
    folder = os.environ.get("SPEECH_DATA")
    if not folder or not pathlib.Path(folder).is_dir():
        pytest.skip("real corpora are no part of the repository: name them by SPEECH_DATA")
    return pathlib.Path(folder)


@pytest.fixture
def command(monkeypatch):
    """Commands in this process: what they set for a whole process stays as the tests have it."""
    for name in commands.WHOLE_PROCESS:
        monkeypatch.setattr(app, name, lambda: None)


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled_programs():
    """Programs of one file are of no use to the next; kept, they add up to gigabytes."""
    yield
    jax.clear_caches()
