"""VisualVoice (`separation.visualvoice`) beside PyTorch: a voice, a training step, its memory.

    python -m venv torchenv && torchenv/bin/pip install torch==2.13.0 numpy
    python -m benchmarks.visualvoice_speed --torch_python=torchenv/bin/python --only infer --cores=1
    python -m benchmarks.visualvoice_speed --torch_python=torchenv/bin/python --only infer train
    python -m benchmarks.visualvoice_speed --only memory

The published networks, 77,496,878 parameters. infer: from waveform to waveform, one person with one
portrait (224 x 224) and 25 mouths (88 x 88) a second, in mixtures of 1 s and of 2.55 s: the STFT,
all networks but that of voices, its inverse. train: `--rows` rows of 2.55 s, each two mixtures of
two voices, with all losses (embeddings are those of what the masks give), backward and the
published optimizer; ours is the trainer's own step. Dropout and what varies pictures are off.
memory: what XLA lays out for our step, compiled and not run: arguments (state and batch) and
temporaries, in float32 and bfloat16, with and without remat.

PyTorch runs eagerly, by torch.compile, and in use also with frozen weights. Both processes get the
same weights, sounds, pictures, cores and malloc settings and live through all rounds. Ends where
voices, losses or gradients of the two differ, or parameters are not as many as published.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import workers
from common import estimate, metrics, parallel, sections, trainer, workdir
from configs.separation import visualvoice
from separation import films
from separation.visualvoice import losses, pictures, task

PUBLISHED = {
    "face_net": 11_242_176,
    "lip_net": 8_879_980,
    "unet": 46_135_682,
    "voice_net": 11_239_040,
}
# Multiples of eight: with others PyTorch 2.13 dies in the gradient of channels-last convolutions.
SMALL = {
    "lip_front": 8,
    "lip_stages": (16, 32),
    "lip_units": (2, 1),
    "lip_features": 24,
    "tcn_channels": 16,
    "tcn_dilations": (1, 2),
    "face_widths": (16, 32),
    "face_blocks": (1, 1),
    "embedding_size": 16,
    "unet_first": (8, 16),
    "unet_widths": (16,) * 6,
}
SECONDS = ("1", "2.55")
ALIKE = {"float32": 1e-3, "bfloat16": 5e-2}  # differences over sizes, of voices and losses
# Of their lengths. PyTorch's in float32 are up to 1.6e-3 off those in float64 (face network).
GRADIENTS_ALIKE = {"float32": 2e-2, "bfloat16": 2e-1}
STEPS = 3  # that are compared; the first has a rate of 0


def make_config(known: Mapping[str, Any]) -> Any:
    """The published settings without dropout, embeddings always of what the masks give."""
    config = visualvoice.get_config()
    config.model.visualvoice.update({"dropout": 0.0} | (SMALL if known["small"] else {}))
    config.model.visualvoice.update({"dtype": known["dtype"], "remat": known["remat"]})
    config.loss.visualvoice.true_share = 0.0
    return workdir.freeze(config)


class Step(task.VisualVoiceTask):
    """The task, but for how pictures are varied: its batches have what the networks see."""

    def loss(self, variables, batch, key, step, *, train):
        del step
        names = ("audio", "lengths", "mask", "mouth", "mouth_seen", "faces", "faces_seen")
        terms, new_state = self.model.apply(
            variables,
            *(batch[name] for name in names),
            parallel.row_keys(key, batch["row"]),
            sections.build(losses.LossConfig, self.config.loss.visualvoice),
            train=train,
            method=losses.terms,
            mutable=["batch_stats"],
        )
        return terms, ({}, new_state)


def make_step(known: Mapping[str, Any], folder: pathlib.Path) -> Step:
    return Step(make_config(known), folder, {})


def make_seen(seconds: str, rows: int, mouths: int, faces: int, seed: int) -> dict[str, np.ndarray]:
    """Pictures as the networks see them, of so many clips and people in so many rows."""
    rng = np.random.default_rng(seed)
    frames = -(-round(float(seconds) * films.FRAMES_PER_SECOND * 100) // 100)
    size = pictures.MOUTH_SIZE
    return {
        "mouth": rng.standard_normal((rows, mouths, frames, size, size), np.float32),
        "faces": rng.standard_normal((rows, faces, 1, *films.FACE), np.float32),
    }


def make_problem(folder: pathlib.Path, known: Mapping[str, Any]) -> None:
    """Sounds and pictures for both (problem.npz) and what PyTorch has to know (problem.json)."""
    made = make_step(known, folder)
    sizes, optimizer, rng = made.sizes, made.config.optimizer, np.random.default_rng(0)
    arrays = {}
    for i, seconds in enumerate(SECONDS):
        samples = round(float(seconds) * sizes.sample_rate_hz)
        arrays[f"mixture_{seconds}"] = 0.1 * rng.standard_normal((1, samples), np.float32)
        for name, array in make_seen(seconds, 1, 1, 1, i).items():
            arrays[f"{name}_{seconds}"] = array
    arrays["audio"] = 0.1 * rng.standard_normal((known["rows"], 3, samples), np.float32)
    arrays |= make_seen(seconds, known["rows"], 3, 2, len(SECONDS))
    np.savez(folder / "problem.npz", **arrays)
    stft = sizes.stft
    about = {
        **known,
        "sizes": dataclasses.asdict(sizes),
        "loss": dict(made.config.loss.visualvoice),
        **{"num_fft": stft.num_fft, "hop": stft.hop_size, "window": stft.window_size},
        "optimizer": {
            **{"betas": (optimizer.b1, optimizer.b2), "eps": optimizer.eps},
            **{"rate": optimizer.learning_rate, "factors": dict(optimizer.rate_factors)},
            "weight_decay": optimizer.weight_decay,
        },
    }
    (folder / "problem.json").write_text(json.dumps(about), "utf-8")


def make_batch(problem: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    audio, mouth, faces = (problem[name] for name in ("audio", "mouth", "faces"))
    return {
        **{"audio": audio, "lengths": np.full(len(audio), audio.shape[2], np.int32)},
        **{"mouth": mouth, "mouth_seen": np.ones(mouth.shape[:3], bool)},
        **{"faces": faces, "faces_seen": np.ones(faces.shape[:3], bool)},
        "mask": np.ones(len(audio), bool),
    }


def make_variables(made: Step) -> Any:
    """Weights after He et al. (2015); scales, biases, slopes and statistics as if trained a while.

    Drawn by NumPy: compiling the networks' own draws takes longer than all that is measured here.
    """
    rng = np.random.default_rng(1)

    def drawn(path: tuple, like: jax.ShapeDtypeStruct) -> np.ndarray:
        if len(like.shape) > 1:
            deviation = np.sqrt(2 / np.prod(like.shape[:-1]))
            return np.float32(deviation) * rng.standard_normal(like.shape, np.float32)
        start = {"scale": 1.0, "var": 1.0, "slope": 0.25, "bias": 0.0, "mean": 0.0}[path[-1].key]
        return np.float32(start) + np.float32(0.1) * rng.random(like.shape, np.float32)

    return jax.tree.map_with_path(drawn, jax.eval_shape(made.init, jax.random.key(0)))


class Ours:
    """The answers to the commands, by name."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        known = json.loads((folder / "problem.json").read_text("utf-8"))
        self.problem = dict(np.load(folder / "problem.npz"))
        self.task = make_step(known, folder)
        self.mesh = parallel.make_mesh(jax.devices()[:1])
        variables = make_variables(self.task)
        arrays = {
            "/".join(key.key for key in path): leaf
            for tree in variables.values()
            for path, leaf in jax.tree.leaves_with_path(tree)
        }
        np.savez(folder / "weights.npz", **arrays)
        self.state = parallel.place(self.task.create_state(variables), self.mesh)
        self.step = trainer.make_train_step(self.task, self.task.config, self.mesh)
        self.separate = jax.jit(self.task.model.apply)
        self.square = jax.random.normal(jax.random.key(0), (workers.GEMM_SIZE,) * 2)
        self.product = jax.jit(jnp.matmul)

    def describe(self) -> dict:
        return {
            "framework": f"jax {jax.__version__}",
            "parameters": counts(self.state.params),
        }

    def gemm(self) -> None:
        self.product(self.square, self.square).block_until_ready()

    def separated(self, seconds: str) -> np.ndarray:
        names = ("mixture", "mouth", "faces")
        mixture, mouth, faces = (self.problem[f"{name}_{seconds}"] for name in names)
        lengths = np.full(len(mixture), mixture.shape[1], np.int32)
        there = [np.ones(seen.shape[:3], bool) for seen in (mouth, faces)]
        given = (mixture, lengths, mouth, there[0], faces, there[1])
        return np.asarray(self.separate(self.state.variables, *given))

    def infer(self, seconds: str) -> None:
        self.separated(seconds)

    def check(self, seconds: str) -> str:
        """Writes the voices; the file."""
        path = self.folder / "ours.npy"
        np.save(path, self.separated(seconds))
        return str(path)

    def train(self) -> dict[str, float]:
        """One step; its loss, the terms, and the length of the gradient."""
        batch = parallel.global_batch(make_batch(self.problem), self.mesh)
        self.state, sums = self.step(self.state, batch)
        return metrics.finalize(sums)

    def gradients(self) -> dict[str, float]:
        """Of the first step: the length for each network, from what Adam keeps of it."""
        moments = optax.tree_utils.tree_get(self.state.opt_state, "mu")
        unravel = jax.flatten_util.ravel_pytree(self.state.params)[1]
        share = 1 - self.task.config.optimizer.b1
        parts = unravel(moments / share)
        return {part: float(optax.global_norm(tree)) for part, tree in parts.items()}


