"""ContextNet encoder (Han et al., 2020, arXiv 2005.03191, section 2 and table 1).

23 blocks of depthwise-separable convolutions with squeeze-and-excitation, eight frames in, one
frame out. Parameters are named after the table: `block_3/conv_4/pointwise/kernel`.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from common.nn import conv, dropout, lowrank, masking, norm

CONV_KINDS = ("separable", "spectro_temporal", "dense")


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """One row of the table: `num_convs` convolutions, the stride on the last of them."""

    num_convs: int
    channels: int
    stride: int = 1
    kernel_size: int = 5
    residual: bool = True


@dataclasses.dataclass(frozen=True)
class ContextNetConfig:
    """The whole encoder; `contextnet(alpha)` and `reduced(table)` fill in `blocks`.

    Attributes:
      conv: "separable" (the paper), "spectro_temporal" (filters of rank `rank`) or "dense".
      pointwise_rank_fraction: rank of the 1x1 maps of the convolutions over their input channels;
        None: dense. Residual projections stay dense unless `pointwise_ranks` names them.
      pointwise_ranks: (name, rank) of single 1x1 maps, e.g. ("block_3/conv_4/pointwise", 32); goes
        before the fraction. Written by `asr.lowrank` when it factorises a trained model.
      se_reduction: channels over bottleneck of squeeze-and-excitation; None leaves it out.
      se_window: frames (of the block's output) the squeeze sees; None means all (causal: all past).
      causal: no block sees a later frame than its own; the squeeze becomes a running mean.
      dropout_rate: on the output of every block, drawn per row from `dropout_keys`.
      axis_name: mapped axis whose devices share the statistics of batch normalisation.
      dtype: of the computation; parameters and statistics stay float32.
      remat: in training only the output of every block is kept; what lies between is computed
        again for the gradient (Chen et al., 2016, arXiv:1604.06174).
    """

    blocks: tuple[BlockConfig, ...]
    conv: str = "separable"
    rank: int = 1
    pointwise_rank_fraction: float | None = None
    pointwise_ranks: tuple[tuple[str, int], ...] = ()
    se_reduction: int | None = 8
    se_window: int | None = None
    causal: bool = False
    dropout_rate: float = 0.0
    norm_momentum: float = 0.99
    norm_epsilon: float = 1e-5
    axis_name: str | None = None
    dtype: Any = jnp.float32
    remat: bool = False

    def __post_init__(self):
        if self.conv not in CONV_KINDS:
            raise ValueError(f"ContextNetConfig.conv is {self.conv!r}: choose one of {CONV_KINDS}")
        if not self.blocks:
            raise ValueError("ContextNetConfig.blocks is empty: give at least one BlockConfig")
        names = {name for name, _ in self.pointwise_ranks}
        known = set(pointwise_names(self))
        if names - known:
            raise ValueError(
                f"ContextNetConfig.pointwise_ranks names {sorted(names - known)}, which this "
                f"configuration does not have; the first that it has is {min(known, default='-')}"
            )

    @property
    def reduction(self) -> int:
        """Input frames per output frame."""
        product = 1
        for block in self.blocks:
            product *= block.stride
        return product

    def pointwise_rank(self, name: str, in_channels: int) -> int | None:
        """Rank of the 1x1 map `name`, None if it is dense."""
        ranks = dict(self.pointwise_ranks)
        if name in ranks:
            return ranks[name]
        if self.pointwise_rank_fraction is None or name.endswith("/projection"):
            return None
        return max(1, round(self.pointwise_rank_fraction * in_channels))


def pointwise_names(config: ContextNetConfig) -> tuple[str, ...]:
    """Names of all 1x1 maps that can be factorised, in order of computation."""
    names = []
    for i, block in enumerate(config.blocks):
        if config.conv == "separable":
            names += [f"block_{i}/conv_{j}/pointwise" for j in range(block.num_convs)]
        if block.residual:
            names.append(f"block_{i}/residual/projection")
    return tuple(names)


def filter_names(config: ContextNetConfig) -> tuple[str, ...]:
    """Names of all convolutions over time and channels at once, where `conv` is not separable."""
    if config.conv == "separable":
        return ()
    return tuple(
        f"block_{i}/conv_{j}/filter"
        for i, block in enumerate(config.blocks)
        for j in range(block.num_convs)
    )


def contextnet(
    alpha: float,
    *,
    kernel_size: int = 5,
    num_convs: int = 5,
    strided_blocks: Sequence[int] = (3, 7, 14),
    **options: Any,
) -> ContextNetConfig:
    """The table of the paper; alpha 0.5, 1, 2 is S, M, L. `options` go to ContextNetConfig.

    Args:
      alpha: width; channels are 256, 512 and 640 times alpha, rounded to multiples of 8.
      strided_blocks: those whose last convolution has stride 2; (3,) is the paper's 2x ablation.
    """
    blocks = []
    for i in range(23):
        edge = i in (0, 22)
        width = 640 if i == 22 else 256 if i <= 10 else 512
        blocks.append(
            BlockConfig(
                num_convs=1 if edge else num_convs,
                channels=8 * round(width * alpha / 8),
                stride=2 if i in strided_blocks else 1,
                kernel_size=kernel_size,
                residual=not edge,
            )
        )
    return ContextNetConfig(blocks=tuple(blocks), **options)


def reduced(table: Sequence[Sequence[int]], **options: Any) -> ContextNetConfig:
    """A smaller ContextNet from rows (num_convs, channels, stride[, kernel_size = 5]).

    A block of one convolution has no residual, as C0 and C22. `options` go to ContextNetConfig.
    """
    blocks = []
    for row in table:
        if len(row) not in (3, 4):
            raise ValueError(f"block {tuple(row)}: give (num_convs, channels, stride[, kernel])")
        num_convs, channels, stride = row[:3]
        kernel_size = row[3] if len(row) == 4 else 5
        blocks.append(BlockConfig(num_convs, channels, stride, kernel_size, num_convs > 1))
    return ContextNetConfig(blocks=tuple(blocks), **options)


def _pointwise(config: ContextNetConfig, place: str, name: str, x: Array, features: int, stride=1):
    """The dense or factorised 1x1 map that the configuration wants at `place/name`."""
    rank = config.pointwise_rank(f"{place}/{name}", x.shape[-1])
    if rank is None:
        return conv.Pointwise(features, stride, config.dtype, name=name)(x)
    return lowrank.LowRankPointwise(features, rank, stride, config.dtype, name=name)(x)


def _batch_norm(config: ContextNetConfig) -> norm.MaskedBatchNorm:
    return norm.MaskedBatchNorm(
        config.norm_momentum, config.norm_epsilon, config.axis_name, name="norm"
    )


class ConvUnit(nn.Module):
    """f(x) = swish(BN(conv(x))), equation 2 of the paper."""

    config: ContextNetConfig
    features: int
    kernel_size: int
    stride: int
    place: str

    @nn.compact
    def __call__(self, x: Array, lengths: Array, mask: Array, *, train: bool) -> Array:
        """`lengths` are those of the input, `mask` is that of the output."""
        config = self.config
        where = (self.kernel_size, self.stride, config.causal, config.dtype)
        if config.conv == "separable":
            x, _ = conv.DepthwiseConv(*where, zero_padded=True, name="depthwise")(x, lengths)
            x = _pointwise(config, self.place, "pointwise", x, self.features)
        elif config.conv == "spectro_temporal":
            unit = lowrank.SpectroTemporalConv(
                self.features, config.rank, *where, zero_padded=True, name="filter"
            )
            x, _ = unit(x, lengths)
        else:
            unit = conv.Conv(self.features, *where, zero_padded=True, name="filter")
            x, _ = unit(x, lengths)
        return nn.swish(_batch_norm(config)(x, mask, train=train))


class Residual(nn.Module):
    """P(x): every `stride`-th frame through a 1x1 map and batch normalisation."""

    config: ContextNetConfig
    features: int
    stride: int
    place: str

    @nn.compact
    def __call__(self, x: Array, mask: Array, *, train: bool) -> Array:
        """`mask` is that of the output."""
        x = _pointwise(self.config, self.place, "projection", x, self.features, self.stride)
        return _batch_norm(self.config)(x, mask, train=train)


class SqueezeExcite(nn.Module):
    """Scales channels by what the whole utterance holds (equations 4-6 of the paper).

    The squeeze is the mean over true frames: all of them, those within `se_window` around each
    frame, or with `causal` those up to each frame. x is 0 beyond its true ends.
    """

    config: ContextNetConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"], lengths: Int[Array, "b"]) -> Float[Array, "b l d"]:
        config, d = self.config, x.shape[-1]
        if config.causal or config.se_window is not None:
            context = moving_mean(x, lengths, config.se_window, config.causal)
        else:
            count = jnp.maximum(lengths, 1).astype(jnp.float32)[:, None, None]
            context = jnp.sum(x, axis=1, keepdims=True, dtype=jnp.float32) / count
        context = context.astype(config.dtype)
        bottleneck = max(1, d // config.se_reduction)
        context = nn.swish(nn.Dense(bottleneck, dtype=config.dtype, name="squeeze")(context))
        return x * nn.sigmoid(nn.Dense(d, dtype=config.dtype, name="excite")(context))


def moving_mean(
    x: Float[Array, "b l d"], lengths: Int[Array, "b"], window: int | None, causal: bool
) -> Float[Array, "b l d"]:
    """Mean of the true frames in a window that ends at (causal) or is centred on each frame.

    In float32, of x that is 0 beyond its true ends. A frame without a true frame in its window
    gets 0. A window of None has no limit.
    """
    num_frames = x.shape[1]
    ends = jnp.arange(num_frames)
    if causal:
        first, last = ends - (num_frames if window is None else window - 1), ends
    else:
        window = 2 * num_frames if window is None else window
        first, last = ends - (window - 1) // 2, ends + window // 2
    sums = jnp.pad(jnp.cumsum(x.astype(jnp.float32), axis=1), ((0, 0), (1, 0), (0, 0)))
    first = jnp.clip(first, 0, num_frames)
    last = jnp.clip(last + 1, 0, num_frames)
    true = lengths[:, None]
    count = jnp.minimum(last[None, :], true) - jnp.minimum(first[None, :], true)
    return (sums[:, last] - sums[:, first]) / jnp.maximum(count, 1)[:, :, None]


class Block(nn.Module):
    """C(x) = swish(SE(f^m(x)) + P(x)), equation 1 of the paper."""

    config: ContextNetConfig
    block: BlockConfig

    @nn.compact
    def __call__(self, x: Array, lengths: Array, mask: Array, *, train: bool) -> Array:
        """`lengths` are those of the input, `mask` is that of the output."""
        block, y = self.block, x
        for j in range(block.num_convs):
            last = j == block.num_convs - 1
            unit = ConvUnit(
                self.config,
                block.channels,
                block.kernel_size,
                block.stride if last else 1,
                f"{self.name}/conv_{j}",
                name=f"conv_{j}",
            )
            unit_mask = mask
            if block.stride > 1 and not last:
                unit_mask = masking.float_mask(lengths, x.shape[1])
            y = unit(y, lengths, unit_mask, train=train)
        new_lengths = masking.conv_lengths(lengths, block.stride)
        if self.config.se_reduction is not None:
            y = SqueezeExcite(self.config, name="se")(y, new_lengths)
        if block.residual:
            residual = Residual(
                self.config, block.channels, block.stride, f"{self.name}/residual", name="residual"
            )
            y = y + residual(x, mask, train=train)
        return nn.swish(y)


class ContextNet(nn.Module):
    """The encoder: features in, one vector per `config.reduction` frames out."""

    config: ContextNetConfig

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "b l f"],
        lengths: Int[Array, "b"],
        *,
        train: bool,
        mask: Bool[Array, "b"] | None = None,
        dropout_keys: Key[Array, "b"] | None = None,
    ) -> tuple[Float[Array, "b n d"], Int[Array, "b"]]:
        """Encodes a padded batch.

        Args:
          features: frames, anything beyond `lengths`.
          train: batch statistics (True) or running averages in `batch_stats` (False).
          mask: real rows; others have no part in the statistics.
          dropout_keys: one key per row (parallel.row_keys); needed if train and dropout_rate > 0.

        Returns:
          Frames in `config.dtype`, 0 beyond the true ends and in rows that are not real, and their
          lengths, ceil(length / stride) for each stride.
        """
        config = self.config
        rate = config.dropout_rate if train and not self.is_initializing() else 0.0
        if rate and dropout_keys is None:
            raise ValueError("ContextNet with dropout_rate > 0 needs dropout_keys when train=True")
        true_lengths = masking.fold_row_mask(lengths, mask)
        x = masking.zero_padding(features.astype(config.dtype), true_lengths)
        # From here on x is 0 beyond its true ends: normalisation multiplies with the mask, and
        # every other layer maps 0 to 0. So no convolution has to mask its input.
        masks = {}
        for i, block in enumerate(config.blocks):
            new_lengths = masking.conv_lengths(true_lengths, block.stride)
            num_frames = -(-x.shape[1] // block.stride)
            if num_frames not in masks:
                masks[num_frames] = masking.float_mask(new_lengths, num_frames)
            layer = Block(config, block, name=f"block_{i}")
            apply = functools.partial(Block.__call__, train=train)
            if config.remat and train:
                apply = nn.remat(apply)
            x = apply(layer, x, true_lengths, masks[num_frames])
            true_lengths = new_lengths
            lengths = masking.conv_lengths(lengths, block.stride)
            if rate:
                keys = jax.vmap(jax.random.fold_in, (0, None))(dropout_keys, i)
                x = dropout.drop(x, keys, rate)
        return x, lengths


def count_parameters(params: Mapping[str, Any]) -> int:
    """Number of scalars in a parameter tree (arrays or shapes)."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
