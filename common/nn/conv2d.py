"""Convolutions over time and frequency, `[b, l, f, c] -> [b, n, g, d]`.

Output (i, j) is centred on input (i, j) * stride, so that the alignment hangs on the true start of
a row and not on its padding; n and g are l and f over the stride, rounded up. A row's input must be
0 beyond its true end.

XLA:CPU is fast at convolutions with small kernels, and slow at the gradients of those kernels,
which are convolutions with kernels as large as the picture. On a CPU, in float32, they are computed
otherwise here, and wide layers with fewer multiplications.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from common.nn import conv

# From so many channels on, on both sides, sixteen products and their sums (`three_by_three`) take
# less time than XLA:CPU's convolution: 0.65 of it with 128 channels, as long with 64.
MIN_THREE_BY_THREE_CHANNELS = 128


def conv2d(
    x: Float[Array, "b l f c"], kernel: Float[Array, "k k c d"], stride: int = 1
) -> Float[Array, "b n g d"]:
    """y[b, i, j] = sum_mn x[b, i * stride + m - left, j * stride + n - left] kernel[m, n].

    Zeros outside of x; left = (k - 1) // 2.
    """
    if kernel.shape[0] == 1:
        return conv.pointwise(x[:, ::stride, ::stride], kernel[0, 0])
    direct = functools.partial(_direct, stride=stride)
    if x.dtype != jnp.float32:
        return direct(x, kernel)
    on_cpu = functools.partial(_on_cpu, stride)
    return jax.lax.platform_dependent(x, kernel, cpu=on_cpu, default=direct)


def _sides(kernel_size: int) -> tuple[int, int]:
    """Zeros before and after."""
    left = conv.left_padding(kernel_size, causal=False)
    return left, kernel_size - 1 - left


def _direct(x: Array, kernel: Array, *, stride: int) -> Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [_sides(kernel.shape[0])] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _on_cpu(stride: int, x: Array, kernel: Array) -> Array:
    wide = min(kernel.shape[2:]) >= MIN_THREE_BY_THREE_CHANNELS
    if wide and kernel.shape[0] == 3 and stride == 1:
        return three_by_three(x, kernel)
    return _direct(x, kernel, stride=stride)


def _forward(stride, x, kernel):
    return _on_cpu(stride, x, kernel), (x, kernel)


def _backward(stride, residuals, dy):
    x, kernel = residuals
    kernel_size, _, channels, _ = kernel.shape
    if stride > 1 or kernel_size % 2 == 0 or channels == 1:  # of one channel there is little to do
        _, pull = jax.vjp(lambda x: _direct(x, kernel, stride=stride), x)
        return *pull(dy), _strided_kernel_gradient(x, dy, kernel_size, stride)
    # The adjoint of a correlation is the correlation with the kernel turned round.
    dx = _on_cpu(1, dy, kernel[::-1, ::-1].swapaxes(2, 3))
    return dx, _kernel_gradient(x, dy, kernel_size)


_on_cpu.defvjp(_forward, _backward)


def _kernel_gradient(x: Array, dy: Array, kernel_size: int) -> Array:
    """sum_bij x[b, i + m - left, j + n - left, c] dy[b, i, j, d], `[k, k, c, d]`.

    A convolution over time alone: its rows are the channels of x, what it sums are the rows and
    frequencies of the batch, and its kernel is dy as long as it is. The k shifts in frequency are
    columns of that kernel. Three times as fast as XLA:CPU's own with 32 and 64 channels.
    """
    b, num_frames, num_bins, c = x.shape
    left, right = _sides(kernel_size)
    # Multiplied with 1, or XLA computes x anew in the transposing loop, from the block before on.
    rows = (jnp.eye(c) @ x.reshape(-1, c).T).reshape(c, b, num_frames, num_bins)
    rows = rows.transpose(0, 2, 1, 3).reshape(c, num_frames, b * num_bins)
    padded = jnp.pad(dy.transpose(1, 0, 2, 3), ((0, 0), (0, 0), (right, left), (0, 0)))
    shifts = [padded[:, :, n : n + num_bins] for n in reversed(range(kernel_size))]
    columns = jnp.concatenate(shifts, axis=-1).reshape(num_frames, b * num_bins, -1)
    sums = jax.lax.conv_general_dilated(
        rows, columns, (1,), [(left, right)], dimension_numbers=("NWC", "WIO", "NWC")
    )
    return sums.reshape(c, kernel_size, kernel_size, -1).transpose(1, 2, 0, 3)


def _strided_kernel_gradient(x: Array, dy: Array, kernel_size: int, stride: int) -> Array:
    """The same for every `stride`-th output: a product of matrices for each row of the kernel."""
    (_, n, g, d), c = dy.shape, x.shape[3]
    left, right = _sides(kernel_size)
    padded = jnp.pad(x, ((0, 0), (left, right), (left, right), (0, 0)))
    sums = []
    for row in range(kernel_size):
        frames = padded[:, row : row + (n - 1) * stride + 1 : stride]
        under = [
            frames[:, :, tap : tap + (g - 1) * stride + 1 : stride] for tap in range(kernel_size)
        ]
        seen = jnp.concatenate(under, axis=-1).reshape(-1, kernel_size * c)
        sums.append((seen.T @ dy.reshape(-1, d)).reshape(kernel_size, c, d))
    return jnp.stack(sums)


def _tiles(x0: Array, x1: Array, x2: Array, x3: Array) -> tuple[Array, ...]:
    """Winograd's F(2, 3), B^T x: two outputs from four inputs by four products, not six.

    Lavin and Gray (2016, arXiv:1509.09308), section 4.1.
    """
    return x0 - x2, x1 + x2, x2 - x1, x1 - x3


def _tile_taps(k0: Array, k1: Array, k2: Array) -> tuple[Array, ...]:
    """G k: what `_tiles` are multiplied with."""
    outer, inner = (k0 + k2) / 2, k1 / 2
    return k0, outer + inner, outer - inner, k2


def _untile(y0: Array, y1: Array, y2: Array, y3: Array) -> tuple[Array, Array]:
    """A^T y: the two outputs from the four products."""
    return y0 + y1 + y2, y1 - y2 - y3


def three_by_three(
    x: Float[Array, "b l f c"], kernel: Float[Array, "3 3 c d"]
) -> Float[Array, "b l f d"]:
    """A dense centred convolution of 3 x 3 taps with 16 products for each 2 x 2 outputs, not 36.

    y[b, i, j] = sum_mn x[b, i + m - 1, j + n - 1] kernel[m, n], zeros outside: F(2 x 2, 3 x 3).
    Rounding errors are 1.7 times those of a sum of nine products, and below those of XLA:CPU's
    convolution.
    """
    b, num_frames, num_bins, c = x.shape
    d = kernel.shape[3]
    m, n = -(-num_frames // 2), -(-num_bins // 2)
    # Blocks of 2 x 2; outputs need their own block, the next ones, and the one behind both.
    padded = jnp.pad(x, ((0, 0), (1, 2 * m + 1 - num_frames), (1, 2 * n + 1 - num_bins), (0, 0)))
    padded = padded.reshape(b, m + 1, 2, n + 1, 2, c)
    rows = _tiles(padded[:, :-1, 0], padded[:, :-1, 1], padded[:, 1:, 0], padded[:, 1:, 1])
    sums = []
    for x_row, kernel_row in zip(rows, _tile_taps(*kernel)):
        tiles = _tiles(
            x_row[:, :, :-1, 0], x_row[:, :, :-1, 1], x_row[:, :, 1:, 0], x_row[:, :, 1:, 1]
        )
        products = [x.reshape(-1, c) @ taps for x, taps in zip(tiles, _tile_taps(*kernel_row))]
        sums.append(_untile(*products))
    left, right = (_untile(*column) for column in zip(*sums))
    y = jnp.stack([left[0], right[0], left[1], right[1]], axis=1)  # [b * m * n, 4, d]
    y = y.reshape(b, m, n, 2, 2, d).transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * m, 2 * n, d)
    return y[:, :num_frames, :num_bins]


class Conv2D(nn.Module):
    """A square convolution without bias; see the head of this file."""

    features: int
    kernel_size: int = 3
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l f c"]) -> Float[Array, "b n g d"]:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        # He et al. (2015), equation 14: the variance of the gradients is kept through ReLUs.
        init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        kernel = self.param("kernel", init, shape, jnp.float32)
        return conv2d(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)