def counts(params: Mapping[str, Any]) -> dict[str, int]:
    """Parameters of each network."""
    return {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in params.items()}


def compare(running: Mapping[str, workers.Worker], known: Mapping[str, Any], only: Sequence[str]):
    """Ends the run if the networks are not the same functions."""
    about = {who: worker("describe") for who, worker in running.items()}
    expected = about["ours"]["parameters"] if known["small"] else PUBLISHED
    for who, found in about.items():
        print(f"{who}: {found['framework']}, {sum(found['parameters'].values()):,} parameters")
        if found["parameters"] != expected:
            sys.exit(f"{who} has other parameters than {expected}: {found['parameters']}")
    if "torch" not in running:
        return
    ours, peer = running["ours"], running["torch"]
    if "infer" in only:
        for seconds in SECONDS:
            one, other = np.load(ours("check", seconds)), np.load(peer("check", seconds, "eager"))
            apart = np.abs(one - other).max() / one.std()
            print(f"voices of {seconds} s differ by {apart:.1e} of their deviation at most")
            refuse(apart, ALIKE[known["dtype"]])
    if "train" in only:
        steps = {"ours": [], "torch": []}
        for number in range(STEPS):
            steps["ours"].append(ours("train"))
            steps["torch"].append(peer("train", number == STEPS - 1))  # the last one compiled
            if number == 0:
                compare_gradients(ours("gradients"), peer("gradients"), known["dtype"])
        for name in steps["torch"][0]:
            one, other = (np.array([step[name] for step in steps[who]]) for who in steps)
            apart = np.abs(one / other - 1).max()
            shown = [", ".join(f"{x:.5g}" for x in values) for values in (one, other)]
            print(f"{name} of {STEPS} steps: {shown[0]} and {shown[1]}, {apart:.1e} apart")
            alike = GRADIENTS_ALIKE if name == "grad_norm" else ALIKE
            refuse(apart, alike[known["dtype"]])


