"""The mode `hessian`: the curvature of the loss at a checkpoint, in figures and pictures.

DIR/analysis/hessian_<step>.json has the figures, .npz the nodes and weights of the density too.
"""

import contextlib
import json
import logging
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array
from matplotlib.figure import Figure

from common import compiles, errors, files, parallel, state
from common.analysis import curvature, double, figures, objective, opening
from common.analysis.settings import HessianOptions
from common.package import Context, Package

log = logging.getLogger(__name__)

_BLOCK_STEPS = 12  # of Lanczos for the largest eigenvalue of a layer
_FLOOR = 1e-9  # of the density in pictures: one eigenvalue of a thousand million


def check(options: HessianOptions, size: int) -> None:
    """Raises UserError for flags that cannot be for so many parameters."""
    if options.top < 1 or 2 * options.top > options.steps:
        raise errors.UserError(
            f"--top={options.top} with --steps={options.steps}: of s steps come at most s / 2 "
            "eigenvalues of either end; 2 top + 20 steps are good."
        )
    if options.steps > size:
        raise errors.UserError(f"--steps={options.steps}: the network has {size} parameters only.")
    if options.probes < 2:
        raise errors.UserError(f"--probes={options.probes}: two at least, for a standard error.")


class Measured(NamedTuple):
    """What is found at one checkpoint; see `curvature`."""

    loss: float
    gradient_norm: float
    outer: curvature.Outer
    quadrature: curvature.Quadrature
    blocks: Mapping[str, tuple[float, float, float]]  # largest eigenvalue, trace, its error


def product_of(gauss_newton: bool) -> Callable[[curvature.Flat], curvature.Product]:
    """Of the Hessian, or of the Gauss-Newton matrix."""
    return curvature.gauss_newton if gauss_newton else curvature.hessian


@contextlib.contextmanager
def precision(double: bool) -> Iterator[None]:
    """Double precision inside, where it is asked for; what was set before is set again after."""
    if not double:
        yield
        return
    with jax.enable_x64(True):
        yield


