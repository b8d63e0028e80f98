"""What is seen of a speaker as a cue: lips that say when and what, a face that says whose voice.

A mixture's extractor is given one vector a frame of a mouth (25 a second), and one of a face, which
is added to that of the voice. Any of them may be missing, frame by frame: what is learned for
"nothing is seen" stands in. The vector of a frame is of that picture and of those just before it,
so that a stream needs no look-ahead.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt8

from common import errors
from common.data import records
from common.nn import conv2d
from separation import cue as cue_lib
from separation import films

_PATCH = 4  # pixels each way
_MOUTH_SHARE, _FACE_SHARE = 3, 4  # of 96 and 224 pixels: 32 and 56 are looked at


@dataclasses.dataclass(frozen=True)
class SightConfig:
    """Which cues there are, and the sizes of what makes them.

    Attributes:
        lips, face: whether they are seen at all.
        pictures: portraits whose cues are averaged.
        dropout: the share of training rows whose lips are not shown; that of faces, for itself.
        frames: pictures of a mouth that are seen at once, the last one being the present.
        widths: channels of patches of 4 x 4, and of convolutions, each of which halves what is
            left.
        size: entries of what is known of a frame.
    """

    lips: bool = False
    face: bool = False
    pictures: int = 1
    dropout: float | int = 0.2
    frames: int = 3
    widths: tuple[int, ...] = (32, 64)
    size: int = 64

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise errors.UserError(f"config.sight.dropout={self.dropout}: from 0 to below 1.")
        for name in ("pictures", "frames", "size"):
            if getattr(self, name) < 1:
                raise errors.UserError(f"config.sight.{name}={getattr(self, name)}: 1 at least.")


def cues(config: Any) -> tuple[str, ...]:
    """What the network of a config may know a voice by: voice, lips, face."""
    if config.model.kind == "visualvoice":
        sizes = config.model.visualvoice
        return ("lips",) * sizes.lip + ("face",) * sizes.face
    return ("voice", *("lips",) * config.sight.lips, *("face",) * config.sight.face)


def wanted(config: Any) -> bool:
    """Whether the network of a config sees anything."""
    return not {"lips", "face"}.isdisjoint(cues(config))


def films_of(source: records.Source, config: Any) -> films.Films:
    """The pictures beside recordings, of those that the network of a config looks at."""
    rate, shown = config.data.sample_rate_hz, cues(config)
    pictures = config.sight.pictures
    return films.Films(source, rate, pictures, "lips" in shown, "face" in shown)


class Seen(NamedTuple):
    """What is shown of the speakers of mixtures: see `mixing.Mixtures`."""

    mouth: UInt8[Array, "b v 96 96"]
    mouth_seen: Bool[Array, "b v"]
    face: UInt8[Array, "b k 224 224 3"]
    face_seen: Bool[Array, "b k"]

    def without(self, lips: Bool[Array, "b"] | bool, face: Bool[Array, "b"] | bool) -> "Seen":
        """In rows where `lips` is true they are not shown; nor is the face, where that is."""
        rows = (len(self.mouth_seen), 1)
        lips, face = (jnp.broadcast_to(x, rows[:1]).reshape(rows) for x in (lips, face))
        mouth_seen, face_seen = self.mouth_seen & ~lips, self.face_seen & ~face
        return self._replace(mouth_seen=mouth_seen, face_seen=face_seen)


class Motion(NamedTuple):
    """What lips do: a vector a frame, and the one of frames that there are not."""

    frames: Float[Array, "b v d"]
    nothing: Float[Array, "d"]

    def at_hops(self, count: int, hop_size: int, sample_rate_hz: int) -> Float[Array, "b n d"]:
        """What is known at the end of each of `count` hops."""
        latest = latest_picture(jnp.arange(1, count + 1) * hop_size, sample_rate_hz)
        b, v, d = self.frames.shape
        nothing = jnp.broadcast_to(self.nothing, (b, 1, d))
        known = jnp.concatenate([nothing, self.frames, nothing], axis=1)
        return known[:, jnp.clip(latest, -1, v) + 1]


def latest_picture(samples: Any, sample_rate_hz: int) -> Any:
    """The number of the newest picture after so many samples: one is of the middle of its 40 ms.

    Below 0: there is none yet.
    """
    grain = sample_rate_hz // films.FRAMES_PER_SECOND
    return (samples - grain // 2) // grain


class _Pictures(nn.Module):
    """Pictures of 1 or more channels -> a vector each.

    First come patches of 4 x 4, which a CPU does a third as long as convolutions that overlap.
    """

    widths: tuple[int, ...]
    size: int

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n d"]:
        x = _patches(x, _PATCH)
        for i, width in enumerate(self.widths):
            if i:
                x = conv2d.Conv2D(width, (3, 3), 2, use_bias=True, name=f"conv{i}")(x)
            else:
                x = nn.Dense(width, name="patches")(x)
            x = jax.nn.relu(nn.LayerNorm(name=f"norm{i}")(x))
        return nn.Dense(self.size, name="output")(x.reshape(len(x), -1))


class LipEncoder(nn.Module):
    """Mouths -> `Motion`."""

    config: SightConfig

    @nn.compact
    def __call__(self, mouth: UInt8[Array, "b v h w"], seen: Bool[Array, "b v"]) -> Motion:
        """Pictures that are not seen may be anything; their neighbours see the mean in place."""
        config, (b, v) = self.config, seen.shape
        x = _normalised(mouth.reshape(b * v, *mouth.shape[2:], 1), _MOUTH_SHARE)
        x = x.reshape(b, v, *x.shape[1:3]) * seen[:, :, None, None]
        before = jnp.pad(x, ((0, 0), (config.frames - 1, 0), (0, 0), (0, 0)))
        x = jnp.stack([before[:, i : i + v] for i in range(config.frames)], axis=-1)
        x = _Pictures(config.widths, config.size, name="pictures")(x.reshape(b * v, *x.shape[2:]))
        x = nn.LayerNorm(name="norm")(x).reshape(b, v, config.size)
        nothing = self.param("nothing", nn.initializers.normal(1.0), (config.size,))
        return Motion(jnp.where(seen[:, :, None], x, nothing), nothing)

    def nothing(self, batch: int) -> Motion:
        """Of rows without a film."""
        size = films.MOUTH
        return self(jnp.zeros((batch, 1, *size), jnp.uint8), jnp.zeros((batch, 1), bool))


class FaceEncoder(nn.Module):
    """Portraits -> what is added to the voice's cue; 0 where there are none."""

    config: SightConfig
    cue_size: int

    @nn.compact
    def __call__(
        self, face: UInt8[Array, "b k h w 3"], seen: Bool[Array, "b k"]
    ) -> Float[Array, "b c"]:
        config, (b, k) = self.config, seen.shape
        x = _normalised(face.reshape(b * k, *face.shape[2:]), _FACE_SHARE)
        x = _Pictures(config.widths, self.cue_size, name="pictures")(x).reshape(b, k, -1)
        count = jnp.sum(seen, axis=1, keepdims=True).astype(jnp.float32)
        mean = jnp.sum(x * seen[:, :, None], axis=1) / jnp.maximum(count, 1.0)
        return jnp.where(count > 0, cue_lib.unit(mean), 0.0)


def _patches(x: Float[Array, "n h w c"], size: int) -> Float[Array, "n p q d"]:
    """All that is in each patch."""
    n, h, w, c = x.shape
    x = x.reshape(n, h // size, size, w // size, size, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, h // size, w // size, size * size * c)


def _normalised(pictures: UInt8[Array, "n h w c"], smaller: int) -> Float[Array, "n p q c"]:
    """Means of so many pixels each way; each picture has mean 0 and deviation 1."""
    n, h, w, c = pictures.shape
    x = pictures.astype(jnp.float32).reshape(n, h // smaller, smaller, w // smaller, smaller, c)
    x = jnp.mean(x, axis=(2, 4))
    x = x - jnp.mean(x, axis=(1, 2, 3), keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=(1, 2, 3), keepdims=True) + 1.0)
