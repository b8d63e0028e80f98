"""Lines and planes through a checkpoint: how they are made, and kept for all pictures of a run."""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from common import errors, files, state
from common.analysis import directions as directions_lib
from common.analysis import objective as objective_lib
from common.analysis.settings import LandscapeOptions

Flat = directions_lib.Flat


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
    others: Mapping[int, Flat],
) -> Plane:
    """The plane that the flags ask for, through `variables`.

    `others` are the other checkpoints' parameters by step. Raises UserError where it cannot be.
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
        principal = directions_lib.principal(list(others.values()), origin, options.dims)
        found = principal.directions
        about["explained"] = [float(x) for x in principal.explained]
        places = [directions_lib.place(other, origin, found) for other in others.values()]
        ranges = ranges or _around([place.coordinates for place in places], options.dims)
    elif options.along == "between":
        other = options.to if options.to >= 0 else min(others, default=-1)
        if other not in others:
            raise errors.UserError(
                f"--to={options.to}: there is no other checkpoint of that step; there are "
                f"{', '.join(map(str, others)) or 'none'}."
            )
        found = [directions_lib.difference(others[other], origin)]
        about["other"] = other
        margin = options.extent or 0.5
        ranges = [(-margin, 1.0 + margin)]
    elif options.along == "gradient":
        loss, gradient = jax.jit(jax.value_and_grad(_of_params(objective)))(
            variables["params"], variables, data
        )
        slope = directions_lib.flat(gradient)
        size = math.sqrt(directions_lib.inner(slope, slope))
        found = [directions_lib.unit({path: -x for path, x in slope.items()})]
        about["gradient_norm"] = size
        # As far as the loss would fall to 0 if it fell on like here.
        far = options.extent or float(loss) / max(size, 1e-30)
        ranges = [(-far, far)]
    else:
        found, ranges = _hessian(options, objective, variables, data, about, ranges)
    if options.dims == 2:
        about["cosine"] = directions_lib.cosine(*found)
    axes = [axis(low, high, options.points) for low, high in ranges]
    return Plane(found, axes, about)


def _of_params(objective: objective_lib.Objective) -> Any:
    def loss(params: Any, variables: state.Variables, data: objective_lib.Data) -> Any:
        return objective({**variables, "params": params}, data)

    return loss


def _around(places: Sequence[Sequence[float]], dims: int) -> list[tuple[float, float]]:
    """A range an axis that shows all places and the origin, with a margin."""
    ranges = []
    for k in range(dims):
        seen = [0.0, *(place[k] for place in places)]
        margin = 0.2 * (max(seen) - min(seen)) or 1.0
        ranges.append((min(seen) - margin, max(seen) + margin))
    return ranges


def _hessian(*arguments: Any) -> Any:
    raise errors.UserError("--along=hessian comes with --mode=hessian.")


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
        with np.load(path) as arrays:
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
    except (OSError, ValueError, KeyError) as error:
        raise errors.UserError(
            f"{path} is no plane of --mode=landscape, or damaged ({error}). Move its folder away, "
            "or choose another --name."
        ) from error
