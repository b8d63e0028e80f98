"""Every task's training step, evaluation step and losses on the devices that there are.

    python -m benchmarks.accelerator                       # under 8 minutes
    python -m benchmarks.accelerator --only resnet --devices=1 --batch=128
    python -m benchmarks.accelerator --small               # tiny models: does it run?

The steps are the trainer's own, on made batches of the size that the configs have on each device
(no data are read): no time here is that of the input pipeline. A row gives the time to compile, the
median and the least time of a step (until its results are there), the products and convolutions of
one device (common/flops.py; of the transducer loss all nodes of its lattice), their share of what
the device can do, and the memory that the program takes on it by XLA's count.

The peak is the data sheet's, dense, without sparsity: float32 as a device multiplies by default
(TF32, on TPUs bfloat16; what is pinned to all of float32, as front ends and margin losses are, is
slower). Of other devices, CPUs too, it is what a large product reaches at the start.

A row that fails, for want of memory say, is named and the others go on; the exit code is then 1.
Rows that would end after `--minutes`, by the longest so far, are not begun. A new task adds a
function that makes a `Work`, and rows of it to ROWS.
"""

import argparse
import dataclasses
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from asr import ctc, transducer
from asr import task as asr_task
from asr import tokenizer as tokenizer_lib
from common import app, estimate, evaluation, flops, parallel, starting, trainer, workdir
from configs.asr import librispeech
from configs.speaker import voxceleb_ecapa as ECAPA
from configs.speaker import voxceleb_resnet34 as RESNET
from configs.speaker import voxceleb_xvector as XVECTOR
from speaker import margins
from speaker import task as speaker_task

