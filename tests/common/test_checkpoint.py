"""Checkpoints: what is damaged and what is not, the best one, states that are not finite."""

import errno
import gc
import json
import os
import pathlib
import resource
import shutil
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from common import checkpoint, parallel, trainer
from tests.common import toy
from tests.common.restoring import make_state, new_iterator, restore

ROOT = pathlib.Path(__file__).parents[2]


def write(
    folder: pathlib.Path, scores: dict[int, float | None], over: str = "", **settings
) -> None:
    """One checkpoint a step, each with its own weights, after `step` batches."""
    saver = checkpoint.Checkpointer(folder / "checkpoints", **settings)
    for step, score in scores.items():
        saver.save(step, make_state(step), new_iterator(step), {"evaluated": -1}, score, over)
    saver.close()


def one_device():
    return parallel.make_mesh(jax.devices()[:1])


def start_all(module: str, arguments: list[list]) -> list[str]:
    """What the processes of one run print, one for each list of arguments; all have to succeed."""
    command = [sys.executable, "-m", module]
    if len(arguments) > 1:
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            command.append(f"--coordinator=localhost:{probe.getsockname()[1]}")
    processes = [
        subprocess.Popen(
            [*command, f"--process={i}", *map(str, own)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": "."},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i, own in enumerate(arguments)
    ]
    try:
        ends = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert not any(process.returncode for process in processes), ends
    return ["".join(end) for end in ends]


def said(arguments: list[list]) -> list[list]:
    """What came of the work directories in each process."""
    return [
        [json.loads(line)["said"] for line in text.splitlines() if line.startswith('{"said"')]
        for text in start_all("tests.common.restoring", arguments)
    ]


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> pathlib.Path:
    """A work directory with checkpoints of the steps 1 and 2."""
    folder = tmp_path_factory.mktemp("two")
    write(folder, {1: None, 2: 0.5})
    return folder


@pytest.fixture
def run(two, tmp_path) -> pathlib.Path:
    shutil.copytree(two, tmp_path / "run")
    return tmp_path / "run"


def test_without_file_descriptors_a_sound_checkpoint_stays(run, monkeypatch):
    saver = checkpoint.Checkpointer(run / "checkpoints")
    before = contents(run)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)  # the lowest number that is free
    os.close(lowest)
    with monkeypatch.context() as patch:  # Orbax's half-made event loops: no test's failure
        patch.setattr(sys, "unraisablehook", lambda found: None)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            with pytest.raises(checkpoint.CheckpointError) as error:
                saver.restore(jax.eval_shape(lambda: make_state(0)), one_device(), None)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        said = str(error.value)
        del error
        gc.collect()
    assert "Too many open files" in said
    assert "nothing was moved" in said
    saver.close()
    assert contents(run) == before
    assert restore(run) == (2, 2)


@pytest.mark.parametrize(
    "trouble",
    [
        MemoryError("out of memory"),
        OSError(errno.EIO, os.strerror(errno.EIO)),
        OSError(errno.EACCES, os.strerror(errno.EACCES)),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."),
        ValueError('UNKNOWN: Error reading "corrupt/a": Too many levels [os_error_code=40]'),
    ],
    ids=["memory", "disk", "permission", "device", "tensorstore"],
)
def test_what_is_not_the_checkpoints_fault_touches_nothing(run, monkeypatch, trouble):
    def fail(*args, **kwargs):
        raise trouble

    before = contents(run)
    with monkeypatch.context() as patch:
        patch.setattr(ocp.StandardCheckpointHandler, "restore", fail)
        with pytest.raises(checkpoint.CheckpointError, match="could not be read"):
            restore(run)
        loader = checkpoint.Checkpointer(run / "checkpoints", read_only=True)
        with pytest.raises(checkpoint.CheckpointError, match="could not be read"):
            loader.load_variables(one_device())
    assert contents(run) == before
    assert restore(run) == (2, 2)


def test_harm_to_any_file_gives_the_same_bits_or_the_checkpoint_before(two, tmp_path):
    """No file, cut short, emptied (as after a loss of power) or gone, ends in a traceback."""
    files = [p.relative_to(two) for p in (two / "checkpoints" / "2").rglob("*") if p.is_file()]
    files = [path for path in files if path.name != "commit_success.txt"]  # read by nobody
    runs = []
    for harm in ("empty", "cut", "gone"):
        for number, path in enumerate(files):
            runs.append((harm, path, tmp_path / f"{harm}{number}"))
            shutil.copytree(two, runs[-1][2])
            victim = runs[-1][2] / path
            data = victim.read_bytes()
            victim.write_bytes(data[: len(data) // 2] if harm == "cut" else b"")
            if harm == "gone":
                victim.unlink()
    harmed = {run: contents(run / "checkpoints" / "2") for *_, run in runs}
    (found,) = said([[run for *_, run in runs]])
    moved = {"empty": set(), "cut": set(), "gone": set()}
    for (harm, path, run), result in zip(runs, found, strict=True):
        assert result in ([1, 1], [2, 2]), (harm, path)
        if result == [1, 1]:
            moved[harm].add("values" if (two / path).stat().st_size > 9000 else path.name)
            assert contents(run / "damaged" / "2") == harmed[run]
    assert moved["empty"] >= {"metadata", "metrics", "_METADATA", "manifest.ocdbt", "values"}
    assert moved["cut"] >= {"metadata", "metrics", "_METADATA", "manifest.ocdbt", "values"}
    assert moved["gone"] >= {"metadata", "_METADATA", "manifest.ocdbt", "values"}


def test_a_flipped_bit_in_meta_is_seen(run):
    path = run / "checkpoints" / "2" / "meta" / "metadata"
    path.write_text(path.read_text().replace('"next_index": 2', '"next_index": 3'))
    assert restore(run) == (1, 1)


def test_moved_aside_twice_both_are_kept(run):
    for _ in range(2):
        (run / "checkpoints" / "2" / "meta" / "metadata").write_text("")
        assert restore(run) == (1, 1)
        write(run, {2: None})
    assert sorted(p.name for p in (run / "damaged").iterdir()) == ["2", "2-1"]


@pytest.mark.parametrize("name", ["meta/metadata", "metrics/metrics"])
def test_if_all_are_damaged_nothing_starts_anew_unasked(run, name):
    shutil.rmtree(run / "checkpoints" / "1")
    (run / "checkpoints" / "2" / name).write_text("")
    with pytest.raises(checkpoint.CheckpointError, match=r"All 1 checkpoints .* are damaged"):
        restore(run)
    assert (run / "damaged" / "2").is_dir()


def test_an_evaluation_says_which_is_damaged_and_touches_nothing(run):
    (run / "checkpoints" / "2" / "metrics" / "metrics").write_text("")
    before = contents(run)
    loader = checkpoint.Checkpointer(run / "checkpoints", read_only=True)
    with pytest.raises(checkpoint.CheckpointError, match=r"2 is damaged .*--checkpoint: 1, 2"):
        loader.load_variables(one_device())
    assert loader.load_variables(one_device(), step=1)[1]["step"] == 1
    assert contents(run) == before


@pytest.mark.parametrize("processes", [1, 2])
def test_positions_as_earlier_versions_saved_them(run, processes):
    folder = run / "checkpoints" / "2"
    meta = json.loads((folder / "meta" / "metadata").read_text())
    place = meta.pop("data")
    del meta["checksum"]
    (folder / "meta" / "metadata").write_text(json.dumps(meta))
    (folder / "data").mkdir()
    for i in range(processes):
        (folder / "data" / f"process_{i}-of-{processes}.json").write_text(json.dumps(place))
    assert restore(run) == (2, 2)


@pytest.mark.parametrize(("mode", "best"), [("min", 1), ("max", 3)])
def test_a_metric_that_is_not_finite_is_never_the_best(tmp_path, caplog, mode, best):
    for step, score in enumerate([0.2, np.nan, 0.4, -np.inf, np.inf, 0.3], 1):
        write(tmp_path, {step: score}, keep_last=1, keep_best=1, best_mode=mode)
    loader = checkpoint.Checkpointer(tmp_path / "checkpoints", read_only=True)
    assert (loader.steps(), loader.best_step()) == ([best, 6], best)
    assert "Step 2: its metric is nan" in caplog.text


@pytest.mark.parametrize(("mode", "sign"), [("min", 1), ("max", -1)])
def test_figures_over_other_recordings_are_not_compared(tmp_path, mode, sign):
    """A run that goes on with another dev set: an easier one before does not decide."""
    options = {"keep_last": 1, "best_mode": mode}
    write(tmp_path, {1: 0.05 * sign, 2: 0.1 * sign}, over="easy", **options)
    loader = checkpoint.Checkpointer(tmp_path / "checkpoints", read_only=True)
    assert loader.best_step() == 1
    write(tmp_path, {3: 0.3 * sign, 4: 0.5 * sign, 5: 0.4 * sign}, over="hard", **options)
    loader = checkpoint.Checkpointer(tmp_path / "checkpoints", read_only=True)
    assert (loader.steps(), loader.best_step()) == ([3, 5], 3)


def test_nan_that_an_earlier_version_saved_displaces_nothing(tmp_path):
    write(tmp_path, {1: 0.2, 2: 0.9}, keep_last=1)
    path = tmp_path / "checkpoints" / "2" / "metrics" / "metrics"
    path.write_text('{"best": NaN}')
    write(tmp_path, {3: 0.4}, keep_last=2)
    loader = checkpoint.Checkpointer(tmp_path / "checkpoints", read_only=True)
    assert (loader.steps(), loader.best_step()) == ([1, 2, 3], 1)


def test_a_state_that_is_not_finite_is_not_saved(run):
    good = make_state(3)
    stats = {"batch_stats": {"norm": {"var": jnp.array([1.0, jnp.inf, 1.0, 1.0])}}}
    before = contents(run)
    saver = checkpoint.Checkpointer(run / "checkpoints")
    with pytest.raises(checkpoint.NotFinite, match=r"step 3 .*norm/var.*checkpoints/2") as error:
        saver.save(3, good.replace(model_state=stats), None, {}, 0.1)
    assert error.value.arrays == ["model_state/batch_stats/norm/var"]
    saver.close()
    assert contents(run) == before


def test_a_state_that_an_earlier_version_ruined_is_named(run, monkeypatch):
    look = checkpoint.fingerprint.of_tree
    spoilt = {"batch_stats": {"norm": {"var": jnp.full(4, jnp.nan)}}}
    saver = checkpoint.Checkpointer(run / "checkpoints")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.fingerprint, "of_tree", lambda tree: (look(tree)[0], []))
        saver.save(4, make_state(4).replace(model_state=spoilt), None, {}, None)
    saver.close()
    before = contents(run)
    with pytest.raises(checkpoint.CheckpointError, match=r"checkpoints/4 holds NaN.*norm/var"):
        restore(run)
    assert contents(run) == before


def test_two_processes_agree_on_damage_config_and_data(two, tmp_path):
    """Each has its own copy and that of process 1 is damaged; then they train on other data.

    What one of them raises alone leaves the other waiting for ever.
    """
    folders = [tmp_path / "0", tmp_path / "1"]
    for folder in folders:
        shutil.copytree(two, folder)
    (folders[1] / "checkpoints" / "2" / "meta" / "metadata").write_text("")
    options = [["--stream=a"], ["--stream=b", "--seed=1"]]
    first, second = said([[folder, *own] for folder, own in zip(folders, options)])
    assert first == second
    assert first[0] == [1, 1]
    assert [p.name for p in (folders[0] / "damaged").iterdir()] == ["2"]
    assert "the config on process 1; the training data" in first[1]
    assert "(recordings, lengths, buckets, seed) on process 1" in first[1]


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_as_one_and_the_reverse(tmp_path):
    """The same batches follow; only the order of the sums is another."""

    for steps, processes in ((10, 2), (20, 1), (30, 2)):
        own = [f"--workdir={tmp_path}", f"--steps={steps}", f"--host_devices={4 // processes}"]
        text, *_ = start_all("tests.common.toy", [own] * processes)
        assert (f"Resumed at step {steps - 10} from" in text) == (steps > 10)
    assert not (tmp_path / "damaged").exists()
    found = json.loads((tmp_path / "final.json").read_text())
    task = toy.ToyTask(toy.make_config(total_steps=30))
    mesh = parallel.make_mesh(jax.devices()[:4])
    whole, _ = trainer.train(task, task.config, tmp_path / "whole", mesh)
    for path, value in jax.tree_util.tree_leaves_with_path(whole.params):
        bits = bytes.fromhex(found[f".params{jax.tree_util.keystr(path)}"])
        same = np.frombuffer(bits, np.float32).reshape(value.shape)
        # Gradients differ in the last places, which Adam magnifies where they are nearly 0.
        np.testing.assert_allclose(same, value, rtol=1e-3, atol=1e-4)
