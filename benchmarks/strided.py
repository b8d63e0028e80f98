"""The gradient of the input of convolutions with a stride of 2 on a CPU: XLA's own, and in blocks.

    taskset -c 1 python -m benchmarks.strided [--rounds=7]

For each layer milliseconds, CPU time of this process, medians of rounds in which the ways take
turns. Both are checked against each other.
"""

import argparse
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from common import app
from common.nn import conv2d

# (what it is, input, features, taps)
LAYERS = (
    ("lips, small: 3-D front", (256, 88, 88, 5), 8, 7),
    ("lips: 3-D front", (128, 88, 88, 5), 24, 7),
    ("voice, small: stem", (16, 256, 256, 2), 8, 7),
    ("voice: stem", (4, 256, 256, 2), 64, 7),
    ("face: stem", (4, 224, 224, 3), 64, 7),
    ("U-Net, small: halving", (8, 128, 128, 16), 32, 4),
    ("U-Net: halving", (4, 128, 128, 64), 128, 4),
    ("ResNet34: stage 2", (8, 100, 80, 32), 64, 3),
    ("ResNet34: stage 4", (8, 25, 20, 128), 256, 3),
)


def _direct(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> jax.Array:
    direct = functools.partial(conv2d._direct, stride=2, dilation=1)
    return jax.vjp(lambda x: direct(x, kernel), x)[1](dy)[0]


def _in_blocks(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> jax.Array:
    return conv2d._input_gradient_in_blocks(x, kernel, dy, 2)


def medians(shape: tuple[int, ...], features: int, taps: int, rounds: int) -> list[float]:
    """Milliseconds of either way. Raises AssertionError where they differ."""
    rng = np.random.default_rng(0)
    outputs = (shape[0], -(-shape[1] // 2), -(-shape[2] // 2), features)
    sizes = (shape, (taps, taps, shape[3], features), outputs)
    given = [jnp.asarray(rng.normal(size=size), jnp.float32) for size in sizes]
    ways = [jax.jit(_direct), jax.jit(_in_blocks)]
    one, other = (np.asarray(way(*given)) for way in ways)
    assert np.abs(one - other).max() < 1e-5 * np.abs(one).max()
    times: list[list[float]] = [[], []]
    for _ in range(rounds):
        for way, spent in zip(ways, times):
            started = time.process_time()
            jax.block_until_ready(way(*given))
            spent.append(1000 * (time.process_time() - started))
    return [float(np.median(spent)) for spent in times]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser("benchmarks.strided", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    app.keep_memory()
    print(f"{'layer':42s}{'XLA':>9s}{'blocks':>9s}  ratio")
    for what, shape, features, taps in LAYERS:
        own, blocks = medians(shape, features, taps, args.rounds)
        size = f"{shape[3]} -> {features}, {taps} x {taps}"
        print(f"{what:24s}{size:18s}{own:9.1f}{blocks:9.1f}{blocks / own:7.2f}", flush=True)


if __name__ == "__main__":
    main()