# FLOP/s of one device by `device_kind`, or by what stands before a "-" in it: in bfloat16 (T4 and
# V100: float16) and in float32.
PEAKS = {
    "NVIDIA H200": (989e12, 494e12),
    "NVIDIA H100 80GB HBM3": (989e12, 494e12),
    "NVIDIA H100 PCIe": (756e12, 378e12),
    "NVIDIA A100": (312e12, 156e12),
    "NVIDIA A100 80GB PCIe": (312e12, 156e12),
    "NVIDIA L4": (121e12, 60e12),
    "Tesla T4": (65e12, 8.1e12),
    "Tesla V100": (125e12, 15.7e12),
    "TPU v4": (275e12, 275e12),
    "TPU v5 lite": (197e12, 197e12),
    "TPU v5": (459e12, 459e12),
    "TPU v5p": (459e12, 459e12),
    "TPU v6 lite": (918e12, 918e12),
}
STEPS = 20  # timed, and fewer if they take longer than
SECONDS = 10.0  # but LEAST
LEAST = 3
ASR_ROWS, ASR_SECONDS, ASR_LABELS = 24, 12.0, 48  # on each device; LibriSpeech's mean is 12.3 s
SPEAKERS, SHARDED_SPEAKERS = 5_994, 100_000  # VoxCeleb2's; each is three classes
COLUMNS = (
    "row", "a device's batch", "compile s", "median ms", "least ms", "audio s/s", "GFLOP",
    "of peak", "MiB",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Work:
    """`step(*arguments)`, jitted; if `carries` its first result is the next first argument."""

    step: Callable
    arguments: tuple[Any, ...]
    batch: str  # of one device, in words
    dtype: str  # of the model's products
    audio_seconds: float = 0.0  # of the whole batch; 0: it is not about audio
    carries: bool = False


class Size(NamedTuple):
    """What the rows are made for; `batch` overrides the rows of a device."""

    mesh: Mesh
    small: bool
    batch: int | None

    def rows(self, usual: int) -> int:
        return self.batch or (2 if self.small else usual)


def step_work(
    task: Any, arrays: dict[str, np.ndarray], size: Size, mode: str, **about: Any
) -> Work:
    """The trainer's step ("train") or the evaluator's, from a fresh state."""
    config, mesh = task.config, size.mesh
    numbers = np.arange(len(arrays["mask"]), dtype=np.int32)
    batch = parallel.global_batch({**arrays, "index": numbers}, mesh)
    state = starting.first_state(task, config, mesh)
    if mode == "train":
        step = trainer.make_train_step(task, config, mesh)
        return Work(step, (state, batch), carries=True, dtype=config.dtype, **about)
    step = evaluation.make_eval_step(task, config, mesh)
    return Work(step, (state.eval_variables, batch), dtype=config.dtype, **about)


def noise(rows: int, seconds: float, rate_hz: int) -> dict[str, np.ndarray]:
    """White noise as a batch of audio."""
    samples = round(seconds * rate_hz)
    return {
        "audio": 0.1 * np.random.default_rng(0).standard_normal((rows, samples), np.float32),
        "audio_lengths": np.full(rows, samples, np.int32),
        "mask": np.ones(rows, bool),
    }


def recogniser(size: Size, model: str, dtype: str, mode: str = "train") -> Work:
    """ContextNet with a transducer, as configs/asr/librispeech.py has it."""
    config = librispeech.get_config("debug" if size.small else model)
    config.dtype = dtype
    if size.small:
        config.encoder.blocks = ((1, 8, 4), (1, 8, 2))
    pieces = tuple(map(str, range(30 if size.small else config.tokenizer.vocab_size)))
    tokenizer = tokenizer_lib.Tokenizer("char", "upper", pieces, b"")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        tokenizer_lib.save_tokenizer(tokenizer, folder / "tokenizer")
        task = asr_task.AsrTask(workdir.freeze(config), folder, {})
        _ = task.tokenizer  # It is read now.
    rows, labels = size.rows(ASR_ROWS), 4 if size.small else ASR_LABELS
    seconds = 1.0 if size.small else ASR_SECONDS
    total = rows * size.mesh.size
    batch = noise(total, seconds, config.data.sample_rate_hz)
    rng = np.random.default_rng(1)
    batch["labels"] = rng.integers(1, len(pieces), (total, labels)).astype(np.int32)
    batch["labels_lengths"] = np.full(total, labels, np.int32)
    return step_work(
        task,
        batch,
        size,
        mode,
        batch=f"{rows} x {seconds:g} s",
        audio_seconds=total * seconds,
    )


def transducer_loss(size: Size, dtype: str) -> Work:
    """The loss of the joint network of ContextNet M and its gradients, on one device."""
    rows, frames, labels, hidden, vocab = size.rows(ASR_ROWS), 150, ASR_LABELS, 640, 1024
    if size.small:
        frames, labels, hidden, vocab = 10, 4, 8, 16
    keys = jax.random.split(jax.random.key(0), 4)
    arrays = (
        jax.random.normal(keys[0], (rows, frames, hidden)),
        jax.random.normal(keys[1], (rows, labels + 1, hidden)),
        jax.random.normal(keys[2], (hidden, vocab)) / hidden**0.5,
        jnp.zeros(vocab),
    )
    targets = jax.random.randint(keys[3], (rows, labels), 1, vocab)
    lengths = jnp.full(rows, frames), jnp.full(rows, labels)

    def loss(arrays: Any, *rest: Any) -> jax.Array:
        return jnp.sum(transducer.rnnt_loss(*arrays, *rest, dtype=jnp.dtype(dtype)))

    return Work(
        jax.jit(jax.value_and_grad(loss)),
        (arrays, targets, *lengths),
        batch=f"B={rows} T={frames} U={labels} V={vocab}",
        dtype=dtype,
    )


def ctc_loss(size: Size) -> Work:
    """The CTC loss of such an output and its gradient, on one device; it has no products."""
    rows, frames, labels, vocab = size.rows(ASR_ROWS), 150, ASR_LABELS, 1024
    if size.small:
        frames, labels, vocab = 10, 4, 16
    logits = jax.random.normal(jax.random.key(0), (rows, frames, vocab))
    targets = jax.random.randint(jax.random.key(1), (rows, labels), 1, vocab)

    def loss(logits: Any, *rest: Any) -> jax.Array:
        return jnp.sum(ctc.ctc_loss(logits, *rest).loss)

    return Work(
        jax.jit(jax.value_and_grad(loss)),
        (logits, jnp.full(rows, frames), targets, jnp.full(rows, labels)),
        batch=f"B={rows} T={frames} U={labels} V={vocab}",
        dtype="float32",
    )


def verifier(
    size: Size,
    recipe: Any,
    dtype: str,
    mode: str = "train",
    speakers: int = SPEAKERS,
    sharded: bool = False,
) -> Work:
    """A speaker network with its classes, as a config has it."""
    config = recipe.get_config("debug" if size.small else "")
    config.dtype = dtype
    config.loss.sharded = sharded
    names = (f"{i:06d}\n" for i in range(8 if size.small else speakers))
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "speakers.txt").write_text("".join(names))
        task = speaker_task.SpeakerTask(workdir.freeze(config), folder, {})
        _ = task.classes  # They are read now.
    rows, seconds = size.rows(config.data.batch_rows), config.data.crop_seconds
    total = rows * size.mesh.size
    batch = noise(total, seconds, config.data.sample_rate_hz)
    batch["label"] = np.arange(total, dtype=np.int32) % task.model.num_classes
    return step_work(
        task,
        batch,
        size,
        mode,
        batch=f"{rows} x {seconds:g} s",
        audio_seconds=total * seconds,
    )


