"""x-vector or ResNet34, AAM-softmax: training and extraction beside PyTorch, alternating in a run.

    python -m venv torchenv && torchenv/bin/pip install torch==2.13.0 numpy
    python -m benchmarks.speaker_speed --torch_python=torchenv/bin/python
    python -m benchmarks.speaker_speed --network=resnet --rows=16 --utterances=48 ...

Training: `--rows` waveforms of 2 s, front end, network (x-vector: tdnn 512 and 1500, embedding 512;
ResNet34: 32 to 256 channels, embedding 256), 1,000 classes, backward, Adam; ours is the trainer's
own step. Extraction: recordings of 2 to 10 s (log-normal, median 4 s), ours in length buckets by
the evaluation step, PyTorch one at a time and in batches padded to the longest (without masks, so
that padding changes its embeddings; ours are those of the recording alone). Both processes get the
same weights and audio and live through all rounds; prints how far their embeddings and losses are
apart, then medians over all rounds.
"""

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

from common import app, evaluation, parallel, trainer
from common.data import buckets
from speaker import settings, task

RATE = 16000
CROP_SECONDS = 2.0


def make_config(network: str):
    """The defaults of the project but Adam at a constant rate, more buckets."""
    config = settings.default_config()
    config.model.kind = network
    config.data.num_buckets = 8  # a second of compilation each; padding falls from 22 to 8 %
    config.optimizer.update({"schedule": "constant", "warmup_steps": 1, "learning_rate": 1e-3})
    return config


def make_problem(folder: pathlib.Path, args: argparse.Namespace) -> None:
    """Audio and labels for both (problem.npz) and what PyTorch has to know (problem.json)."""
    rng = np.random.default_rng(0)
    seconds = np.exp(rng.normal(np.log(4.0), 0.5, 4 * args.utterances))
    seconds = seconds[(seconds >= 2) & (seconds <= 10)][: args.utterances]
    samples = np.round(seconds * RATE).astype(int)
    config = make_config(args.network)
    speaker_task = make_task(config, folder, args.classes)
    encoder, optimizer = speaker_task.model.encoder.config, config.optimizer
    np.savez(
        folder / "problem.npz",
        audio=0.1 * rng.standard_normal((args.rows, round(CROP_SECONDS * RATE)), np.float32),
        labels=rng.integers(0, args.classes, args.rows),
        long=0.1 * rng.standard_normal(samples.sum(), np.float32),
        ends=np.cumsum(samples)[:-1],
        bank=speaker_task.model.front_end.filter_bank(),
    )
    known = {
        "classes": args.classes,
        "extract_rows": args.extract_rows,
        "network": args.network,
        "shape": (encoder.frame_layers,)
        if args.network == "xvector"
        else (encoder.num_blocks, encoder.widths),
        "embedding_size": encoder.embedding_size,
        "margin": config.loss.margin,
        "scale": config.loss.scale,
        "learning_rate": optimizer.learning_rate,
        "betas": (optimizer.b1, optimizer.b2),
        "eps": optimizer.eps,
    }
    (folder / "problem.json").write_text(json.dumps(known), "utf-8")


def make_task(config, folder: pathlib.Path, classes: int) -> task.SpeakerTask:
    (folder / "speakers.txt").write_text("".join(f"{i:06d}\n" for i in range(classes)))
    return task.SpeakerTask(config, folder, {})


class Ours:
    """The answers to the commands, by name."""

    def __init__(self, folder: pathlib.Path):
        problem = np.load(folder / "problem.npz")
        known = json.loads((folder / "problem.json").read_text("utf-8"))
        self.config = make_config(known["network"])
        self.task = make_task(self.config, folder, known["classes"])
        self.mesh = parallel.make_mesh()
        variables = self.task.init(jax.random.key(0))
        # Other running averages than 0 and 1, and scales than 0: a mistake there would be seen.
        keys = iter(jax.random.split(jax.random.key(1), 1000))
        variables = jax.tree.map_with_path(
            lambda path, x: (
                x + 0.1 * jax.random.uniform(next(keys), x.shape)
                if path[0].key == "batch_stats" or path[-1].key == "scale"
                else x
            ),
            variables,
        )
        arrays = {}
        for collection in ("params", "batch_stats"):
            for path, leaf in jax.tree.leaves_with_path(variables[collection]):
                arrays["/".join(key.key for key in path)] = np.asarray(leaf)
        np.savez(folder / "weights.npz", **arrays)
        self.state = parallel.place(self.task.create_state(variables), self.mesh)
        self.train_step = trainer.make_train_step(self.task, self.config, self.mesh)
        self.eval_step = evaluation.make_eval_step(self.task, self.config, self.mesh)
        rows, samples = problem["audio"].shape
        self.batch = {
            "audio": problem["audio"],
            "audio_lengths": np.full(rows, samples, np.int32),
            "label": problem["labels"].astype(np.int32),
            "mask": np.ones(rows, bool),
        }
        self.utterances = np.split(problem["long"], problem["ends"])
        sizes = {"audio": np.array([len(x) for x in self.utterances])}
        self.shapes = buckets.choose_buckets(
            sizes,
            primary="audio",
            num_buckets=self.config.data.num_buckets,
            max_total=round(self.config.data.eval_batch_seconds * RATE),
            rows_multiple_of=1,
        )
        self.chosen = buckets.assign(self.shapes, sizes)
        self.padding = buckets.padding_share(self.shapes, sizes, "audio")

    def describe(self) -> dict:
        count = sum(x.size for x in jax.tree.leaves(self.state.params))
        return {
            "framework": f"jax {jax.__version__}",
            "parameters": count,
            "padding": self.padding,
        }

    def embed(self, batch) -> np.ndarray:
        batch = {**batch, "index": np.zeros(len(batch["mask"]), np.int32)}
        batch = parallel.global_batch(batch, self.mesh)
        _, outputs = self.eval_step(self.state.eval_variables, batch)
        return np.asarray(outputs["embedding"])

    def check(self) -> dict:
        first = {k: v[:8] for k, v in self.batch.items() if k != "label"}
        return {"embeddings": self.embed(first).tolist()}

    def train(self, steps: int) -> dict:
        seconds, losses = [], []
        for _ in range(steps):
            start = time.perf_counter()
            batch = parallel.global_batch(self.batch, self.mesh)
            self.state, sums = self.train_step(self.state, batch)
            losses.append(float(sums["loss"].total / sums["loss"].count))
            seconds.append(time.perf_counter() - start)
        return {"seconds": seconds, "losses": losses}

    def extract_buckets(self) -> dict:
        start = time.perf_counter()
        for number, shape in enumerate(self.shapes):
            places = np.flatnonzero(self.chosen == number)
            for i in range(0, len(places), shape.rows):
                audio = np.zeros((shape.rows, shape.lengths["audio"]), np.float32)
                lengths = np.zeros(shape.rows, np.int32)
                for row, place in enumerate(places[i : i + shape.rows]):
                    lengths[row] = len(self.utterances[place])
                    audio[row, : lengths[row]] = self.utterances[place]
                self.embed({"audio": audio, "audio_lengths": lengths, "mask": lengths > 0})
        return {"seconds": [time.perf_counter() - start]}


