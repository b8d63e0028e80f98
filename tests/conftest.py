"""Eight host devices, no silent rank promotion, warnings are errors (pyproject.toml)."""

import os
import pathlib

from common.data import embedded

# Compiling takes most of the tests' time and what is compiled runs for milliseconds: without
# optimisation, and kept where the commands keep it, for all workers, processes and later runs.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(embedded.cache_folder() / "xla")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax
import pytest
from absl import flags

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Grain's worker processes read absl flags; outside app.run nobody parses them.
flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="session")
def speech_data() -> pathlib.Path:
    """The folder of small real corpora named by SPEECH_DATA; without it such tests are skipped."""
    folder = os.environ.get("SPEECH_DATA")
    if not folder or not pathlib.Path(folder).is_dir():
        pytest.skip("real corpora are no part of the repository: name them by SPEECH_DATA")
    return pathlib.Path(folder)


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled_programs():
    """Programs of one file are of no use to the next; kept, they add up to gigabytes."""
    yield
    jax.clear_caches()
