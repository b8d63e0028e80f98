"""What 1x1 maps of a trained encoder get as inputs: second moments over real recordings."""

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from asr import contextnet, truncation
from asr import task as asr_task
from common import errors, parallel, state
from common.data import pipeline
from common.nn import conv, lowrank
from common.task import Batch

_MAPS = (conv.Pointwise, lowrank.LowRankPointwise)
_UNITS = (contextnet.ConvUnit, contextnet.Residual)


@contextlib.contextmanager
def inputs_seen(found: dict[str, Float[Array, "c c"]]) -> Iterator[None]:
    """Within it the 1x1 maps of an encoder put X'X into `found` when they are traced.

    By their names in the encoder; over the true frames that the map reads, every `stride`-th one.
    """
    masks: list[Array] = []

    def look(following: Any, args: Any, kwargs: Any, context: Any) -> Any:
        layer = context.module
        if context.method_name != "__call__":
            return following(*args, **kwargs)
        if isinstance(layer, _UNITS):
            masks.append(args[-1])  # of its output, which has the frames that its 1x1 map reads
            result = following(*args, **kwargs)
            masks.pop()
            return result
        if masks and isinstance(layer, _MAPS):
            x = args[0][:, :: layer.stride].astype(jnp.float32)
            x = (x * masks[-1][..., None]).reshape(-1, x.shape[-1])
            path = layer.path[-3:]  # block, unit, map
            found["/".join(path)] = jnp.matmul(x.T, x, precision="highest")
        return following(*args, **kwargs)

    with nn.intercept_methods(look):
        yield


def moments(
    task: asr_task.AsrTask,
    variables: state.Variables,
    batches: Iterable[Batch],
    mesh: Mesh,
    *,
    most: int = 0,
) -> dict[str, np.ndarray]:
    """X'X [c, c] of the inputs of every 1x1 map, by name, added over the first `most` batches.

    Over all devices, processes and batches (0: all of them), in float64 from batch to batch. The
    network is as it is evaluated, without the distortions of training. Raises UserError where there
    is not one recording.
    """

    def step(variables: state.Variables, batch: Batch) -> Mapping[str, Array]:
        found: dict[str, Array] = {}
        with inputs_seen(found):
            task.model.apply(
                variables,
                batch["audio"],
                batch["audio_lengths"],
                train=False,
                mask=batch["mask"],
                method="encode",
            )
        return jax.lax.psum(found, parallel.AXIS)

    mapped = parallel.data_parallel(
        step,
        mesh,
        in_specs=(parallel.REPLICATED, parallel.ROWS),
        out_specs=parallel.REPLICATED,
        kind=task.config.parallel,
    )
    sums: dict[str, np.ndarray] = {}
    with pipeline.opened(batches) as iterator:
        for batch in itertools.islice(iterator, most or None):
            parts = jax.device_get(mapped(variables, parallel.global_batch(batch, mesh)))
            for name, part in parts.items():
                sums[name] = sums.get(name, 0.0) + np.asarray(part, np.float64)
    if not any(moment.any() for moment in sums.values()):
        raise errors.UserError("There is not one recording with activations to truncate by.")
    return sums


def output_scales(
    config: contextnet.ContextNetConfig, encoder: Mapping[str, Any], stats: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """What batch normalisation multiplies the outputs of every 1x1 map with, by the map's name.

    `encoder` and `stats` are its parameters and its `batch_stats`.
    """
    scales = {}
    for name in contextnet.pointwise_names(config):
        unit = name.rpartition("/")[0]
        scale = truncation.at(encoder, f"{unit}/norm")["scale"]
        variance = truncation.at(stats, f"{unit}/norm")["var"]
        scales[name] = np.asarray(scale / np.sqrt(np.asarray(variance) + config.norm_epsilon))
    return scales
