"""Lines and planes through a checkpoint: how they are made, and kept for all pictures of a run."""

import json
import math
import pathlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Float

from common import errors, files, state
from common.analysis import curvature
from common.analysis import directions as directions_lib
from common.analysis import objective as objective_lib
from common.analysis.settings import LandscapeOptions

Flat = directions_lib.Flat
_LANCZOS_STEPS = 40  # for eigenvectors of the largest eigenvalues


class Plane(NamedTuple):
    """A point and one or two directions in the space of parameters.

    Attributes:
      directions: trees with the paths of the parameters.
      axes: the values at which each is looked at; 0 is among them, exactly.
      about: JSON values: how it was made, of which checkpoint, what there is to say of it.
    """

    directions: Sequence[Flat]
    axes: Sequence[Float[np.ndarray, "_"]]
    about: Mapping[str, Any]


def axis(low: float, high: float, points: int) -> Float[np.ndarray, "p"]:
    """So many equidistant values from about `low` to about `high`, 0 being one of them."""
    step = (high - low) / (points - 1)
    first = round(low / step)
    return step * np.arange(first, first + points, dtype=np.float64)


def make(
    options: LandscapeOptions,
    objective: objective_lib.Objective,
    variables: state.Variables,
    data: objective_lib.Data,
    others: Callable[[], Mapping[int, Flat]],
) -> Plane:
    """The plane that the flags ask for, through `variables`.

    `others` reads the other checkpoints' parameters, by step. Raises UserError where it cannot be.
    """
    origin = directions_lib.flat(variables["params"])
    ranges = [(-options.extent, options.extent)] * options.dims if options.extent else []
    about: dict[str, Any] = {}
    if options.along == "random":
        factors = directions_lib.find_factors(objective, variables, data)
        found = directions_lib.random_directions(
            directions_lib.Space(origin, factors),
            options.dims,
            seed=options.seed,
            normalize=options.normalize,
            vectors=options.vectors,
        )
        ranges = ranges or [(-1.0, 1.0)] * options.dims
        about["low_rank_layers"] = len(factors)
    elif options.along == "pca":
        points = list(others().values())
        principal = directions_lib.principal(points, origin, options.dims)
        found = principal.directions
        about["explained"] = [float(x) for x in principal.explained]
        places = [directions_lib.place(point, origin, found) for point in points]
        ranges = ranges or _around([place.coordinates for place in places], options.dims)
    elif options.along == "between":
        ends = others()
        other = options.to if options.to >= 0 else min(ends, default=-1)
        if other not in ends:
            raise errors.UserError(
                f"--to={options.to}: there is no other checkpoint of that step; there are "
                f"{', '.join(map(str, ends)) or 'none'}."
            )
        found = [directions_lib.difference(ends[other], origin)]
        about["other"] = other
        margin = options.extent or 0.5
        ranges = [(-margin, 1.0 + margin)]
    elif options.along == "gradient":
        loss, slope = _slope(objective, variables, data)
        size = math.sqrt(directions_lib.inner(slope, slope))
        found = [directions_lib.unit({path: -x for path, x in slope.items()})]
        about["gradient_norm"] = size
        # As far as the loss would fall to 0 if it fell on like here.
        far = options.extent or abs(loss) / max(size, 1e-30)
        ranges = [(-far, far)]
    else:
        loss, values, found = _top(objective, variables, data, options.dims, options.seed)
        about["eigenvalues"] = values
        # As far as a parabola of that curvature has twice the loss of the checkpoint.
        far = [math.sqrt(2 * abs(loss) / max(abs(value), 1e-30)) for value in values]
        ranges = ranges or [(-x, x) for x in far]
    if options.dims == 2:
        about["cosine"] = directions_lib.cosine(*found)
    axes = [axis(low, high, options.points) for low, high in ranges]
    return Plane(found, axes, about)


def _around(places: Sequence[Sequence[float]], dims: int) -> list[tuple[float, float]]:
    """A range an axis that shows all places and the origin, with a margin."""
    ranges = []
    for k in range(dims):
        seen = [0.0, *(place[k] for place in places)]
        margin = 0.2 * (max(seen) - min(seen)) or 1.0
        ranges.append((min(seen) - margin, max(seen) + margin))
    return ranges


def _slope(
    objective: objective_lib.Objective, variables: state.Variables, data: objective_lib.Data
) -> tuple[float, Flat]:
    """The loss and its gradient."""

    @jax.jit
    def both(variables: Any, data: Any) -> Any:
        loss, vector = curvature.gradient(curvature.Flat(objective, variables, data))
        return loss, ravel_pytree(variables["params"])[1](vector)

    loss, tree = both(variables, data)
    return float(loss), directions_lib.flat(tree)


def _top(
    objective: objective_lib.Objective,
    variables: state.Variables,
    data: objective_lib.Data,
    count: int,
    seed: int,
) -> tuple[float, list[float], list[Flat]]:
    """The loss, the `count` largest eigenvalues of its Hessian, and their eigenvectors."""
    size = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))

    @jax.jit
    def both(variables: Any, data: Any, key: Any) -> Any:
        flat = curvature.Flat(objective, variables, data)
        start = curvature.signs(key, size, jnp.float32)
        steps = min(_LANCZOS_STEPS, size)
        found = curvature.ends(curvature.hessian(flat), start, steps=steps, top=count)
        unravel = ravel_pytree(variables["params"])[1]
        trees = [unravel(found.vectors[k]) for k in range(count)]
        return objective(variables, data), found.values[:count], trees

    loss, values, trees = both(variables, data, jax.random.key(seed))
    return float(loss), [float(x) for x in values], [directions_lib.flat(tree) for tree in trees]


def save(plane: Plane, path: pathlib.Path) -> None:
    """Writes the plane as NPZ: `about` (JSON), `axis_<k>`, `direction_<k>/<path>` (float32)."""
    arrays: dict[str, Any] = {"about": json.dumps(plane.about)}
    for k, (direction, values) in enumerate(zip(plane.directions, plane.axes)):
        arrays[f"axis_{k}"] = values
        for name, leaf in direction.items():
            arrays[f"direction_{k}/{'/'.join(name)}"] = np.float32(leaf)
    with files.replacing(path) as temporary, temporary.open("wb") as out:
        np.savez(out, **arrays)


def load(path: pathlib.Path) -> Plane:
    """The inverse of `save`, in double precision. Raises UserError for a file that is none."""
    try:
        with path.open("rb") as file, np.load(file) as arrays:  # NumPy leaves a broken one open
            about = json.loads(str(arrays["about"]))
            axes, found = [], []
            while f"axis_{len(axes)}" in arrays:
                prefix = f"direction_{len(axes)}/"
                axes.append(arrays[f"axis_{len(axes)}"])
                names = [name for name in arrays.files if name.startswith(prefix)]
                found.append(
                    {
                        tuple(name.removeprefix(prefix).split("/")): np.float64(arrays[name])
                        for name in names
                    }
                )
            return Plane(found, axes, about)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise errors.UserError(
            f"{path} is no plane of --mode=landscape, or damaged ({error}). Move its folder away, "
            "or choose another --name."
        ) from error
