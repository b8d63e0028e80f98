"""Networks that see: one device equals eight."""

import dataclasses

import jax
import numpy as np
import pytest

from common import metrics, parallel, trainer, workdir
from configs.separation import audiovisual_quickstart, visualvoice
from separation import task as separation_task
from tests.separation.test_sight import filmed

ROWS = 8
VISUALVOICE = {"model.visualvoice.dropout": 0.0}


def batch(config) -> dict[str, np.ndarray]:
    """Rows of other mixtures; the last one is not real, and some lips are not seen."""
    mixtures = filmed()
    if config.model.kind == "visualvoice":
        clips = dataclasses.replace(mixtures.config, overlap=(1.0, 1.0))
        mixtures = dataclasses.replace(mixtures, config=clips, again=True)
    else:
        mixtures = dataclasses.replace(mixtures, paired=True)
    rows = [mixtures.draw(i, np.random.default_rng(i), {}) for i in range(ROWS)]
    found = {name: np.stack([row[name] for row in rows]) for name in rows[0] if name != "id"}
    rng = np.random.default_rng(0)
    for name in found:
        if found[name].dtype == np.float32 and found[name].ndim > 1:  # sound, not ramps
            found[name] = rng.normal(size=found[name].shape).astype(np.float32) * 0.1
        if name.endswith("mouth"):
            found[name] = rng.integers(0, 255, found[name].shape, np.uint8)
    found["mouth_seen"][3, ::2] = False
    sizes = {n: np.full(ROWS, found[n].shape[1], np.int32) for n in ("sources", "enrolment")}
    found |= {f"{name}_lengths": size for name, size in sizes.items()}
    if "other_enrolment" in found:
        found["other_enrolment_lengths"] = sizes["enrolment"]
    return found | {"mask": np.arange(ROWS) < ROWS - 1}


@pytest.mark.parametrize(
    ("configs", "changes"),
    [
        (audiovisual_quickstart, {"model.causal.num_layers": 1, "loss.speaker": 0.0}),
        pytest.param(visualvoice, VISUALVOICE, marks=pytest.mark.slow),
    ],
)
def test_eight_devices_train_as_one(tmp_path, configs, changes):
    """Sums in another order: float32 to five digits, less in the gradient."""
    config = configs.get_config("debug")
    config.update_from_flattened_dict(changes)
    task = separation_task.make_task(workdir.freeze(config), tmp_path)
    rows = batch(config)
    host = jax.device_get(task.create_state(jax.jit(task.init)(jax.random.key(0))))
    moments, sums = [], []
    for devices in (1, 8):
        mesh = parallel.make_mesh(jax.devices()[:devices])
        step = trainer.make_train_step(task, task.config, mesh)
        after, found = step(parallel.place(host, mesh), parallel.global_batch(rows, mesh))
        floats = [x for x in jax.tree.leaves(after.opt_state) if x.dtype == np.float32]
        moments.append(np.concatenate([np.ravel(x) for x in floats]))
        sums.append(metrics.finalize(found))
    assert sums[0]["loss"] == pytest.approx(sums[1]["loss"], rel=1e-5)
    assert sums[0]["grad_norm"] == pytest.approx(sums[1]["grad_norm"], rel=1e-3)
    # The gradient itself, in Adam's averages: before normalisation some channels are all but 0.
    assert np.linalg.norm(moments[0] - moments[1]) < 1e-2 * np.linalg.norm(moments[0])
    assert np.linalg.norm(moments[0]) > 0.1
