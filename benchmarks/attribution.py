"""Attributions: completeness by nodes, all tokens at once against one by one, gaps beside captum.

    python -m benchmarks.attribution --workdir=runs/an4 [--n=9] [--peer_python=captumenv/bin/python]

The peer's environment has torch, numpy and captum; it gets the weights of a small network and the
recording by a file, and prints its gaps.
"""

import functools
import json
import pathlib
import subprocess
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from asr import task as asr_task
from common import app, trained
from common.analysis import attribution, explaining, recordings

NODES = (8, 16, 32, 50)
PEER = """
import json, sys, numpy, torch
from captum.attr import IntegratedGradients
data = {k: torch.tensor(v) for k, v in numpy.load(sys.argv[1]).items()}
def net(x):
    for i in range(3):
        x = torch.nn.functional.conv1d(x, data[f"w{i}"], padding=2)
        x = torch.nn.functional.silu(x) if sys.argv[2] == "silu" else torch.relu(x)
    return torch.log_softmax(x.mean(dim=2) @ data["head"], dim=1)[:, :1]
x, zero = data["x"].float(), torch.zeros_like(data["x"].float())
data = {k: v.float() for k, v in data.items()}
found = {}
with torch.no_grad():
    wanted = float(net(x) - net(zero))
for method in ("gausslegendre", "riemann_trapezoid", "riemann_middle", "riemann_right"):
    for n in json.loads(sys.argv[3]):
        maps = IntegratedGradients(net).attribute(x, zero, n_steps=n, method=method)
        found[f"{method} {n}"] = 100 * abs(float(maps.double().sum()) - wanted) / abs(wanted)
print(json.dumps(found))
"""


def completeness(found: trained.Trained, count: int) -> None:
    """Gaps of fixed numbers of nodes over the recordings, and those of the mode itself."""
    chosen = recordings.of_split(found.task, "", count, found.config, 30.0)
    made = explaining.Explainer(found.task, "log_mel", "transcript", found.mesh)
    batch = made.chosen(found.variables, chosen.batch)
    values, lengths, silence = made.read(found.variables, batch)
    for kind in ("silence", "noise"):
        starts = made.starts(kind, values, lengths, silence, 0)[:1]
        score = functools.partial(made.score, found.variables, batch)
        path = functools.partial(made.path, found.variables, batch)
        for nodes in NODES[:3]:
            rows = attribution.integrated_gradients(
                path, score, starts[0], values, first_nodes=nodes, max_nodes=nodes
            )
            gaps = [row.gap_percent for row in rows]
            share = np.mean(np.array(gaps) <= 0.1)
            print(f"{kind}, {nodes} nodes: median {np.median(gaps):.4f} %, "
                  f"max {np.max(gaps):.4f} %, within 0.1 %: {share:.0%}")  # fmt: skip
        options = {"max_nodes": 4096}
        rows = made.explain(found.variables, batch, values, lengths, starts, **options)
        used = sorted(row.nodes for row in rows)
        most = max(row.gap_percent for row in rows)
        print(
            f"{kind}, nodes added where needed: {used[0]} to {used[-1]}, median "
            f"{used[len(used) // 2]}, all within 0.1 %: {all(row.converged for row in rows)}, "
            f"max gap {most:.4f} %"
        )


