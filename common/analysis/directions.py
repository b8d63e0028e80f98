"""Directions in the space of parameters, and what lies on the plane that they span.

Random directions have the norms of the weights, filter by filter (Li et al. 2018, arXiv:1712.09913,
section 4), so that a network whose weights are c times as large has the same picture. A filter is
what makes one output channel: all but the last axis of a Flax kernel, depthwise ones included.
Factors of a low-rank layer have no scale of their own (v s, u / s is the same layer). There the
direction is drawn for the composed filter, brought to what the factors can change of it, and
normalised by it: full and low-rank networks can be compared.

Trees are of NumPy arrays here: drawing is a matter of seconds, and double precision is at hand.
"""

import contextlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util
from jaxtyping import Float

from common import errors, state
from common.analysis import objective as objective_lib

Path = tuple[str, ...]
Flat = dict[Path, np.ndarray]

_ROWS = ("embedding", "weights")  # tables: what belongs to one token or class is a row
_ROUNDS = 200  # at most, until both the angles and the norms are right; 3 to 10 are needed
_RIGHT = 1e-8  # the cosine of a right angle


class Factors(NamedTuple):
    """The parameters of a layer whose product its filters are; `parts` a filter, or one product."""

    left: str
    right: str
    parts: int | None


def find_factors(
    objective: objective_lib.Objective, variables: state.Variables, data: objective_lib.Data
) -> dict[Path, Factors]:
    """The low-rank layers of a network by their paths in its parameters."""
    found: dict[Path, Factors] = {}
    first = jax.tree.map(lambda x: x[0], data.groups[0])
    with factors_seen(found):
        jax.eval_shape(objective.batch_sums, variables, first)
    return found


@contextlib.contextmanager
def factors_seen(found: dict[Path, Factors]) -> Iterator[None]:
    """Within it, layers that name their `FACTORS` are put into `found` when they are traced."""

    def look(following: Any, args: Any, kwargs: Any, context: Any) -> Any:
        layer = context.module
        names = getattr(type(layer), "FACTORS", None)
        if names and context.method_name == "__call__" and layer.has_variable("params", names[0]):
            # Parts: of one product for all filters there is no such number.
            parts = layer.rank if names == ("temporal", "spectral") else None
            found[tuple(layer.path)] = Factors(*names, parts)
        return following(*args, **kwargs)

    with nn.intercept_methods(look):
        yield


def flat(params: Any) -> Flat:
    """Path -> array in double precision, on the host."""
    tree = traverse_util.flatten_dict(dict(jax.device_get(params)))
    return {path: np.asarray(leaf, np.float64) for path, leaf in tree.items()}


def unflat(tree: Flat) -> dict[str, Any]:
    """The nested dicts again, in float32."""
    return traverse_util.unflatten_dict({path: np.float32(x) for path, x in tree.items()})


def composed(params: Flat, factors: Mapping[Path, Factors]) -> Flat:
    """With the dense `kernel` in place of the factors of every low-rank layer."""
    tree = dict(params)
    for path, layer in factors.items():
        left, right = _split(params, path, layer)
        tree.pop((*path, layer.left)), tree.pop((*path, layer.right))
        tree[(*path, "kernel")] = _join(left @ right, layer)
    return tree


def _split(params: Flat, path: Path, layer: Factors) -> tuple[np.ndarray, np.ndarray]:
    """Factors as stacks of matrices, [n, a, r] and [n, r, b]: one product, or one a filter."""
    left, right = params[(*path, layer.left)], params[(*path, layer.right)]
    if layer.parts is None:
        return left[None], right[None]
    shape = layer.parts, -1
    left, right = left.reshape(len(left), *shape), right.reshape(len(right), *shape)
    return left.transpose(2, 0, 1), right.transpose(2, 1, 0)


def _put(tree: Flat, path: Path, layer: Factors, left: np.ndarray, right: np.ndarray) -> None:
    """The inverse of `_split`."""
    if layer.parts is None:
        left, right = left[0], right[0]
    else:
        left = left.transpose(1, 2, 0).reshape(left.shape[1], -1)
        right = right.transpose(2, 1, 0).reshape(right.shape[2], -1)
    tree[(*path, layer.left)], tree[(*path, layer.right)] = left, right


def _join(products: np.ndarray, layer: Factors) -> np.ndarray:
    """Products [n, a, b] as a kernel with the filters last."""
    return products[0] if layer.parts is None else products.transpose(1, 2, 0)


def _unjoin(kernel: np.ndarray, layer: Factors) -> np.ndarray:
    return kernel[None] if layer.parts is None else kernel.transpose(2, 0, 1)


