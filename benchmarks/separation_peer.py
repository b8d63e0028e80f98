"""VoiceFilter and a stream's hop, ours beside PyTorch, alternating in one run.

    python -m venv torchenv && torchenv/bin/pip install torch==2.13.0 numpy
    python -m benchmarks.separation_peer --torch_python=torchenv/bin/python
    python -m benchmarks.separation_peer --torch_python=torchenv/bin/python --minutes=30

The network of `config.model.voicefilter` with the cue encoder, trained on the mixtures of --config
(its data, mixing and augment; other settings as --config.a.b=v), the same ones on both sides:
forward, loss of magnitudes and SI-SDR, backward, clipping, Adam, from the same weights. Rows are
taken for equally long, because the peer has no masks, and enrolments are repeated to their full
length. Then the hop of `config.model.causal`, on one core; PyTorch eagerly, by TorchScript and by
torch.compile. Ends where outputs or losses of the two sides differ.

--minutes=N trains both instead, each for N minutes of its own steps, and evaluates both on the
mixtures of `config.data.eval` and `config.data.lists`. Untimed: mixing, and compilation, which is
named.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import workers
from common import command_line, metrics, parallel, sections, starting, trainer
from common.audio import frontend
from separation import causal, cue, extraction, task, voicefilter
from separation import metrics as separation_metrics

ALIKE = 1e-4  # outputs of the two sides, of signals of about 0.1
_HEARD = 20  # hops that are compared
_LEARNING_RATE, _CLIP_NORM = 1e-3, 5.0


def read_config(name: str, words: Sequence[str]) -> Any:
    """The experiment with what the two sides have in common."""
    common = {
        **{"model.kind": "voicefilter", "cue.dropout": 0.0, "mixing.absent": 0.0},
        **{"loss.magnitude": 1.0, "loss.complex": 0.0, "loss.si_sdr": 0.1, "loss.speaker": 0.0},
        **{"optimizer.name": "adam", "optimizer.schedule": "constant"},
        **{"optimizer.warmup_steps": 1, "optimizer.learning_rate": _LEARNING_RATE},
        **{"optimizer.clip_norm": _CLIP_NORM, "ema_decay": 0.0, "data.num_buckets": 1},
    }
    fixed = [f"--config.{name}={value}" for name, value in common.items()]
    return command_line.read_config(name, [*words, *fixed])


def alike(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Mixtures, enrolments and targets whose rows are equally long; in training both voices."""
    if "other_enrolment" in batch:
        batch = jax.device_get(extraction.of_both({**batch, "row": np.arange(len(batch["mask"]))}))
    enrolment = batch["enrolment"]
    repeated = [
        np.resize(row[: max(1, n)], len(row))
        for row, n in zip(enrolment, batch["enrolment_lengths"])
    ]
    sources = np.asarray(batch["sources"], np.float32)
    return {
        "mixture": sources.sum(2),
        "enrolment": np.stack(repeated).astype(np.float32),
        "target": np.ascontiguousarray(sources[:, :, 0]),
        "lengths": np.asarray(batch["sources_lengths"]),
    }