def margin_loss(size: Size) -> Work:
    """AAM-softmax of VoxCeleb2's classes at three speeds and its gradients, on one device."""
    rows, classes, dims = size.rows(RESNET.ROWS), 3 * SPEAKERS, 256
    if size.small:
        classes, dims = 24, 8
    config = margins.MarginConfig()
    keys = jax.random.split(jax.random.key(0), 2)
    x, weights = (jax.random.normal(k, (n, dims)) for k, n in zip(keys, (rows, classes)))

    def loss(x: Any, weights: Any, labels: Any) -> jax.Array:
        return jnp.sum(margins.margin_loss(config, x, weights, labels, 0.2, 32.0).loss)

    return Work(
        jax.jit(jax.value_and_grad(loss, argnums=(0, 1))),
        (x, weights, jnp.arange(rows) % classes),
        batch=f"{rows} rows, {classes:,} classes",
        dtype="float32",
    )


# The longest first, so that what follows ends in time; float32 after every task had its turn.
ROWS: dict[str, Callable[[Size], Work]] = {
    "asr contextnet-m bfloat16 train": partial(recogniser, model="m", dtype="bfloat16"),
    "asr contextnet-s bfloat16 train": partial(recogniser, model="s", dtype="bfloat16"),
    "asr contextnet-s bfloat16 evaluate": partial(
        recogniser, model="s", dtype="bfloat16", mode="evaluate"
    ),
    "asr transducer loss bfloat16": partial(transducer_loss, dtype="bfloat16"),
    "asr transducer loss float32": partial(transducer_loss, dtype="float32"),
    "asr ctc loss float32": ctc_loss,
    "speaker resnet34 bfloat16 train": partial(verifier, recipe=RESNET, dtype="bfloat16"),
    "speaker ecapa bfloat16 train": partial(verifier, recipe=ECAPA, dtype="bfloat16"),
    "speaker xvector bfloat16 train": partial(verifier, recipe=XVECTOR, dtype="bfloat16"),
    "speaker xvector bfloat16 train, sharded classes": partial(
        verifier, recipe=XVECTOR, dtype="bfloat16", speakers=SHARDED_SPEAKERS, sharded=True
    ),
    "speaker resnet34 bfloat16 evaluate": partial(
        verifier, recipe=RESNET, dtype="bfloat16", mode="evaluate"
    ),
    "speaker ecapa bfloat16 evaluate": partial(
        verifier, recipe=ECAPA, dtype="bfloat16", mode="evaluate"
    ),
    "speaker xvector bfloat16 evaluate": partial(
        verifier, recipe=XVECTOR, dtype="bfloat16", mode="evaluate"
    ),
    "speaker margin loss float32": margin_loss,
    "speaker xvector float32 train": partial(verifier, recipe=XVECTOR, dtype="float32"),
    "speaker ecapa float32 train": partial(verifier, recipe=ECAPA, dtype="float32"),
    "speaker resnet34 float32 train": partial(verifier, recipe=RESNET, dtype="float32"),
    "asr contextnet-s float32 train": partial(recogniser, model="s", dtype="float32"),
}


