"""What `--mode=estimate` states of memory is what a step takes."""

import pathlib

import pytest

from tests import commands


@pytest.mark.slow
@pytest.mark.skipif(
    not pathlib.Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak of a step"
)
def test_the_estimate_is_within_15_percent_of_a_real_step():
    config = "--config=configs/speaker/quickstart.py:debug"
    # So large that the few MiB which libraries take besides are little.
    larger = ("--config.data.batch_rows=96", "--config.model.channels=128")
    said = commands.run("benchmarks.estimate_memory", "speaker", config, *larger).stdout
    *_, row = said.splitlines()
    estimated, measured, _ = (float(cell) for cell in row.strip("| ").split(" | ")[2:])
    assert measured > 50
    assert estimated / measured == pytest.approx(1, abs=0.15)
