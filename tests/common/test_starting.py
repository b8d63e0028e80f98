"""The first state: from the seed, or with parts of other runs, of other tasks too."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import checkpoint, errors, parallel, starting, state, workdir
from tests.common import toy


class Encoder(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.width)(x)
        return nn.BatchNorm(use_running_average=True)(x)


class Whole(nn.Module):
    """Parts by name, each as wide as it says."""

    widths: tuple[tuple[str, int], ...]

    @nn.compact
    def __call__(self, x):
        return [Encoder(width, name=name)(x) for name, width in self.widths]


@dataclasses.dataclass(frozen=True)
class Parts(toy.ToyTask):
    """A task whose model has the parts that it is told to have."""

    widths: tuple[tuple[str, int], ...] = (("encoder", 4), ("head", 2))

    def init(self, key):
        return Whole(self.widths).init(key, jnp.zeros((1, 3)))


SEPARATOR = (("encoder", 4), ("cue", 4), ("mask", 6))


def make(name="toy", widths=Parts.widths, **changes):
    return Parts(toy.make_config(**changes), name=name, widths=widths)


def saved(folder, task, scores=((3, 0.0),), best=("dev", "error", "min")):
    """A run with a checkpoint for each (step, score), made with the step as its seed."""
    folder.mkdir(parents=True)
    workdir.save_config(folder, task.name, task.config)
    saver = checkpoint.Checkpointer(folder / "checkpoints", best_mode=best[2], keep_last=9)
    found = {}
    for step, score in scores:
        variables = jax.jit(task.init)(jax.random.key(step))
        # Statistics as after training: not those of a new model.
        variables = jax.tree.map(lambda x, step=step: x + step, variables)
        saver.save(step, task.create_state(variables), None, {}, score)
        found[step] = jax.device_get(variables)
    saver.close()
    return found


@pytest.fixture(scope="module")
def speaker(tmp_path_factory):
    """The work directory of a speaker network, and its variables."""
    folder = tmp_path_factory.mktemp("runs") / "spk"
    return folder, saved(folder, make("speaker"))[3]


def start(task, devices=1):
    mesh = parallel.make_mesh(jax.devices()[:devices])
    return jax.device_get(starting.first_state(task, task.config, mesh))


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_new_state_follows_from_the_seed():
    for seed in (0, 7):
        begun = start(make(seed=seed))
        expected = jax.jit(make().init)(state.stream_key(seed, "init", 0))
        assert_equal(begun.params, jax.device_get(expected["params"]))
    other = start(make(seed=0)).params["encoder"]["Dense_0"]["kernel"]
    assert not np.array_equal(other, begun.params["encoder"]["Dense_0"]["kernel"])


def test_parts_come_from_other_runs_of_other_tasks(tmp_path, speaker):
    folder, speaker = speaker
    other = saved(tmp_path / "sep", make("separation", SEPARATOR, seed=5))[3]
    named = f"cue={folder}:encoder,encoder={tmp_path / 'sep'}"
    task = make("separation", SEPARATOR, init_from=named)
    begun = start(task, devices=2)
    fresh = jax.device_get(jax.jit(task.init)(state.stream_key(0, "init", 0)))
    for mine, theirs, their_name in (("cue", speaker, "encoder"), ("encoder", other, "encoder")):
        assert_equal(begun.params[mine], theirs["params"][their_name])
        assert_equal(begun.model_state["batch_stats"][mine], theirs["batch_stats"][their_name])
    np.testing.assert_allclose(
        begun.params["mask"]["Dense_0"]["kernel"], fresh["params"]["mask"]["Dense_0"]["kernel"]
    )
    assert begun.step == 0
    assert_equal(begun.ema, begun.variables)
    # Down to one array, and all of a model under one name.
    layer = start(make(init_from=f"encoder/Dense_0/kernel={folder}"))
    expected = speaker["params"]["encoder"]["Dense_0"]["kernel"]
    np.testing.assert_array_equal(layer.params["encoder"]["Dense_0"]["kernel"], expected)
    assert not layer.params["encoder"]["Dense_0"]["bias"].any()
    assert not layer.model_state["batch_stats"]["encoder"]["BatchNorm_0"]["mean"].any()

    class Nested(Parts):
        def init(self, key):
            whole = super().init(key)
            return {name: {"voice": tree} for name, tree in whole.items()}

    nested = start(Nested(toy.make_config(init_from=f"voice={folder}:.")))
    assert_equal(nested.params["voice"], speaker["params"])


def test_the_best_of_a_run_is_the_best_by_its_own_measure(tmp_path):
    """Signal-to-distortion ratios are best when high, whatever the task says that asks."""
    scores = ((1, 5.0), (2, 9.0), (3, 7.0))
    found = saved(tmp_path / "sep", make("separation"), scores, ("dev", "si_sdr", "max"))
    begun = start(make(init_from=f"encoder={tmp_path / 'sep'}"))
    assert_equal(begun.params["encoder"], found[2]["params"]["encoder"])


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("cue={spk}:encoder", "names the part 'cue', which this model does not have. It has encod"),
        (
            "encoder={spk}:enc",
            "spk/checkpoints has no part 'enc'. It has encoder, encoder/.*, head, .*Name one as in "
            "encoder=.*/spk:encoder; a dot in its place is all",
        ),
        ("encoder={spk}:head", r"do not fit .*\n  batch_stats/encoder/.*float32\[2\], config f"),
        ("encoder={spk},head", "'head' is not understood. Give a work directory, or PART=DIR"),
        ("encoder={spk},encoder={spk}", "each part once"),
        ("encoder=", "'encoder=' is not understood"),
        ("encoder={none}", "none is no work directory"),
        ("{none}", "none is no work directory"),
        ("encoder={empty}", "There is no checkpoint in .*empty"),
        ("{spk}", "belongs to the task 'speaker', not to 'toy'"),
    ],
)
def test_parts_that_cannot_be_had_are_named(tmp_path, speaker, named, words):
    (tmp_path / "empty").mkdir()
    workdir.save_config(tmp_path / "empty", "speaker", make().config)
    places = {"spk": speaker[0], "none": tmp_path / "none", "empty": tmp_path / "empty"}
    with pytest.raises(errors.UserError, match=words):
        start(make(init_from=named.format(**places)))


def test_a_folder_may_have_any_name(tmp_path):
    folder = tmp_path / "lr=0.1:a"
    found = saved(folder, make())[3]
    assert starting.sources_of(str(folder)) == folder
    begun = start(make(init_from=f"encoder={folder}"))
    assert_equal(begun.params["encoder"], found["params"]["encoder"])
    assert starting.sources_of("a/b=x/y:c, d = e") == {
        "a/b": (folder.__class__("x/y"), "c"),
        "d": (folder.__class__("e"), "d"),
    }
