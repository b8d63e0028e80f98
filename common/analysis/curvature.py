"""The curvature of a loss: products with its Hessian, ends of the spectrum, trace, density.

Vectors are flat here, of all parameters in the order of `jax.flatten_util.ravel_pytree`. Everything
is pure and is compiled by its callers with variables and data as arguments.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key

from common import errors, metrics, state
from common.analysis import objective as objective_lib

Product = Callable[[Float[Array, "n"]], Float[Array, "n"]]


class Flat(NamedTuple):
    """A loss of one flat vector, which is at `vector` here, batch by batch."""

    objective: objective_lib.Objective
    variables: state.Variables
    data: objective_lib.Data

    @property
    def vector(self) -> Float[Array, "n"]:
        return ravel_pytree(self.variables["params"])[0]

    def _with(self, vector: Float[Array, "n"]) -> state.Variables:
        unravel = ravel_pytree(self.variables["params"])[1]
        return {**self.variables, "params": unravel(vector)}

    def _counts(self) -> dict[str, Array]:
        """What the terms count in all the data: not a matter of the parameters."""
        terms, _ = self.objective.sums(self.variables, self.data)
        return {name: metrics.at_least_one(term.count) for name, term in terms.items()}

    def over_batches(self, of_batch: Callable[[Any, Mapping[str, Array]], Any]) -> Any:
        """The sum of `of_batch(batch, counts)`; memory is that of one batch."""
        counts, parts = self._counts(), []
        for group in self.data.groups:
            first = jax.tree.map(lambda x: x[0], group)
            shapes = jax.eval_shape(of_batch, first, counts)
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

            def add(carry: Any, batch: Any) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, carry, of_batch(batch, counts)), None

            parts.append(jax.lax.scan(add, zeros, group)[0])
        return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *parts)

    def share(
        self, vector: Float[Array, "n"], batch: Any, counts: Mapping[str, Array]
    ) -> Float[Array, ""]:
        """What a batch adds to the loss."""
        terms, *_ = self.objective.batch_sums(self._with(vector), batch)
        return self.of_terms(terms, counts)

    @staticmethod
    def of_terms(terms: Any, counts: Mapping[str, Array]) -> Float[Array, ""]:
        return sum(term.weight * term.total / counts[name] for name, term in terms.items())

    def outputs(self, vector: Float[Array, "n"], batch: Any) -> Any:
        """What the network gives to the loss (`nn.marks`)."""
        return self.objective.batch_outputs(self._with(vector), batch)

    def share_of_outputs(
        self, found: Any, batch: Any, counts: Mapping[str, Array]
    ) -> Float[Array, ""]:
        terms = self.objective.batch_terms(self.variables, batch, found)
        return self.of_terms(terms, counts)


def gradient(flat: Flat) -> tuple[Float[Array, ""], Float[Array, "n"]]:
    """The loss and its gradient."""
    vector = flat.vector
    return flat.over_batches(
        lambda batch, counts: jax.value_and_grad(flat.share)(vector, batch, counts)
    )


def hessian(flat: Flat) -> Product:
    """v -> H v, forward over reverse (Pearlmutter 1994), batch by batch."""
    vector = flat.vector

    def product(v: Float[Array, "n"]) -> Float[Array, "n"]:
        def one(batch: Any, counts: Mapping[str, Array]) -> Array:
            slope = functools.partial(jax.grad(flat.share), batch=batch, counts=counts)
            return jax.jvp(slope, (vector,), (v,))[1]

        return flat.over_batches(one)

    return product


def gauss_newton(flat: Flat) -> Product:
    """v -> J' L'' J v: the Hessian of the loss with the network linearised (Schraudolph 2002).

    J is the derivative of what passes the mark `nn.marks.Outputs`, L the loss of that. It has no
    negative eigenvalue where L is convex (softmax of logits, squares). Those of CTC and of a
    transducer are not, as they sum over alignments; nor is a product of two marked factors.
    """
    vector = flat.vector

    def product(v: Float[Array, "n"]) -> Float[Array, "n"]:
        def one(batch: Any, counts: Mapping[str, Array]) -> Array:
            network = functools.partial(flat.outputs, batch=batch)
            loss = functools.partial(flat.share_of_outputs, batch=batch, counts=counts)
            found, pull = jax.vjp(network, vector)
            if not found:
                raise errors.UserError("--gauss_newton: the network marks no outputs (nn.marks).")
            # J v as the transpose of u -> J' u: layers with a gradient of their own have no jvp.
            _, push = jax.vjp(lambda u: pull(u)[0], found)
            (moved,) = push(v)
            _, bent = jax.jvp(jax.grad(loss), (found,), (moved,))
            return pull(bent)[0]

        return flat.over_batches(one)

    return product


class _Tridiagonal(NamedTuple):
    """Orthonormal rows, and the diagonals of the matrix in their terms; `below[-1]` is the
    coupling to what is not in the basis."""

    basis: Float[Array, "m n"]
    diagonal: Float[Array, "m"]
    below: Float[Array, "m"]


def _tridiagonal(product: Product, start: Float[Array, "n"], steps: int) -> _Tridiagonal:
    """Lanczos with full reorthogonalisation (Golub and Van Loan 2013, sections 10.1 and 10.3).

    After the recurrence of three terms what a vector has of the older ones is rounding error, so
    that one pass over the basis takes it away. Its vectors are rows: a pass then runs along memory,
    which is what steps cost beside products. All in float32 on every device (in TF32 vectors are
    not at right angles); the product keeps its own precision.
    """
    before = jax.config.jax_default_matmul_precision

    def step(i: Array, carry: tuple) -> tuple:
        found, v, last, coupling = carry
        basis = found.basis.at[i].set(v)
        with jax.default_matmul_precision(before):
            w = product(v)
        w -= coupling * last
        along = w @ v
        w -= along * v
        w -= (basis @ w) @ basis
        coupling = jnp.linalg.norm(w)
        found = _Tridiagonal(
            basis, found.diagonal.at[i].set(along), found.below.at[i].set(coupling)
        )
        return found, w / coupling, v, coupling

    with jax.default_matmul_precision("highest"):
        v = start / jnp.linalg.norm(start)
        zeros = jnp.zeros(steps, v.dtype)
        empty = _Tridiagonal(jnp.zeros((steps, v.size), v.dtype), zeros, zeros)
        begin = empty, v, jnp.zeros_like(v), jnp.zeros((), v.dtype)
        return jax.lax.fori_loop(0, steps, step, begin)[0]


class _Krylov(NamedTuple):
    """Ritz values, rising, and vectors; the first `count` are those that there are."""

    values: Float[Array, "m"]
    vectors: Float[Array, "m m"]  # columns, of the tridiagonal matrix
    basis: Float[Array, "m n"]
    coupling: Float[Array, ""]  # to what is not in the basis
    count: Array


def _lanczos(product: Product, start: Float[Array, "n"], steps: int) -> _Krylov:
    """`steps` of Lanczos, fewer where the start has parts in fewer directions.

    There (a block of few parameters, a matrix of low rank, the identity) what is left of a product
    is rounding error: normalised, it is no new direction but one that there is already, or NaN, and
    the tridiagonal matrix with it has eigenvalues of its own (70 for the identity).
    """
    basis, along, couplings = _tridiagonal(product, start, steps)
    angles = jnp.matmul(basis, basis.T, precision="highest")
    overlap = jnp.max(jnp.abs(jnp.tril(angles, -1)), axis=1)
    new = overlap < jnp.sqrt(jnp.finfo(start.dtype).eps)  # False for NaN
    alive = jnp.cumprod(new.at[0].set(True)).astype(bool)
    count = jnp.sum(alive)
    diagonal = jnp.where(alive, along, 0.0)
    beside = jnp.where(alive[1:], couplings[:-1], 0.0)
    # Beyond all eigenvalues, so that those that do not count come last.
    size = jnp.maximum(jnp.max(jnp.abs(diagonal)), jnp.max(beside, initial=0.0))
    diagonal = jnp.where(alive, diagonal, jnp.where(size == 0, 1.0, 4.0 * size))
    values, vectors = jnp.linalg.eigh(
        jnp.diag(diagonal) + jnp.diag(beside, 1) + jnp.diag(beside, -1)
    )
    basis = jnp.where(alive[:, None], basis, 0.0)
    return _Krylov(values, vectors, basis, couplings[count - 1], count)


class Ends(NamedTuple):
    """Eigenpairs of both ends of the spectrum, from the largest eigenvalue to the least.

    `residuals` are |H v - lambda v| as Lanczos knows them: an eigenvalue of H lies so near.
    """

    values: Float[Array, "k"]
    vectors: Float[Array, "k n"]
    residuals: Float[Array, "k"]


def ends(product: Product, start: Float[Array, "n"], *, steps: int, top: int) -> Ends:
    """The `top` largest and `top` least eigenvalues that `steps` of Lanczos find.

    All there are where steps = n. Values converge from within, extreme ones first; some 2 top +
    20 steps find them to a per mille where the spectrum has a gap. Of several equal ones the start
    has one direction: where it has fewer than `top`, the last of each end comes again.
    """
    if not 1 <= 2 * top <= steps <= start.size:
        raise ValueError(f"2 x {top} eigenvalues of {steps} steps of {start.size} parameters")
    found = _lanczos(product, start, steps)
    last = found.count - 1
    high = jnp.maximum(last - jnp.arange(top), 0)
    chosen = jnp.concatenate([high, jnp.minimum(jnp.arange(top)[::-1], last)])
    residuals = found.coupling * jnp.abs(found.vectors[last, chosen])
    vectors = jnp.matmul(found.vectors[:, chosen].T, found.basis, precision="highest")
    return Ends(found.values[chosen], vectors, residuals)


class Quadrature(NamedTuple):
    """Nodes and weights of the spectrum as random vectors see it; weights of each add up to 1.

    `residuals` are those of `Ends`, of every node.
    """

    nodes: Float[Array, "p m"]
    weights: Float[Array, "p m"]
    residuals: Float[Array, "p m"]


def signs(key: Key[Array, ""], size: int, dtype: Any) -> Float[Array, "n"]:
    """Independent +1 and -1."""
    return jax.random.rademacher(key, (size,), dtype)


def quadrature(
    product: Product, keys: Key[Array, "p"], size: int, *, steps: int, dtype: Any = jnp.float32
) -> Quadrature:
    """Stochastic Lanczos quadrature with `steps` nodes of each key's vector, one after the other.

    v' f(H) v / v'v is about sum_i w_i f(x_i), x the eigenvalues of the tridiagonal matrix and w the
    squares of its eigenvectors' first components (Golub and Welsch 1969; Ubaru et al. 2017). The
    outermost nodes are eigenvalues of H, as in `ends`. Where fewer nodes say all, the middle one
    comes again, with the weight 0.
    """

    def one(key: Key[Array, ""]) -> tuple[Array, Array, Array]:
        start = signs(key, size, dtype)
        found = _lanczos(product, start, steps)
        place, below = jnp.arange(steps), (found.count + 1) // 2
        again = (place >= below) & (place < below + steps - found.count)
        shifted = jnp.where(place < below, place, place - (steps - found.count))
        chosen = jnp.where(again, below - 1, shifted)
        vectors = found.vectors[:, chosen]
        weights = jnp.where(again, 0.0, jnp.square(vectors[0]))
        residuals = found.coupling * jnp.abs(vectors[found.count - 1])
        return found.values[chosen], weights, residuals

    return Quadrature(*jax.lax.map(one, keys))


class Outer(NamedTuple):
    """The `top` largest eigenvalues, then the `top` least, and their residuals (see `Ends`)."""

    values: Float[np.ndarray, "k"]
    residuals: Float[np.ndarray, "k"]


def outer(found: Quadrature, top: int) -> Outer:
    """The outermost nodes of the probe that knows them best: with the least sum of residuals."""
    count = found.nodes.shape[1]
    chosen = np.concatenate([count - 1 - np.arange(top), np.arange(top)])
    best = int(np.argmin(np.asarray(found.residuals)[:, chosen].sum(axis=1)))
    return Outer(*(np.float64(x[best])[chosen] for x in (found.nodes, found.residuals)))


def moments(values: Float[np.ndarray, "p"]) -> tuple[float, float]:
    """Mean and its standard error (NaN of one value)."""
    values = np.asarray(values, np.float64)
    spread = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return float(values.mean()), float(spread)


def trace(found: Quadrature, size: int) -> tuple[float, float]:
    """Mean and standard error of the trace: v'Hv of each sign vector (Hutchinson 1990)."""
    each = size * np.sum(np.float64(found.nodes) * np.float64(found.weights), axis=1)
    return moments(each)


def density(found: Quadrature, at: Float[np.ndarray, "g"], sigma: float) -> Float[np.ndarray, "g"]:
    """The density of eigenvalues, each node a Gaussian of width sigma; its integral is 1."""
    nodes, weights = (np.float64(x).reshape(-1, 1) for x in found[:2])
    bells = np.exp(-0.5 * np.square((at[None, :] - nodes) / sigma)) / np.sqrt(2 * np.pi) / sigma
    return np.sum(weights * bells, axis=0) / len(found.nodes)


def blocks(params: Any) -> dict[str, Float[np.ndarray, "n"]]:
    """A mask of the flat vector for each module that owns parameters, by its path."""
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    names = [jax.tree_util.keystr(path[:-1], simple=True, separator="/") for path, _ in flat]
    sizes = [leaf.size for _, leaf in flat]
    return {
        name: np.concatenate(
            [np.full(size, other == name, np.float32) for other, size in zip(names, sizes)]
        )
        for name in dict.fromkeys(names)
    }
