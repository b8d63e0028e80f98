"""Convolutions over time on padded batches: `(x, lengths) -> (y, lengths)`, padded equals alone.

Output frame i is centred on (or, causal, ends at) input frame `i * stride`: the alignment hangs on
the true start of the row only, never on the padded length as XLA's SAME does with a stride. Inputs
are zeroed beyond the true end first, which is what a row sees beyond its end when it is alone.

Causal layers also run over a stream: `step(state, x) -> (state, y)` with the layer's parameters,
where the state is the frames that later ones will see, rows first.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from common.nn import adjoints, masking

# Up to this many taps a depthwise convolution is a sum of shifted products: on XLA:CPU ten times
# faster than a grouped convolution with five taps (benchmarks/contextnet_layers.py).
MAX_SHIFTED_TAPS = 32
# Frames summed in one loop by the gradient of the taps.
_UNROLL = 8
# From so many channels on, on both sides, `three_taps` saves more than its additions cost: value
# and gradients of 32 x 200 frames with 512 channels take 127 ms of one core instead of 208, with
# 256 channels 39 instead of 54, with 128 13 instead of 14, and the value alone longer.
MIN_THREE_TAPS_CHANNELS = 256


def left_padding(kernel_size: int, causal: bool) -> int:
    """Frames of zeros before the start: all of the context if causal, else half of it."""
    return kernel_size - 1 if causal else (kernel_size - 1) // 2


def _pad(x: Array, kernel_size: int, left: int) -> Array:
    return jnp.pad(x, ((0, 0), (left, kernel_size - 1 - left), (0, 0)))


def _shifted(padded: Array, num_frames: int, kernel_size: int, stride: int) -> list[Array]:
    """The input under each tap: `kernel_size` arrays `[b, ceil(l / stride), d]`."""
    return [padded[:, tap : tap + num_frames : stride] for tap in range(kernel_size)]


def _history(layer: Any, batch: int, channels: int, extent: int) -> Array:
    """A stream's state before its first frame: the zeros that the whole sees there."""
    return jnp.zeros((batch, extent - 1, channels), layer.dtype)


def _extended(layer: Any, state: Array, x: Array) -> tuple[Array, Array]:
    """The next state, and the frames that the outputs at x see."""
    if not layer.causal:
        raise ValueError("step needs causal=True: a centred layer sees frames that are yet to come")
    if x.shape[1] % layer.stride:
        raise ValueError(f"a chunk of {x.shape[1]} frames is no multiple of stride {layer.stride}")
    padded = jnp.concatenate([state, x.astype(layer.dtype)], axis=1)
    return padded[:, x.shape[1] :], padded


def _taps(kernel: Array, x: Array) -> list[Array]:
    return [kernel[tap][None, None, :].astype(x.dtype) for tap in range(kernel.shape[0])]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise_conv(
    x: Float[Array, "b l d"], kernel: Float[Array, "k d"], stride: int = 1, causal: bool = False
) -> Float[Array, "b n d"]:
    """One filter per channel, `n = ceil(l / stride)` frames; x must be zero beyond its true ends.

    y[b, i, d] = sum_k kernel[k, d] x[b, i * stride + k - left, d], zeros outside.
    """
    return _depthwise_forward(x, kernel, stride, causal)[0]


def _depthwise_forward(x, kernel, stride, causal):
    k = kernel.shape[0]
    padded = _pad(x, k, left_padding(k, causal))
    return _filtered(padded, kernel, x.shape[1], stride), (x, kernel)


def _filtered(padded: Array, kernel: Array, num_frames: int, stride: int) -> Array:
    k = kernel.shape[0]
    if k > MAX_SHIFTED_TAPS:
        return _grouped_conv(padded, kernel, stride)
    pieces = _shifted(padded, num_frames, k, stride)
    return functools.reduce(
        jnp.add, [p * w for p, w in zip(pieces, _taps(kernel, padded), strict=True)]
    )


def _grouped_conv(padded: Array, kernel: Array, stride: int) -> Array:
    return jax.lax.conv_general_dilated(
        padded,
        kernel[:, None, :].astype(padded.dtype),
        (stride,),
        "VALID",
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=padded.shape[-1],
    )


def _kernel_gradient(padded: Array, dy: Array, kernel_size: int, stride: int) -> Array:
    """sum_{b, i} padded[b, i * stride + k, d] dy[b, i, d], float32[k, d].

    Sums `_UNROLL` neighbouring frames of all taps in one elementwise loop before it reduces:
    twice as fast on XLA:CPU as one product and one reduction per tap, each of which copies its
    shifted input.
    """
    fill = -dy.shape[1] % _UNROLL
    padded = jnp.pad(padded, ((0, 0), (0, fill * stride), (0, 0))).astype(jnp.float32)
    dy = jnp.pad(dy, ((0, 0), (0, fill), (0, 0))).astype(jnp.float32)
    groups = dy.shape[1] // _UNROLL

    def frames(x: Array, start: int, step: int) -> Array:
        return x[:, start : start + (groups - 1) * step + 1 : step]

    dys = [frames(dy, i, _UNROLL) for i in range(_UNROLL)]
    sums = []
    for tap in range(kernel_size):
        under = [frames(padded, i * stride + tap, _UNROLL * stride) for i in range(_UNROLL)]
        sums.append(functools.reduce(jnp.add, [a * b for a, b in zip(under, dys, strict=True)]))
    return jnp.sum(jnp.stack(sums, axis=1), axis=(0, 2))


