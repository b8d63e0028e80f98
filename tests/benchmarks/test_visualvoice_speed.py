"""VisualVoice's benchmark runs without its peer, small, and refuses networks that differ."""

import jax
import numpy as np
import pytest

from benchmarks import visualvoice_speed


def test_the_published_parameters(tmp_path):
    known = {"small": False, "dtype": "float32", "remat": False, "rows": 1}
    made = visualvoice_speed.make_step(known, tmp_path)
    params = jax.eval_shape(made.init, jax.random.key(0))["params"]
    assert visualvoice_speed.counts(params) == visualvoice_speed.PUBLISHED


def test_small_voices(capsys):
    visualvoice_speed.main(["--small", "--only", "infer", "--rounds=1", "--times=1"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["ours", "1", "s", "float32"] in [line[:4] for line in lines]
    assert ["ours", "2.55", "s", "float32"] in [line[:4] for line in lines]


def test_memory_is_a_table_of_four(capsys, tmp_path, monkeypatch):
    seen = []

    def compiled_step(made, problem):
        seen.append((made.sizes.dtype, made.sizes.remat, problem["audio"].shape))
        return jax.jit(lambda x: x @ x.T).lower(np.ones((256, 512), np.float32)).compile()

    monkeypatch.setattr(visualvoice_speed, "compiled_step", compiled_step)
    visualvoice_speed.main(["--small", "--only", "memory", "--rows=2"])
    kinds = [(dtype, remat) for dtype in ("float32", "bfloat16") for remat in (False, True)]
    assert seen == [(*kind, (2, 3, 40_800)) for kind in kinds]
    *_, row = capsys.readouterr().out.splitlines()
    assert row.startswith("| bfloat16, remat | 0.5 | ")


class Worker:
    """Answers of a peer, given."""

    def __init__(self, **answers):
        self.answers = answers

    def __call__(self, command, *arguments):
        del arguments
        return self.answers[command]


@pytest.mark.parametrize("worse", ["parameters", "voices", "loss", "gradient", None])
def test_networks_that_differ_are_refused(tmp_path, worse):
    def worker(who, wrong):
        np.save(tmp_path / f"{who}.npy", np.sin(np.arange(9.0)) + 0.01 * ("voices" in wrong))
        return Worker(
            describe={"framework": who, "parameters": {"unet": 2 if "parameters" in wrong else 1}},
            check=str(tmp_path / f"{who}.npy"),
            train={"loss": 1.01 if "loss" in wrong else 1.0, "grad_norm": 1.0},
            gradients={"unet": 1.1 if "gradient" in wrong else 1.0},
        )

    running = {"ours": worker("ours", ()), "torch": worker("torch", (worse,))}
    known = {"small": True, "dtype": "float32"}
    if worse is None:
        visualvoice_speed.compare(running, known, ("infer", "train"))
        return
    with pytest.raises(SystemExit, match=r"other parameters|not the same function"):
        visualvoice_speed.compare(running, known, ("infer", "train"))
