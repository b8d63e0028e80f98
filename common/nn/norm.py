"""Batch normalisation whose statistics see true frames only, on one device or many."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def _sum(x: Array, axis_name: str | None) -> Array:
    """Sum over all axes but the last, then over the devices of `axis_name`."""
    total = jnp.sum(x, axis=tuple(range(x.ndim - 1)), dtype=jnp.float32)
    return total if axis_name is None else jax.lax.psum(total, axis_name)


def _channels(vector: Array, like: Array) -> Array:
    """Reshapes `[d]` to `[1, ..., d]`: rank promotion is never left to NumPy's rule."""
    return vector.reshape((1,) * (like.ndim - 1) + vector.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def normalize_batch(
    x: Float[Array, "b *n d"],
    mask: Bool[Array, "..."],
    scale: Float[Array, "d"],
    bias: Float[Array, "d"],
    epsilon: float,
    axis_name: str | None,
) -> tuple[Float[Array, "b *n d"], tuple[Float[Array, ""], Float[Array, "d"], Float[Array, "d"]]]:
    """Normalises by the statistics of the masked frames; also returns (count, mean, variance).

    The gradient is the closed form of Ioffe and Szegedy (2015, section 3): two column sums, which
    are added over the devices because every device's output depends on every device's frames. The
    gradients of scale and bias are left local, as those of any other replicated parameter. The
    statistics carry no gradient. The output is 0 where the mask is False.
    """
    return _normalize_forward(x, mask, scale, bias, epsilon, axis_name)[0]


def _normalize_forward(x, mask, scale, bias, epsilon, axis_name):
    mask = jnp.broadcast_to(mask, (*x.shape[:-1], 1))
    weights = mask.reshape(-1).astype(x.dtype)
    # A product with the mask: it reads x once, where a masked reduction writes a masked copy.
    sums = jnp.matmul(
        weights,
        x.reshape(-1, x.shape[-1]),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    count = jnp.sum(mask, dtype=jnp.float32)
    if axis_name is not None:
        count, sums = jax.lax.psum((count, sums), axis_name)
    safe_count = jnp.maximum(count, 1.0)
    mean = sums / safe_count
    # Two passes: E[x^2] - E[x]^2 cancels when the mean is large beside the deviation.
    centred = jnp.where(mask, x.astype(jnp.float32) - _channels(mean, x), 0.0)
    variance = _sum(centred * centred, axis_name) / safe_count
    inverse = jax.lax.rsqrt(variance + epsilon)
    y = centred * _channels(inverse * scale, x) + _channels(bias, x)
    y = jnp.where(mask, y, 0.0).astype(x.dtype)
    return (y, (count, mean, variance)), (centred, mask, scale, safe_count, inverse)


def _normalize_backward(epsilon, axis_name, residuals, cotangents):
    centred, mask, scale, count, inverse = residuals
    dtype = cotangents[0].dtype
    dy = jnp.where(mask, cotangents[0].astype(jnp.float32), 0.0)
    d_bias = _sum(dy, None)
    d_scale = _sum(dy * centred, None) * inverse
    sums = jnp.stack([d_bias, d_scale * inverse])
    if axis_name is not None:
        sums = jax.lax.psum(sums, axis_name)
    sums = sums / count
    through = _channels(sums[0], dy) + centred * _channels(sums[1], dy)
    dx = jnp.where(mask, (dy - through) * _channels(inverse * scale, dy), 0.0)
    return dx.astype(dtype), None, d_scale, d_bias


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

    @nn.compact
    def __call__(
        self, x: Float[Array, "b *n d"], mask: Bool[Array, "..."] | None = None, *, train: bool
    ) -> Float[Array, "b *n d"]:
        """Args: mask broadcasts to `x.shape[:-1]`, e.g. `[b, l]`, or `[b, l, 1]` beside `[b, l, f,
        d]`; None means that every frame counts. train: batch statistics, else running averages."""
        d = x.shape[-1]
        mean = self.variable("batch_stats", "mean", lambda: jnp.zeros(d, jnp.float32))
        variance = self.variable("batch_stats", "var", lambda: jnp.ones(d, jnp.float32))
        scale = self.param("scale", nn.initializers.ones, (d,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (d,), jnp.float32)
        if not train:
            slope = jax.lax.rsqrt(variance.value + self.epsilon) * scale
            y = (x.astype(jnp.float32) - _channels(mean.value, x)) * _channels(slope, x)
            y = (y + _channels(bias, x)).astype(x.dtype)
            return y if mask is None else jnp.where(mask[..., None], y, jnp.zeros((), y.dtype))
        if mask is None:
            mask = jnp.ones((1,) * (x.ndim - 1), bool)
        # At initialisation there is no mapped axis to sum over.
        axis_name = None if self.is_initializing() else self.axis_name
        y, statistics = normalize_batch(x, mask[..., None], scale, bias, self.epsilon, axis_name)
        if not self.is_initializing():
            count, batch_mean, batch_variance = jax.lax.stop_gradient(statistics)
            step: Any = jnp.where(count > 0, 1.0 - self.momentum, 0.0)
            mean.value += step * (batch_mean - mean.value)
            variance.value += step * (batch_variance - variance.value)
        return y
