"""Time and memory of the transducer loss with its gradients, beside the two usual ways in JAX.

    python -m benchmarks.transducer_loss [--batch 8 --frames 200 --labels 60 ...] [--repeats 7]

Compared in one process, taking turns: `tiles`, ours (asr/transducer.py); `remat`, a map over
frames whose body is rematerialised, so that only one frame of logits exists; `full`, all logits at
once and autodiff through softmax and lattice. Every one returns the loss and the gradients of
encoder, prediction, kernel and bias. CPU seconds are those of the whole process: on a shared
machine they tell more than the clock. Cases: `full lengths`; `ragged`, lengths uniform in half to
whole; `fitted`, ragged after some steps of gradient descent on the loss itself, so that alignments
are as narrow as in training (where tiles without occupancy are skipped).
"""

import argparse
import functools
import os
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from asr import transducer


def tiles(encoder, prediction, kernel, bias, labels, frame_lengths, label_lengths):
    """Ours."""
    arguments = encoder, prediction, kernel, bias, labels, frame_lengths, label_lengths
    return jnp.sum(transducer.rnnt_loss(*arguments))


def remat(encoder, prediction, kernel, bias, labels, frame_lengths, label_lengths):
    """One frame of logits at a time, computed again in the backward pass."""

    @jax.checkpoint
    def frame(x):
        logits = jnp.tanh(x[:, None] + prediction) @ kernel + bias[None, None]
        log_norm = jax.nn.logsumexp(logits, axis=2)
        label = jnp.take_along_axis(logits[:, :-1], labels[:, :, None], axis=2)[:, :, 0]
        return logits[:, :, 0] - log_norm, label - log_norm[:, :-1]

    blank, label = (x.transpose(1, 0, 2) for x in lax.map(frame, encoder.transpose(1, 0, 2)))
    return -jnp.sum(transducer.lattice_logprob(blank, label, frame_lengths, label_lengths))


def full(encoder, prediction, kernel, bias, labels, frame_lengths, label_lengths):
    """All logits at once; autodiff everywhere, also through the lattice recursion."""
    hidden = jnp.tanh(encoder[:, :, None] + prediction[:, None])
    logp = jax.nn.log_softmax(hidden @ kernel + bias[None, None, None])
    label = jnp.take_along_axis(logp[:, :, :-1], labels[:, None, :, None], axis=3)[..., 0]
    lattice = transducer._build_lattice(logp[..., 0], label, frame_lengths, label_lengths)
    return -jnp.sum(transducer._forward(lattice)[1])


def make_arrays(args):
    rng = np.random.default_rng(0)
    b, frames, u, h, v = args.batch, args.frames, args.labels, args.hidden, args.vocabulary
    arrays = (
        rng.normal(size=(b, frames, h)),
        rng.normal(size=(b, u + 1, h)),
        rng.normal(size=(h, v)) / np.sqrt(h),
        np.zeros(v),
    )
    labels = jnp.asarray(rng.integers(1, v, (b, u)), jnp.int32)
    share = np.linspace(0.5, 1.0, b)
    lengths = {
        "full lengths": (np.full(b, frames), np.full(b, u)),
        "ragged": (np.round(frames * share), np.round(u * rng.permutation(share))),
    }
    lengths = {k: [jnp.asarray(x, jnp.int32) for x in v] for k, v in lengths.items()}
    return tuple(jnp.asarray(x, jnp.float32) for x in arrays), labels, lengths


def fit(arrays, labels, lengths, steps):
    """The arrays after `steps` of Adam on the loss."""
    optimiser = optax.adam(0.02)

    @jax.jit
    def step(arrays, state):
        gradients = jax.grad(lambda x: tiles(*x, labels, *lengths))(arrays)
        updates, state = optimiser.update(gradients, state)
        return optax.apply_updates(arrays, updates), state

    state = optimiser.init(arrays)
    for _ in range(steps):
        arrays, state = step(arrays, state)
    return arrays


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in [
        ("batch", 8), ("frames", 200), ("labels", 60), ("hidden", 320), ("vocabulary", 1024),
        ("repeats", 5), ("fit_steps", 20),
    ]:  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--ways", nargs="+", default=["tiles", "remat", "full"])
    args = parser.parse_args()

    arrays, labels, lengths = make_arrays(args)
    fitted = fit(arrays, labels, lengths["ragged"], args.fit_steps)
    cases = {
        "full lengths": (*arrays, labels, *lengths["full lengths"]),
        "ragged": (*arrays, labels, *lengths["ragged"]),
        "fitted": (*fitted, labels, *lengths["ragged"]),
    }
    ways = {name: {"tiles": tiles, "remat": remat, "full": full}[name] for name in args.ways}
    compiled = {
        name: jax.jit(jax.value_and_grad(way, argnums=(0, 1, 2, 3)))
        .lower(*cases["ragged"])
        .compile()
        for name, way in ways.items()
    }
    tensor = args.batch * args.frames * (args.labels + 1) * args.vocabulary * 4
    device = jax.devices()[0]
    print(
        f"B={args.batch} T={args.frames} U={args.labels} H={args.hidden} V={args.vocabulary}, "
        f"one tensor of logits {tensor / 2**20:.0f} MiB; {device.device_kind}, "
        f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, jax {jax.__version__}"
    )
    print("| case | way | median s | median CPU s | temporaries MiB | loss | largest difference |")
    print("|---|---|---|---|---|---|---|")
    for case, inputs in cases.items():
        seconds = {name: [] for name in compiled}
        cpu_seconds = {name: [] for name in compiled}
        results = {}
        for _ in range(args.repeats + 1):  # the first round warms up
            for name, run in compiled.items():
                begin, cpu_begin = time.perf_counter(), time.process_time()
                results[name] = jax.block_until_ready(run(*inputs))
                seconds[name].append(time.perf_counter() - begin)
                cpu_seconds[name].append(time.process_time() - cpu_begin)
        _, reference = results[next(iter(results))]
        for name, run in compiled.items():
            loss, gradients = results[name]
            differences = jax.tree.map(
                lambda a, b: float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b))),
                gradients,
                reference,
            )
            median = statistics.median(seconds[name][1:])
            cpu_median = statistics.median(cpu_seconds[name][1:])
            memory = run.memory_analysis().temp_size_in_bytes / 2**20
            print(
                f"| {case} | {name} | {median:.3f} | {cpu_median:.3f} "
                f"| {memory:.1f} | {loss:.3f} | {functools.reduce(max, differences):.1e} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
