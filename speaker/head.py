"""The classification head: class weights on every device, or each device's share of the classes.

Class-sharded (`num_shards` > 1): each of n devices holds c / n classes; the embeddings of all
devices' rows come to every device (all-gather, float32), which scores them against its classes;
maxima and sums over classes are completed with pmax and psum, a few numbers a row. So weights,
gradients and moments take 1 / n of the memory, and no collective is as long as the classes. All
kinds of speaker/margins.py are supported; the result is that of the dense head up to rounding.
Not supported: sampling of negative classes (Partial FC, An et al. 2021, arXiv:2010.05222) and
scoring in chunks of classes: the [rows, c / n] scores of one device exist.

Cf. "model parallel" in Deng et al. 2019, arXiv:1801.07698.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from common import errors, parallel
from common.nn import marks
from speaker import margins

# The collection of AdaCos' scale: replicated, saved and restored with the batch statistics.
STATE = "margin_state"

# Sharded classes are padded to a multiple of this, so that checkpoints fit any number of devices
# that divides it.
SHARDS = 128


def padded_classes(num_classes: int, num_shards: int) -> int:
    """Classes with padding: the next multiple of the number of shards."""
    return -(-num_classes // num_shards) * num_shards


def repad(leaf: Float[Array, "n *d"], num_real: int, num_padded: int) -> Float[Array, "m *d"]:
    """Weights `[c k, d]` or biases `[c]` padded for other shards: the real rows, then zeros.

    For a checkpoint that continues on another number of devices; `num_real` = c k (or c).
    """
    if leaf.shape[0] < num_real or num_padded < num_real:
        raise ValueError(f"{leaf.shape[0]} and {num_padded} rows cannot hold {num_real} real ones.")
    widths = [(0, num_padded - num_real)] + [(0, 0)] * (leaf.ndim - 1)
    return jnp.pad(leaf[:num_real], widths)


def adopt(
    config: margins.MarginConfig,
    num_classes: int,
    fresh: Mapping[str, Array],
    found: Mapping[str, Array],
) -> dict[str, Array]:
    """Parameters of a new head with the first `num_classes` classes of another that has as many.

    Leaves that it has not, or in another form (sub-centers), are those of `fresh`.
    """
    rows = {"weights": num_classes * config.sub_centers, "bias": num_classes}
    adopted = dict(fresh)
    for name, leaf in fresh.items():
        other = found.get(name)
        if other is None or other.shape[1:] != leaf.shape[1:] or other.ndim != leaf.ndim:
            continue
        if not leaf.ndim:
            adopted[name] = other
        elif other.shape[0] >= rows[name]:
            adopted[name] = repad(other, rows[name], leaf.shape[0])
    return adopted


def param_specs(config: margins.MarginConfig, num_shards: int) -> dict[str, PartitionSpec]:
    """How the head's parameters lie over the data axis, by name, for in_specs and optimizer state.

    Gradients of leaves with spec `parallel.ROWS` are complete on their device: a psum would add
    different classes to one another. Those of `parallel.REPLICATED` leaves are summed as usual.
    """
    split = parallel.ROWS if num_shards > 1 else parallel.REPLICATED
    specs = {"weights": split}
    if config.bias != "none":
        specs["bias"] = split if config.bias == "class" else parallel.REPLICATED
    return specs


def sharded_margin_loss(
    config: margins.MarginConfig,
    embeddings: Float[Array, "b d"],
    weights: Float[Array, "ck d"],
    labels: Int[Array, "b"],
    margin: margins.Scalar,
    scale: margins.Scalar,
    *,
    num_classes: int,
    bias: Float[Array, "*c"] | None = None,
    mask: Bool[Array, "b"] | None = None,
    adapt_scale: bool = True,
    axis_name: str = parallel.AXIS,
) -> margins.MarginLoss:
    """`margins.margin_loss` of this device's rows over the classes of all devices.

    Inside the mapped axis. `weights` (and a `[c]` bias) are this device's share, equal on all,
    with padding classes at the end of the last ones; `embeddings`, `labels`, `mask` are its rows,
    equally many on all. The gradient of the sum of these rows' losses has, after the transposed
    collectives, the rows of all devices in it for the weights and all classes for the embeddings:
    psum neither.
    """
    rows = labels.shape[0]
    mask = jnp.ones(rows, bool) if mask is None else mask
    # float32 before the all-gather: its transpose adds the gradients of all shards.
    x = jnp.where(mask[:, None], embeddings.astype(jnp.float32), 0.0)
    x = lax.all_gather(x, axis_name, tiled=True)
    # One message for both integers.
    both = lax.all_gather(jnp.stack([labels, mask.astype(labels.dtype)], 1), axis_name, tiled=True)
    result = margins.margin_loss(
        config,
        x,
        weights,
        both[:, 0],
        margin,
        scale,
        bias=bias,
        mask=both[:, 1] > 0,
        num_classes=num_classes,
        adapt_scale=adapt_scale,
        class_axis=axis_name,
    )
    start = lax.axis_index(axis_name) * rows
    loss, correct, target = (lax.dynamic_slice_in_dim(part, start, rows) for part in (result[:3]))
    return margins.MarginLoss(loss, correct, target, result.scale)


class MarginHead(nn.Module):
    """Class weights and the loss against them.

    Parameters: `weights` [c k, d] (k sub-centers, a class's one after the other), unit length on
    average whatever c is; `bias` [c] zeros for softmax and l2_softmax, a scalar for sphereface2.
    With `num_shards` > 1, c is padded to a multiple of it and the parameters are those of the
    whole head at initialisation, this device's share (see `param_specs`) inside the mapped axis;
    the real classes start with the same numbers whatever it is. AdaCos keeps its scale in the
    collection `margin_state`.

    Attributes:
      num_classes: c, without padding; with speed perturbation three times the speakers.
      num_shards: 1 for the dense head; else a number that the devices of the mapped axis, over
        which the classes are split, divide.
      axis_name: the mapped axis; None outside of one (then `num_shards` is 1).
    """

    config: margins.MarginConfig
    num_classes: int
    num_shards: int = 1
    axis_name: str | None = parallel.AXIS

    @nn.compact
    def __call__(
        self,
        embeddings: Float[Array, "b d"],
        labels: Int[Array, "b"],
        margin: margins.Scalar | None = None,
        scale: margins.Scalar | None = None,
        *,
        mask: Bool[Array, "b"] | None = None,
        train: bool,
    ) -> margins.MarginLoss:
        """The rows' losses. Margin and scale None: the final ones of the config; `scale` is not
        used by AdaCos, whose own moves when `train` is true and the state is mutable."""
        config = self.config
        if self.num_classes < 2:
            raise errors.UserError(
                f"A classification head needs 2 classes, not {self.num_classes}."
            )
        if self.num_shards > 1 and self.axis_name is None:
            raise ValueError("Sharded classes need the name of the mapped axis.")
        classes, real = padded_classes(self.num_classes, self.num_shards), self.num_classes
        initializing = self.is_initializing()
        if not initializing:  # Inside the mapped axis this device sees its share.
            classes //= lax.axis_size(self.axis_name) if self.num_shards > 1 else 1

        def draw(key: Any, shape: tuple[int, int]) -> Array:
            # The share of one device is never drawn, only its shape is asked for.
            num_real = min(real * config.sub_centers, shape[0])
            drawn = jax.random.normal(key, (num_real, shape[1])) * shape[1] ** -0.5
            return repad(drawn, num_real, shape[0])

        d = embeddings.shape[1]
        weights = self.param("weights", draw, (classes * config.sub_centers, d))
        bias = None
        if config.bias == "class":
            bias = self.param("bias", nn.initializers.zeros, (classes,))
        elif config.bias == "scalar":
            start = margins.sphereface2_bias(config, real)
            bias = self.param("bias", nn.initializers.constant(start), ())

        state = None
        margin = config.margin if margin is None else margin
        scale = config.scale if scale is None else scale
        if config.kind == "adacos":
            state = self.variable(
                STATE, "scale", lambda: jnp.float32(margins.adacos_start(self.num_classes))
            )
            scale = state.value
        adapt = train and not initializing
        embeddings, weights = marks.Outputs()((embeddings, weights))
        options = {"bias": bias, "mask": mask, "num_classes": real, "adapt_scale": adapt}
        if self.num_shards > 1 and not initializing:
            loss = functools.partial(sharded_margin_loss, axis_name=self.axis_name)
        else:  # at initialisation there is no mapped axis
            axis = None if initializing else self.axis_name
            loss = functools.partial(margins.margin_loss, row_axis=axis)
        result = loss(config, embeddings, weights, labels, margin, scale, **options)
        if state is not None and adapt and self.is_mutable_collection(STATE):
            state.value = result.scale
        return result


class HeadMemory(NamedTuple):
    """Bytes of one device. `scores`: one float32 array of rows x classes (x sub-centers); value and
    gradient hold two of this size at once, four with `top_k` (XLA:CPU's count, jax 0.10.2)."""

    weights: int
    gradients: int
    moments: int
    scores: int

    @property
    def total(self) -> int:
        return sum(self)


def head_memory(
    num_classes: int,
    embedding_dim: int,
    rows: int,
    devices: int,
    *,
    sharded: bool,
    sub_centers: int = 1,
    moments: int = 2,
) -> HeadMemory:
    """What a head takes on each device, in float32; biases are left out.

    `rows` of the whole batch; `moments` a weight: 2 for Adam, 1 for SGD with momentum. Sharding
    divides the first three by the number of devices. The scores are as large either way: all rows
    against a share of the classes, or a share of the rows against all classes.
    """
    if rows % devices:
        raise ValueError(f"{rows} rows do not divide over {devices} devices.")
    classes = padded_classes(num_classes, devices) // devices if sharded else num_classes
    weights = 4 * classes * sub_centers * embedding_dim
    local_rows = rows if sharded else rows // devices
    return HeadMemory(weights, weights, moments * weights, 4 * local_rows * classes * sub_centers)