def _depthwise_backward(stride, causal, residuals, dy):
    x, kernel = residuals
    num_frames, (k, _) = x.shape[1], kernel.shape
    left = left_padding(k, causal)
    if k > MAX_SHIFTED_TAPS:
        _, pull = jax.vjp(lambda a, w: _grouped_conv(_pad(a, k, left), w, stride), x, kernel)
        return pull(dy)
    d_kernel = _kernel_gradient(_pad(x, k, left), dy, k, stride)
    if stride > 1:  # Put zeros between the frames that were skipped.
        dilated = num_frames - 1 - stride * (dy.shape[1] - 1)
        dy = jax.lax.pad(
            dy, jnp.zeros((), dy.dtype), ((0, 0, 0), (0, dilated, stride - 1), (0, 0, 0))
        )
    # The adjoint of a correlation is the correlation with the reversed filter and padding.
    shifted = _shifted(_pad(dy, k, k - 1 - left), num_frames, k, 1)
    taps = _taps(kernel[::-1], dy)
    dx = functools.reduce(jnp.add, [piece * w for piece, w in zip(shifted, taps, strict=True)])
    return dx, d_kernel.astype(kernel.dtype)


depthwise_conv.defvjp(_depthwise_forward, _depthwise_backward)


class DepthwiseConv(nn.Module):
    """One filter over time per channel, without bias."""

    kernel_size: int
    stride: int = 1
    causal: bool = False
    dtype: Any = jnp.float32
    zero_padded: bool = False  # the caller's word that x is 0 beyond its true ends

    @nn.compact
    def __call__(
        self, x: Float[Array, "b l d"], lengths: Int[Array, "b"]
    ) -> tuple[Float[Array, "b n d"], Int[Array, "b"]]:
        x = x.astype(self.dtype)
        if not self.zero_padded:
            x = masking.zero_padding(x, lengths)
        y = depthwise_conv(x, self._kernel(x.shape[-1]), self.stride, self.causal)
        return y, masking.conv_lengths(lengths, self.stride)

    def initial_state(self, batch: int, channels: int) -> Float[Array, "b m d"]:
        """Before a stream's first frame."""
        return _history(self, batch, channels, self.kernel_size)

    @nn.compact
    def step(
        self, state: Float[Array, "b m d"], x: Float[Array, "b l d"]
    ) -> tuple[Float[Array, "b m d"], Float[Array, "b n d"]]:
        """The next l frames of a stream, a multiple of the stride."""
        state, padded = _extended(self, state, x)
        return state, _filtered(padded, self._kernel(x.shape[-1]), x.shape[1], self.stride)

    def _kernel(self, channels: int) -> Array:
        shape = (self.kernel_size, channels)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        return kernel.astype(self.dtype)


def _tiles(x0: Array, x1: Array, x2: Array, x3: Array, x4: Array, x5: Array) -> list[Array]:
    """Winograd's F(4, 3), B^T x: four outputs from six inputs by six products, not twelve.

    Lavin and Gray (2016, arXiv:1509.09308), section 4.3.
    """
    outer, inner = x4 - 4 * x2, x3 - 4 * x1
    even, odd = x4 - x2, 2 * (x3 - x1)
    first, last = 4 * x0 - 5 * x2 + x4, 4 * x1 - 5 * x3 + x5
    return [first, outer + inner, outer - inner, even + odd, even - odd, last]


def _tile_taps(k0: Array, k1: Array, k2: Array) -> list[Array]:
    """G k: what `_tiles` are multiplied with."""
    outer, inner = -(k0 + k2) / 6, k1 / 6
    even, odd = (k0 + 4 * k2) / 24, k1 / 12
    return [k0 / 4, outer - inner, outer + inner, even + odd, even - odd, k2]


def _untile(y0: Array, y1: Array, y2: Array, y3: Array, y4: Array, y5: Array) -> list[Array]:
    """A^T y: the four outputs from the six products."""
    inner, odd_inner, outer, odd_outer = y1 + y2, y1 - y2, y3 + y4, y3 - y4
    return [
        y0 + inner + outer,
        odd_inner + 2 * odd_outer,
        inner + 4 * outer,
        odd_inner + 8 * odd_outer + y5,
    ]


