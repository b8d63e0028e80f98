"""The experiments of configs/separation: every one builds its task, full and small."""

import importlib
import pathlib

import pytest

from common import errors, workdir
from separation import task

FOLDER = pathlib.Path(__file__).parents[2] / "configs" / "separation"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("argument", [(), ("debug",)])
def test_it_builds(name, argument, tmp_path):
    config = importlib.import_module(f"configs.separation.{name}").get_config(*argument)
    found = task.make_task(workdir.freeze(config), tmp_path)
    assert found.eval_names(test=True) == (*config.data.eval, *config.data.test)


def test_lists_are_evaluated_beside_splits_and_in_their_place(tmp_path):
    config = importlib.import_module("configs.separation.quickstart").get_config("debug")
    config.data.lists = ("dev=/x/a.tsv", "/x/b.tsv")
    config.data.test = ("test",)
    found = task.make_task(workdir.freeze(config), tmp_path)
    assert found.eval_names(test=False) == ("dev", "b")
    assert found.eval_names(test=True) == ("dev", "b", "test")
    assert found.best_metric == ("dev", "si_sdri_median", "max")
    with pytest.raises(errors.UserError, match=r"There is no list /x/a\.tsv"):
        found.part("dev")
    config.data.lists = ("/x/a.tsv", "/y/a.tsv")
    with pytest.raises(errors.UserError, match="two lists 'a'"):
        task.make_task(workdir.freeze(config), tmp_path)
