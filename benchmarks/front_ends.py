"""The learned filter bank before training beside log-mel: how far features are, and what they cost.

    python -m benchmarks.front_ends a.flac b.flac ...

Features of recordings at 16 kHz, means over each recording taken off: correlation, mean over the
bands, and the root mean square difference in dB. One setting at a time is changed from the default.
Cost: forward, and with the gradient of the filters, for 12 recordings of 5 s of noise; CPU time,
median of ROUNDS, MB of the compiled program's temporaries. Then the filters alone in three ways.
"""

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from asr import filterbank
from common import app
from common.audio import framing, frontend, io
from common.nn import adjoints

ROUNDS = 6
STEP = 40  # samples from one output of the filters to the next
CHANGES: dict[str, dict[str, Any]] = {
    "the bank": {},
    "floor 1e-1": {"floor": 0.1},
    "one energy a frame": {"pooling": 1},
    "8 energies a frame": {"pooling": 8},
    "no pre-emphasis": {"preemphasis": 0.0},
    "hann low-pass": {"pool": "hann"},
    "filters of 12.5 ms": {"taps": 200},
    "single filters": {"filters": "single"},
    "single filters, 16 a frame": {"filters": "single", "pooling": 16},
    "PCEN": {"compression": "pcen"},
    "random start": {"start": "random"},
    "rank 24": {"rank": 24},
    "rank 24, single filters": {"rank": 24, "filters": "single"},
    "rank 24, single, 8 a frame": {"rank": 24, "filters": "single", "pooling": 8},
    "rank 24, single, 16 a frame": {"rank": 24, "filters": "single", "pooling": 16},
}
COSTS = ("the bank", "rank 24", "rank 24, single filters", "rank 24, single, 8 a frame")


def features(options: dict[str, Any] | None, audio: Any, lengths: Any) -> Any:
    """Of the bank with these settings at its start; None: log-mel."""
    if options is None:
        return frontend.log_mel(audio, lengths, frontend.LogMelConfig(normalize="none"))[0]
    config = filterbank.FilterbankConfig(normalize="none", **options)
    bank = filterbank.Filterbank(config)
    variables = bank.init(jax.random.key(0), audio[:1, :4000], lengths[:1], train=False)
    return bank.apply(variables, audio, lengths, train=False)[0]


def compare(found: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Correlation and mean square difference (dB squared) of each band of one recording."""
    a, b = (x - x.mean(axis=0) for x in (found, wanted))
    spread = np.sqrt(np.maximum(np.square(a).sum(axis=0) * np.square(b).sum(axis=0), 1e-20))
    decibel = 10 / np.log(10)
    return (a * b).sum(axis=0) / spread, decibel**2 * np.square(a - b).mean(axis=0)


def seconds(fn: Any, *args: Any) -> tuple[float, float]:
    """Median of CPU time, and MB of temporaries."""
    program = jax.jit(fn).lower(*args).compile()
    jax.block_until_ready(program(*args))
    times = []
    for _ in range(ROUNDS):
        start = time.process_time()
        jax.block_until_ready(program(*args))
        times.append(time.process_time() - start)
    return float(np.median(times)), program.memory_analysis().temp_size_in_bytes / 2**20


def hops(x: Array, kernel: Array) -> Array:
    """The bank's: the samples of a hop are the channels of a convolution without a stride."""
    return filterbank._convolved(x.reshape(x.shape[0], -1, STEP), kernel)


def stride(x: Array, kernel: Array) -> Array:
    """A convolution of one channel with a stride."""
    how = (STEP,), ((0, 0),), (1,)
    return adjoints.convolution(x[:, :, None], kernel[:, None, :], *how, "highest")


def frames(x: Array, kernel: Array) -> Array:
    """Windows cut out, and one product."""
    count = (x.shape[1] - len(kernel)) // STEP + 1
    cut = framing.frame(x, window_size=len(kernel), hop_size=STEP, num_frames=count)
    return jnp.matmul(cut, kernel, precision="highest")


def ways(noise: Array) -> None:
    """The outputs of 160 filters of 25 ms every 2.5 ms, and the gradients of the filters."""
    kernel = jnp.asarray(np.random.default_rng(1).normal(size=(400, 160)) * 0.05, jnp.float32)
    wanted = np.asarray(hops(noise, kernel))
    print(f"160 filters of 400 taps every {STEP} samples")
    for way in (hops, stride, frames):
        np.testing.assert_allclose(way(noise, kernel), wanted, atol=1e-4)

        def loss(kernel: Array, x: Array, way: Any = way) -> Array:
            return jnp.sum(jnp.sin(way(x, kernel)))

        one, both = seconds(way, noise, kernel), seconds(jax.grad(loss), kernel, noise)
        print(
            f"{way.__name__:28s} {1e3 * one[0]:.1f} ms, {one[1]:.1f} MB; with gradient "
            f"{1e3 * both[0]:.1f} ms, {both[1]:.1f} MB"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+")
    args = parser.parse_args()
    app.keep_memory()
    recordings = [io.load_audio(path, sample_rate_hz=16_000)[: 6 * 16_000] for path in args.files]
    lengths = np.array([len(x) for x in recordings])
    audio = np.stack([np.pad(x, (0, lengths.max() - len(x))) for x in recordings])
    audio, frames = jnp.asarray(audio, jnp.float32), -(-lengths // 160)
    wanted = np.asarray(features(None, audio, jnp.asarray(lengths)))
    print(f"{len(recordings)} recordings; against log-mel: correlation, dB")
    for name, options in CHANGES.items():
        found = np.asarray(features(options, audio, jnp.asarray(lengths)))
        rows = [compare(x[:n], y[:n]) for x, y, n in zip(found, wanted, frames)]
        close, square = (np.mean([row[k] for row in rows]) for k in (0, 1))
        print(f"{name:28s} {close:6.3f} {np.sqrt(square):6.1f}")
    noise = jnp.asarray(0.05 * np.random.default_rng(0).normal(size=(12, 80_000)), jnp.float32)
    size = jnp.full(12, 80_000)
    took, megabytes = seconds(lambda x: features(None, x, size), noise)
    print(f"cost of 60 s: log-mel {1e3 * took:.1f} ms, {megabytes:.1f} MB")
    ways(noise)
    for name in COSTS:
        bank = filterbank.Filterbank(filterbank.FilterbankConfig(**CHANGES[name]))
        variables = bank.init(jax.random.key(0), noise[:1, :4000], size[:1], train=False)

        def loss(variables: Any, x: Any, bank: Any = bank) -> Any:
            return jnp.sum(jnp.sin(bank.apply(variables, x, size, train=True)[0]))

        def forward(variables: Any, x: Any, bank: Any = bank) -> Any:
            return bank.apply(variables, x, size, train=False)[0]

        one, both = seconds(forward, variables, noise), seconds(jax.grad(loss), variables, noise)
        print(
            f"{name:28s} {1e3 * one[0]:.1f} ms, {one[1]:.1f} MB; with gradient "
            f"{1e3 * both[0]:.1f} ms, {both[1]:.1f} MB"
        )


if __name__ == "__main__":
    main()
