"""What a training will take, before it is begun: parameters, operations and memory of its steps."""

import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from common import errors, flops, parallel, parameters, trainer
from common.package import Context, Package
from common.task import Batch, Task


class Estimate(NamedTuple):
    """Of the train step of one batch shape, on one device."""

    shapes: str  # of the batch, all devices' rows
    macs: int  # multiply-accumulates of products and convolutions, forward and backward
    peak_bytes: int  # state, batch and temporaries as the compiler laid them out
    seconds: float  # of compilation


def estimates(task: Task, config: Any, mesh: Mesh) -> Iterator[Estimate]:
    """One for each shape of the training batches, each compiled, none run.

    The state is not allocated; one batch of each shape is read. Padding counts as what it pads: of
    a transducer loss, all nodes of the lattice (`flops.count`). Memory of libraries outside of XLA
    (cuDNN's workspaces, NCCL) is not in it, nor that of the process itself. Raises UserError for
    `config.parallel="pmap"` and for several processes.
    """
    if config.parallel == "pmap" or jax.process_count() > 1:
        raise errors.UserError(
            "An estimate is of config.parallel='shard_map' in one process: its figures are one "
            "device's, whatever the number of hosts."
        )
    state = jax.eval_shape(lambda key: task.create_state(task.init(key)), jax.random.key(0))
    step = trainer.make_train_step(task, config, mesh)
    for batch in task.train_data().one_of_each_shape():
        start = time.perf_counter()
        traced = step.trace(state, parallel.global_batch(batch, mesh))
        peak = peak_bytes(traced.lower().compile())
        seconds = time.perf_counter() - start
        yield Estimate(shapes(batch), flops.count(traced.jaxpr) // 2, peak, seconds)


def peak_bytes(compiled: Any) -> int:
    """What a call of a compiled function takes on a device, its arguments and results included."""
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return held + memory.temp_size_in_bytes - memory.alias_size_in_bytes


def shapes(batch: Batch) -> str:
    """Of the padded sequences: "audio 8 x 40000, labels 8 x 32"."""
    return ", ".join(
        f"{name} {' x '.join(map(str, array.shape))}"
        for name, array in batch.items()
        if f"{name}_lengths" in batch
    ) or f"{len(batch['mask'])} rows"  # fmt: skip


def run(package: Package, context: Context) -> None:
    """The mode `estimate`: prints a table; the work directory stays as it is."""
    config = context.config
    with tempfile.TemporaryDirectory() as folder:
        task = package.make_task(config, pathlib.Path(folder))
        task.prepare()
        variables = jax.eval_shape(task.init, jax.random.key(0))
        print(parameters.table(variables["params"]))
        devices, kind = jax.device_count(), jax.devices()[0].device_kind
        print(f"A train step on each of {devices} device(s), compiled for {kind}, not run:")
        print(f"{'GMAC':>10} {'peak GiB':>10} {'compiled in':>12}   batch")
        for found in estimates(task, config, context.mesh):
            print(
                f"{found.macs / 1e9:>10.3g} {found.peak_bytes / 2**30:>10.3g} "
                f"{found.seconds:>10.1f} s   {found.shapes}",
                flush=True,
            )
    print(
        "GMAC: products and convolutions, forward and backward, those of padding too. Peak: state, "
        "batch and temporaries of a step, without what the program itself takes."
    )