def measure(
    goal: objective.Objective,
    variables: state.Variables,
    data: objective.Data,
    mesh: Mesh,
    options: HessianOptions,
    say: Callable[[str], None] = lambda text: None,
) -> Measured:
    """Everything that the mode reports. `say` is called before each part.

    In double precision all is computed so, whatever the layers say (`double`).
    """
    dtype = jnp.float64 if options.float64 else jnp.float32
    computed = double.in_double if options.float64 else lambda fn: fn

    @computed
    def products(v: Array, variables: Any, data: Any) -> Array:
        flat = curvature.Flat(goal, variables, data)
        return product_of(options.gauss_newton)(flat)(v)

    def make(variables: Any, data: Any) -> curvature.Product:
        return lambda v: products(v, variables, data)

    with precision(options.float64):
        if options.float64:
            variables, data = jax.tree.map(_double, (variables, data))
        size = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
        check(options, size)

        @computed
        def slope(variables: Any, data: Any) -> tuple[Array, Array]:
            loss, gradient = curvature.gradient(curvature.Flat(goal, variables, data))
            return loss, jnp.linalg.norm(gradient)

        def spectrum(variables: Any, data: Any, numbers: Any) -> curvature.Quadrature:
            of_probes = jax.random.fold_in(jax.random.key(options.seed), 1)
            keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(of_probes, numbers)
            product = make(variables, data)
            return curvature.quadrature(product, keys, size, steps=options.steps, dtype=dtype)

        say("the gradient")
        loss, norm = jax.device_get(compiles.jit_once(slope)(variables, data))
        if not np.isfinite(loss):
            raise errors.UserError(objective.not_finite(options.split))
        key = jax.random.key(options.seed)
        probes = -(-options.probes // mesh.size) * mesh.size
        say(f"the spectrum by {probes} probes, {probes * options.steps} products")
        mapped = parallel.data_parallel(
            spectrum,
            mesh,
            in_specs=(parallel.REPLICATED, parallel.REPLICATED, parallel.ROWS),
            out_specs=parallel.ROWS,
        )
        found = mapped(variables, data, parallel.place(np.arange(probes, dtype=np.int32), mesh))
        found = curvature.Quadrature(*parallel.rows_of_all(found))
        if not np.all(np.isfinite(found.nodes)):
            raise errors.UserError(
                f"the loss of {options.split or 'the split'} and its gradient are finite, its "
                "second derivatives are not: --gauss_newton does without those of the network, "
                "--float64 has more room."
            )
        rows = {}
        if options.blocks:
            rows = _blocks(make, variables, data, key, options, dtype, say)
        outer = curvature.outer(found, options.top)
        return Measured(float(loss), float(norm), outer, found, rows)


def _double(leaf: Any) -> Any:
    return leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def _blocks(
    make: Callable[[Any, Any], curvature.Product],
    variables: state.Variables,
    data: objective.Data,
    key: Any,
    options: HessianOptions,
    dtype: Any,
    say: Callable[[str], None],
) -> dict[str, tuple[float, float, float]]:
    """Of each layer the largest eigenvalue of its own block, its trace and that one's error.

    The traces are of the same products with whole vectors, cut into blocks: they add up to the
    trace. The eigenvalues are of vectors that are 0 outside of the block.
    """
    masks = curvature.blocks(variables["params"])
    size = len(next(iter(masks.values())))

    @jax.jit
    def largest(variables: Any, data: Any, key: Any, mask: Any) -> Array:
        product = make(variables, data)

        def within(v: Array) -> Array:
            return mask * product(mask * v)

        start = mask * curvature.signs(key, size, dtype)
        return curvature.ends(within, start, steps=_BLOCK_STEPS, top=1).values[0]

    @jax.jit
    def diagonal(variables: Any, data: Any, keys: Any) -> Array:
        product = make(variables, data)

        def one(key: Any) -> Array:
            v = curvature.signs(key, size, dtype)
            return v * product(v)

        return jax.lax.map(one, keys)

    say(f"the traces of {len(masks)} layers, {options.probes} products")
    keys = jax.random.split(jax.random.fold_in(key, 2), options.probes)
    parts = np.float64(jax.device_get(diagonal(variables, data, keys)))
    rows = {}
    for number, (name, mask) in enumerate(masks.items()):
        say(f"layer {number + 1} of {len(masks)}, {name}: {_BLOCK_STEPS} products")
        top = float(largest(variables, data, key, jnp.asarray(mask, dtype)))
        rows[name] = (top, *curvature.moments(parts @ mask))
    return rows


def run(package: Package, context: Context) -> None:
    """See the module."""
    options = context.options
    with opening.opened(package, context) as it:
        size = sum(leaf.size for leaf in jax.tree.leaves(it.found.variables["params"]))
        check(options, size)

        def say(text: str) -> None:
            if signal := it.stop():
                raise errors.UserError(f"stopped by {signal}; nothing was written.")
            log.info("%s.", text)

        measured = measure(it.objective, it.found.variables, it.data, context.mesh, options, say)
        log.info("%d compilations took %.0f s.", it.compiled.count, it.compiled.seconds)
        if jax.process_index() == 0:
            _report(context.folder / "analysis", it, measured, summary(measured, size), options)


def _report(
    folder: pathlib.Path,
    it: opening.Opened,
    measured: Measured,
    found: Mapping[str, Any],
    options: HessianOptions,
) -> None:
    """Files, pictures and words. Names of files say what is not usual."""
    step, flags = it.found.step, ("gauss_newton", "float64")
    stem = "_".join(
        [
            f"hessian_{step}",
            *(name for name in flags if getattr(options, name)),
            *([files.safe_name(options.split)] if options.split else []),
            *([f"{options.batches}_batches"] if options.batches else []),
        ]
    )
    about = {
        "task": it.found.task.name,
        "step": step,
        "split": it.split,
        "batches": it.data.num_batches,
        **{name: getattr(options, name) for name in (*flags, "steps", "seed")},
    }
    save(folder, stem, measured, {**about, **found})
    matrix = "Gauss-Newton matrix" if options.gauss_newton else "Hessian"
    title = f"{matrix}, step {step}, {it.split}"
    figures.save(spectrum(measured, title), folder / f"{stem}_spectrum.png", it.writer, step)
    if measured.blocks:
        figures.save(bars(measured.blocks, title), folder / f"{stem}_blocks.png", it.writer, step)
    print("\n".join(describe(found, matrix)))
    print(f"Figures and pictures: {folder / stem}*")


def summary(measured: Measured, size: int) -> dict[str, Any]:
    """The plain figures, as they stand in the JSON."""
    top = len(measured.outer.values) // 2
    mean, error = curvature.trace(measured.quadrature, size)
    values, residuals = (x.tolist() for x in measured.outer)
    high, low = values[0], values[top]
    return {
        "parameters": size,
        "loss": measured.loss,
        "gradient_norm": measured.gradient_norm,
        "largest": values[:top],
        "least": values[top:],
        "residuals_of_largest": residuals[:top],
        "residuals_of_least": residuals[top:],
        "ratio": abs(low / high) if high else float("nan"),
        "trace": mean,
        "trace_error": error,
        "probes": len(measured.quadrature.nodes),
        "blocks": {name: list(row) for name, row in measured.blocks.items()},
    }


def describe(found: Mapping[str, Any], matrix: str) -> list[str]:
    """The figures as a reader of the terminal wants them."""
    lines = [
        f"{matrix} of {found['parameters']:,} parameters: loss {found['loss']:.6g}, gradient "
        f"{found['gradient_norm']:.3g}"
    ]
    for name in ("largest", "least"):
        pairs = zip(found[name], found[f"residuals_of_{name}"])
        said = ", ".join(f"{value:.5g} (residual {rest:.1g})" for value, rest in pairs)
        lines.append(f"  {name:<8} {said}")
    lines.append(f"  |least / largest| {found['ratio']:.3g}")
    lines.append(
        f"  trace    {found['trace']:.5g} +- {found['trace_error']:.2g} (standard error of "
        f"{found['probes']} probes), mean eigenvalue {found['trace'] / found['parameters']:.3g}"
    )
    for name, (top, trace, error) in sorted(
        found["blocks"].items(), key=lambda item: -abs(item[1][0])
    ):
        lines.append(f"  {name:<40} largest {top:>10.4g}   trace {trace:>10.4g} +- {error:.2g}")
    return lines


def save(folder: pathlib.Path, stem: str, measured: Measured, about: Mapping[str, Any]) -> None:
    """Writes the figures as JSON, and beside them what the pictures are made of as NPZ."""
    text = json.dumps(about, indent=2)
    files.write_text(folder / f"{stem}.json", f"{text}\n")
    with files.replacing(folder / f"{stem}.npz") as temporary, temporary.open("wb") as out:
        np.savez(
            out,
            about=text,
            **measured.quadrature._asdict(),
        )


def spectrum(measured: Measured, title: str) -> Figure:
    """The density of eigenvalues on a logarithmic scale, with those of the ends below it."""
    nodes = np.float64(measured.quadrature.nodes)
    values = measured.outer.values
    low, high = min(nodes.min(), values.min()), max(nodes.max(), values.max())
    width = (high - low) or 1.0
    at = np.linspace(low - 0.05 * width, high + 0.05 * width, 2000)
    sigma = width / 200
    shown = np.maximum(curvature.density(measured.quadrature, at, sigma), _FLOOR / width)
    figure = figures.new(7.2, 4.4)
    plot = figure.add_subplot()
    plot.fill_between(at, shown, _FLOOR / width, color="0.75", linewidth=0)
    plot.plot(at, shown, color="0.25", linewidth=1)
    plot.set_yscale("log")
    plot.set_ylim(_FLOOR / width, shown.max() * 3)
    plot.plot(values, np.full(len(values), 2 * _FLOOR / width), "|", color="tab:red", markersize=14)
    for value in (values[0], values[len(values) // 2]):
        plot.annotate(
            f"{value:.4g}", (value, 6 * _FLOOR / width), ha="center", fontsize=8, color="tab:red"
        )
    plot.axvline(0, color="0.5", linewidth=0.6, linestyle=":")
    plot.set_xlabel("eigenvalue (red: the ends, by Lanczos)")
    plot.set_ylabel(f"density, smoothed over {sigma:.2g}")
    plot.set_title(title, fontsize=10)
    return figure


def bars(blocks: Mapping[str, Sequence[float]], title: str) -> Figure:
    """The largest eigenvalue and the trace of each layer, side by side."""
    figure = figures.new(9.0, 1.2 + 0.19 * len(blocks))
    left, right = figure.subplots(1, 2, sharey=True)
    places = np.arange(len(blocks))[::-1]
    rows = np.array(list(blocks.values()))
    left.barh(places, rows[:, 0], color="tab:blue", height=0.7)
    right.barh(places, rows[:, 1], xerr=rows[:, 2], color="tab:orange", height=0.7)
    left.set_yticks(places, list(blocks), fontsize=7)
    left.set_ylim(-0.7, len(blocks) - 0.3)
    left.set_xlabel("largest eigenvalue of the block")
    right.set_xlabel("trace of the block, standard error")
    figure.suptitle(title, fontsize=10)
    return figure
