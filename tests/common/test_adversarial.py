"""Two players, each with its loss, optimizer and schedule, against steps worked out by hand."""

import dataclasses
import functools
import json
import shutil

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import metrics, optim, parallel, state, steps, trainer
from common.task import Report
from tests.common import toy

ROWS = 8
RATES = {"discriminator": 0.5, "generator": 0.1}


def generate(params, z):
    return z @ params["generator"]["kernel"] + params["generator"]["bias"][None, :]


def judge(params, x):
    """Log-odds that x is real."""
    return jnp.tanh(x) @ params["discriminator"]["kernel"] + params["discriminator"]["bias"]


@dataclasses.dataclass(frozen=True)
class Points:
    """Batch k: points round (2, -1), and what the generator makes its own from."""

    def __len__(self):
        return 1_000_000

    def __getitem__(self, k):
        rng = np.random.default_rng(k)
        return {
            "x": (rng.normal(size=(ROWS, 2)) * 0.5 + [2, -1]).astype(np.float32),
            "z": rng.normal(size=(ROWS, 3)).astype(np.float32),
            "mask": np.arange(ROWS) < rng.integers(3, ROWS + 1),
            "index": np.arange(ROWS, dtype=np.int32),
        }


@dataclasses.dataclass(frozen=True)
class Gan(toy.ToyTask):
    """A linear generator against a discriminator of one layer; the generator is averaged."""

    noise: float = 0.0
    updates: int = 2
    best_metric: tuple = ("dev", "distance", "min")

    def init(self, key):
        a, b = jax.random.split(key)
        params = {
            "generator": {"kernel": jax.random.normal(a, (3, 2)), "bias": jnp.zeros(2)},
            "discriminator": {"kernel": jax.random.normal(b, (2,)), "bias": jnp.zeros(())},
        }
        zero = jnp.zeros(())
        return {
            "params": params,
            "counters": {"generator": {"steps": zero}, "discriminator": {"steps": zero}},
        }

    @property
    def optimizer(self):
        def settings(name):
            made = optim.default_config()
            made.update({"name": "sgd", "momentum": 0.0, "learning_rate": RATES[name]})
            made.update({"schedule": "noam", "warmup_steps": 1})
            return made

        updates = {"discriminator": self.updates, "generator": 1}
        groups = {name: optim.Group(settings(name), (name,), updates[name]) for name in RATES}
        return optim.make_optimizers(groups, self.config.total_steps)

    def create_state(self, variables):
        return state.create(variables, self.optimizer.tx, ema=True, averaged=("generator",))

    def _counted(self, variables, name):
        steps = variables["counters"][name]["steps"]
        return {"counters": {name: {"steps": steps + 1}}}

    def _fake(self, variables, batch, key):
        keys = parallel.row_keys(key, batch["row"])
        noise = jax.vmap(lambda k: jax.random.normal(k, (3,)))(keys)
        return generate(variables["params"], batch["z"] + self.noise * noise)

    def discriminator_loss(self, variables, batch, key, step, *, train):
        real = jax.nn.softplus(-judge(variables["params"], batch["x"]))
        fake = jax.nn.softplus(judge(variables["params"], self._fake(variables, batch, key)))
        terms = {
            "real": metrics.Term(*metrics.ratio(real, batch["mask"])),
            "fake": metrics.Term(*metrics.ratio(fake, batch["mask"])),
        }
        return terms, ({}, self._counted(variables, "discriminator"))

    def generator_loss(self, variables, batch, key, step, *, train):
        fooled = jax.nn.softplus(-judge(variables["params"], self._fake(variables, batch, key)))
        terms = {"fooled": metrics.Term(*metrics.ratio(fooled, batch["mask"]))}
        rows = metrics.Ratio(jnp.sum(batch["mask"], dtype=jnp.float32), jnp.ones(()))
        return terms, ({"rows": rows}, self._counted(variables, "generator"))

    @functools.cached_property
    def train_step(self):
        players = (
            steps.Player(
                "discriminator", self.discriminator_loss, ("discriminator",), self.updates
            ),
            steps.Player("generator", self.generator_loss, ("generator",)),
        )
        return steps.adversarial(players, self.optimizer.tx, ema_decay=self.config.ema_decay)

    def train_data(self):
        return grain.MapDataset.source(Points()).to_iter_dataset(grain.ReadOptions(num_threads=0))

    def eval_data(self, *, test=False):
        return {"dev": [Points()[10_000]]}

    def eval_step(self, variables, batch):
        found = generate(variables["params"], batch["z"]) - jnp.array([[2.0, -1.0]])
        return {"distance": metrics.ratio(jnp.abs(found).sum(1), batch["mask"])}, {}

    def report(self, split, outputs, examples=()):
        return Report({})


