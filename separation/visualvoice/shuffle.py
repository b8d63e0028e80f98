"""ShuffleNetV2 (Ma et al., ECCV 2018, arXiv:1807.11164), without its first layers and its head."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from separation.visualvoice import layers
from separation.visualvoice.config import VisualVoiceConfig


class Depthwise(nn.Module):
    """BN of 3 x 3 taps a channel: a sum of nine shifted products, as in `common.nn.conv`."""

    config: VisualVoiceConfig
    stride: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], mask: Float[Array, "n 1 1"], *, train: bool
    ) -> Float[Array, "n p q c"]:
        init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
        kernel = self.param("kernel", init, (3, 3, 1, x.shape[-1]), jnp.float32).astype(x.dtype)
        x = depthwise(x, kernel[:, :, 0], self.stride)
        return layers.batch_norm(self.config, "norm")(x, mask, train=train)


def depthwise(
    x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 c"], stride: int
) -> Float[Array, "n p q c"]:
    """y[n, i, j] = sum_ab x[n, i s + a - 1, j s + b - 1] kernel[a, b], zeros outside."""
    height, width = (-(-size // stride) for size in x.shape[1:3])
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = [
        padded[:, a : a + (height - 1) * stride + 1 : stride][
            :, :, b : b + (width - 1) * stride + 1 : stride
        ]
        * kernel[a, b][None, None, None, :]
        for a in range(3)
        for b in range(3)
    ]
    return functools.reduce(jnp.add, taps)


class Unit(nn.Module):
    """Figure 3 of the paper: (c) with stride 1, where half of the channels pass, (d) with 2."""

    config: VisualVoiceConfig
    features: int
    stride: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], mask: Float[Array, "n 1 1"], *, train: bool
    ) -> Float[Array, "n p q d"]:
        half = self.features // 2

        def pointwise(x: Array, name: str) -> Array:
            layer = layers.Normalized(self.config, half, (1, 1), name=name)
            return jax.nn.relu(layer(x, mask, train=train))

        def depthwise(x: Array, name: str) -> Array:
            return Depthwise(self.config, self.stride, name=name)(x, mask, train=train)

        if self.stride == 1:
            passed, x = x[..., :half], x[..., half:]
        else:
            passed = pointwise(depthwise(x, "left_taps"), "left")
        x = pointwise(depthwise(pointwise(x, "enter"), "taps"), "leave")
        # The shuffle: channel i of either branch comes to 2 i and 2 i + 1.
        return jnp.stack([passed, x], axis=-1).reshape(*x.shape[:-1], self.features)


class ShuffleNet(nn.Module):
    """Stages of units, the first of each with stride 2; a last 1 x 1 layer, and the mean."""

    config: VisualVoiceConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], mask: Float[Array, "n 1 1"], *, train: bool
    ) -> Float[Array, "n d"]:
        """Of pictures that are 0 where the mask is; so is what comes out."""
        config = self.config
        for stage, (features, units) in enumerate(
            zip(config.lip_stages, config.lip_units, strict=True)
        ):
            for i in range(units):
                unit = Unit(config, features, 1 if i else 2, name=f"stage{stage + 1}_unit{i + 1}")
                x = layers.applied(unit, x, mask, train=train, remat=config.remat)
        last = layers.Normalized(config, config.lip_features, (1, 1), name="last")
        x = jax.nn.relu(last(x, mask, train=train))
        return jnp.mean(x, axis=(1, 2))
