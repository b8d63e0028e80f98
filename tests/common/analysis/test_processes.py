"""Several processes look at a run together, and find what one does."""

import json
import shutil

import numpy as np
import pytest

from tests.common import test_checkpoint
from tests.common.analysis import toy_run


@pytest.mark.slow
def test_two_processes_of_two_devices_find_what_one_does(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    toy_run.train(one)
    shutil.copytree(one, two)
    toy_run.look(toy_run.PACKAGE, one, 1)
    arguments = [[f"--workdir={two}"]] * 2
    said = test_checkpoint.start_all("tests.common.analysis.toy_run", arguments)
    names = {path.relative_to(one) for path in one.rglob("analysis/**/*.npz")}
    assert len(names) == 6  # the plane, four checkpoints, the spectrum
    assert names == {path.relative_to(two) for path in two.rglob("analysis/**/*.npz")}
    for name in names:
        with np.load(one / name) as wanted, np.load(two / name) as found:
            assert set(wanted) == set(found)
            for key in set(wanted) - {"about"}:
                np.testing.assert_allclose(
                    *(found[key], wanted[key]), rtol=2e-4, atol=2e-4, err_msg=f"{name} {key}"
                )
    summaries = [json.loads(next(x.rglob("hessian_20.json")).read_text()) for x in (one, two)]
    assert summaries[1]["largest"] == pytest.approx(summaries[0]["largest"], rel=1e-3)
    # The first process alone writes and prints.
    assert sum("Values and pictures" in text for text in said) == 1