def compare_gradients(ours: Mapping[str, float], peer: Mapping[str, float], dtype: str) -> None:
    for name, one in ours.items():
        apart = abs(one / peer[name] - 1)
        print(f"gradient of {name}: {one:.5g} and {peer[name]:.5g}, {apart:.1e} apart")
        refuse(apart, GRADIENTS_ALIKE[dtype])


def refuse(apart: float, alike: float) -> None:
    if not apart < alike:
        sys.exit(f"The two networks are not the same function: {apart:.1e} is not below {alike}.")


def jobs_of(who: str, args: argparse.Namespace) -> Iterator[workers.Job]:
    compiled = {"eager": False, "compiled": True}
    if "infer" in args.only:
        for seconds in SECONDS:
            hows = ("eager", "compiled", "frozen") if who == "torch" else ("",)
            for how in hows:
                command = ("infer", seconds, how) if how else ("infer", seconds)
                amount = (float(seconds), "audio s", args.times)
                yield workers.Job(who, f"{seconds} s", how or args.dtype, command, *amount)
    if "train" in args.only:
        for how in compiled if who == "torch" else ("",):
            command = ("train", compiled[how]) if how else ("train",)
            label = how or args.dtype + args.remat * " remat"
            yield workers.Job(who, "train", label, command, args.rows, "rows", args.steps)
    yield workers.gemm(who)