class Ours:
    """The answers to the commands, by name."""

    def __init__(self, folder: pathlib.Path, config: Any):
        self.folder = folder
        self.task = task.make_task(config, folder)
        self.mesh = parallel.make_mesh(jax.devices()[:1])
        self.begin()
        self.save_weights(folder / "weights.npz")
        self.step = trainer.make_train_step(self.task, config, self.mesh)
        net = self.task.model

        def extracted(variables, mixture, enrolment):
            full = [jnp.full(len(x), x.shape[1], jnp.int32) for x in (mixture, enrolment)]
            known = net.apply(variables, enrolment, full[1], method="cue")
            return net.apply(variables, mixture, full[0], known, method="extract")

        self.extracted = jax.jit(extracted)
        self.square = jax.random.normal(jax.random.key(1), (workers.GEMM_SIZE,) * 2)
        self.product = jax.jit(jnp.matmul)

    def begin(self) -> None:
        """The weights of the start."""
        self.state = starting.first_state(self.task, self.task.config, self.mesh)

    def save_weights(self, path: pathlib.Path) -> None:
        """For the peer, named without their collections, with the filters of the cue encoder."""
        variables = jax.device_get(self.state.variables)
        arrays = {}
        for tree in variables.values():
            for place, leaf in jax.tree.leaves_with_path(tree):
                arrays["/".join(key.key for key in place)] = np.asarray(leaf)
        mels = frontend.LogMelConfig(num_mels=self.task.config.cue.num_mels, normalize="none")
        np.savez(path, bank=np.asarray(mels.filter_bank(), np.float32), **arrays)

    def describe(self) -> dict:
        params = self.state.params
        count = sum(x.size for part in ("cue_encoder", "extractor") for x in _leaves(params[part]))
        return {"framework": f"jax {jax.__version__}", "parameters": count}

    def peak_mib(self) -> float:
        return workers.peak_mib()

    def gemm(self) -> None:
        self.product(self.square, self.square).block_until_ready()

    def train(self, number: int) -> float:
        """One step on a batch; its loss."""
        found = np.load(self.folder / f"batch{number}.npz")
        mixture, enrolment, target = (found[k] for k in ("mixture", "enrolment", "target"))
        rows, count = mixture.shape
        batch = {
            "sources": np.stack([target, mixture - target], axis=2),
            "sources_lengths": np.full(rows, count, np.int32),
            "enrolment": enrolment,
            "enrolment_lengths": np.full(rows, enrolment.shape[1], np.int32),
            "present": np.ones(rows, bool),
            "mask": np.ones(rows, bool),
        }
        self.state, sums = self.step(self.state, parallel.global_batch(batch, self.mesh))
        return metrics.finalize(sums)["loss"]

    def extract(self, number: int) -> str:
        """Writes the voices of a batch; the file."""
        found = np.load(self.folder / f"batch{number}.npz")
        path = self.folder / "ours.npy"
        variables = self.state.variables
        np.save(path, self.extracted(variables, found["mixture"], found["enrolment"]))
        return str(path)

    def start_stream(self) -> None:
        """Fresh weights of the streaming network, for the peer too."""
        config = self.task.config
        sizes = sections.build(
            causal.CausalConfig, config.model.causal, sample_rate_hz=config.data.sample_rate_hz
        )
        net, rng = causal.CausalExtractor(sizes), np.random.default_rng(0)
        known = rng.standard_normal((1, config.cue.size)).astype(np.float32)
        chunks = 0.1 * rng.standard_normal((256, 1, net.hop_size)).astype(np.float32)
        state = net.initial_state(1)
        whole, lengths = chunks[0], jnp.full((1,), net.hop_size)
        variables = net.init(jax.random.key(0), whole, lengths, known, train=False)
        arrays = {
            "/".join(key.key for key in place): np.asarray(leaf)
            for place, leaf in jax.tree.leaves_with_path(variables["params"])
        }
        np.savez(self.folder / "causal.npz", chunks=chunks, cue=known, **arrays)
        self.hop = jax.jit(lambda *x: net.apply(*x, method="step"), donate_argnums=1)
        start = jax.jit(lambda v: net.apply(v, state, known, method="with_cue"))
        self.streamed = variables, chunks, start

    def stream(self, hops: int) -> dict:
        """Milliseconds of a hop, and what came out of the first ones."""
        variables, chunks, start = self.streamed
        state, taken, heard = start(variables), [], []
        for k in range(hops):
            started = time.perf_counter()
            state, out = self.hop(variables, state, chunks[k % len(chunks)])
            out = np.asarray(out)
            taken.append(1000 * (time.perf_counter() - started))
            if k < _HEARD:
                heard.append(out[0].tolist())
        return {"ms": taken, "heard": heard}


def _leaves(tree: Any) -> list[Any]:
    return jax.tree.leaves(tree)


def problem(config: Any) -> dict[str, Any]:
    """What the peer has to know of the config."""
    rate = config.data.sample_rate_hz
    filter_sizes = sections.build(
        voicefilter.VoiceFilterConfig, config.model.voicefilter, sample_rate_hz=rate
    )
    cues = sections.build(cue.CueConfig, config.cue, sample_rate_hz=rate)
    stream = sections.build(causal.CausalConfig, config.model.causal, sample_rate_hz=rate)
    sizes = filter_sizes.stft
    return {
        "learning_rate": _LEARNING_RATE,
        "clip_norm": _CLIP_NORM,
        "cue": dataclasses.asdict(cues),
        "voicefilter": {
            **dataclasses.asdict(filter_sizes),
            **{"layers": voicefilter.LAYERS, "epsilon": 1e-5},
            **{"window": sizes.window_size, "hop": sizes.hop_size},
        },
        "causal": {
            **{"size": stream.window_size, "hop": stream.stft.hop_size, "cue": cues.size},
            **{"features": stream.features, "num_layers": stream.num_layers},
            "cycle": stream.cycle,
        },
    }


