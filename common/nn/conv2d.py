"""Convolutions over time and frequency, `[b, l, f, c] -> [b, n, g, d]`.

Output (i, j) is centred on input (i, j) * stride, so that the alignment hangs on the true start of
a row and not on its padding; n and g are l and f over the stride, rounded up. A row's input must be
0 beyond its true end.

XLA:CPU is fast at convolutions with small kernels, and slow at some of the gradients: of kernels,
which are convolutions with kernels as large as the picture, and of the input behind a stride. On a
CPU, in float32, they are computed otherwise here, and wide layers with fewer multiplications.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from common.nn import adjoints, conv

# From so many channels on, on both sides, sixteen products and their sums (`three_by_three`) take
# less time than XLA:CPU's convolution: 0.65 of it with 128 channels, as long with 64.
MIN_THREE_BY_THREE_CHANNELS = 128


def conv2d(
    x: Float[Array, "b l f c"],
    kernel: Float[Array, "k w c d"],
    stride: int = 1,
    dilation: int = 1,
) -> Float[Array, "b n g d"]:
    """y[b, i, j] = sum_mn x[b, i s + (m - p) d, j s + n - q] kernel[m, n], zeros outside of x.

    s: stride; d: dilation, of the taps in time; one of the two is 1. p = (k - 1) // 2 and
    q = (w - 1) // 2 taps come before the middle.
    """
    if min(stride, dilation) > 1:
        raise ValueError(f"stride={stride} and dilation={dilation}: one of them has to be 1")
    if kernel.shape[:2] == (1, 1):
        return conv.pointwise(x[:, ::stride, ::stride], kernel[0, 0])
    direct = functools.partial(_direct, stride=stride, dilation=dilation)
    if x.dtype != jnp.float32:
        return direct(x, kernel)
    on_cpu = functools.partial(_on_cpu, stride, dilation)
    return jax.lax.platform_dependent(x, kernel, cpu=on_cpu, default=direct)


def _sides(kernel_size: int, dilation: int = 1) -> tuple[int, int]:
    """Zeros before and after."""
    left = conv.left_padding(kernel_size, causal=False)
    return left * dilation, (kernel_size - 1 - left) * dilation


def _direct(x: Array, kernel: Array, *, stride: int, dilation: int) -> Array:
    return adjoints.plain(x, kernel, *_how(kernel.shape[:2], stride, dilation))


def _how(taps: Sequence[int], stride: int, dilation: int) -> tuple[Any, ...]:
    """Strides, padding and dilations in time and frequency, as `adjoints` wants them."""
    return (stride, stride), (_sides(taps[0], dilation), _sides(taps[1])), (dilation, 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _on_cpu(stride: int, dilation: int, x: Array, kernel: Array) -> Array:
    return _value(stride, dilation, x, kernel)


def _value(stride: int, dilation: int, x: Array, kernel: Array) -> Array:
    """Without a rule of its own, so that the rules made of it have derivatives."""
    wide = min(kernel.shape[2:]) >= MIN_THREE_BY_THREE_CHANNELS
    if wide and kernel.shape[:2] == (3, 3) and max(stride, dilation) == 1:
        return three_by_three(x, kernel)
    return _direct(x, kernel, stride=stride, dilation=dilation)


def _forward(stride, dilation, x, kernel):
    return _value(stride, dilation, x, kernel), (x, kernel)


def _backward(stride, dilation, residuals, dy):
    x, kernel = residuals
    taps, (channels, features) = kernel.shape[:2], kernel.shape[2:]
    how = _how(taps, stride, dilation)
    pull_x = functools.partial(adjoints.input_gradient, x.shape, kernel, dy, *how)
    if stride > 1 and min(taps) > 3:
        # Alone XLA's own gradient of a kernel is the faster one with 3 x 3 taps too, but not inside
        # of a ResNet34, a step of which takes a twentieth longer with it.
        in_blocks = features <= 8 * channels
        dx = _input_gradient_in_blocks(x, kernel, dy, stride) if in_blocks else pull_x()
        return dx, adjoints.kernel_gradient(x, dy, taps, *how)
    few = stride > 1 or channels == 1  # of one channel there is little to do
    if few or any(size % 2 == 0 for size in taps):
        dx = pull_x()
    else:
        # The adjoint of a correlation is the correlation with the kernel turned round.
        dx = _value(1, dilation, dy, kernel[::-1, ::-1].swapaxes(2, 3))
    if few and dilation == 1:
        return dx, _strided_kernel_gradient(x, dy, taps, stride)
    return dx, _kernel_gradient(x, dy, taps, dilation)


_on_cpu.defvjp(_forward, _backward)


def _kernel_gradient(x: Array, dy: Array, taps: tuple[int, int], dilation: int) -> Array:
    """sum_bij x[b, i + (m - p) * dilation, j + n - q, c] dy[b, i, j, d], `[k, w, c, d]`.

    A convolution over time alone: its rows are the channels of x, what it sums are the rows and
    frequencies of the batch, and its kernel is dy as long as it is; outputs are `dilation` apart.
    The shifts in frequency are columns of that kernel. Three times as fast as XLA:CPU's own with 32
    and 64 channels and 3 x 3 taps.
    """
    b, num_frames, num_bins, c = x.shape
    left, right = _sides(taps[1])
    # Multiplied with 1, or XLA computes x anew in the transposing loop, from the block before on.
    rows = (jnp.eye(c) @ x.reshape(-1, c).T).reshape(c, b, num_frames, num_bins)
    rows = rows.transpose(0, 2, 1, 3).reshape(c, num_frames, b * num_bins)
    padded = jnp.pad(dy.transpose(1, 0, 2, 3), ((0, 0), (0, 0), (right, left), (0, 0)))
    shifts = [padded[:, :, n : n + num_bins] for n in reversed(range(taps[1]))]
    columns = jnp.concatenate(shifts, axis=-1).reshape(num_frames, b * num_bins, -1)
    around = _sides(taps[0], dilation)
    sums = jax.lax.conv_general_dilated(
        rows, columns, (dilation,), [around], dimension_numbers=("NWC", "WIO", "NWC")
    )
    return sums.reshape(c, *taps, -1).transpose(1, 2, 0, 3)


def _strided_kernel_gradient(x: Array, dy: Array, taps: tuple[int, int], stride: int) -> Array:
    """The same for every `stride`-th output: a product of matrices for each row of the kernel."""
    (_, n, g, d), c = dy.shape, x.shape[3]
    padded = jnp.pad(x, ((0, 0), _sides(taps[0]), _sides(taps[1]), (0, 0)))
    sums = []
    for row in range(taps[0]):
        frames = padded[:, row : row + (n - 1) * stride + 1 : stride]
        under = [frames[:, :, tap : tap + (g - 1) * stride + 1 : stride] for tap in range(taps[1])]
        seen = jnp.concatenate(under, axis=-1).reshape(-1, taps[1] * c)
        sums.append((seen.T @ dy.reshape(-1, d)).reshape(taps[1], c, d))
    return jnp.stack(sums)


def _blocks(
    x: Float[Array, "b l f c"], taps: tuple[int, int], stride: int
) -> Float[Array, "b n g e"]:
    """x in blocks of stride x stride as channels, of which output (i, j) sees those from (i, j) on.

    So a convolution with a stride is one without, whose kernel has a stride-th of the taps each way
    (`_taps_of_blocks`).
    """
    b, num_frames, num_bins, c = x.shape
    pads = []
    for size, count in ((num_frames, taps[0]), (num_bins, taps[1])):
        left, outputs = _sides(count)[0], -(-size // stride)
        pads.append((left, stride * (outputs - 1 + -(-count // stride)) - size - left, 0))
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
    n, g = x.shape[1] // stride, x.shape[2] // stride
    x = x.reshape(b, n, stride, g, stride, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, n, g, -1)


def _taps_of_blocks(kernel: Float[Array, "k w c d"], stride: int) -> Float[Array, "q r e d"]:
    """The kernel over `_blocks`; those of its taps that there are not are 0."""
    k, w, c, d = kernel.shape
    q, r = -(-k // stride), -(-w // stride)
    kernel = jnp.pad(kernel, ((0, q * stride - k), (0, r * stride - w), (0, 0), (0, 0)))
    kernel = kernel.reshape(q, stride, r, stride, c, d).transpose(0, 2, 1, 3, 4, 5)
    return kernel.reshape(q, r, -1, d)


def _input_gradient_in_blocks(x: Array, kernel: Array, dy: Array, stride: int) -> Array:
    """That of a convolution with a stride, as of one over `_blocks`.

    It multiplies none of the zeros that XLA:CPU sets between outputs: a quarter of the time where
    taps are many and features few.
    """
    _, pull = jax.vjp(lambda x: _blocks(x, kernel.shape[:2], stride), x)
    wide = _taps_of_blocks(kernel, stride)
    around = [(size - 1, size - 1) for size in wide.shape[:2]]
    turned = wide[::-1, ::-1].swapaxes(2, 3)
    numbers = ("NHWC", "HWIO", "NHWC")
    found = jax.lax.conv_general_dilated(dy, turned, (1, 1), around, dimension_numbers=numbers)
    return pull(found)[0]


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


# He et al. (2015), equation 14: the variance of the gradients is kept through ReLUs.
KEEP_GRADIENTS = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Conv2D(nn.Module):
    """A convolution of `taps` in time and frequency; see the head of this file."""

    features: int
    taps: tuple[int, int] = (3, 3)
    stride: int = 1
    dilation: int = 1  # of the taps in time
    use_bias: bool = False
    dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = KEEP_GRADIENTS

    @nn.compact
    def __call__(self, x: Float[Array, "b l f c"]) -> Float[Array, "b n g d"]:
        shape = (*self.taps, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        kernel = jnp.asarray(kernel, self.dtype)
        y = conv2d(x.astype(self.dtype), kernel, self.stride, self.dilation)
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return y + bias.astype(self.dtype)[None, None, None, :]
