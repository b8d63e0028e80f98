"""The two tables of README.md: every cell is tried, and a step is trained on each data set."""

import dataclasses
import functools
import pathlib
import re

import jax
import numpy as np
import pytest

from common import errors, evaluation, metrics, parallel, trainer
from common.data import pipeline
from generation import hearing, model, voice
from tests.generation import layouts
from tests.generation import people as toy
from tests.generation import test_layouts as tasks

README = (pathlib.Path(__file__).parents[2] / "README.md").read_text()
VOICES = hearing.KINDS
WITHOUT = {"model__conditional": False, "loss__wrong_pairs": False}
# What a network needs beside its kind.
SEED = {"picture__size": 28, "loss__wrong_pairs": False, "loss__r1": 0.0}
NEEDS = {
    "voice2face": {**SEED, "picture__size": 64},
    "vanilla_gan": SEED,
    "cgan": SEED,
    "began": {**SEED, "loss__kind": "began"},
    "r3gan": {"loss__kind": "relativistic"},
    "face2voice": {"picture__size": 64, "model__frames": 16},
    "voice": {"loss__wrong_pairs": False},
    "matcher": {"loss__wrong_pairs": False},
    "revoice": {"loss__wrong_pairs": False},
}


def table(names: int, header: str) -> dict[tuple[str, ...], dict[str, str]]:
    """The rows of a table by the code in the columns that follow the first one."""
    found = {}
    lines = README.split(header)[1].split("\n\n")[0].splitlines()[2:]
    for line in lines:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        keys = [re.findall(r"`(\w+)`", cell) for cell in cells[1 : 1 + names]]
        for last in keys[-1]:
            key = (*(k[0] for k in keys[:-1]), last)
            found[key] = dict(zip(VOICES, cells[1 + names :], strict=True))
    return found


DATA = table(2, "| data | `config.data.kind`")
MODELS = {name: row for (name,), row in table(1, "| network | `config.model.kind`").items()}
CELLS = [(data, kind, heard) for data in DATA for kind in MODELS for heard in VOICES]
NAMES = ["-".join((*data, kind, heard)) for data, kind, heard in CELLS]


def test_the_tables_have_all_that_there_is():
    assert set(MODELS) == set(model.KINDS)
    assert all(set(row.values()) <= {"yes", "no", "same people"} for row in DATA.values())


def settings_of(data, root):
    """The settings of a data set, which is written below `root`."""
    kind, faces = data
    found = {"data__kind": kind, "faces__kind": faces, "data__root": str(root)}
    if data == ("folder", "folder"):
        layouts.asariri(root, faces="faces")
        found |= {"data__pool": ("audio",)}
        return {**found, "data__split_by": "person", "faces__root": f"{root}/faces"}
    if kind == "voxceleb":
        layouts.voxceleb(root)
        found |= {"data__split_by": "person", "data__pool": ("wav",)}
        return {**found, "faces__root": f"{root}/faces", "faces__names": f"{root}/vox1_meta.csv"}
    if kind == "films":
        layouts.films(root)
        return found
    if faces in ("cifar10", "mnist"):
        getattr(layouts, faces)(root / faces)
        found |= {"faces__root": str(root / faces)}
        if kind == "none":
            return {**found, "data__eval": ("test",)}
        layouts.speakers(root, 10)
        return {**found, "data__pool": ("audio",), "data__split_by": "recording"}
    return {"data__kind": "embedded"}


@dataclasses.dataclass
class Opened:
    """A data set on the disk and a batch of it, for training and for evaluation."""

    folder: pathlib.Path
    settings: dict
    train: dict
    evaluated: dict


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    @functools.cache
    def open_data(data, **more):
        root = tmp_path_factory.mktemp("-".join(data))
        settings = settings_of(data, root / "data")
        heard = "class" if data[0] == "none" else "statistics"
        task = tasks.make_task(root / "run", **settings, voice__kind=heard, **more)
        task.prepare()
        with pipeline.opened(task.train_data()) as batches:
            train = next(batches)
        (name,) = task.eval_names(test=False)
        with pipeline.opened(task.eval_data()[name]) as batches:
            evaluated = next(batches)
        return Opened(root / "run", settings, train, evaluated)

    return open_data


