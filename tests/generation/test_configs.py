"""The experiments of configs/generation: every one builds its task, full and small."""

import importlib
import pathlib

import pytest

from common import workdir
from generation import task

FOLDER = pathlib.Path(__file__).parents[2] / "configs" / "generation"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")
MORE = {
    "asariri": ("vanilla_gan", "began", "vanilla_gan-debug", "began-debug"),
    "cifar10": ("r3gan", "r3gan-debug"),
    "voice2face_plus": ("small",),
}
ALL = [(name, "", "debug", *MORE.get(name, ())) for name in NAMES]


@pytest.mark.parametrize(
    ("name", "argument"),
    [(name, (word,) if word else ()) for name, *words in ALL for word in words],
)
def test_it_builds(name, argument, tmp_path):
    config = importlib.import_module(f"configs.generation.{name}").get_config(*argument)
    found = task.make_task(workdir.freeze(config), tmp_path)
    assert found.eval_names(test=True) == (*config.data.eval, *config.data.test)
    assert f"--config=configs/generation/{name}.py" in (FOLDER / f"{name}.py").read_text()
    for wrong in ("large", "debug-debug"):
        with pytest.raises(ValueError, match=r"the argument is .*debug or nothing"):
            importlib.import_module(f"configs.generation.{name}").get_config(wrong)
