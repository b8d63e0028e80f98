"""Inception v3 up to its 2048 pooled features, of weights that a user has: what FID looks with.

Szegedy et al. (2016), as TensorFlow's graph of 2015-12-05 has it, on which published FIDs stand.
There is a PyTorch copy of that, pt_inception-2015-12-05-6726825d.pth. It differs from torchvision's
Inception v3 in pools: averages do not count the padding, and the last block's pool is a maximum.
The names in the files are the same; which of the two one is, the number of classes tells. Both go
through the same network here.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from common import errors, torch_file
from common.nn import conv2d

SIZE = 2048  # features
SIDE = 299  # pixels of what the network sees
_EPSILON = 1e-3  # of the batch normalisation
_ORIGINAL, _TORCHVISION = 1008, 1000  # classes
_AT_ONCE = 16  # pictures: one program for any number of them
_UNUSED = ("AuxLogits.", "fc.")


class Layer(NamedTuple):
    """A convolution with its batch normalisation in it; a ReLU follows."""

    kernel: Float[Array, "k w c d"]
    bias: Float[Array, "d"]


# (name, x, features, taps=(1, 1), stride=1, padding="SAME"): that layer, and its ReLU, on x
_Convolve = Callable[..., Array]
_LONG, _HIGH = (1, 7), (7, 1)
_SQUARE = (3, 3)


def _network(conv: _Convolve, x: Array) -> Array:
    """Values in [-1, 1], [b, h, w, 3], to [b, SIZE]; from 75 x 75 on something is left."""
    x = conv("Conv2d_1a_3x3", x, 32, _SQUARE, 2, "VALID")
    x = conv("Conv2d_2a_3x3", x, 32, _SQUARE, 1, "VALID")
    x = conv("Conv2d_2b_3x3", x, 64, _SQUARE)
    x = _less(x)
    x = conv("Conv2d_3b_1x1", x, 80)
    x = conv("Conv2d_4a_3x3", x, 192, _SQUARE, 1, "VALID")
    x = _less(x)
    for name, features in (("5b", 32), ("5c", 64), ("5d", 64)):
        x = _a(_within(conv, f"Mixed_{name}"), x, features)
    x = _b(_within(conv, "Mixed_6a"), x)
    for name, features in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        x = _c(_within(conv, f"Mixed_{name}"), x, features)
    x = _d(_within(conv, "Mixed_7a"), x)
    x = _e(_within(conv, "Mixed_7b"), x, average)
    x = _e(_within(conv, "Mixed_7c"), x, maximum)
    return jnp.mean(x, axis=(1, 2))


def _within(conv: _Convolve, block: str) -> _Convolve:
    """By the names within a block."""
    return lambda name, *rest: conv(f"{block}.{name}", *rest)


def average(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Of 3 x 3 around each, as many of them as there are."""
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def maximum(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Of 3 x 3 around each."""
    return nn.max_pool(x, (3, 3), (1, 1), "SAME")


def _less(x: Array) -> Array:
    """Every second maximum of 3 x 3."""
    return nn.max_pool(x, (3, 3), (2, 2), "VALID")


def _joined(*branches: Array) -> Array:
    return jnp.concatenate(branches, axis=-1)


def _a(conv: _Convolve, x: Array, pooled: int) -> Array:
    wide = conv("branch5x5_2", conv("branch5x5_1", x, 48), 64, (5, 5))
    twice = conv("branch3x3dbl_2", conv("branch3x3dbl_1", x, 64), 96, _SQUARE)
    twice = conv("branch3x3dbl_3", twice, 96, _SQUARE)
    pool = conv("branch_pool", average(x), pooled)
    return _joined(conv("branch1x1", x, 64), wide, twice, pool)


def _b(conv: _Convolve, x: Array) -> Array:
    once = conv("branch3x3", x, 384, _SQUARE, 2, "VALID")
    twice = conv("branch3x3dbl_2", conv("branch3x3dbl_1", x, 64), 96, _SQUARE)
    twice = conv("branch3x3dbl_3", twice, 96, _SQUARE, 2, "VALID")
    return _joined(once, twice, _less(x))


def _c(conv: _Convolve, x: Array, features: int) -> Array:
    once = conv("branch7x7_2", conv("branch7x7_1", x, features), features, _LONG)
    once = conv("branch7x7_3", once, 192, _HIGH)
    twice = conv("branch7x7dbl_2", conv("branch7x7dbl_1", x, features), features, _HIGH)
    twice = conv("branch7x7dbl_3", twice, features, _LONG)
    twice = conv("branch7x7dbl_4", twice, features, _HIGH)
    twice = conv("branch7x7dbl_5", twice, 192, _LONG)
    pool = conv("branch_pool", average(x), 192)
    return _joined(conv("branch1x1", x, 192), once, twice, pool)


def _d(conv: _Convolve, x: Array) -> Array:
    small = conv("branch3x3_2", conv("branch3x3_1", x, 192), 320, _SQUARE, 2, "VALID")
    wide = conv("branch7x7x3_2", conv("branch7x7x3_1", x, 192), 192, _LONG)
    wide = conv("branch7x7x3_3", wide, 192, _HIGH)
    wide = conv("branch7x7x3_4", wide, 192, _SQUARE, 2, "VALID")
    return _joined(small, wide, _less(x))


def _e(conv: _Convolve, x: Array, pooled: Callable[[Array], Array]) -> Array:
    def split(name: str, x: Array) -> list[Array]:
        return [conv(f"{name}a", x, 384, (1, 3)), conv(f"{name}b", x, 384, (3, 1))]

    once = split("branch3x3_2", conv("branch3x3_1", x, 384))
    twice = conv("branch3x3dbl_2", conv("branch3x3dbl_1", x, 448), 384, _SQUARE)
    twice = split("branch3x3dbl_3", twice)
    pool = conv("branch_pool", pooled(x), 192)
    return _joined(conv("branch1x1", x, 320), *once, *twice, pool)


def kernel_shapes() -> dict[str, tuple[int, int, int, int]]:
    """Of every layer by its name: taps, channels and features."""
    found = {}

    def conv(name, x, features, taps=(1, 1), stride=1, padding="SAME"):
        found[name] = (*taps, x.shape[-1], features)
        size = x.shape[1:3]
        if padding == "VALID":
            size = [(length - tap) // stride + 1 for length, tap in zip(size, taps)]
        return jnp.zeros((x.shape[0], *size, features))

    jax.eval_shape(functools.partial(_network, conv), jax.ShapeDtypeStruct((1, 75, 75, 3), "f4"))
    return found


def pooled_features(
    layers: Mapping[str, Layer], x: Float[Array, "b h w 3"]
) -> Float[Array, "b 2048"]:
    """Of values in [-1, 1], at the size that they have."""

    def conv(name, x, features, taps=(1, 1), stride=1, padding="SAME"):
        kernel, bias = layers[name]
        if padding == "SAME":  # none of them has a stride
            y = conv2d.conv2d(x, kernel)
        else:
            y = jax.lax.conv_general_dilated(
                *(x, kernel, (stride, stride), padding),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        return jax.nn.relu(y + bias[None, None, None, :])

    return _network(conv, x)


def seen(pictures: UInt8[Array, "b h w c"]) -> Float[Array, "b 299 299 3"]:
    """Bytes to what the network sees: in [-1, 1], bilinear between the middles of pixels, without
    antialiasing, as pytorch-fid does it; grey ones in three equal channels."""
    values = pictures.astype(jnp.float32) / 255
    shape = (len(pictures), SIDE, SIDE, pictures.shape[-1])
    values = jax.image.resize(values, shape, "bilinear", antialias=False)
    return jnp.broadcast_to(2 * values - 1, (*shape[:3], 3))


@jax.jit
def _features(layers: Mapping[str, Layer], pictures: Array) -> Array:
    with jax.default_matmul_precision("highest"):  # no TF32 on a GPU: figures are compared
        return pooled_features(layers, seen(pictures))


@dataclasses.dataclass(frozen=True, eq=False)
class Inception:
    """The network with the weights of a file; `is_original`: those that published FIDs stand on,
    and else torchvision's."""

    layers: Mapping[str, Layer]
    is_original: bool

    def features(self, pictures: UInt8[np.ndarray, "b h w c"]) -> Float[np.ndarray, "b 2048"]:
        """Of pictures of any size, grey or in colours."""
        found = [np.zeros((0, SIZE), np.float32)]
        for start in range(0, len(pictures), _AT_ONCE):
            some = pictures[start : start + _AT_ONCE]
            whole = np.resize(some, (_AT_ONCE, *some.shape[1:]))
            found.append(np.asarray(_features(self.layers, jnp.asarray(whole)))[: len(some)])
        return np.concatenate(found)


def read(path: pathlib.Path | str) -> Inception:
    """The network of a PyTorch file. Raises UserError: no such file, or one of another network."""
    return from_arrays(torch_file.read(path), path)


def from_arrays(arrays: Any, path: object) -> Inception:
    """Of what is in the file `path`, arrays by name. Raises UserError, which names it."""
    shapes = _shapes_of_file()
    if not isinstance(arrays, Mapping) or not set(shapes) & set(arrays):
        raise errors.UserError(
            f"{path} holds no Inception v3: there is nothing of the name {next(iter(shapes))}. "
            "What is read is pt_inception-2015-12-05-6726825d.pth, or torchvision's "
            "inception_v3_google-*.pth."
        )
    if missing := [name for name in shapes if name not in arrays]:
        raise errors.UserError(
            f"{path}: {len(missing)} arrays of Inception v3 are missing, the first is {missing[0]}."
        )
    other = [name for name in arrays if name not in shapes and not _is_unused(name)]
    if other:
        raise errors.UserError(f"{path} is of another network: Inception v3 has no {other[0]}.")
    for name, shape in shapes.items():
        if (own := np.shape(arrays[name])) != shape:
            raise errors.UserError(
                f"{path} is of another network: {name} has the shape {own}, in Inception v3 it is "
                f"{shape}."
            )
    classes = len(arrays["fc.weight"]) if np.ndim(arrays.get("fc.weight")) == 2 else 0
    if classes not in (_ORIGINAL, _TORCHVISION):
        raise errors.UserError(
            f"{path}: fc.weight is of {classes} classes. It tells which network this is: of FID's "
            f"there are {_ORIGINAL}, of torchvision's {_TORCHVISION}."
        )
    layers = {}
    for name in kernel_shapes():
        layers[name] = _folded(name, arrays)
        if not all(np.isfinite(array).all() for array in layers[name]):
            raise errors.UserError(f"{path}: the layer {name} has values that are not finite.")
    return Inception(jax.tree.map(jnp.asarray, layers), classes == _ORIGINAL)


def _shapes_of_file() -> dict[str, tuple[int, ...]]:
    """Of the arrays that are read, as PyTorch has them."""
    found = {}
    for name, (*taps, channels, features) in kernel_shapes().items():
        found[f"{name}.conv.weight"] = (features, channels, *taps)
        for part in ("weight", "bias", "running_mean", "running_var"):
            found[f"{name}.bn.{part}"] = (features,)
    return found


def _is_unused(name: str) -> bool:
    return name.startswith(_UNUSED) or name.endswith(".num_batches_tracked")


def _folded(name: str, arrays: Mapping[str, np.ndarray]) -> Layer:
    """The normalisation by running statistics is linear, as the convolution before it is."""
    kernel, gamma, beta, mean, variance = (
        arrays[f"{name}.{part}"].astype(np.float64)
        for part in ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = gamma / np.sqrt(variance + _EPSILON)
        kernel = kernel.transpose(2, 3, 1, 0) * scale
        return Layer(kernel.astype(np.float32), (beta - mean * scale).astype(np.float32))
