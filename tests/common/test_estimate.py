"""`--mode=estimate`: known counts, each shape once, nothing left behind."""

import pathlib

import jax
import numpy as np
import pytest

from common import app, errors, estimate, parallel
from separation import task as separation_task
from speaker import task as speaker_task
from tests.common import toy


class _TwoShapes(toy.ToyTask):
    def train_data(self):
        return self

    def one_of_each_shape(self):
        batch = toy.Examples()[0]
        twice = {name: np.concatenate([array, array]) for name, array in batch.items()}
        return iter([batch, twice])


def test_counts_and_memory_of_a_known_net(tmp_path):
    config = toy.make_config(total_steps=1)
    task = _TwoShapes(config)
    mesh = parallel.make_mesh(jax.devices()[:1])
    small, large = estimate.estimates(task, config, mesh)
    # x [8, 6, 5] @ [5, 7] and its kernel's gradient (x needs none), [8, 7] @ [7, 1] with both; four
    # sums over true frames of [8, 6, 7] are products with the mask.
    assert small.macs == 2 * 8 * 6 * 5 * 7 + 3 * 8 * 7 + 4 * 8 * 6 * 7
    assert large.macs == 2 * small.macs
    assert small.shapes == "x 8 x 6 x 5"
    assert large.peak_bytes > small.peak_bytes > 8 * 6 * 5 * 4
    with pytest.raises(errors.UserError, match="shard_map"):
        list(estimate.estimates(task, toy.make_config(total_steps=1, parallel="pmap"), mesh))


@pytest.mark.parametrize(
    ("package", "sequence"), [(speaker_task.PACKAGE, "audio"), (separation_task.PACKAGE, "sources")]
)
def test_the_command_leaves_no_work_directory(tmp_path, capsys, package, sequence):
    folder = tmp_path / "run"
    options = [f"--config=configs/{package.name}/quickstart.py:debug", f"--workdir={folder}"]
    app.run(package, [f"{package.name}.main", "--mode=estimate", *options])
    said = capsys.readouterr().out
    (row,) = [line for line in said.splitlines() if f"{sequence} " in line]
    gmacs, gib, *_ = row.split()
    assert float(gmacs) > 0
    assert 0.0001 < float(gib) < 1
    assert not pathlib.Path(folder).exists()
