"""A small task over synthetic sequences: masks, batch norm, per-row noise, weights of every kind.

`python -m tests.common.toy --workdir DIR --steps N ...` trains it as a process of its own, for the
tests that kill one.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import signal
import sys

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from common import app, checkpoint, metrics, optim, parallel, preemption, state, steps, trainer
from common.data import buckets, pipeline
from common.nn import masking, norm
from common.task import Report

ROWS, FRAMES, DIM = 8, 6, 5


@dataclasses.dataclass(frozen=True)
class Examples:
    """Batch k as a function of k: random sequences whose target is a linear map of their mean."""

    seed: int = 0

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([self.seed, k])
        x = rng.normal(size=(ROWS, FRAMES, DIM)).astype(np.float32)
        lengths = rng.integers(1, FRAMES + 1, ROWS).astype(np.int32)
        keep = np.arange(FRAMES)[None, :, None] < lengths[:, None, None]
        mean = np.where(keep, x, 0).sum(1) / lengths[:, None]
        return {
            "x": x,
            "x_lengths": lengths,
            "y": mean @ np.linspace(-1, 1, DIM, dtype=np.float32),
            "mask": np.arange(ROWS) < rng.integers(3, ROWS + 1),
            "index": k * ROWS + np.arange(ROWS, dtype=np.int32),
        }


class Net(nn.Module):
    """Dense, batch norm over true frames of all devices, masked mean, dense."""

    @nn.compact
    def __call__(self, x, lengths, *, train):
        x = nn.Dense(7, use_bias=False)(x)
        mask = masking.length_mask(lengths, x.shape[1])
        axis = parallel.AXIS if train else None
        x = norm.MaskedBatchNorm(axis_name=axis, momentum=0.9)(x, mask, train=train)
        return nn.Dense(1)(masking.masked_mean(nn.swish(x), lengths))[:, 0]


@dataclasses.dataclass(frozen=True)
class ToyTask:
    """See `common.task.Task`."""

    config: ml_collections.FrozenConfigDict
    noise: float = 0.1
    poison_step: int = -1
    name: str = "toy"
    sharded: tuple = ()
    best_metric: tuple = ("dev", "error", "min")
    work_metric: str = "rows"
    num_examples: int = 2

    @property
    def optimizer(self):
        return optim.make_optimizer(self.config.optimizer, self.config.total_steps)

    def init(self, key):
        shape = jnp.zeros((1, FRAMES, DIM)), jnp.ones((1,), jnp.int32)
        return Net().init(key, *shape, train=False)

    def create_state(self, variables):
        return state.create(variables, self.optimizer.tx, ema=self.config.ema_decay > 0)

    def adopt(self, fresh, found, meta):
        return found

    def keep(self, split, outputs):
        return outputs

    def loss(self, variables, batch, key, step, *, train):
        x = batch["x"]
        if train:
            keys = parallel.row_keys(key, batch["row"])
            x = x + self.noise * jax.vmap(lambda k: jax.random.normal(k, x.shape[1:]))(keys)
        lengths = masking.fold_row_mask(batch["x_lengths"], batch["mask"])
        y, new = Net().apply(variables, x, lengths, train=train, mutable=["batch_stats"])
        errors = metrics.ratio(jnp.square(y - batch["y"]), batch["mask"])
        work = metrics.Ratio(errors.count, jnp.ones(()))
        return {"squared_error": metrics.Term(*errors)}, ({"rows": work}, new)

    def train_step(self, train_state, batch, key):
        step = steps.supervised(
            self.loss,
            self.optimizer.tx,
            accumulate=self.config.accumulate,
            ema_decay=self.config.ema_decay,
        )
        poison = jnp.where(train_state.step == self.poison_step, jnp.nan, 1.0)
        return step(train_state, {**batch, "x": batch["x"] * poison}, key)

    def eval_step(self, variables, batch):
        y = Net().apply(variables, batch["x"], batch["x_lengths"], train=False)
        return {"error": metrics.ratio(jnp.abs(y - batch["y"]), batch["mask"])}, {"y": y}

    def prepare(self):
        pass

    def train_data(self):
        return grain.MapDataset.source(Examples(self.config.seed)).to_iter_dataset(
            grain.ReadOptions(num_threads=0)
        )

    def names(self, index):
        return [f"recording-{i}" for i in index]

    def eval_data(self, *, test=False):
        return {"dev": [Examples(seed=99)[k] for k in range(3)]}

    def report(self, split, outputs, examples=()):
        seen = float(sum(out["mask"].sum() for out in outputs))
        return Report({"rows_seen": seen}, meta={"first": float(outputs[0]["y"][0])})

    def schedule(self, step):
        return {name: float(at(step)) for name, at in self.optimizer.schedules.items()}

    def checkpoint_meta(self):
        return {}

    def check_checkpoint(self, meta):
        pass


def make_config(**changes) -> ml_collections.FrozenConfigDict:
    config = trainer.default_config()
    config.optimizer = optim.default_config()
    config.optimizer.update({"schedule": "constant", "learning_rate": 0.02, "warmup_steps": 1})
    config.update({"total_steps": 20, "evaluate_every": 10, "checkpoint_every": 5, "log_every": 5})
    config.ema_decay = 0.9
    config.writers.tensorboard = False
    config.update(changes)
    return ml_collections.FrozenConfigDict(config)


def change(event: str, args: tuple) -> str:
    """What an audit event of Python does to the checkpoints; "" if nothing.

    It comes before it is done. "commit" gives a checkpoint its final name.
    """
    event = event.rpartition(".")[2]
    if event not in ("mkdir", "open", "rename", "remove", "rmdir", "rmtree"):
        return ""
    path = os.fsdecode(args[0]) if isinstance(args[0], str | bytes | os.PathLike) else ""
    # rmtree names files from within their folder.
    if "/checkpoints/" not in path and (path[:1] == "/" or event not in ("remove", "rmdir")):
        return ""
    if event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR):
        return ""
    return "commit" if event == "rename" and pathlib.Path(args[1]).name.isdigit() else event


def die_amid_a_save(what: str, later: int) -> None:
    """This process will kill itself before the change `what`, or `later` changes after it.

    Changes count from the second save on.
    """
    save, saves, since = checkpoint.Checkpointer.save, [], []

    def counted(self, step, *args, **options):
        self.wait()  # for the save before
        saves.append(step)
        return save(self, step, *args, **options)

    def watch(event, args):
        if len(saves) < 2 or not (found := change(event, args)):
            return
        if since or found == what:
            since.append(found)
        if len(since) > later:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.Checkpointer.save = counted
    sys.addaudithook(watch)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--host_devices", type=int, default=1)
    parser.add_argument("--multihost", action="store_true")
    parser.add_argument("--coordinator")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--process", type=int, default=0)
    parser.add_argument("--seconds_a_step", type=float, default=0.0)
    parser.add_argument("--workers", action="store_true", help="batches come from processes")
    parser.add_argument("--fail", choices=("training", "evaluation"))
    parser.add_argument("--die_at")
    parser.add_argument("--changes_later", type=int, default=0)
    args = parser.parse_args()
    if args.die_at:
        die_amid_a_save(args.die_at, args.changes_later)
    app.set_up_logging()
    app.set_up_jax(args)  # the flags of every command, by their names
    task = ToyTask(make_config(total_steps=args.steps))
    if args.workers:
        task = WorkersTask(task.config, pause=args.seconds_a_step, fail=args.fail)
    elif args.seconds_a_step or jax.process_count() > 1:
        task = SlowTask(task.config, pause=args.seconds_a_step)
    final, reports = trainer.train(task, task.config, args.workdir, parallel.make_mesh())
    if reports is None:
        sys.exit(preemption.EXIT_CODE)
    if jax.process_index() == 0:
        leaves = jax.tree_util.tree_leaves_with_path(final)
        bits = {jax.tree_util.keystr(k): np.asarray(v).tobytes().hex() for k, v in leaves}
        (args.workdir / "final.json").write_text(json.dumps(bits))


@dataclasses.dataclass(frozen=True)
class SlowTask(ToyTask):
    """Takes its time over each batch (so that a signal finds it at work) and its process's rows."""

    pause: float = 0.0

    def train_data(self):
        return grain.MapDataset.source(Slow(self.config.seed, self.pause)).to_iter_dataset(
            grain.ReadOptions(num_threads=0)
        )

    def eval_data(self, *, test=False):
        return {"dev": [local_rows(Examples(seed=99)[k]) for k in range(3)]}


