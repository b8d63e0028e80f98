"""Batch normalisation whose statistics see true frames only, on one device or many; and
normalisation by the frames so far, for streams."""

import functools
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from common.nn import masking


def _channels(vector: Array, like: Array) -> Array:
    """Reshapes `[d]` to `[1, ..., d]`: rank promotion is never left to NumPy's rule."""
    return vector.reshape((1,) * (like.ndim - 1) + vector.shape)


def _weighted_sum(x: Array, mask: Array | None) -> Array:
    """Sum over all axes but the last in float32, as a product with the mask.

    It reads x once, where XLA:CPU writes a masked copy of x before it reduces.
    """
    if mask is None:
        return jnp.sum(x, axis=tuple(range(x.ndim - 1)), dtype=jnp.float32)
    weights = jnp.broadcast_to(mask, x.shape[:-1]).reshape(-1).astype(x.dtype)
    return jnp.matmul(
        weights,
        x.reshape(-1, x.shape[-1]),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def _masked(x: Array, mask: Array | None) -> Array:
    return x if mask is None else x * mask[..., None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def normalize_batch(
    x: Float[Array, "b *n d"],
    mask: Float[Array, "..."] | None,
    scale: Float[Array, "d"],
    bias: Float[Array, "d"],
    epsilon: float,
    axis_name: str | None,
) -> tuple[Float[Array, "b *n d"], tuple[Float[Array, ""], Float[Array, "d"], Float[Array, "d"]]]:
    """Normalises by the statistics of the masked frames; also returns (count, mean, variance).

    The gradient is the closed form of Ioffe and Szegedy (2015, section 3): two column sums, which
    are added over the devices because every device's output depends on every device's frames. The
    gradients of scale and bias are left local, as those of any other replicated parameter. The
    statistics carry no gradient. The output is 0 where the mask (0.0 or 1.0, broadcast to
    `x.shape[:-1]`) is 0; x has to be finite there.
    """
    return _normalize_forward(x, mask, scale, bias, epsilon, axis_name)[0]


def _normalize_forward(x, mask, scale, bias, epsilon, axis_name):
    frames = x.shape[:-1]
    if mask is None:
        count = jnp.full((), math.prod(frames), jnp.float32)
    else:
        # Each entry of a broadcast mask stands for several frames.
        count = jnp.sum(mask) * (math.prod(frames) // mask.size)
    sums = _weighted_sum(x, mask)
    if axis_name is not None:  # One message, because each costs the wait for the last device.
        both = jax.lax.psum(jnp.append(sums, count), axis_name)
        sums, count = both[:-1], both[-1]
    safe_count = jnp.maximum(count, 1.0)
    mean = sums / safe_count
    # Two passes: E[x^2] - E[x]^2 cancels when the mean is large beside the deviation.
    centred = _masked(x.astype(jnp.float32) - _channels(mean, x), mask)
    squares = jnp.sum(centred * centred, axis=tuple(range(x.ndim - 1)))
    if axis_name is not None:
        squares = jax.lax.psum(squares, axis_name)
    variance = squares / safe_count
    inverse = jax.lax.rsqrt(variance + epsilon)
    offset = jnp.broadcast_to(_channels(bias, x), x.shape)
    y = centred * _channels(inverse * scale, x) + _masked(offset, mask)
    return (y.astype(x.dtype), (count, mean, variance)), (centred, mask, scale, safe_count, inverse)


def _normalize_backward(epsilon, axis_name, residuals, cotangents):
    centred, mask, scale, count, inverse = residuals
    dy = cotangents[0].astype(jnp.float32)
    d_bias = _weighted_sum(dy, mask)
    d_scale = jnp.sum(dy * centred, axis=tuple(range(dy.ndim - 1))) * inverse
    sums = jnp.stack([d_bias, d_scale * inverse])
    if axis_name is not None:
        sums = jax.lax.psum(sums, axis_name)
    sums = sums / count
    through = _channels(sums[0], dy) + centred * _channels(sums[1], dy)
    dx = _masked((dy - through) * _channels(inverse * scale, dy), mask)
    return dx.astype(cotangents[0].dtype), None, d_scale, d_bias


normalize_batch.defvjp(_normalize_forward, _normalize_backward)


class MaskedBatchNorm(nn.Module):
    """Batch normalisation over the true frames of real rows (Ioffe and Szegedy, 2015).

    Sums and counts are added over `axis_name` before they are divided, so N devices give the
    statistics of one. Statistics and running averages are float32 whatever the input is; the
    output has the input's dtype and is 0 where the mask is False. A batch without a true frame
    leaves the running averages alone.
    """

    momentum: float = 0.99
    epsilon: float = 1e-5
    axis_name: str | None = None
    affine: bool = True  # False: no scale and bias, as Kaldi's BatchNormComponent
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b *n d"],
        mask: Bool[Array, "..."] | Float[Array, "..."] | None = None,
        *,
        train: bool,
    ) -> Float[Array, "b *n d"]:
        """Normalises x.

        Args:
          x: finite everywhere, padding included.
          mask: true frames as booleans or as 0.0 and 1.0; as many axes as x less one, each of x's
            size or 1: `[b, l]`, or `[b, l, 1]` beside `[b, l, f, d]`. None: every frame counts.
          train: batch statistics, otherwise running averages.
        """
        d = x.shape[-1]
        mean = self.variable("batch_stats", "mean", lambda: jnp.zeros(d, jnp.float32))
        variance = self.variable("batch_stats", "var", lambda: jnp.ones(d, jnp.float32))
        if self.affine:
            scale = self.param("scale", self.scale_init, (d,), jnp.float32)
            bias = self.param("bias", nn.initializers.zeros, (d,), jnp.float32)
        else:
            scale, bias = jnp.ones(d, jnp.float32), jnp.zeros(d, jnp.float32)
        if mask is not None:
            mask = mask.astype(jnp.float32)
        if not train:
            slope = jax.lax.rsqrt(variance.value + self.epsilon) * scale
            y = (x.astype(jnp.float32) - _channels(mean.value, x)) * _channels(slope, x)
            return _masked(y + _channels(bias, x), mask).astype(x.dtype)
        # At initialisation there is no mapped axis to sum over.
        axis_name = None if self.is_initializing() else self.axis_name
        y, statistics = normalize_batch(x, mask, scale, bias, self.epsilon, axis_name)
        if not self.is_initializing():
            count, batch_mean, batch_variance = jax.lax.stop_gradient(statistics)
            step = jnp.where(count > 0, 1.0 - self.momentum, 0.0)
            mean.value += step * (batch_mean - mean.value)
            variance.value += step * (batch_variance - variance.value)
        return y


class RunningMean(nn.Module):
    """Subtracts each channel's mean over the true frames of all training batches.

    The mean of the batches so far, the present one included, later an exponential one that keeps
    `momentum` of itself a batch; the same in training and evaluation. Sums and counts are added
    over `axis_name`. What differs from channel to channel and is the same in all of the data thus
    does not reach the zeros that convolutions pad with; what differs between recordings stays,
    unlike with the mean of each. float32; 0 where the mask is False.
    """

    momentum: float = 0.99
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b l d"], mask: Float[Array, "b l"], *, train: bool
    ) -> Float[Array, "b l d"]:
        """x less the mean; `mask` is 1.0 in true frames, 0.0 elsewhere, where x is finite."""
        mean = self.variable("batch_stats", "mean", lambda: jnp.zeros(x.shape[-1], jnp.float32))
        batches = self.variable("batch_stats", "batches", lambda: jnp.zeros((), jnp.float32))
        x = x.astype(jnp.float32)
        if train and not self.is_initializing():
            sums = jnp.append(_weighted_sum(jax.lax.stop_gradient(x), mask), jnp.sum(mask))
            if self.axis_name is not None:
                sums = jax.lax.psum(sums, self.axis_name)
            real = jnp.where(sums[-1] > 0, 1.0, 0.0)
            rate = real * jnp.maximum(1.0 - self.momentum, 1.0 / (batches.value + 1.0))
            mean.value += rate * (sums[:-1] / jnp.maximum(sums[-1], 1.0) - mean.value)
            batches.value += real
        return _masked(x - _channels(mean.value, x), mask)


class CausalNormState(NamedTuple):
    """How many frames there were (at most the memory) [b], their mean and variance [b, d]."""

    count: Array
    mean: Array
    variance: Array


# 3 s of frames that are 10 ms apart: long beside a phone, short beside a change of room.
CAUSAL_MEMORY = 300


def causal_norm_state(batch: int, features: int) -> CausalNormState:
    """Before the first frame."""
    return CausalNormState(
        jnp.zeros(batch, jnp.float32),
        jnp.zeros((batch, features), jnp.float32),
        jnp.zeros((batch, features), jnp.float32),
    )


def causal_norm_step(
    state: CausalNormState, x: Float[Array, "b l d"], memory: int = CAUSAL_MEMORY
) -> tuple[CausalNormState, Float[Array, "b l d"]]:
    """Each frame less the mean of the frames so far, over their deviation; float32.

    Itself included, so that a stream's first frame gives 0. After `memory` frames the weights of
    the past fall exponentially, by 1 - 1 / memory a frame (West 1979, CACM 22(9)).
    """
    if memory < 1:
        raise ValueError(f"memory={memory} must be at least one frame")

    def frame(state: CausalNormState, x: Array) -> tuple[CausalNormState, Array]:
        count = jnp.minimum(state.count + 1.0, memory)
        rate = (1.0 / count)[:, None]
        step = x - state.mean
        mean = state.mean + rate * step
        variance = (1.0 - rate) * (state.variance + rate * jnp.square(step))
        # Keeps a band that does not move (digital silence) at 0.
        y = (x - mean) * jax.lax.rsqrt(variance + 1e-5)
        return CausalNormState(count, mean, variance), y

    state, y = jax.lax.scan(frame, state, x.astype(jnp.float32).swapaxes(0, 1))
    return state, y.swapaxes(0, 1)


def causal_norm(
    x: Float[Array, "b l d"], lengths: Int[Array, "b"], memory: int = CAUSAL_MEMORY
) -> Float[Array, "b l d"]:
    """`causal_norm_step` over whole rows; 0 beyond their lengths."""
    _, y = causal_norm_step(causal_norm_state(x.shape[0], x.shape[2]), x, memory)
    return masking.zero_padding(y, lengths)