class Batches:
    """Training batches as files of a folder, drawn when they are wanted first."""

    def __init__(self, folder: pathlib.Path, stream: Iterator[Mapping[str, np.ndarray]]):
        self.folder, self.stream, self.drawn = folder, stream, 0

    def need(self, number: int) -> None:
        while self.drawn <= number:
            batch = alike(next(self.stream))
            np.savez(self.folder / f"batch{self.drawn}.npz", **batch)
            self.drawn += 1

    def forget(self, number: int) -> None:
        (self.folder / f"batch{number}.npz").unlink(missing_ok=True)


def check(running: Mapping[str, workers.Worker], number: int) -> None:
    """Outputs of the same weights."""
    one, other = (np.load(worker("extract", number)) for worker in running.values())
    apart = float(np.abs(one - other).max())
    print(f"outputs of the same weights differ by {apart:.1e}, at most {np.abs(one).max():.2f}")
    if not apart < ALIKE:
        sys.exit("The two networks are not the same function.")


def measure_steps(running, args, rows: int, seconds: float) -> None:
    """Training steps in turns."""
    timing = (rows * seconds, "audio s", args.steps)
    jobs = [workers.Job("ours", "train", "", ("train", 0), *timing), workers.gemm("ours")]
    for how, compiled in (("eager", False), ("compiled", True)):
        jobs.append(workers.Job("torch", "train", how, ("train", 0, compiled), *timing))
    jobs.append(workers.gemm("torch"))
    losses = [running["ours"]("train", 0) for _ in range(3)]
    others = [running["torch"]("train", 0, compiled) for compiled in (False, False, True)]
    print(f"losses of 3 steps: {losses} and {others} (the last compiled)")
    if not np.allclose(losses, others, rtol=5e-3):
        sys.exit("The two sides do not train alike.")
    workers.report(workers.alternate(running, jobs, args.rounds))


def measure_stream(running, args, hop_ms: float) -> None:
    """Hops in turns, each side alone on the same core."""
    hows = ("eager", "script", "compiled")
    running["ours"]("start_stream")
    first = running["ours"]("stream", args.hops)
    taken = {"ours": [], **{how: [] for how in hows}}
    for how in hows:
        running["torch"]("start_stream", how)
        other = running["torch"]("stream", args.hops)  # compiles
        apart = np.abs(np.array(first["heard"]) - other["heard"]).max()
        print(f"hops of {how} differ by {apart:.1e}")
        if not apart < ALIKE:
            sys.exit(f"The two streaming networks are not the same function ({how}).")
        for _ in range(args.rounds):
            taken["ours"] += running["ours"]("stream", args.hops)["ms"]
            taken[how] += running["torch"]("stream", args.hops)["ms"]
    middle = {name: float(np.median(values)) for name, values in taken.items()}
    for name, values in taken.items():
        print(
            f"{name:9s} one hop of {hop_ms:g} ms, one core: p50 {middle[name]:.3f} ms, p99 "
            f"{np.percentile(values, 99):.3f} ms ({len(values)} hops)"
        )
    for how in hows:
        print(
            f"ours is {middle[how] / middle['ours']:.2f} times as fast as torch {how}, by medians"
        )


def train_both(running, batches: Batches, args, evaluation: Mapping[str, int]) -> None:
    """Each for `args.minutes` of its own steps on the same mixtures; then SI-SDRi."""
    command = {"ours": (), "torch": (args.compiled,)}
    used, steps, losses = {"ours": 0.0, "torch": 0.0}, {"ours": 0, "torch": 0}, {}
    said = time.monotonic()
    while min(used.values()) < 60 * args.minutes:
        who = min(used, key=used.get)
        batches.need(steps[who])
        timed = running[who].time("train", steps[who], *command[who])
        if steps[who] == 0:
            print(f"{who}: first step, untimed, {timed['seconds']:.1f} s")
        else:
            used[who] += timed["seconds"]
        losses[who], steps[who] = timed["answer"], steps[who] + 1
        if steps[who] <= min(steps.values()):
            batches.forget(steps[who] - 1)
        if time.monotonic() - said > 60:
            said = time.monotonic()
            now = {name: f"{used[name] / 60:.1f} min, loss {losses[name]:.3f}" for name in losses}
            print(steps, now, flush=True)
    for who in running:
        print(f"{who}: {steps[who]} steps in {used[who] / 60:.1f} min, last loss {losses[who]:.3f}")
        for split, count in evaluation.items():
            gains = np.concatenate(
                [gain(running[who], batches.folder, split, k) for k in range(count)]
            )
            print(
                f"{who}: {split} SI-SDRi median {np.median(gains):.2f} dB, mean "
                f"{np.mean(gains):.2f} dB, below 0 {np.mean(gains < 0):.1%} ({len(gains)} mixtures)"
            )


