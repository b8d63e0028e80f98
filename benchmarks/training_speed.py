"""Training steps of ContextNet with a transducer, ours beside PyTorch, alternating in one run.

    python -m venv torchenv && torchenv/bin/pip install torch==2.13.0 numpy
    python -m benchmarks.training_speed --torch_python=torchenv/bin/python

Both train alpha = 0.5 on `rows` utterances of `frames` random log-mel frames: forward, transducer
loss, backward, Adam. Prints audio seconds per second (100 frames a second), medians over all steps
of all rounds, and peak memory of each process.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import optax

from asr import contextnet, prediction, transducer
from common import app


def ours(args: argparse.Namespace) -> dict:
    """Times our step in this process."""
    encoder = contextnet.ContextNet(contextnet.contextnet(args.alpha))
    predictor = prediction.PredictionNetwork(args.vocab, 640, 640)
    joint = prediction.JointNetwork(640, args.vocab)
    keys = jax.random.split(jax.random.key(0), 5)
    x = jax.random.normal(keys[0], (args.rows, args.frames, 80))
    lengths = jnp.full((args.rows,), args.frames)
    labels = jax.random.randint(keys[1], (args.rows, max(args.labels, 1)), 1, args.vocab)
    label_lengths = jnp.full((args.rows,), args.labels)
    variables = encoder.init(keys[2], x[:1], lengths[:1], train=False)
    encoded = jax.eval_shape(lambda: encoder.apply(variables, x, lengths, train=False)[0])
    params = {"encoder": variables["params"]}
    if args.labels:
        params["prediction"] = predictor.init(keys[3], labels)
        predicted = jnp.zeros((1, 1, 640))
        params["joint"] = joint.init(keys[4], jnp.zeros((1, 1, encoded.shape[2])), predicted)

    def loss(params, statistics):
        both = {"params": params["encoder"], "batch_stats": statistics}
        (y, n), new = encoder.apply(both, x, lengths, train=True, mutable=["batch_stats"])
        if not args.labels:
            return jnp.mean(jnp.square(y)), new["batch_stats"]
        inputs = joint.apply(params["joint"], y, predictor.apply(params["prediction"], labels))
        rows = transducer.rnnt_loss(*inputs, labels, n, label_lengths)
        return jnp.mean(rows), new["batch_stats"]

    tx = optax.adam(1e-3)

    def step(params, statistics, opt_state):
        (value, statistics), grads = jax.value_and_grad(loss, has_aux=True)(params, statistics)
        updates, opt_state = tx.update(grads, opt_state)
        return optax.apply_updates(params, updates), statistics, opt_state, value

    step = jax.jit(step, donate_argnums=(0, 1, 2))
    state = (params, variables["batch_stats"], tx.init(params))
    seconds, losses = [], []
    for _ in range(args.steps + 2):
        start = time.perf_counter()
        *state, value = jax.block_until_ready(step(*state))
        losses.append(float(value))
        seconds.append(time.perf_counter() - start)
    return {
        "framework": f"jax {jax.__version__}",
        "parameters": contextnet.count_parameters(state[0]),
        "seconds": seconds[2:],
        "losses": losses,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--torch_python", help="a Python with torch; without it only ours is timed")
    parser.add_argument("--alpha", type=float, default=0.5)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--labels", type=int, default=40, help="0: the encoder alone")
    parser.add_argument("--vocab", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        app.keep_memory()
        print(json.dumps(ours(args)))
        return
    names = ("alpha", "rows", "frames", "labels", "vocab", "steps")
    options = [f"--{name}={getattr(args, name)}" for name in names]
    commands = {"ours": [sys.executable, "-m", "benchmarks.training_speed", "--child", *options]}
    if args.torch_python:
        commands["torch"] = [args.torch_python, "benchmarks/contextnet_pytorch.py", *options]
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    last = {}
    for _ in range(args.rounds):
        for name, command in commands.items():
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            last[name] = json.loads(done.stdout.splitlines()[-1])
            seconds[name] += last[name]["seconds"]
    audio = args.rows * args.frames / 100
    print(f"{os.cpu_count()} cores, {args.rows} x {args.frames / 100:g} s, {args.labels} labels")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(
            f"{name:6s} {last[name]['framework']:14s} {last[name]['parameters']:>11,} parameters  "
            f"{median:.3f} s a step (min {min(values):.3f}, max {max(values):.3f})  "
            f"{audio / median:6.1f} audio s/s  peak {last[name]['peak_mib']:.0f} MiB"
        )
    if "torch" in seconds:
        ratio = statistics.median(seconds["torch"]) / statistics.median(seconds["ours"])
        print(f"ours is {ratio:.2f} times as fast")


if __name__ == "__main__":
    main()