def filter_norms(path: Path, weights: np.ndarray) -> np.ndarray:
    """The norm of each filter, of a size that broadcasts with the weights."""
    along = 0 if path[-1] in _ROWS else weights.ndim - 1
    axes = tuple(axis for axis in range(weights.ndim) if axis != along)
    return np.sqrt(np.sum(np.square(weights), axis=axes, keepdims=True))


def _norms(path: Path, weights: np.ndarray, normalize: str) -> np.ndarray:
    """What a direction's norm is to be: of each filter, or of the layer (all of a vector)."""
    if normalize == "filter" and weights.ndim > 1:
        return filter_norms(path, weights)
    return np.sqrt(np.sum(np.square(weights), keepdims=True))


def _scaled(path: Path, drawn: np.ndarray, weights: np.ndarray, normalize: str) -> np.ndarray:
    if normalize in ("none", "weight"):  # a weight's own was multiplied when it was drawn
        return drawn
    wanted, have = (_norms(path, x, normalize) for x in (weights, drawn))
    return drawn * wanted / np.where(have > 0, have, 1.0)


class Space(NamedTuple):
    """The parameters around which directions are drawn, and how its low-rank layers are made."""

    params: Flat
    factors: Mapping[Path, Factors]

    @property
    def weights(self) -> Flat:
        """With composed filters."""
        return composed(self.params, self.factors)


def random_directions(
    space: Space, count: int, *, seed: int, normalize: str = "filter", vectors: bool = False
) -> list[Flat]:
    """Gaussian directions, at right angles to one another, normalised by the weights.

    `normalize`: the norms of each "filter", each "layer", each single "weight", or "none".
    Without `vectors` biases and the scales of norms stay where they are. A leaf's numbers hang on
    the seed and its path alone: a dense layer and one of factors draw the same ones.
    """
    weights, found = space.weights, []
    for number in range(count):
        drawn = {}
        for path, leaf in weights.items():
            rng = np.random.default_rng([seed, number, zlib.crc32("/".join(path).encode())])
            moves = leaf.ndim > 1 or vectors
            drawn[path] = rng.normal(size=leaf.shape) if moves else np.zeros_like(leaf)
            if normalize == "weight":  # once: each round below would multiply again
                drawn[path] = drawn[path] * leaf
        before: list[Flat] = [one for one, _ in found]
        # Both at once: a round of either spoils the other, by less each time.
        for _ in range(_ROUNDS):
            for other in before:
                share = inner(drawn, other) / inner(other, other)
                drawn = {path: x - share * other[path] for path, x in drawn.items()}
            lifted = {}
            for path, leaf in weights.items():
                drawn[path] = _scaled(path, drawn[path], leaf, normalize)
            for path, layer in space.factors.items():
                name = (*path, "kernel")
                drawn[name] = _lift(space, path, layer, drawn[name], normalize, lifted)
            if all(abs(cosine(drawn, other)) < _RIGHT for other in before):
                break
        found.append((drawn, {p: x for p, x in {**drawn, **lifted}.items() if p in space.params}))
    return [direction for _, direction in found]


def _lift(
    space: Space, path: Path, layer: Factors, drawn: np.ndarray, normalize: str, lifted: Flat
) -> np.ndarray:
    """Puts the factors' direction into `lifted`; returns the change of the filters, to first order.

    Changes of W = L R are dL R + L dR. With dR = L+ X and dL = Y R+ for a change X + Y, X within
    the columns of W and Y within its rows, the path L + a dL, R + a dR does not hang on how the
    scale lies between L and R.
    """
    left, right = _split(space.params, path, layer)
    products, matrices = left @ right, _unjoin(drawn, layer)
    rank = left.shape[2]
    q, sizes, p = np.linalg.svd(products, full_matrices=False)
    q, sizes, p = q[:, :, :rank], sizes[:, :rank, None], p[:, :rank]
    q_of = q.transpose(0, 2, 1)
    inside = q_of @ matrices  # what the columns of W can take of it
    outside = matrices - q @ inside
    if normalize == "filter" and layer.parts is None:
        inside, outside = _by_filters(outside, inside, q, sizes, p)
    else:  # the nearest change, as long as its filter (all of `products[n]`), or its layer, is
        outside = outside @ p.transpose(0, 2, 1) @ p
        axes = (1, 2) if normalize == "filter" else (0, 1, 2)
        made = _norm(q @ inside + outside, axes)
        if normalize in ("filter", "layer"):
            ratio = _norm(products, axes) / np.where(made > 0, made, 1.0)
            inside, outside = inside * ratio, outside * ratio
    d_left, d_right = outside @ np.linalg.pinv(right), np.linalg.pinv(left) @ q @ inside
    _put(lifted, path, layer, d_left, d_right)
    return _join(q @ inside + outside, layer)


