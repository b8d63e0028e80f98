"""Training steps of ContextNet with a transducer, ours beside PyTorch, alternating in one run.

    python -m venv torchenv && torchenv/bin/pip install torch==2.13.0 numpy
    python -m benchmarks.training_speed --torch_python=torchenv/bin/python

Both train alpha = 0.5 on one batch, `rows` utterances of `frames` random log-mel frames each: as
batches of one length they have the same shapes and no padding on both sides. Forward, transducer
loss, backward, Adam, from the same weights; both mask what would be padding. PyTorch runs eagerly
and with network and joint by torch.compile (default mode). Ends if the losses of the first steps
differ; prints medians over all steps of all rounds and peak memory of each process.
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
import optax

from asr import contextnet, prediction, transducer
from benchmarks import workers


class Ours:
    """The answers to the commands, by name."""

    def __init__(self, folder: pathlib.Path):
        problem = np.load(folder / "problem.npz")
        names = ("features", "lengths", "labels", "label_lengths")
        self.inputs = tuple(jnp.asarray(problem[name]) for name in names)
        x, lengths, labels, label_lengths = self.inputs
        with_labels, vocab_size = bool(label_lengths.any()), int(problem["vocab_size"])
        encoder = contextnet.ContextNet(contextnet.contextnet(float(problem["alpha"])))
        predictor = prediction.PredictionNetwork(vocab_size, 640, 640)
        joint = prediction.JointNetwork(640, vocab_size)
        keys = jax.random.split(jax.random.key(0), 3)
        variables = encoder.init(keys[0], x[:1], lengths[:1], train=False)
        params = {"encoder": variables["params"]}
        if with_labels:
            encoded = jax.eval_shape(lambda: encoder.apply(variables, x, lengths, train=False)[0])
            params["prediction"] = predictor.init(keys[1], labels)
            both = jnp.zeros((1, 1, encoded.shape[2])), jnp.zeros((1, 1, 640))
            params["joint"] = joint.init(keys[2], *both)
        named = jax.tree.leaves_with_path({**params, "statistics": variables["batch_stats"]})
        arrays = {"/".join(key.key for key in path): np.asarray(leaf) for path, leaf in named}
        arrays = {name.replace("statistics/", "encoder/"): leaf for name, leaf in arrays.items()}
        np.savez(folder / "weights.npz", **arrays)

        def loss(params, statistics, x, lengths, labels, label_lengths):
            both = {"params": params["encoder"], "batch_stats": statistics}
            (y, n), new = encoder.apply(both, x, lengths, train=True, mutable=["batch_stats"])
            if not with_labels:
                return jnp.mean(jnp.square(y)), new["batch_stats"]
            inputs = joint.apply(params["joint"], y, predictor.apply(params["prediction"], labels))
            rows = transducer.rnnt_loss(*inputs, labels, n, label_lengths)
            return jnp.mean(rows), new["batch_stats"]

        tx = optax.adam(1e-3)

        def step(params, statistics, opt_state, inputs):
            gradient = jax.value_and_grad(loss, has_aux=True)
            (value, statistics), grads = gradient(params, statistics, *inputs)
            updates, opt_state = tx.update(grads, opt_state)
            return optax.apply_updates(params, updates), statistics, opt_state, value

        # The batch is an argument: as a constant its masks would be folded away.
        self.step = jax.jit(step, donate_argnums=(0, 1, 2))
        self.state = (params, variables["batch_stats"], tx.init(params))
        self.square = jax.random.normal(jax.random.key(1), (workers.GEMM_SIZE,) * 2)
        self.product = jax.jit(jnp.matmul)

    def describe(self) -> dict:
        count = contextnet.count_parameters(self.state[0])
        return {"framework": f"jax {jax.__version__}", "parameters": count}

    def peak_mib(self) -> float:
        return workers.peak_mib()

    def gemm(self) -> None:
        self.product(self.square, self.square).block_until_ready()

    def train(self) -> float:
        """One step; its loss."""
        *self.state, value = jax.block_until_ready(self.step(*self.state, self.inputs))
        return float(value)


def make_problem(folder: pathlib.Path, args: argparse.Namespace) -> None:
    """The batch for both."""
    rng = np.random.default_rng(0)
    np.savez(
        folder / "problem.npz",
        alpha=args.alpha,
        vocab_size=args.vocab,
        features=rng.standard_normal((args.rows, args.frames, 80), np.float32),
        lengths=np.full(args.rows, args.frames),
        labels=rng.integers(1, args.vocab, (args.rows, max(args.labels, 1))),
        label_lengths=np.full(args.rows, args.labels),
    )


def measure(args: argparse.Namespace, folder: pathlib.Path, stack: contextlib.ExitStack) -> None:
    make_problem(folder, args)
    this = [sys.executable, "-m", "benchmarks.training_speed", "--child", str(folder)]
    running = {"ours": workers.Worker(stack, this)}
    about = {"ours": running["ours"]("describe")}  # by now it has written the weights
    amount = args.rows * args.frames / 100
    timing = (amount, "audio s", args.steps)
    jobs = [workers.Job("ours", "train", "", ("train",), *timing), workers.gemm("ours")]
    if args.torch_python:
        peer = [args.torch_python, "-m", "benchmarks.contextnet_pytorch", str(folder)]
        running["torch"] = workers.Worker(stack, peer)
        about["torch"] = running["torch"]("describe")
        for how, compiled in (("eager", False), ("compiled", True)):
            jobs.append(workers.Job("torch", "train", how, ("train", compiled), *timing))
        jobs.append(workers.gemm("torch"))
        losses = [running["ours"]("train") for _ in range(2)]
        others = [running["torch"]("train", False), running["torch"]("train", True)]
        print(f"losses of 2 steps: {losses} and {others} (the second compiled)")
        if not np.allclose(losses, others, rtol=1e-3):
            sys.exit("The two networks are not the same function.")
    cores = len(os.sched_getaffinity(0))
    print(f"{cores} cores, {args.rows} x {args.frames / 100:g} s, {args.labels} labels")
    timings = workers.alternate(running, jobs, args.rounds)
    for name, worker in running.items():
        print(
            f"{name}: {about[name]['framework']}, {about[name]['parameters']:,} parameters, "
            f"peak {worker('peak_mib'):.0f} MiB"
        )
    workers.report(timings)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--torch_python", help="a Python with torch; without it only ours is timed")
    parser.add_argument("--alpha", type=float, default=0.5)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--labels", type=int, default=40, help="0: the encoder alone")
    parser.add_argument("--vocab", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=5, help="in a round")
    parser.add_argument("--rounds", type=int, default=3)
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
