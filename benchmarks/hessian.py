"""What products with a Hessian cost, and Lanczos beside them; a peer's figures of the same network.

    python -m benchmarks.hessian [--peer_python=PATH] [--workdir=runs/an4]

Small: a tanh network of 85,002 parameters with 2,048 rows; 30 steps of Lanczos with full
reorthogonalisation, 30 products one after the other in one program, the ratio of a product and a
gradient. Large: seconds to compile 40 steps for 10 million parameters. Peer: PyHessian in an
environment of its own (torch), on the same weights and rows in the same run: the largest
eigenvalue, and the trace. With `--workdir`, Lanczos and products of a trained network's
loss on one batch of its evaluation data.
"""

import argparse
import importlib
import itertools
import json
import pathlib
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from common import app, parameters, trained, workdir
from common.analysis import curvature, objective

STEPS = 30
ROUNDS = 7

PEER = """
import json, sys, torch
from pyhessian import hessian
folder = sys.argv[1]
import numpy as np
got = np.load(f"{folder}/net.npz")
layers = []
for k in range(3):
    w, b = torch.tensor(got[f"w{k}"]), torch.tensor(got[f"b{k}"])
    linear = torch.nn.Linear(*w.shape)
    linear.weight.data, linear.bias.data = w.T.contiguous(), b
    layers += [linear, torch.nn.Tanh()] if k < 2 else [linear]
net = torch.nn.Sequential(*layers)
data = torch.tensor(got["x"]), torch.tensor(got["y"]).long()
torch.manual_seed(0)
it = hessian(net, torch.nn.CrossEntropyLoss(), data=data, cuda=False)
import time
start = time.perf_counter()
values, _ = it.eigenvalues(maxIter=200, tol=1e-6, top_n=1)
seconds = time.perf_counter() - start
trace = it.trace(maxIter=200, tol=1e-3)
mean = float(np.mean(trace))
print(json.dumps({"largest": values[0], "seconds": seconds, "trace": mean, "draws": len(trace)}))
"""


def network(sizes: list[int], rows: int, seed: int = 0) -> tuple[list[Any], Any, Any]:
    """Weights as lists of {"w", "b"}, rows and labels."""
    rng = np.random.default_rng(seed)
    params = [
        {
            "w": np.float32(rng.normal(size=(a, b)) / np.sqrt(a)),
            "b": np.float32(0.1 * rng.normal(size=b)),
        }
        for a, b in itertools.pairwise(sizes)
    ]
    x = np.float32(rng.normal(size=(rows, sizes[0])))
    return params, x, rng.integers(sizes[-1], size=rows)


def loss(params: Any, x: Any, y: Any) -> Any:
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"][None])
    z = x @ params[-1]["w"] + params[-1]["b"][None]
    picked = jnp.take_along_axis(z, y[:, None], axis=1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(z, axis=1) - picked)


def product(params: Any, x: Any, y: Any) -> Callable:
    vector, unravel = ravel_pytree(params)

    def slope(vector: Any) -> Any:
        return jax.grad(lambda v: loss(unravel(v), x, y))(vector)

    return lambda v: jax.jvp(slope, (vector,), (v,))[1]


@jax.jit
def lanczos(params: Any, x: Any, y: Any) -> Any:
    size = ravel_pytree(params)[0].size
    start = curvature.signs(jax.random.key(0), size, jnp.float32)
    return curvature.ends(product(params, x, y), start, steps=STEPS, top=1).values


@jax.jit
def bare(params: Any, x: Any, y: Any) -> Any:
    return one_after_the_other(product(params, x, y), ravel_pytree(params)[0].size)


def one_after_the_other(hv: Callable, size: int) -> Any:
    """STEPS products, each of the one before at unit length."""
    start = curvature.signs(jax.random.key(0), size, jnp.float32) / size**0.5

    def again(_: Any, v: Any) -> Any:
        v = hv(v)
        return v / jnp.linalg.norm(v)

    return jax.lax.fori_loop(0, STEPS, again, start)


@jax.jit
def once(params: Any, x: Any, y: Any) -> Any:
    size = ravel_pytree(params)[0].size
    return product(params, x, y)(curvature.signs(jax.random.key(0), size, jnp.float32))


@jax.jit
def gradient(params: Any, x: Any, y: Any) -> Any:
    return jax.grad(loss)(params, x, y)


@jax.jit
def spectrum(params: Any, x: Any, y: Any) -> Any:
    size = ravel_pytree(params)[0].size
    keys = jax.random.split(jax.random.key(1), 64)
    return curvature.quadrature(product(params, x, y), keys, size, steps=2)


