"""Wen, Raj and Singh's GAN (`generation.voice2face`): a training step beside PyTorch, in one run.

    python -m venv torchenv && torchenv/bin/pip install torch==2.13.0 numpy
    python -m benchmarks.generation_speed --torch_python=torchenv/bin/python

The published networks at 64 x 64 (12,191,875 and 3,310,720 parameters) on vectors of 64 numbers in
the place of the frozen encoder's: one-hot ones, of as many people, so that neither side hears
sound. A step is both updates: discriminator on real faces and fakes, generator, identity on either
side, Adam at 2e-4 (0.5, 0.999); ours is the trainer's own. PyTorch runs eagerly and by
torch.compile, on channels-last pictures. Both processes get the same weights, pictures, cores and
malloc settings and live through all rounds; prints how far the pictures and logits of the two are
apart, then medians over all rounds.
"""

import argparse
import contextlib
import os
import pathlib
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import workers
from common import parallel, trainer, workdir
from common.data import classes
from configs.generation import voice2face
from generation import images, task, voice

PEOPLE = 64  # as many as numbers of the published encoder's vector


def make_config():
    """The published settings, a person's number in the place of a voice."""
    config = voice2face.get_config()
    config.voice.kind = "class"
    config.voice.crop_frames = (0, 0)
    config.data.independent = False
    return workdir.freeze(config)


def make_problem(folder: pathlib.Path, rows: int) -> None:
    """Pictures, labels and noise for both (problem.npz), and the people of the task."""
    rng = np.random.default_rng(0)
    size = make_config().picture.size
    np.savez(
        folder / "problem.npz",
        faces=rng.integers(0, 256, (rows, size, size, 3), np.uint8),
        labels=np.arange(rows, dtype=np.int32) % PEOPLE,
        noise=rng.standard_normal((rows, PEOPLE), np.float32),
    )
    names = "".join(f"{number:06d}\n" for number in range(PEOPLE))
    (folder / classes.FILE).write_text(names, "utf-8")


class Ours:
    """The answers to the commands, by name."""

    def __init__(self, folder: pathlib.Path):
        self.problem = dict(np.load(folder / "problem.npz"))
        config = make_config()
        self.task = task.GanTask(config, folder, {})
        self.mesh = parallel.make_mesh()
        variables = jax.jit(self.task.init)(jax.random.key(0))
        arrays = {
            "/".join(key.key for key in path): np.asarray(leaf)
            for path, leaf in jax.tree.leaves_with_path(variables["params"])
        }
        np.savez(folder / "weights.npz", **arrays)
        self.state = parallel.place(self.task.create_state(variables), self.mesh)
        self.step = trainer.make_train_step(self.task, config, self.mesh)
        rows = len(self.problem["labels"])
        self.batch = {
            "face": self.problem["faces"],
            "label": self.problem["labels"],
            "mask": np.ones(rows, bool),
            "index": np.arange(rows, dtype=np.int32),
        }
        self.square = jax.random.normal(jax.random.key(0), (workers.GEMM_SIZE,) * 2)
        self.product = jax.jit(jnp.matmul)

    def describe(self) -> dict:
        count = sum(x.size for x in jax.tree.leaves(self.state.params))
        return {"framework": f"jax {jax.__version__}", "parameters": count}

    def gemm(self) -> None:
        self.product(self.square, self.square).block_until_ready()

    def check(self) -> tuple[list, list]:
        """Of 4 rows: made pictures, and the logits of real ones."""
        networks = self.task.networks
        variables = jax.device_get(self.state.eval_variables)
        labels, noise = (self.problem[name][:4] for name in ("labels", "noise"))
        condition = jax.nn.one_hot(labels, PEOPLE)
        made = networks.generate(variables, voice.unit(condition), noise)
        faces = images.to_values(jnp.asarray(self.problem["faces"][:4]))
        judged, _ = networks.judge(variables, faces, condition, None)
        return np.asarray(made).tolist(), np.asarray(judged.real).tolist()

    def train(self) -> list[float]:
        """One step; the losses of the two sides."""
        batch = parallel.global_batch(self.batch, self.mesh)
        self.state, sums = self.step(self.state, batch)
        names = ("discriminator_loss", "generator_loss")
        return [float(sums[name].total / sums[name].count) for name in names]


def measure(args: argparse.Namespace, folder: pathlib.Path, stack: contextlib.ExitStack) -> None:
    make_problem(folder, args.rows)
    this = [sys.executable, "-m", "benchmarks.generation_speed", "--child", str(folder)]
    running = {"ours": workers.Worker(stack, this)}
    about = running["ours"]("describe")  # by now it has written the weights
    print(f"{len(os.sched_getaffinity(0))} cores, {args.rows} rows")
    print(f"ours: {about['framework']}, {about['parameters']:,} parameters")
    amount = (args.rows, "pictures", args.steps)
    jobs = [workers.Job("ours", "train", "", ("train",), *amount), workers.gemm("ours")]
    if args.torch_python:
        peer = [args.torch_python, "-m", "benchmarks.generation_pytorch", str(folder)]
        running["torch"] = workers.Worker(stack, peer)
        about = running["torch"]("describe")
        print(f"torch: {about['framework']}, {about['parameters']:,} parameters")
        compare(running["ours"], running["torch"])
        for compiled in (False, True):
            how = "compiled" if compiled else "eager"
            jobs.append(workers.Job("torch", "train", how, ("train", compiled), *amount))
        jobs.append(workers.gemm("torch"))
    workers.report(workers.alternate(running, jobs, args.rounds))


def compare(ours: workers.Worker, peer: workers.Worker) -> None:
    """Ends the run if the networks are not the same functions; prints losses of the first steps."""
    for what, one, other in zip(("pictures", "logits"), ours("check"), peer("check")):
        one, other = np.array(one), np.array(other)
        difference = np.abs(one - other).max()
        print(f"{what} differ by {difference:.1e} at most (their deviation is {one.std():.1e})")
        if not difference < 1e-3 * one.std():
            sys.exit("The two networks are not the same function.")
    for number in range(3):
        print(f"losses of step {number}: {ours('train')} and {peer('train', False)}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--torch_python", help="a Python with torch; without it only ours is timed")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--steps", type=int, default=2, help="in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cores", type=int, help="of both; default: all")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        jax.config.update("jax_enable_compilation_cache", False)
        workers.serve(Ours(pathlib.Path(args.child)))
        return
    workers.use_cores(args.cores)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        measure(args, pathlib.Path(folder), stack)


if __name__ == "__main__":
    main()