def _by_filters(
    outside: np.ndarray, inside: np.ndarray, q: np.ndarray, sizes: np.ndarray, p: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A change of W = Q S P in which each column is as long as that of W: (Q' of it, the rest).

    The rest turns Q: filters share their columns, so it cannot be scaled for one alone. Turned by
    an isometry T (the polar factor of what was drawn), T S P has columns as long as those of W; its
    share is that of Gaussian changes, (c - r) / (c - r + f), and what it leaves of a filter's
    length is left to the changes within Q.
    """
    c, f, r = q.shape[1], p.shape[2], q.shape[2]
    drawn = outside @ p.transpose(0, 2, 1)
    u, found, v = np.linalg.svd(drawn, full_matrices=False)
    there = found > 1e-9 * np.max(found, axis=1, keepdims=True, initial=1e-30)
    turned = (u * there[:, None, :]) @ v * np.sqrt((c - r) / (c - r + f))
    outside = turned @ (sizes * p)
    room = np.square(_norm(sizes * p, (1,))) - np.square(_norm(outside, (1,)))
    have = _norm(inside, (1,))
    return inside * np.sqrt(np.maximum(room, 0)) / np.where(have > 0, have, 1.0), outside


def _norm(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    return np.sqrt(np.sum(np.square(x), axis=axes, keepdims=True))


def inner(a: Flat, b: Flat) -> float:
    """The inner product of two trees."""
    return float(sum(np.vdot(a[path], b[path]) for path in a))


def cosine(a: Flat, b: Flat) -> float:
    """Of the angle between two directions; 0 where one of them is 0."""
    size = np.sqrt(inner(a, a) * inner(b, b))
    return inner(a, b) / size if size else 0.0


def difference(a: Flat, b: Flat) -> Flat:
    """a - b. Raises UserError where they are not of one network."""
    check_same_network(traverse_util.unflatten_dict(a), traverse_util.unflatten_dict(b))
    return {path: x - b[path] for path, x in a.items()}


def check_same_network(a: Any, b: Any) -> None:
    """Raises UserError where parameters differ in their names or shapes."""
    shapes = [
        {path: x.shape for path, x in traverse_util.flatten_dict(dict(tree)).items()}
        for tree in (a, b)
    ]
    unlike = sorted(
        "/".join(path)
        for path in {*shapes[0], *shapes[1]}
        if shapes[0].get(path) != shapes[1].get(path)
    )
    if unlike:
        raise errors.UserError(
            f"the checkpoints are of different networks: {unlike[0]} and {len(unlike) - 1} more "
            "arrays differ in shape. Take checkpoints of one run."
        )


def unit(direction: Flat) -> Flat:
    """Of length 1; a direction of 0 stays."""
    size = np.sqrt(inner(direction, direction)) or 1.0
    return {path: x / size for path, x in direction.items()}


class Principal(NamedTuple):
    """Unit vectors by the spread of a trajectory along them, and the share of it of each."""

    directions: list[Flat]
    explained: Float[np.ndarray, "n"]


def principal(points: Sequence[Flat], origin: Flat, count: int) -> Principal:
    """The directions that explain most of where the points lie, seen from `origin`.

    As Li et al. (section 7.2): the matrix of differences to the last point is not centred. Raises
    UserError for fewer points than directions.
    """
    rows = [difference(point, origin) for point in points]
    gram = np.array([[inner(a, b) for b in rows] for a in rows])
    values, vectors = np.linalg.eigh(gram) if rows else (np.zeros(0), np.zeros((0, 0)))
    order = np.argsort(values)[::-1]
    values, vectors = np.maximum(values[order], 0), vectors[:, order]
    if np.sum(values > 1e-12 * values.max(initial=0)) < count:
        raise errors.UserError(
            f"{len(rows)} other checkpoint(s) span no {count} principal directions: keep more of "
            "them in training (--config.keep_every=N), or use --along=random."
        )
    found = []
    for k in range(count):
        mixed = {
            path: sum(vectors[i, k] * row[path] for i, row in enumerate(rows)) for path in origin
        }
        found.append(unit(mixed))
    return Principal(found, values / values.sum())


class Place(NamedTuple):
    """Where a point lies: its coordinates on the plane, and its distance from it."""

    coordinates: tuple[float, ...]
    distance: float


def place(point: Flat, origin: Flat, directions: Sequence[Flat]) -> Place:
    """The nearest point of the plane (least squares), directions being of any length and angle."""
    moved = difference(point, origin)
    gram = np.array([[inner(a, b) for b in directions] for a in directions])
    found = np.linalg.lstsq(gram, [inner(d, moved) for d in directions])[0]
    rest = dict(moved)
    for share, direction in zip(found, directions):
        rest = {path: x - share * direction[path] for path, x in rest.items()}
    return Place(tuple(map(float, found)), float(np.sqrt(inner(rest, rest))))