def peaks(device: jax.Device, small: bool) -> tuple[dict[str, float], str]:
    """FLOP/s by dtype, and where the figures are from."""
    kind = device.device_kind
    known = PEAKS.get(kind) or PEAKS.get(kind.split("-")[0])
    if known:
        return dict(zip(("bfloat16", "float32"), known)), "of the data sheet"
    n = 256 if small else 2048
    found = {}
    for dtype in ("bfloat16", "float32"):
        x = jax.random.normal(jax.random.key(0), (n, n), dtype)
        work = Work(jax.jit(jnp.matmul), (x, x), "", dtype)
        found[dtype] = 2 * n**3 / min(time_steps(work.step, work, LEAST))
    return found, f"measured, {n} x {n} x {n}"


def time_steps(compiled: Callable, work: Work, most: int = STEPS) -> list[float]:
    """Seconds of each step, after one to warm up."""
    arguments, seconds = work.arguments, []
    for number in range(most + 1):
        start = time.perf_counter()
        result = jax.block_until_ready(compiled(*arguments))
        if number:
            seconds.append(time.perf_counter() - start)
        if work.carries:
            arguments = (result[0], *arguments[1:])
        if len(seconds) >= LEAST and sum(seconds) > SECONDS:
            break
    return seconds


def measure(work: Work, peak: dict[str, float]) -> str:
    """The cells of a row after its name."""
    start = time.perf_counter()
    traced = work.step.trace(*work.arguments)
    compiled = traced.lower().compile()
    compile_seconds = time.perf_counter() - start
    taken = estimate.peak_bytes(compiled)
    operations = flops.count(traced.jaxpr)
    seconds = time_steps(compiled, work)
    median = statistics.median(seconds)
    rate = f"{work.audio_seconds / median:,.0f}" if work.audio_seconds else "-"
    share = f"{100 * operations / median / peak[work.dtype]:.3g} %" if operations else "-"
    return (
        f"{work.batch} | {compile_seconds:.1f} | {1000 * median:.2f} | {1000 * min(seconds):.2f} | "
        f"{rate} | {operations / 1e9:.4g} | {share} | {taken / 2**20:,.1f}"
    )


def about(devices: Sequence[jax.Device]) -> str:
    """What the figures are of: devices, versions, commit, flags."""
    git = ["git", "-C", str(pathlib.Path(__file__).parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    version = " ".join(devices[0].client.platform_version.split())
    load = f", {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    return (
        f"{len(devices)} x {devices[0].device_kind} ({version}){load}; jax {jax.__version__}; "
        f"commit {commit or 'unknown'}; XLA_FLAGS={os.environ.get('XLA_FLAGS', '')!r}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a Markdown table; the number of rows that failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[""], help="rows whose name has one of these")
    parser.add_argument("--small", action="store_true", help="tiny models and batches")
    parser.add_argument("--batch", type=int, help="rows on each device in place of the usual ones")
    parser.add_argument("--devices", type=int, help="use the first N (default: all)")
    parser.add_argument("--minutes", type=float, default=8.0)
    args = parser.parse_args(argv)
    started = time.perf_counter()
    devices = jax.devices()[: args.devices]
    size = Size(parallel.make_mesh(devices), args.small, args.batch)
    peak, source = peaks(devices[0], args.small)
    print(about(devices))
    print(f"peak {', '.join(f'{k} {v / 1e12:.4g}' for k, v in peak.items())} TFLOP/s, {source}")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    longest, failed = 0.0, 0
    for name in (row for row in ROWS if any(part in row for part in args.only)):
        begun = time.perf_counter()
        if begun - started + longest > 60 * args.minutes:
            print(f"| {name} | not begun: it would not end within {args.minutes:g} minutes |")
            continue
        try:
            print(f"| {name} | {measure(ROWS[name](size), peak)} |", flush=True)
        except jax.errors.JaxRuntimeError as error:
            failed += 1
            print(f"| {name} | failed: {str(error).splitlines()[0]} |", flush=True)
        jax.clear_caches()  # The program of a row is of no use to the next.
        longest = max(longest, time.perf_counter() - begun)
    used = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in devices]
    if any(used):
        print(f"peak memory in use on a device, over all rows: {max(used) / 2**20:,.0f} MiB")
    return failed


if __name__ == "__main__":
    app.keep_memory()
    jax.config.update("jax_enable_compilation_cache", False)
    sys.exit(min(main(), 1))
