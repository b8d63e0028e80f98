"""The words of a recording in another voice: what is said, how high and by whom, to log-mel frames.

As AdaIN-VC (Chou, Yeh and Lee, Interspeech 2019, section 3): normalised over time, channel by
channel, a recording loses what stays the same in it, which is mostly who speaks; the decoder puts
another speaker's scales and shifts in its place. In training the content encoder hears a voice of
another height than the one that is to come out (its bands are warped, cf. NANSY, Choi et al.,
NeurIPS 2021), so that its formants are of no use to the decoder. Height is a contour of its own,
measured in the source and moved to the mean that is expected of the speaker; where the harmonics
lie is computed from it (`harmonics.combs`), the decoder makes the envelope and how strong they are.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from common.audio import frontend, inverse
from common.nn import conv, masking
from generation import harmonics, matcher

LEVEL = 0.05  # RMS of all that is heard, in [-1, 1]
_FLOOR = 1e-4  # of band powers at that level, 60 dB below what is loud
_MIDDLE, _SPAN = -4.0, 3.0  # log-mel of speech at that level: about its mean and deviation

Height = tuple[Float[Array, "b l"], Float[Array, "b l"]]  # Hz and periodicity of each frame


@dataclasses.dataclass(frozen=True)
class RevoiceConfig:
    """Sizes. `code` channels, every second frame, are all that the decoder knows of what is said;
    `warp`: by what factors voices are made higher or lower for the content encoder in training.

    `said_every`: of so many rows of a batch one is said in training, while voices and faces of all
    are compared, which need many and cost little.
    """

    width: int = 128
    code: int = 16
    blocks: int = 2
    warp: tuple[float, float] = (0.75, 1.33)
    said_every: int = 1


def front_end(config: frontend.LogMelConfig) -> frontend.LogMelConfig:
    """With the floor that suits what is `levelled`."""
    return dataclasses.replace(config, floor=_FLOOR)


def levelled(audio: Float[Array, "b t"], lengths: Int[Array, "b"]) -> Float[Array, "b t"]:
    """Rows of one loudness: an RMS of `LEVEL` over the true samples, 0 beyond; silence stays."""
    audio = masking.zero_padding(audio.astype(jnp.float32)[:, :, None], lengths)
    power = masking.masked_mean(jnp.square(audio), lengths)
    return audio[:, :, 0] * (LEVEL * jax.lax.rsqrt(power + 1e-12))


def sound(
    frames: Float[Array, "b l m"],
    lengths: Int[Array, "b"],
    config: frontend.LogMelConfig,
    keys: Key[Array, "b"],
) -> Float[Array, "b t"]:
    """Log-mel frames as sound (`inverse.sound`), with silence for what is not true."""
    true = masking.length_mask(lengths, frames.shape[1])[:, :, None]
    return inverse.sound(jnp.where(true, frames, math.log(_FLOOR)), config, keys)


def instance_norm(x: Float[Array, "b l d"], lengths: Int[Array, "b"]) -> Float[Array, "b l d"]:
    """Each channel of each row less its mean over the true frames, over its deviation; 0 beyond."""
    x = masking.zero_padding(x - masking.masked_mean(x, lengths)[:, None, :], lengths)
    variance = masking.masked_mean(jnp.square(x), lengths)
    return x * jax.lax.rsqrt(variance + 1e-5)[:, None, :]


class Content(nn.Module):
    """What is said: `code` numbers for every second frame, of mean 0 and deviation 1."""

    config: RevoiceConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "b l m"], lengths: Int[Array, "b"]
    ) -> tuple[Float[Array, "b n c"], Int[Array, "b"]]:
        c = self.config
        x = instance_norm(x, lengths)
        x, lengths = conv.Conv(c.width, 5, stride=2, use_bias=True, name="first")(x, lengths)
        for i in range(c.blocks):
            block = conv.Conv(c.width, 5, use_bias=True, name=f"block_{i}")
            x += block(nn.relu(instance_norm(x, lengths)), lengths)[0]
        last = conv.Conv(c.code, 3, name="last")
        x, lengths = last(nn.relu(instance_norm(x, lengths)), lengths)
        return instance_norm(x, lengths), lengths


class Adaptive(nn.Module):
    """A residual block whose channels are scaled and shifted by who speaks (AdaIN)."""

    width: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "b l d"], lengths: Int[Array, "b"], who: Float[Array, "b k"]
    ) -> Float[Array, "b l d"]:
        scale, shift = jnp.split(nn.Dense(2 * self.width, name="who")(who)[:, None, :], 2, axis=2)
        y = nn.relu(instance_norm(x, lengths) * (1.0 + scale) + shift)
        return x + conv.Conv(self.width, 5, use_bias=True, name="conv")(y, lengths)[0]


class Speaking(nn.Module):
    """Log-mel frames of what is said, how high, and who says it."""

    config: RevoiceConfig
    front_end: frontend.LogMelConfig

    @nn.compact
    def __call__(
        self,
        code: Float[Array, "b n c"],
        who: Float[Array, "b k"],
        height: Height,
        lengths: Int[Array, "b"],
    ) -> Float[Array, "b l m"]:
        """`lengths` are those of the frames that come out, as many as `height` has; 0 beyond."""
        c, short, (hertz, periodicity) = self.config, masking.conv_lengths(lengths, 2), height
        num_mels, combs = self.front_end.num_mels, harmonics.combs(hertz, lengths, self.front_end)
        periodicity = periodicity[:, :, None]
        octaves = jnp.log2(jnp.maximum(hertz, harmonics.LOW_HZ)) - harmonics.MIDDLE
        sung = jnp.concatenate([periodicity, periodicity * octaves[:, :, None]], axis=2)
        who = nn.relu(nn.Dense(c.width, name="who")(who))
        x = conv.Conv(c.width, 3, use_bias=True, name="first")(code, short)[0]
        for i in range(c.blocks):
            x = Adaptive(c.width, name=f"slow_{i}")(x, short, who)
        x = jnp.repeat(x, 2, axis=1)[:, : hertz.shape[1]]
        x += conv.Conv(c.width, 3, use_bias=True, name="height")(sung, lengths)[0]
        for i in range(c.blocks):
            x = Adaptive(c.width, name=f"fast_{i}")(x, lengths, who)
        x = nn.relu(x)
        found = conv.Pointwise(num_mels, use_bias=True, name="last")(x)
        found += nn.Dense(num_mels, name="colour")(who)[:, None, :]
        strength = nn.sigmoid(conv.Pointwise(num_mels, use_bias=True, name="harmonics")(x))
        found = _MIDDLE + _SPAN * found + strength * periodicity * combs
        return masking.zero_padding(found, lengths)


class Revoicer(nn.Module):
    """Content encoder, decoder, and the vectors of voices and faces (`matcher.Matcher`).

    Features are log-mel frames of what is `levelled`, by `front_end`; all lengths are true ones,
    and a padded row gives what it gives alone.
    """

    config: RevoiceConfig
    matching: matcher.MatcherConfig
    front_end: frontend.LogMelConfig

    def setup(self) -> None:
        self.content = Content(self.config)
        self.speaking = Speaking(self.config, self.front_end)
        self.who = matcher.Matcher(self.matching)
        self.expected = [nn.Dense(32), nn.Dense(1)]

    def meet(
        self, x: Float[Array, "b l m"], lengths: Int[Array, "b"], pictures: Float[Array, "b h w c"]
    ) -> tuple[Float[Array, "b k"], Float[Array, "b k"], Float[Array, ""]]:
        """Unit vectors of voices and faces, and the scale of their cosines."""
        return self.who(x, lengths, pictures)

    def voice(self, x: Float[Array, "b l m"], lengths: Int[Array, "b"]) -> Float[Array, "b k"]:
        """The unit vectors of voices."""
        return self.who.voice(x, lengths)

    def face(self, pictures: Float[Array, "b h w c"]) -> Float[Array, "b k"]:
        """Those of faces in [-1, 1]."""
        return self.who.face(pictures)

    def mean(self, who: Float[Array, "b k"]) -> Float[Array, "b"]:
        """How high voices of the unit vectors `who` are expected to be, octaves above 1 Hz."""
        first, last = self.expected
        return harmonics.MIDDLE + last(nn.relu(first(self._wide(who))))[:, 0]

    def __call__(
        self,
        x: Float[Array, "b l m"],
        lengths: Int[Array, "b"],
        height: Height,
        who: Float[Array, "b k"],
        heard: Float[Array, "b l m"] | None = None,
    ) -> Float[Array, "b l m"]:
        """Frames x as the voice of the unit vectors `who` says them, as high as `height`; `heard`
        stands in for them where the content encoder listens."""
        code, _ = self.content(x if heard is None else heard, lengths)
        return self.speaking(code, self._wide(who), height, lengths)

    def say(
        self,
        x: Float[Array, "b l m"],
        lengths: Int[Array, "b"],
        height: Height,
        middle: Float[Array, "b"],
        who: Float[Array, "b k"],
    ) -> Float[Array, "b l m"]:
        """Frames x in the voice of `who`: as high as `mean` expects where the source's mean is
        `middle` (`harmonics.mean`)."""
        hertz, periodicity = height
        return self(x, lengths, (harmonics.moved(hertz, self.mean(who) - middle), periodicity), who)

    def _wide(self, who: Float[Array, "b k"]) -> Float[Array, "b k"]:
        return math.sqrt(self.matching.size) * who

    def everything(
        self,
        x: Float[Array, "b l m"],
        lengths: Int[Array, "b"],
        pictures: Float[Array, "b h w c"],
    ) -> Float[Array, "b l m"]:
        """All layers once, to initialise them."""
        voices, _, _ = self.meet(x, lengths, pictures)
        hertz = jnp.broadcast_to(jnp.exp2(self.mean(voices))[:, None], x.shape[:2])
        return self(x, lengths, (hertz, jnp.ones_like(hertz)), voices)
