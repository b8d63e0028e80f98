"""Transposed convolutions of pictures, `[b, h, w, c] -> [b, s h, s w, d]`.

Each input is spread over as many outputs as there are taps.
XLA:CPU sets zeros between the inputs and multiplies them too: three of four at a stride of 2. On a
CPU, in float32, each input is multiplied with all taps at once, and what falls on one output is
added.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from common.nn import conv2d


def conv_transpose2d(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "k k c d"],
    stride: int = 2,
    padding: str = "SAME",
) -> Float[Array, "b hh ww d"]:
    """`jax.lax.conv_transpose` with the same stride and taps both ways.

    y[b, s i + p - m, s j + p - n] += x[b, i, j] kernel[m, n]. "SAME": s h x s w outputs, p = (k + s
    - 2) / 2, rounded up; with 4 taps and a stride of 2 the alignment of PyTorch's layer with a
    padding of 1, whose taps run the other way. "VALID": all outputs that there are.
    """
    taps = kernel.shape[0]
    if stride == 1 and padding == "SAME" and taps % 2:
        return conv2d.conv2d(x, kernel)
    direct = functools.partial(_direct, stride=stride, padding=padding)
    if x.dtype != jnp.float32:
        return direct(x, kernel)
    spread = functools.partial(_spread, stride=stride, padding=padding)
    return jax.lax.platform_dependent(x, kernel, cpu=spread, default=direct)


def _direct(x: Array, kernel: Array, *, stride: int, padding: str) -> Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_transpose(x, kernel, (stride, stride), padding, dimension_numbers=numbers)


def _spread(x: Array, kernel: Array, *, stride: int, padding: str) -> Array:
    (b, h, w, c), (k, _, _, d), s = x.shape, kernel.shape, stride
    blocks = -(-k // s)  # of s outputs, that an input falls on each way
    # Input (i, j) gives output (s i + m, s j + n) its product with tap (m, n) of these.
    turned = jnp.pad(kernel[::-1, ::-1], ((0, blocks * s - k),) * 2 + ((0, 0), (0, 0)))
    turned = turned.reshape(blocks, s, blocks, s, c, d).transpose(4, 0, 2, 1, 3, 5)
    products = x.reshape(-1, c) @ turned.reshape(c, -1)
    products = products.reshape(b, h, w, blocks, blocks, s * s * d)
    whole = jnp.zeros((), x.dtype)
    for row in range(blocks):
        for column in range(blocks):
            around = [(0, 0), (row, blocks - 1 - row), (column, blocks - 1 - column), (0, 0)]
            whole += jnp.pad(products[:, :, :, row, column], around)
    n, m = whole.shape[1:3]
    whole = whole.reshape(b, n, m, s, s, d).transpose(0, 1, 3, 2, 4, 5).reshape(b, s * n, s * m, d)
    before = k - 1 - (k + s - 1) // 2 if padding == "SAME" and s < k else 0
    more = max(k - s, 0) if padding == "VALID" else 0
    return whole[:, before : before + s * h + more, before : before + s * w + more]


class ConvTranspose2D(nn.Module):
    """`conv_transpose2d` with a bias: the parameters of `nn.ConvTranspose`."""

    features: int
    taps: int = 4
    stride: int = 2
    padding: str = "SAME"
    dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b hh ww d"]:
        shape = (self.taps, self.taps, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        kernel = jnp.asarray(kernel, self.dtype)
        y = conv_transpose2d(x.astype(self.dtype), kernel, self.stride, self.padding)
        return y + bias.astype(self.dtype)[None, None, None, :]