class Worker:
    """A process that answers commands; only one of them computes at a time."""

    def __init__(self, stack: contextlib.ExitStack, command: list[str]):
        self.process = stack.enter_context(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        stack.callback(self.process.stdin.close)

    def __call__(self, *command) -> dict:
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"{self.process.args[0]} died; its messages are above.")
        return json.loads(answer)


def answer_commands(folder: pathlib.Path) -> None:
    app.keep_memory()
    jax.config.update("jax_enable_compilation_cache", False)
    ours = Ours(folder)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        print(json.dumps(getattr(ours, name)(*arguments)), flush=True)


def measure(args: argparse.Namespace, folder: pathlib.Path, stack: contextlib.ExitStack) -> None:
    make_problem(folder, args)
    this = [sys.executable, "-m", "benchmarks.speaker_speed", "--child", str(folder)]
    workers = {"ours": Worker(stack, this)}
    about = {"ours": workers["ours"]("describe")}  # by now it has written the weights
    jobs = [("ours", "train"), ("ours", "extract_buckets")]
    print(
        f"{args.network}, {os.cpu_count()} cores, {args.rows} x {CROP_SECONDS:g} s, "
        f"{args.classes} classes; {args.utterances} recordings of 2 to 10 s, "
        f"{100 * about['ours']['padding']:.0f} % padding"
    )
    checked = {"ours": workers["ours"]("check")}
    first = {"ours": workers["ours"]("train", 3)["losses"]}
    if args.torch_python:
        peer = [args.torch_python, "benchmarks/speaker_pytorch.py", str(folder), str(args.threads)]
        workers["torch"] = Worker(stack, peer)
        about["torch"] = workers["torch"]("describe")
        jobs += [("torch", "train"), ("torch", "extract_single"), ("torch", "extract_padded")]
        checked["torch"] = workers["torch"]("check")
        first["torch"] = workers["torch"]("train", 3)["losses"]
        ours, theirs = (np.array(checked[name]["embeddings"]) for name in ("ours", "torch"))
        print(
            f"embeddings differ by {np.abs(ours - theirs).max():.1e} at most (their deviation is "
            f"{ours.std():.2f}); losses of 3 steps: {first['ours']} and {first['torch']}"
        )
        if not np.allclose(ours, theirs, atol=1e-4):
            sys.exit("The two networks are not the same function.")
    for name in workers:
        print(f"{name}: {about[name]['framework']}, {about[name]['parameters']:,} parameters")
    for name, job in jobs:  # compiles, warms up
        if job != "train":
            workers[name](job)
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in jobs}
    for _ in range(args.rounds):
        for job in sorted(jobs, key=lambda job: job[1]):  # alternating
            name, what = job
            arguments = (args.steps,) if what == "train" else ()
            seconds[job] += workers[name](what, *arguments)["seconds"]
    rates = {}
    for (name, what), values in seconds.items():
        count = args.rows if what == "train" else args.utterances
        median = statistics.median(values)
        rates[name, what] = count / median
        print(
            f"{name:6s} {what:16s} {count / median:7.1f} utterances/s  "
            f"({median:.3f} s, min {min(values):.3f}, max {max(values):.3f}, {len(values)} times)"
        )
    for name, what in jobs:
        if name == "torch":
            own = rates["ours", "train" if what == "train" else "extract_buckets"]
            print(f"ours is {own / rates[name, what]:.2f} times as fast as {name} {what}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--torch_python", help="a Python with torch; without it only ours is timed")
    parser.add_argument("--network", choices=("xvector", "resnet"), default="xvector")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=3, help="training steps in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--utterances", type=int, default=192)
    parser.add_argument("--extract_rows", type=int, default=32, help="of PyTorch's padded batches")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of PyTorch")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        answer_commands(pathlib.Path(args.child))
        return
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        measure(args, pathlib.Path(folder), stack)


if __name__ == "__main__":
    main()