def of_run(folder: pathlib.Path) -> None:
    """The two programs for one batch of a run's evaluation data."""
    owner, _ = workdir.read_config(folder)
    found = trained.load(importlib.import_module(f"{owner}.task").PACKAGE, folder)
    _, batches = objective.batches_of(found.task, "", 1)
    data = objective.collect(batches, found.mesh, most=1)
    goal = objective.Objective(found.task, int(found.config.seed), found.step)
    size = parameters.count(found.variables["params"])

    @jax.jit
    def lanczos(variables: Any, data: Any) -> Any:
        hv = curvature.hessian(curvature.Flat(goal, variables, data))
        start = curvature.signs(jax.random.key(0), size, jnp.float32)
        return curvature.ends(hv, start, steps=STEPS, top=1).values

    @jax.jit
    def products(variables: Any, data: Any) -> Any:
        return one_after_the_other(curvature.hessian(curvature.Flat(goal, variables, data)), size)

    took = seconds({"lanczos": lanczos, "products": products}, found.variables, data, rounds=3)
    rows = data.groups[0]["mask"].shape[1]
    print(
        f"{owner}, {size:,} parameters, a batch of {rows}: {STEPS} Lanczos "
        f"steps {took['lanczos']:.1f} s, {STEPS} products {took['products']:.1f} s: "
        f"{took['lanczos'] / took['products']:.3f} x"
    )


def seconds(
    functions: dict[str, Callable], *arguments: Any, rounds: int = ROUNDS
) -> dict[str, float]:
    """Medians, the functions taking turns."""
    found: dict[str, list[float]] = {name: [] for name in functions}
    for fn in functions.values():
        jax.block_until_ready(fn(*arguments))
    for _ in range(rounds):
        for name, fn in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(fn(*arguments))
            found[name].append(time.perf_counter() - start)
    return {name: float(np.median(times)) for name, times in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer_python", type=pathlib.Path, help="has torch and pyhessian")
    parser.add_argument("--million", type=float, default=10.0, help="parameters to compile for")
    parser.add_argument("--workdir", type=pathlib.Path, help="a trained network, beside the small")
    args = parser.parse_args()
    app.keep_memory()
    params, x, y = jax.device_put(network([80, 256, 242, 10], 2048))
    size = ravel_pytree(params)[0].size
    took = seconds(
        {"lanczos": lanczos, "products": bare, "product": once, "gradient": gradient}, params, x, y
    )
    print(f"{size:,} parameters, {len(x):,} rows, median of {ROUNDS}:")
    print(
        f"  30 Lanczos steps {took['lanczos']:.3f} s, 30 products {took['products']:.3f} s: "
        f"{took['lanczos'] / took['products']:.2f} x"
    )
    print(
        f"  product {1e3 * took['product']:.1f} ms, gradient {1e3 * took['gradient']:.1f} ms: "
        f"{took['product'] / took['gradient']:.2f} x"
    )
    values = np.asarray(lanczos(params, x, y))
    mean, error = curvature.trace(spectrum(params, x, y), size)
    print(
        f"  largest {values[0]:.6g}, least {values[-1]:.6g}, trace {mean:.4g} +- {error:.2g} (64)"
    )
    if args.peer_python:
        with tempfile.TemporaryDirectory() as folder:
            arrays = {f"{n}{k}": layer[n] for k, layer in enumerate(params) for n in "wb"}
            np.savez(f"{folder}/net.npz", x=x, y=y, **arrays)
            command = [str(args.peer_python), "-c", PEER, folder]
            out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        peer = json.loads(out.strip().splitlines()[-1])
        print(
            f"  PyHessian: largest {peer['largest']:.6g} (power iteration, "
            f"{peer['seconds']:.2f} s), trace {peer['trace']:.4g} ({peer['draws']} draws)"
        )

    if args.workdir:
        of_run(args.workdir)
    hidden = round((args.million * 1e6 / 2) ** 0.5)
    large, x, y = jax.device_put(network([hidden, hidden, hidden, 10], 64))
    size = ravel_pytree(large)[0].size

    @jax.jit
    def forty(params: Any, x: Any, y: Any) -> Any:
        start = curvature.signs(jax.random.key(0), size, jnp.float32)
        return curvature.ends(product(params, x, y), start, steps=40, top=1).values

    start = time.perf_counter()
    forty.lower(large, x, y).compile()
    print(f"{size:,} parameters: 40 steps compile in {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