def local_rows(batch):
    share = ROWS // jax.process_count()
    start = share * jax.process_index()
    return {name: value[start : start + share] for name, value in batch.items()}


@dataclasses.dataclass(frozen=True)
class Slow(Examples):
    pause: float = 0.0

    def __getitem__(self, k):
        import time

        time.sleep(self.pause)
        return local_rows(super().__getitem__(k))


@dataclasses.dataclass(frozen=True)
class Sequences:
    """The rows of Examples one by one."""

    pause: float = 0.0

    def __len__(self):
        return 8 * ROWS

    def draw(self, i, rng, lengths):
        import time

        time.sleep(self.pause / ROWS)
        batch = Examples(seed=99)[i // ROWS]
        return {name: batch[name][i % ROWS] for name in ("x", "y")}


@dataclasses.dataclass(frozen=True)
class WorkersTask(ToyTask):
    """Its batches are made by two processes; training or evaluation may fail in the midst of it."""

    pause: float = 0.0
    fail: str | None = None

    def _batches(self, make, **options):
        examples, shapes = Sequences(self.pause), (buckets.Bucket(ROWS, {"x": FRAMES}),)
        sizes = {"x": np.full(len(examples), FRAMES)}
        return make(examples, shapes, sizes, num_workers=2, **options)

    def train_data(self):
        return self._batches(pipeline.train_batches, seed=0)

    def eval_data(self, *, test=False):
        return {"dev": self._batches(pipeline.eval_batches)}

    def train_step(self, train_state, batch, key):
        if self.fail == "training":
            raise RuntimeError("meant")
        return super().train_step(train_state, batch, key)

    def eval_step(self, variables, batch):
        if self.fail == "evaluation":
            raise RuntimeError("meant")
        return super().eval_step(variables, batch)


if __name__ == "__main__":
    main()
