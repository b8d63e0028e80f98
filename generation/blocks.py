"""What the networks of pictures are made of: resampling, norms, layers of a spectral norm of 1."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from common.nn import conv2d, norm
from generation import sides

FIRST = 4  # pixels a side, where generators begin and discriminators end
SPECTRAL = "spectral"  # the collection of the power iterations' vectors
MOMENTUM = 0.9  # of running statistics
_SLOPE = 0.2


def leaky(x: Array) -> Array:
    """max(x, 0.2 x)."""
    return nn.leaky_relu(x, _SLOPE)


def steps_between(size: int) -> int:
    """Doublings from `FIRST` to at least `size` pixels: 28 is cut out of 32."""
    return max(0, (size - 1).bit_length() - (FIRST - 1).bit_length())


def first_of(size: tuple[int, int]) -> tuple[tuple[int, int], int]:
    """Height and width from which so many doublings lead to `size` at least.

    The smaller side begins at `FIRST` pixels or less: 80 is cut out of 96, 3 times 2 to the 5.
    """
    steps = steps_between(min(size))
    height, width = (-(-side >> steps) for side in size)
    return (height, width), steps


def cut(x: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b hh ww c"]:
    """The middle of a picture."""
    top, left = ((have - want) // 2 for have, want in zip(x.shape[1:3], size))
    return x[:, top : top + size[0], left : left + size[1]]


def padded(x: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b hh ww c"]:
    """Zeros around a picture."""
    missing = [want - have for have, want in zip(x.shape[1:3], size)]
    around = [(some // 2, some - some // 2) for some in missing]
    return jnp.pad(x, ((0, 0), *around, (0, 0)))


def pixel_norm(x: Array) -> Array:
    """Each pixel's channels at a mean square of 1 (Karras et al. 2018, section 4.2)."""
    square = jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
    return (x * jax.lax.rsqrt(square + 1e-8)).astype(x.dtype)


def doubled(x: Float[Array, "b h w c"]) -> Float[Array, "b hh ww c"]:
    """Every pixel four times."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


def halved(x: Float[Array, "b h w c"]) -> Float[Array, "b hh ww c"]:
    """The mean of every four pixels."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


class BatchNorm(nn.Module):
    """Batch normalisation over the real rows of all devices; by running statistics in evaluation.

    `[b, h, w, c]` or `[b, c]`.
    """

    axis_name: str | None = None
    affine: bool = True

    @nn.compact
    def __call__(self, x: Array, training: sides.Training | None) -> Array:
        layer = norm.MaskedBatchNorm(
            MOMENTUM, axis_name=self.axis_name, affine=self.affine, name="norm"
        )
        if training is None:
            return layer(x, train=False)
        mask = training.mask.reshape(-1, *(1,) * (x.ndim - 2))
        return layer(x, mask, train=True)


class ConditionalNorm(nn.Module):
    """A norm whose scale and bias are linear in the condition (Dumoulin et al. 2017, section 2.2).

    Of a class as a one-hot vector: its rows of two tables. `kind`: batch, or pixel, which sees no
    other rows.
    """

    kind: str
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        condition: Float[Array, "b d"],
        training: sides.Training | None,
    ) -> Float[Array, "b h w c"]:
        if self.kind == "batch":
            x = BatchNorm(self.axis_name, affine=False, name="batch")(x, training)
        else:
            x = pixel_norm(x)
        scale, bias = (
            nn.Dense(x.shape[-1], use_bias=False, kernel_init=nn.initializers.zeros, name=name)(
                condition
            )[:, None, None, :].astype(x.dtype)
            for name in ("scale", "bias")
        )
        return x * (1 + scale) + bias


def _unit(x: Float[Array, "n"]) -> Float[Array, "n"]:
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x)) + 1e-12)


def _over_spectral_norm(layer: nn.Module, kernel: Array, *, train: bool) -> Array:
    """A kernel `[..., d]`, as a matrix of d columns, over its largest singular value.

    One power iteration a step of training, from the vector of the step before; it is a constant to
    the gradient (Miyato et al. 2018, algorithm 1).
    """
    matrix, highest = kernel.reshape(-1, kernel.shape[-1]), jax.lax.Precision.HIGHEST

    def start() -> Array:
        return _unit(jax.random.normal(layer.make_rng("params"), kernel.shape[-1:]))

    state = layer.variable(SPECTRAL, "right", start)
    fixed, right = jax.lax.stop_gradient(matrix), state.value
    left = _unit(jnp.matmul(fixed, right, precision=highest))
    if train:
        right = _unit(jnp.matmul(left, fixed, precision=highest))
        state.value = right
    along = jnp.matmul(matrix, right, precision=highest)
    return kernel / jnp.vdot(left, along, precision=highest)


class Dense(nn.Module):
    """A linear layer; with `spectral` of a spectral norm of 1."""

    features: int
    use_bias: bool = True
    spectral: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b d"], *, train: bool) -> Float[Array, "b n"]:
        start = nn.initializers.glorot_uniform()
        kernel = self.param("kernel", start, (x.shape[-1], self.features), jnp.float32)
        if self.spectral:
            kernel = _over_spectral_norm(self, kernel, train=train)
        y = x @ kernel
        if not self.use_bias:
            return y
        return y + self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)[None]


class Conv(nn.Module):
    """A centred convolution with a bias; with `spectral` its kernel has a spectral norm of 1."""

    features: int
    taps: int = 3
    spectral: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w d"]:
        shape = (self.taps, self.taps, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.glorot_uniform(), shape, jnp.float32)
        if self.spectral:
            kernel = _over_spectral_norm(self, kernel, train=train)
        y = conv2d.conv2d(x.astype(self.dtype), kernel.astype(self.dtype))
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return y + bias.astype(self.dtype)[None, None, None]
