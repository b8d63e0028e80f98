"""A net that says which face belongs to which voice: two encoders into one space."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from common import parallel
from common.nn import conv2d
from generation import voice


@dataclasses.dataclass(frozen=True)
class MatcherConfig:
    """Sizes. `temperature`: where the scale of the cosines, which is learned, begins.

    Few dimensions: a face has many traits of which a voice says nothing, and by which a net of more
    of them learns the training people by heart.
    """

    size: int = 8
    voice_channels: int = 64
    face_channels: int = 8
    temperature: float = 0.2
    colour: float = 0.15  # faces are brightened and tinted by so much in training


class Matcher(nn.Module):
    """Vectors of length 1 of voices and of faces; those of one person are near each other."""

    config: MatcherConfig

    def setup(self) -> None:
        c, size = self.config, self.config.size
        self.hear = nn.Dense(c.voice_channels)
        self.heard = nn.Dense(size)
        widths = [c.face_channels * factor for factor in (1, 2, 4)]
        self.look = [conv2d.Conv2D(width, use_bias=True) for width in widths]
        self.seen = [nn.Dense(32), nn.Dense(size)]
        start = nn.initializers.constant(jnp.log(1 / c.temperature))
        self.log_scale = self.param("log_scale", start, (), jnp.float32)

    def voice(self, x: Float[Array, "b l f"], lengths: Int[Array, "b"]) -> Float[Array, "b d"]:
        """Of log-mel frames, by the mean and the deviation of each band."""
        hidden = nn.leaky_relu(self.hear(voice.moments(x, lengths)), 0.2)
        return voice.unit(self.heard(hidden))

    def face(self, pictures: Float[Array, "b h w c"]) -> Float[Array, "b d"]:
        """Of pictures in [-1, 1], of the size that it was trained on."""
        return self.of_features(self.features(pictures))

    def of_features(self, x: Float[Array, "b k"]) -> Float[Array, "b d"]:
        """The vectors of faces by their `features`."""
        return voice.unit(self.seen[-1](x))

    def features(self, pictures: Float[Array, "b h w c"]) -> Float[Array, "b k"]:
        """The last hidden layer of `face`, which says more than fits a voice: 32 numbers."""
        x = pictures
        for layer in self.look:
            x = nn.leaky_relu(layer(x), 0.2)
            b, h, w, c = x.shape
            x = x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))
        return nn.leaky_relu(self.seen[0](x.reshape(x.shape[0], -1)), 0.2)

    def __call__(
        self, x: Float[Array, "b l f"], lengths: Int[Array, "b"], pictures: Float[Array, "b h w c"]
    ) -> tuple[Float[Array, "b d"], Float[Array, "b d"], Float[Array, ""]]:
        """Both vectors, and what their cosines are multiplied with."""
        scale = jnp.exp(jnp.minimum(self.log_scale, jnp.log(50.0)))
        return self.voice(x, lengths), self.face(pictures), scale


def contrast(
    voices: Float[Array, "b d"],
    faces: Float[Array, "b d"],
    scale: Any,
    labels: Int[Array, "b"],
    mask: Bool[Array, "b"],
) -> tuple[Float[Array, "b"], Bool[Array, "b"]]:
    """InfoNCE of each row in both directions, and whether its face is the nearest to its voice.

    Oord et al. 2018, equation 4, symmetric as in CLIP (Radford et al. 2021, figure 3). All rows of
    the global batch are compared, inside the mapped axis; other rows of the same person and rows
    that are not real are left out.
    """

    def all_of(x: Array) -> Array:
        return jax.lax.all_gather(x, parallel.AXIS, tiled=True)

    mine = parallel.row_numbers(len(labels))
    all_labels, all_real = all_of(labels), all_of(mask)
    same = labels[:, None] == all_labels[None, :]
    own = mine[:, None] == jnp.arange(len(all_labels))[None, :]
    out = (same | ~all_real[None, :]) & ~own
    loss, correct = jnp.zeros(labels.shape), None
    for one, other in ((voices, faces), (faces, voices)):
        logits = jnp.where(out, -jnp.inf, scale * one @ all_of(other).T)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), mine[:, None], axis=1)[:, 0]
        loss -= 0.5 * chosen
        if correct is None:
            correct = jnp.argmax(logits, axis=1) == mine
    return loss, correct


def augmented(
    pictures: Float[Array, "b h w c"], keys: Array, strength: float
) -> Float[Array, "b h w c"]:
    """Pictures brightened, of other contrast and tint, and shifted by up to a 32nd of a side.

    Not by more: what of a drawn face follows its voice is a matter of few pixels, and with shifts
    of an eighth unseen people are matched by chance (benchmarks/RESULTS.md).
    """

    def one(picture: Array, key: Array) -> Array:
        light, contrast_key, tint, where = jax.random.split(key, 4)
        uniform = jax.random.uniform
        factor = 1 + strength * uniform(contrast_key, (), minval=-1, maxval=1)
        colour = uniform(tint, picture.shape[-1:], minval=-1, maxval=1)
        shift = strength * (uniform(light, (), minval=-1, maxval=1) + colour)
        most = picture.shape[0] // 32
        padded = jnp.pad(picture, ((most, most), (most, most), (0, 0)), mode="edge")
        top, left = jax.random.randint(where, (2,), 0, 2 * most + 1)
        cut = jax.lax.dynamic_slice(padded, (top, left, 0), picture.shape)
        return jnp.clip(factor * cut + shift[None, None, :], -1, 1)

    return jax.vmap(one)(pictures, keys)
