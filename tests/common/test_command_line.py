"""The command line: settings, flags that count, and one message for what cannot be."""

import json
import pathlib

import pytest

from common import command_line, errors
from common.app import MODES
from common.package import Mode
from speaker import task as speaker_task

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = "--config=configs/speaker/quickstart.py:debug"
PACKAGE = speaker_task.PACKAGE


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    monkeypatch.chdir(ROOT)


def parse(folder, *words, modes=MODES):
    return command_line.parse(PACKAGE, modes, ["main.py", f"--workdir={folder}", *words])


def saved(folder):
    """A work directory that was trained with the debug config and batches of 24."""
    config = parse(folder, CONFIG, "--config.data.batch_rows=24").config
    text = json.dumps({"task": "speaker", "config": config.to_dict()})
    (folder / "config.json").write_text(text)
    return folder


def test_settings_on_the_command_line_go_into_the_file(tmp_path):
    options = parse(
        tmp_path,
        CONFIG,
        "--config.data.train=a,b",
        "--config.data.batch_rows",
        "8",
        "--noconfig.writers.tensorboard",
        "--config.optimizer.boundaries=(3, 5)",
    )
    config = options.config
    assert (config.data.train, config.data.batch_rows) == (("a", "b"), 8)
    assert config.writers.tensorboard is False
    assert config.optimizer.boundaries == (3, 5)
    assert config.total_steps == 30  # of the file
    assert options.overridden["data.batch_rows"] == 16


def test_dashes_in_names_of_flags(tmp_path):
    """They are as good as underscores; values stay as they are."""
    options = parse(tmp_path, CONFIG, "--host-devices=2", "--config.data.root=a-b")
    assert (options.host_devices, options.config.data.root) == (2, "a-b")
    with pytest.raises(errors.UserError, match="flag 'process_es'"):
        parse(tmp_path, CONFIG, "--process-es=2")


def test_the_last_of_several_counts(tmp_path):
    """Of tuples too, which are not joined: commands put settings behind those of a user."""
    twice = ("--config.optimizer.boundaries=(3, 5)", "--config.data.train=a,b", "--config.seed=1")
    last = ("--config.optimizer.boundaries=(7,)", "--config.data.train", "c", "--config.seed=2")
    config = parse(tmp_path, CONFIG, *twice, *last).config
    assert config.optimizer.boundaries == (7,)
    assert config.data.train == ("c",)
    assert config.seed == 2


def test_a_work_directory_is_the_base_of_later_commands(tmp_path):
    folder = saved(tmp_path)
    assert parse(folder).config.data.batch_rows == 24
    again = parse(folder, "--config.total_steps=50")
    assert (again.config.data.batch_rows, again.config.total_steps) == (24, 50)
    new = "--config.data.root=/elsewhere/x.tsv"
    options = parse(folder, "--mode=evaluate", new, "--config.data.eval=1,b", "--checkpoint=30")
    assert options.config.data.root == "/elsewhere/x.tsv"
    assert options.config.data.eval == ("1", "b")
    assert options.overridden == {"data.root": "", "data.eval": ("dev",)}
    assert (options.mode, options.checkpoint) == ("evaluate", 30)


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (("--config.data.eval=/a/dev.tsv,/b/dev.tsv",), ("/a/dev.tsv", "/b/dev.tsv")),
        (("--config.data.eval", "1e3,007"), ("1e3", "007")),
        (("--config.data.eval=a dev,",), ("a dev",)),
        (("--config.data.eval=('a','b')",), ("a", "b")),
    ],
)
def test_names_of_splits_are_any_text(tmp_path, words, names):
    assert parse(tmp_path, CONFIG, *words).config.data.eval == names


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((CONFIG, "--config.data.train="), "config.data.train names no part of the data"),
        ((CONFIG, "--config.data.eval[0]=x"), "not a valid index"),
        ((CONFIG, "--config.loss.margn=1"), "config.loss.margn. Did you mean config.loss.margin?"),
        ((CONFIG, "--config.modl.kind=ecapa"), "config.modl.kind. Did you mean config.model?"),
        ((CONFIG, "--config.margin=1"), "Did you mean config.loss.margin?"),
        ((CONFIG, "--config.loss.qqq=1"), "config.loss has angle_multiple, fallback, growth"),
        ((CONFIG, "--config.seed.x=1"), "config.seed is a value"),
        ((CONFIG, "--config.data.batch_rows=many"), "--config.data.batch_rows=many"),
        (("--config=configs/speaker/absent.py",), "absent.py"),
        (("--config=configs/speaker/an4.py:huge",), "the argument is"),
        ((), "--config is missing"),
        ((CONFIG, "--mode=evaluat"), "train|estimate|evaluate"),
        ((CONFIG, "--chekpoint=3"), "chekpoint"),
        ((CONFIG, "stray"), "What is 'stray'?"),
        ((CONFIG, "--checkpoint=3"), "--checkpoint has no use with --mode=train"),
        ((CONFIG, "--process=1"), "--process has no use without --coordinator"),
        ((CONFIG, "--coordinator=a:1"), "--coordinator needs --processes=N"),
        ((CONFIG, "--coordinator=a:1", "--multihost"), "not both"),
        (("--mode=evaluate",), "is no work directory"),
    ],
)
def test_what_cannot_be_is_one_message(tmp_path, words, message):
    with pytest.raises(errors.UserError) as told:
        parse(tmp_path, *words)
    assert message in str(told.value)
    assert len(str(told.value)) < 600


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((CONFIG,), "--config has no use with --mode=evaluate"),
        (("--config.model.channels=8",), "cannot change config.model.channels"),
        (("--config.data.sample_rate_hz=8000",), "cannot change config.data.sample_rate_hz"),
    ],
)
def test_an_evaluation_takes_what_leaves_the_weights_alone(tmp_path, words, message):
    with pytest.raises(errors.UserError, match=message):
        parse(saved(tmp_path), "--mode=evaluate", *words)


def test_a_task_may_have_modes_of_its_own(tmp_path, capsys):
    modes = {**MODES, "landscape": Mode(lambda *_: None, "the loss around a checkpoint")}
    assert parse(saved(tmp_path), "--mode=landscape", modes=modes).mode == "landscape"
    with pytest.raises(SystemExit) as stopped:
        parse(tmp_path, "--help", modes=modes)
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "landscape       the loss around a checkpoint" in text
    for name in command_line._define(modes):
        assert f"--{name}" in text
    assert "python -m speaker.main --config=configs/speaker/quickstart.py" in text
    lines = text.splitlines()
    assert len(lines) <= 32
    assert max(map(len, lines)) <= 100


def test_a_config_that_is_damaged_or_of_another_task(tmp_path):
    (tmp_path / "config.json").write_text('{"task": "asr", "config": {}}')
    with pytest.raises(errors.UserError, match="belongs to the task 'asr'"):
        parse(tmp_path, "--mode=evaluate")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(errors.UserError, match=r"config\.json is damaged"):
        parse(tmp_path, "--mode=evaluate")