@pytest.fixture
def encoder(tmp_path_factory, monkeypatch):
    """The settings of an encoder that a run has trained."""
    folder = tmp_path_factory.mktemp("encoder")
    own = {"model__kind": "voice", "loss__wrong_pairs": False}
    config = tasks.make_task(folder, **own).config
    monkeypatch.setattr(voice, "settings_of", lambda folder, defaults: config)
    return {"voice__kind": "encoder", "voice__workdir": str(folder)}


def task_of(data, kind, heard, found, encoder):
    given = {**found.settings, "model__kind": kind, "voice__kind": heard}
    given |= {"voice__mfcc__hop_samples": 512}  # of half a second
    if heard == "encoder":
        given |= encoder
    if heard == "none":
        given |= WITHOUT
    if DATA[data][heard] == "same people":
        given |= {"data__split_by": "recording"}
    return tasks.make_task(found.folder, **{**given, **NEEDS.get(kind, {})})


@pytest.mark.parametrize(("data", "kind", "heard"), CELLS, ids=NAMES)
def test_a_cell_is_what_the_tables_say(opened, encoder, traced, data, kind, heard):
    """One that fits has a train step and an evaluation for the batches of its data."""
    # Its rows hold other recordings beside.
    other = {"model__kind": kind, **NEEDS[kind]} if kind == "revoice" and data[0] != "none" else {}
    found = opened(data, **other)
    if "no" in (DATA[data][heard], MODELS[kind][heard]):
        with pytest.raises(errors.UserError, match=r"config\.(model|data|voice)\.kind=") as refused:
            task_of(data, kind, heard, found, encoder)
        assert len(str(refused.value).split()) > 10  # it says why
        return
    task = task_of(data, kind, heard, found, encoder)
    batches = [resized(batch, task.config.picture) for batch in (found.train, found.evaluated)]
    # Batches of the same shapes have the same program, from whatever files they were read.
    shapes = [[(name, x.shape, str(x.dtype)) for name, x in batch.items()] for batch in batches]
    key = (kind, heard, repr(shapes))
    if key not in traced:
        trace(task, *batches)
        traced.add(key)


@pytest.fixture(scope="module")
def traced():
    return set()


def resized(batch, picture):
    """A batch with pictures of the size that a network makes, to which they are scaled."""
    shape = (len(batch["mask"]), picture.size, picture.size, picture.channels)
    return {name: np.zeros(shape, np.uint8) if "face" in name else x for name, x in batch.items()}


def trace(task, train, evaluated):
    """Traces a train step and an evaluation, without compiling them."""
    vars(task)["_frozen"] = {}  # variables of no training have the same shapes
    mesh = parallel.make_mesh(jax.devices()[:1])
    state = jax.eval_shape(lambda key: task.create_state(task.init(key)), jax.random.key(0))
    step = trainer.make_train_step(task, task.config, mesh)
    after, sums = jax.eval_shape(step, state, parallel.global_batch(train, mesh))
    assert jax.tree.map(lambda x: x.shape, (after.params, after.model_state)) == jax.tree.map(
        lambda x: x.shape, (state.params, state.model_state)
    )
    assert "pictures" in sums
    evaluate = evaluation.make_eval_step(task, task.config, mesh)
    _, outputs = jax.eval_shape(
        evaluate, state.eval_variables, parallel.global_batch(evaluated, mesh)
    )
    assert outputs["person"].shape == evaluated["person"].shape


@pytest.mark.parametrize("data", DATA)
def test_steps_on_each_data_set_change_the_networks(opened, data):
    found = opened(data)
    heard = "class" if data[0] == "none" else "statistics"
    task = task_of(data, "gan", heard, found, {})
    before = jax.jit(task.init)(jax.random.key(0))["params"]
    state, sums = toy.trained(task, 2)  # the first one has a rate of 0
    said = metrics.finalize(sums)
    assert np.isfinite([said[name] for name in ("real_loss", "fake_loss", "fooled_loss")]).all()
    moved = jax.tree.map(lambda old, new: np.abs(old - new).max(), before, state.params)
    for side in ("generator", "discriminator"):
        assert max(jax.tree.leaves(moved[side])) > 1e-5