def measure(args: argparse.Namespace, folder: pathlib.Path, stack: contextlib.ExitStack) -> None:
    known = {name: getattr(args, name) for name in ("small", "dtype", "remat", "rows")}
    make_problem(folder, known)
    this = [sys.executable, "-m", "benchmarks.visualvoice_speed", "--child", str(folder)]
    running = {"ours": workers.Worker(stack, this)}
    running["ours"]("describe")  # by now it has written the weights
    if args.torch_python:
        peer = [args.torch_python, "-m", "benchmarks.visualvoice_pytorch", str(folder)]
        running["torch"] = workers.Worker(stack, peer)
    print(f"{len(os.sched_getaffinity(0))} cores, {args.rows} rows of {SECONDS[-1]} s")
    compare(running, known, args.only)
    if args.rounds:
        jobs = [job for who in running for job in jobs_of(who, args)]
        workers.report(workers.alternate(running, jobs, args.rounds))


def memory(args: argparse.Namespace, folder: pathlib.Path) -> None:
    """Prints a table of what XLA lays out for our step: both types, with and without remat."""
    print(f"| {args.rows} rows | arguments, MiB | temporaries, MiB | peak, MiB | compiled in |")
    print("|---|---|---|---|---|")
    for dtype, remat in itertools.product(("float32", "bfloat16"), (False, True)):
        known = {"small": args.small, "dtype": dtype, "remat": remat, "rows": args.rows}
        make_problem(folder, known)
        start = time.perf_counter()
        compiled = compiled_step(make_step(known, folder), np.load(folder / "problem.npz"))
        seconds, found = time.perf_counter() - start, compiled.memory_analysis()
        sizes = (found.argument_size_in_bytes, found.temp_size_in_bytes)
        cells = [f"{size / 2**20:,.1f}" for size in (*sizes, estimate.peak_bytes(compiled))]
        print(f"| {dtype}{remat * ', remat'} | {' | '.join(cells)} | {seconds:.0f} s |", flush=True)


def compiled_step(made: Step, problem: Mapping[str, np.ndarray]) -> Any:
    """The step of shapes alone: no state is allocated, nothing run."""
    mesh = parallel.make_mesh(jax.devices()[:1])
    state = jax.eval_shape(lambda key: made.create_state(made.init(key)), jax.random.key(0))
    step = trainer.make_train_step(made, made.config, mesh)
    return step.lower(state, parallel.global_batch(make_batch(problem), mesh)).compile()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--torch_python", help="a Python with torch; without it only ours is timed")
    choices = ("infer", "train", "memory")
    parser.add_argument("--only", nargs="+", choices=choices, default=choices[:2])
    parser.add_argument("--rows", type=int, default=1, help="of a training step")
    parser.add_argument("--dtype", choices=tuple(ALIKE), default="float32", help="of ours")
    parser.add_argument("--remat", action="store_true", help="in our training step")
    parser.add_argument("--times", type=int, default=5, help="each voice, in a round")
    parser.add_argument("--steps", type=int, default=1, help="in a round")
    parser.add_argument("--rounds", type=int, default=3, help="0: compares, times nothing")
    parser.add_argument("--cores", type=int, help="of both; default: all")
    parser.add_argument("--small", action="store_true", help="few channels: does it run?")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        jax.config.update("jax_enable_compilation_cache", False)
        workers.serve(Ours(pathlib.Path(args.child)))
        return
    workers.use_cores(args.cores)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        if set(args.only) & {"infer", "train"}:
            measure(args, pathlib.Path(folder), stack)
        if "memory" in args.only:
            memory(args, pathlib.Path(folder))


if __name__ == "__main__":
    main()
