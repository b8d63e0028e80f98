"""One number for every array of a state, and whether it is finite, in one pass on the devices."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Int, UInt32


def _bits(leaf: jax.Array) -> UInt32[Array, ""]:
    """A 32-bit sum over the leaf's bytes in which each element has its own odd weight."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if leaf.dtype == jnp.bool_:
        leaf = leaf.astype(jnp.uint8)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[leaf.dtype.itemsize]
    words = jax.lax.bitcast_convert_type(leaf, unsigned).reshape(-1).astype(jnp.uint32)
    weights = 2 * jnp.arange(words.size, dtype=jnp.uint32) + 1
    return jnp.sum(words * weights, dtype=jnp.uint32)


def not_finite(leaf: jax.Array) -> Int[Array, ""]:
    """How many elements are NaN or infinite; 0 in integers and keys."""
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return jnp.int32(0)
    return jnp.sum(~jnp.isfinite(leaf), dtype=jnp.int32)


@jax.jit
def _look_at(leaves: list[jax.Array]) -> tuple[UInt32[Array, "n"], Int[Array, "n"]]:
    return jnp.stack([_bits(x) for x in leaves]), jnp.stack([not_finite(x) for x in leaves])


def of_tree(tree: Any) -> tuple[dict[str, int], list[str]]:
    """Path -> 32-bit fingerprint of each array, and the paths of those that are not all finite.

    A flipped bit anywhere in an array changes its fingerprint.
    """
    flat = traverse_util.flatten_dict(tree, sep="/")
    flat = {name: leaf for name, leaf in flat.items() if leaf is not None}
    values, bad = map(np.asarray, _look_at(list(flat.values())))
    return dict(zip(flat, values.tolist())), [name for name, n in zip(flat, bad) if n]