def run(devices, count, **options):
    """The first state, that after `count` steps, and the sums of the last."""
    task = Gan(toy.make_config(total_steps=10), **options)
    mesh = parallel.make_mesh(jax.devices()[:devices])
    step = trainer.make_train_step(task, task.config, mesh)
    first = task.create_state(task.init(jax.random.key(3)))
    now = parallel.place(first, mesh)
    for k in range(count):
        now, sums = step(now, parallel.global_batch(Points()[k], mesh))
    return jax.device_get(first), jax.device_get(now), metrics.finalize(sums)


@pytest.mark.parametrize("devices", [1, 4])
def test_players_take_turns(devices):
    """The discriminator twice, on every other row; then the generator against the new one."""
    first, now, said = run(devices, 1)
    batch = Points()[0]
    params = first.params

    def mean(values, rows):
        return jnp.mean(values[batch["mask"][rows]])

    def discriminator(own, params, rows):
        params = {**params, "discriminator": own}
        fake = judge(params, generate(params, batch["z"][rows]))
        real = judge(params, batch["x"][rows])
        return mean(jax.nn.softplus(-real), rows) + mean(jax.nn.softplus(fake), rows)

    def generator(own, params, rows):
        params = {**params, "generator": own}
        return mean(jax.nn.softplus(-judge(params, generate(params, batch["z"][rows]))), rows)

    losses = {"discriminator": [], "generator": []}
    everything = slice(None)
    turns = [("discriminator", slice(0, None, 2)), ("discriminator", slice(1, None, 2))]
    for name, rows in [*turns, ("generator", everything)]:
        loss = {"discriminator": discriminator, "generator": generator}[name]
        value, grads = jax.value_and_grad(loss)(params[name], params, rows)
        losses[name].append(float(value))
        rate = RATES[name]  # that of the first step, for both of the discriminator's updates
        params = {**params, name: jax.tree.map(lambda p, g, r=rate: p - r * g, params[name], grads)}
    # Sums of 8 numbers of order 1 in float32.
    compare = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(compare, now.params, params)
    assert not np.allclose(
        now.params["discriminator"]["kernel"], first.params["discriminator"]["kernel"]
    )
    assert said["generator_loss"] == said["loss"] == pytest.approx(losses["generator"][0], rel=1e-5)
    counters = now.model_state["counters"]
    assert (counters["discriminator"]["steps"], counters["generator"]["steps"]) == (2, 1)
    assert now.step == 1


def test_four_devices_equal_one_and_the_generator_alone_is_averaged():
    (_, one, said), (_, four, said_four) = (run(d, 3, noise=0.3) for d in (1, 4))
    compare = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(compare, one, four)
    del said["rows"], said_four["rows"]  # work a device
    assert said == pytest.approx(said_four, rel=1e-5)
    assert set(one.ema["params"]) == {"generator"}
    used = one.eval_variables
    jax.tree.map(
        np.testing.assert_array_equal, used["params"]["generator"], one.ema["params"]["generator"]
    )
    assert used["params"]["discriminator"] is one.params["discriminator"]
    # The counter's average after steps 0, 1, 2: rates (1 + step) / (10 + step).
    average = 0.0
    for step in range(3):
        rate = (1 + step) / (10 + step)
        average = rate * average + (1 - rate) * (step + 1)
    assert one.ema["counters"]["generator"]["steps"] == pytest.approx(average, rel=1e-6)
    assert one.params["generator"]["kernel"].shape == (3, 2)


def test_trained_and_resumed(tmp_path):
    """The generator comes nearer; each group logs its own rate; a resumed run has the same bits."""

    def train(folder, total):
        task = Gan(toy.make_config(total_steps=total, keep_every=5), noise=0.1)
        mesh = parallel.make_mesh(jax.devices()[:2])
        return trainer.train(task, task.config, folder, mesh)

    whole, _ = train(tmp_path / "whole", 40)
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    for step in (40, 35):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step), ignore_errors=True)
    resumed, _ = train(tmp_path / "run", 40)
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    lines = [json.loads(x) for x in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if line["split"] == "train"]
    assert "learning_rate" not in trained[0]
    rates = [
        (line["learning_rate_discriminator"], line["learning_rate_generator"]) for line in trained
    ]
    assert rates[0] == pytest.approx((0.5 * 5**-0.5, 0.1 * 5**-0.5))  # that of the fifth step
    distances = [line["distance"] for line in lines if line["split"] == "dev"]
    assert distances[-1] < distances[0]