def tokens(found: trained.Trained, repeats: int) -> None:
    """16 nodes of all tokens of the longest of 9 recordings: vmapped cotangents against a loop."""
    chosen = recordings.of_split(found.task, "", 9, found.config, 30.0)
    row = int(np.argmax(chosen.batch["labels_lengths"]))
    own = explaining.trim({name: x[row : row + 1] for name, x in chosen.batch.items()})
    made = explaining.Explainer(found.task, "log_mel", "tokens", found.mesh)
    batch = made.chosen(found.variables, own)
    values, _, silence = made.read(found.variables, batch)
    count = int(batch["labels_lengths"][0]) + 1
    nodes, weights = (x.astype(np.float32)[None] for x in attribution.gauss_legendre(16))

    def score(variables, batch, point):
        return made.target.score(variables, batch, {"log_mel": point})[:, :count]

    def vmapped(variables, batch, start, end, k):
        del k
        one = functools.partial(score, variables, batch)
        return attribution.path_gradients(one, start, end, nodes, weights, at_once)

    def single(variables, batch, start, end, k):
        def one(point):
            return jax.lax.dynamic_slice_in_dim(score(variables, batch, point), k, 1, 1)

        return attribution.path_gradients(one, start, end, nodes, weights)

    batch = jax.tree.map(jnp.asarray, batch)
    maps, seconds = {}, {}
    for name, fn, calls in (("at once", vmapped, [0]), ("one by one", single, range(count))):
        for at_once in (4, 16, count) if name == "at once" else (1,):
            label = f"{name} ({at_once})"
            mapped = jax.jit(
                jax.vmap(
                    lambda *args, fn=fn: fn(*args),
                    in_axes=None, out_axes=None, axis_size=1, axis_name="data",
                )
            )  # fmt: skip

            def run(mapped=mapped, calls=calls):
                args = found.variables, batch, silence, values
                return jnp.concatenate([mapped(*args, jnp.int32(k)) for k in calls], axis=1)

            maps[label] = np.asarray(run())
            times = []
            for _ in range(repeats):
                started = time.perf_counter()
                jax.block_until_ready(run())
                times.append(time.perf_counter() - started)
            seconds[label] = np.median(times)
    first = maps["one by one (1)"]
    for label, value in seconds.items():
        off = np.abs(maps[label] - first).max() / np.abs(first).max()
        print(f"{count} tokens, {values.shape[1]} frames, {label}: {value:.2f} s, "
              f"differs by {off:.1e}")  # fmt: skip


def beside_captum(python: str) -> None:
    """Three convolutions and a log-softmax on 100 x 80 numbers: gaps by method and nodes."""
    rng = np.random.default_rng(0)
    sizes = [(32, 80, 5), (32, 32, 5), (32, 32, 5)]
    data = {f"w{i}": rng.normal(size=s) / np.sqrt(s[1] * 5) for i, s in enumerate(sizes)}
    data |= {"head": rng.normal(size=(32, 10)), "x": 2 * rng.normal(size=(1, 80, 100))}
    data = {name: value.astype(np.float32) for name, value in data.items()}
    for activation in ("silu", "relu"):

        def score(x, activation=activation):
            for i in range(3):
                x = jax.lax.conv_general_dilated(x, data[f"w{i}"], (1,), [(2, 2)])
                x = getattr(jax.nn, activation)(x)
            return jax.nn.log_softmax(jnp.mean(x, axis=2) @ data["head"])[:, :1]

        path = jax.jit(functools.partial(attribution.path_gradients, score))
        for nodes in NODES:
            (row,) = attribution.integrated_gradients(
                path, jax.jit(score), 0 * data["x"], data["x"], first_nodes=nodes, max_nodes=nodes
            )
            print(f"{activation}, ours, {nodes}: {row.gap_percent:.5f} %")
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "net.npz"
            np.savez(path, **data)
            line = [python, "-c", PEER, str(path), activation, json.dumps(NODES)]
            done = subprocess.run(line, capture_output=True, text=True, check=True)
        for name, gap in json.loads(done.stdout).items():
            print(f"{activation}, captum {name}: {gap:.5f} %")


def main() -> None:
    parser = app.parser("benchmarks.attribution", __doc__)
    app.add_run(parser)
    parser.add_argument("--n", type=int, default=9, help="recordings of the first evaluation split")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer_python", help="of an environment with torch and captum")
    args = parser.parse_args()

    def work() -> None:
        found = trained.load(asr_task.PACKAGE, args.workdir, step=args.checkpoint)
        completeness(found, args.n)
        tokens(found, args.repeats)
        if args.peer_python:
            beside_captum(args.peer_python)

    app.command("benchmarks.attribution", work)


if __name__ == "__main__":
    main()
