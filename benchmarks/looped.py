"""Gradients of convolutions inside of a loop on a CPU: as JAX derives them, and as written here.

    taskset -c 1 python -m benchmarks.looped [--rounds=3]

Milliseconds of CPU time for both gradients of one layer, medians of rounds: in the outermost
program, and in a loop over two batches, half of its time. Both ways are checked against each other.
"""

import argparse
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from common import app
from common.nn import adjoints

# (what it is, input, features, taps of each axis, stride, dilation)
LAYERS = (
    ("x-vector: first layer", (16, 200, 80), 512, (5,), 1, 1),
    ("ContextNet, dense", (16, 200, 96), 96, (5,), 1, 1),
    ("dilated", (16, 200, 128), 128, (3,), 1, 2),
    ("lips: 3-D front", (16, 88, 88, 5), 24, (7, 7), 2, 1),
    ("U-Net: halving", (2, 128, 128, 64), 128, (4, 4), 2, 1),
)


def _median(run: Callable[..., Any], args: tuple[jax.Array, ...], rounds: int) -> float:
    jax.block_until_ready(run(*args))
    spent = []
    for _ in range(rounds):
        started = time.process_time()
        jax.block_until_ready(run(*args))
        spent.append(1000 * (time.process_time() - started))
    return float(np.median(spent))


def times(layer: tuple[Any, ...], rounds: int) -> list[float]:
    """JAX's own, in the outermost program and in a loop, and ours. Raises where they differ."""
    _, shape, features, taps, stride, dilation = layer
    axes = len(taps)
    around = tuple((dilation * (size - 1) // 2,) * 2 for size in taps)
    how = ((stride,) * axes, around, (dilation,) * axes)
    rng = np.random.default_rng(0)
    batches = jnp.asarray(rng.normal(size=(2, *shape)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(*taps, shape[-1], features)) * 0.05, jnp.float32)

    def slopes(convolve: Callable[..., jax.Array], x: jax.Array, kernel: jax.Array) -> Any:
        return jax.grad(lambda *both: jnp.sum(jnp.sin(convolve(*both, *how))), (0, 1))(x, kernel)

    found, results = [], []
    for convolve in (adjoints.plain, adjoints.convolution):
        once = functools.partial(slopes, convolve)
        looped = jax.jit(lambda xs, kernel, once=once: jax.lax.map(lambda x: once(x, kernel), xs))
        found.append(_median(jax.jit(once), (batches[0], kernel), rounds))
        found.append(_median(looped, (batches, kernel), rounds) / 2)
        results.append(looped(batches, kernel))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-2), *results)
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser("benchmarks.looped", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    app.keep_memory()
    print(f"{'layer':26s}{'JAX':>9s}{'in a loop':>12s}{'ours':>9s}{'in a loop':>12s}")
    for layer in LAYERS:
        own, own_looped, ours, ours_looped = times(layer, args.rounds)
        print(
            f"{layer[0]:26s}{own:9.1f}{own_looped:12.1f}{ours:9.1f}{ours_looped:12.1f}", flush=True
        )


if __name__ == "__main__":
    main()