def three_taps(
    x: Float[Array, "b l c"], kernel: Float[Array, "k c d"], *, dilation: int, left: int
) -> Float[Array, "b l d"]:
    """A dense convolution of 3 taps with 6 products for each 4 frames instead of 12.

    y[b, i] = sum_k x[b, i + k * dilation - left] kernel[k], zeros outside; left is dilation
    (centred) or twice that (causal). Winograd's F(4, 3) for four frames a dilation apart; both
    gradients, which JAX derives, save as much.
    Rounding errors are three times those of the sum.
    """
    b, num_frames, c = x.shape
    d = kernel.shape[2]
    blocks = -(-num_frames // (4 * dilation))
    right = 4 * dilation * (blocks + 1) - num_frames - left
    # Quarters of blocks of 4 x dilation frames; a frame needs its own block and half of the next.
    padded = jnp.pad(x, ((0, 0), (left, right), (0, 0)))
    padded = padded.reshape(b, blocks + 1, 4, dilation, c)
    own, following = padded[:, :-1], padded[:, 1:]
    tiled = _tiles(*(own[:, :, i] for i in range(4)), following[:, :, 0], following[:, :, 1])
    products = [x.reshape(-1, c) @ taps for x, taps in zip(tiled, _tile_taps(*kernel), strict=True)]
    quarters = [quarter.reshape(b, blocks, dilation, d) for quarter in _untile(*products)]
    return jnp.stack(quarters, axis=2).reshape(b, -1, d)[:, :num_frames]


class Conv(nn.Module):
    """A dense convolution over time `[k, c, d]`, with the alignment described above."""

    features: int
    kernel_size: int
    stride: int = 1
    causal: bool = False
    dtype: Any = jnp.float32
    zero_padded: bool = False  # the caller's word that x is 0 beyond its true ends
    use_bias: bool = False
    dilation: int = 1  # frames from one tap to the next

    @nn.compact
    def __call__(
        self, x: Float[Array, "b l c"], lengths: Int[Array, "b"]
    ) -> tuple[Float[Array, "b n d"], Int[Array, "b"]]:
        x = x.astype(self.dtype)
        if not self.zero_padded:
            x = masking.zero_padding(x, lengths)
        left = left_padding(self._extent, self.causal)

        def direct(x: Array, kernel: Array) -> Array:
            return self._convolved(_pad(x, self._extent, left), kernel)

        kernel = self._kernel(x.shape[-1])
        saves = self.kernel_size == 3 and self.stride == 1 and x.dtype == jnp.float32
        if saves and min(kernel.shape[1:]) >= MIN_THREE_TAPS_CHANNELS:
            fast = functools.partial(three_taps, dilation=self.dilation, left=left)
            y = jax.lax.platform_dependent(x, kernel, cpu=fast, default=direct)
        else:
            y = direct(x, kernel)
        return self._biased(y), masking.conv_lengths(lengths, self.stride)

    def initial_state(self, batch: int, channels: int) -> Float[Array, "b m c"]:
        """Before a stream's first frame."""
        return _history(self, batch, channels, self._extent)

    @nn.compact
    def step(
        self, state: Float[Array, "b m c"], x: Float[Array, "b l c"]
    ) -> tuple[Float[Array, "b m c"], Float[Array, "b n d"]]:
        """The next l frames of a stream, a multiple of the stride."""
        state, padded = _extended(self, state, x)
        return state, self._biased(self._convolved(padded, self._kernel(x.shape[-1])))

    @property
    def _extent(self) -> int:
        """Frames from the first tap to the last."""
        return (self.kernel_size - 1) * self.dilation + 1

    def _kernel(self, channels: int) -> Array:
        shape = (self.kernel_size, channels, self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        return kernel.astype(self.dtype)

    def _convolved(self, padded: Array, kernel: Array) -> Array:
        how = (self.stride,), ((0, 0),), (self.dilation,)
        return adjoints.convolution(padded, kernel, *how)

    def _biased(self, y: Array) -> Array:
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return y + bias.astype(self.dtype)[None, None, :]


def pointwise(x: Float[Array, "*b c"], kernel: Float[Array, "c d"]) -> Float[Array, "*b d"]:
    """`x @ kernel`, as a product of two matrices.

    For the gradient of the kernel of a product with several axes before c XLA:CPU writes a
    transposed copy of x, and computes again whatever elementwise work made x to do so; with one
    axis it does not.
    """
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], -1)


class Pointwise(nn.Module):
    """A linear map of every `stride`-th frame: a convolution of one tap."""

    features: int
    stride: int = 1
    dtype: Any = jnp.float32
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b l c"]) -> Float[Array, "b n d"]:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        y = pointwise(x[:, :: self.stride].astype(self.dtype), kernel.astype(self.dtype))
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            y = y + bias.astype(self.dtype)[None, None, :]
        return y