def gain(worker: workers.Worker, folder: pathlib.Path, split: str, k: int) -> np.ndarray:
    """SI-SDRi of a batch's rows."""
    found = np.load(worker("extract", f"_{split}{k}"))
    batch = np.load(folder / f"batch_{split}{k}.npz")
    score = separation_metrics.si_sdr
    return np.array(
        [
            float(score(voice[:n], target[:n]) - score(mixture[:n], target[:n]))
            for voice, target, mixture, n in zip(
                found, batch["target"], batch["mixture"], batch["lengths"]
            )
        ]
    )


def write_evaluation(separation: Any, folder: pathlib.Path) -> dict[str, int]:
    """How many files of batches each split has; rows without a target are left out."""
    counts = {}
    for split, stream in separation.eval_data().items():
        counts[split] = 0
        for batch in stream:
            rows = np.flatnonzero(batch["mask"] & batch["present"])
            chosen = {k: batch[k][rows] for k in ("sources", "sources_lengths")}
            chosen |= {k: batch[k][rows] for k in ("enrolment", "enrolment_lengths")}
            if len(rows):
                np.savez(folder / f"batch_{split}{counts[split]}.npz", **alike(chosen))
                counts[split] += 1
    return counts


def measure(args, words, folder: pathlib.Path, stack: contextlib.ExitStack) -> None:
    config = read_config(args.config, words)
    (folder / "problem.json").write_text(json.dumps(problem(config)), "utf-8")
    this = [sys.executable, "-m", "benchmarks.separation_peer", f"--config={args.config}", *words]
    peer = [args.torch_python, "-m", "benchmarks.separation_pytorch", str(folder)]

    def start() -> dict[str, workers.Worker]:
        ours = workers.Worker(stack, [*this, "--child", str(folder)])
        ours("describe")  # by now it has written the weights
        return {"ours": ours, "torch": workers.Worker(stack, peer)}

    separation = task.make_task(config, folder)
    separation.prepare()
    stream = stack.enter_context(contextlib.closing(iter(separation.train_data())))
    batches = Batches(folder, stream)
    batches.need(0)
    if args.minutes:
        evaluation = write_evaluation(separation, folder)
    running = start()
    for name, worker in running.items():
        about = worker("describe")
        print(f"{name}: {about['framework']}, {about['parameters']:,} parameters")
    data = config.data
    print(f"{len(os.sched_getaffinity(0))} cores, 2 x {data.batch_rows} x {data.crop_seconds:g} s")
    check(running, 0)
    if args.minutes:
        train_both(running, batches, args, evaluation)
    else:
        measure_steps(running, args, 2 * data.batch_rows, data.crop_seconds)
    print(*(f"{name}: peak {worker('peak_mib'):.0f} MiB" for name, worker in running.items()))
    if not args.minutes:
        workers.use_cores(1)
        measure_stream(start(), args, config.model.causal.hop_ms)


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--torch_python", help="a Python with torch")
    parser.add_argument("--config", default="configs/separation/an4.py")
    parser.add_argument("--minutes", type=float, default=0.0, help="of training for each side")
    parser.add_argument("--compiled", action="store_true", help="torch.compile with --minutes")
    parser.add_argument("--steps", type=int, default=3, help="in a round")
    parser.add_argument("--hops", type=int, default=500, help="in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, help="of both; default: all")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args, words = parser.parse_known_args()
    if args.child:
        jax.config.update("jax_enable_compilation_cache", False)
        workers.serve(Ours(pathlib.Path(args.child), read_config(args.config, words)))
        return
    if not args.torch_python:
        parser.error("--torch_python is needed: there is nothing to compare with")
    workers.use_cores(args.cores)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        measure(args, words, pathlib.Path(folder), stack)


if __name__ == "__main__":
    main()
