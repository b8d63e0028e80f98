"""One data axis over all devices of all hosts, and the two ways to map a step over it.

A step is written for one device, inside a mapped axis named `AXIS`. Sums and counts are added with
`psum` and divided once: the mean of per-device masked means is not the masked mean.

Rows of a batch lie over the axis, and so may the rows of large parameters (`specs`): then each
device holds its share of them and of their moments.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Key

from common import errors

AXIS = "data"
REPLICATED = PartitionSpec()
ROWS = PartitionSpec(AXIS)


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of all devices (or of `devices`) with the one axis `AXIS`.

    The axis is `Auto`: under the default, explicit axes, `nn.Embed` and `optax.ctc_loss` raise.
    """
    devices = jax.devices() if devices is None else list(devices)
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def specs(tree: Any, sharded: Sequence[str]) -> Any:
    """How each leaf lies over the devices: by rows where its path ends with one of `sharded`.

    So the moments and averages of a parameter "head/weights" lie as it does, being kept in trees of
    the parameters' form.
    """

    def spec(path: Any, _: Any) -> PartitionSpec:
        name = "/" + jax.tree_util.keystr(path, simple=True, separator="/")
        return ROWS if name.endswith(tuple(f"/{end}" for end in sharded)) else REPLICATED

    return jax.tree_util.tree_map_with_path(spec, tree)


def shardings(tree: Any, mesh: Mesh, sharded: Sequence[str]) -> Any:
    """`specs` on a mesh. UserError if the devices cannot share the rows evenly."""

    def sharding(spec: PartitionSpec, leaf: Any) -> NamedSharding:
        if spec == ROWS and leaf.shape[0] % mesh.size:
            raise errors.UserError(
                f"{leaf.shape[0]} rows of a sharded parameter do not divide over {mesh.size} "
                "devices."
            )
        return NamedSharding(mesh, spec)

    return jax.tree.map(sharding, specs(tree, sharded), tree)


def place(tree: Any, mesh: Mesh, sharded: Sequence[str] = ()) -> Any:
    """Every leaf as a global array that each device holds whole, or its share of (`specs`)."""

    def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
        # make_array_from_callback never checks equality across hosts, device_put does (slowly).
        leaf = np.asarray(leaf) if not isinstance(leaf, jax.Array) else leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.device_put(leaf, sharding)
        host = np.array(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree, shardings(tree, mesh, sharded))


def global_batch(batch: Any, mesh: Mesh) -> Any:
    """This process's rows of a batch as global arrays, sharded by rows over `mesh`.

    Processes hold contiguous blocks of rows in process order, so the global row order does not
    depend on how many processes there are.
    """
    sharding = NamedSharding(mesh, ROWS)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def local_rows(tree: Any) -> Any:
    """The rows of row-sharded global arrays that this process holds, as NumPy, in row order."""

    def rows(array: jax.Array) -> np.ndarray:
        if array.is_fully_addressable:
            return np.asarray(array)
        shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
        return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])

    return jax.tree.map(rows, tree)


def rows_of_all(tree: Any) -> Any:
    """All rows of row-sharded global arrays, as NumPy, in row order, on every process."""
    if jax.process_count() > 1:
        return multihost_utils.process_allgather(local_rows(tree), tiled=True)
    return jax.device_get(tree)


def data_parallel(
    fn: Callable,
    mesh: Mesh,
    *,
    in_specs: tuple[Any, ...],
    out_specs: Any,
    donate: tuple[int, ...] = (),
    kind: str = "shard_map",
) -> Callable:
    """`fn` for one device, mapped over the data axis and compiled.

    Arguments and results are global arrays in either kind: `REPLICATED` ones whole on each device,
    `ROWS` ones split over their first axis, whose size must be a multiple of the device count. A
    spec stands for a whole argument or, in a tree of the argument's form, for each leaf.

    `check_vma=False` is on purpose. With the check on, gradients of replicated parameters arrive
    already summed (so the usual psum makes them N times too large, silently), and Linen's scans do
    not trace.
    """
    if kind == "shard_map":
        mapped = jax.shard_map(
            fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )
        return jax.jit(mapped, donate_argnums=donate)
    if kind != "pmap":
        raise errors.UserError(f"config.parallel is {kind!r}; choose 'shard_map' or 'pmap'.")
    if jax.process_count() > 1:
        raise errors.UserError(
            "config.parallel='pmap' runs in one process only; use 'shard_map' for several hosts."
        )

    def axes(tree: Any) -> Any:
        return jax.tree.map(lambda spec: 0 if spec == ROWS else None, tree)

    devices = list(mesh.devices.flat)
    pmapped = jax.pmap(
        fn,
        axis_name=AXIS,
        in_axes=axes(in_specs),
        out_axes=axes(out_specs),
        devices=devices,
        donate_argnums=donate,
    )

    def split(spec: PartitionSpec, x: Any) -> Any:
        return x.reshape(len(devices), -1, *x.shape[1:]) if spec == ROWS else x

    def join(spec: PartitionSpec, x: Any) -> Any:
        return x.reshape(-1, *x.shape[2:]) if spec == ROWS else x

    def call(*args: Any) -> Any:
        args = jax.tree.map(split, jax.tree.broadcast(in_specs, args), args)
        out = pmapped(*args)
        return jax.tree.map(join, jax.tree.broadcast(out_specs, out), out)

    return call


def check_rows(config: Any, setting: str = "", every: int = 1) -> None:
    """Raises UserError for batches that devices and accumulation cannot share, in each of which
    there have to be a multiple of `every` rows: so says config.`setting`."""
    rows, per_step = config.data.batch_rows, jax.device_count() * config.accumulate * every
    if rows % per_step:
        more = f" x config.{setting}" if every > 1 else ""
        raise errors.UserError(
            f"config.data.batch_rows={rows} does not divide by {per_step} (devices x "
            f"accumulation{more})."
        )


def row_numbers(rows: int) -> Int[Array, "b"]:
    """The position of each of this device's rows in the global batch (inside the mapped axis)."""
    return jax.lax.axis_index(AXIS) * rows + jnp.arange(rows, dtype=jnp.int32)


def row_keys(key: Key[Array, ""], rows: Int[Array, "b"]) -> Key[Array, "b"]:
    """One key a row, a function of the row's global number: the same on 1 and on N devices."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows)
