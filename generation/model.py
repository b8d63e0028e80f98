"""Generator, discriminator and what is heard of a voice, from one config."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from common import errors, sections
from common.task import Batch
from generation import gan, hearing, matcher, voice, voice2face

GANS = ("gan", "voice2face")
KINDS = (*GANS, "voice", "matcher")


@dataclasses.dataclass(frozen=True)
class Networks:
    """Of a GAN: variables hold "generator" and "discriminator", and what of `hearing` is frozen.

    `noise` is the size of what the generator draws beside the condition.
    """

    generator: nn.Module
    discriminator: nn.Module
    noise: int
    size: int
    channels: int
    hearing: hearing.Hearing

    def condition(
        self,
        variables: Mapping[str, Any],
        batch: Batch,
        lengths: Int[Array, "b"] | None = None,
    ) -> Float[Array, "b d"]:
        """What is known of the rows: of the first `lengths` samples of their voices."""
        return self.hearing(variables.get(voice.FROZEN), batch, lengths)

    def generate(
        self, params: Mapping[str, Any], condition: Float[Array, "b d"], noise: Float[Array, "b z"]
    ) -> Float[Array, "b h w c"]:
        """Pictures in [-1, 1]; those of voice2face may lie outside."""
        return self.generator.apply({"params": params["generator"]}, condition, noise)

    def judge(
        self,
        params: Mapping[str, Any],
        pictures: Float[Array, "b h w c"],
        condition: Float[Array, "b d"],
    ) -> tuple[Float[Array, "b"], Float[Array, "b n"] | None]:
        """Logits of being real, and of who it is where the discriminator tells people apart."""
        return self.discriminator.apply({"params": params["discriminator"]}, pictures, condition)

    @property
    def condition_size(self) -> int:
        return self.hearing.size

    def init(self, key: Key[Array, ""]) -> dict[str, Any]:
        """Fresh variables; frozen ones are those of no training."""
        first, second, third = jax.random.split(key, 3)
        condition, noise = shape(self.condition_size), shape(self.noise)
        pictures = shape(self.size, self.size, self.channels)
        params = {
            "generator": self.generator.lazy_init(first, condition, noise)["params"],
            "discriminator": self.discriminator.lazy_init(second, pictures, condition)["params"],
        }
        frozen = self.hearing.init(third)
        return {"params": params} if frozen is None else {"params": params, voice.FROZEN: frozen}


def shape(*sizes: int) -> jax.ShapeDtypeStruct:
    """Of a batch of one. For `lazy_init`, which compiles the initial values and no network."""
    return jax.ShapeDtypeStruct((1, *sizes), jnp.float32)


def check(config: Any) -> None:
    """Raises UserError for settings that cannot be, or not together."""
    kind, picture = config.model.kind, config.picture
    if kind not in KINDS:
        raise errors.UserError(
            f"config.model.kind={kind!r} is unknown; choose one of {', '.join(KINDS)}."
        )
    if picture.channels not in (1, 3):
        raise errors.UserError(f"config.picture.channels={picture.channels}: 1 (grey) or 3.")
    if kind == "gan" and not 8 <= picture.size <= 256:
        raise errors.UserError(
            f"config.picture.size={picture.size}: model.kind=gan makes 8 to 256."
        )
    if kind == "matcher" and picture.size % 8:
        raise errors.UserError(
            f"config.picture.size={picture.size}: a matcher takes multiples of 8."
        )
    if kind == "voice2face" and picture.size != voice2face.SIZE:
        raise errors.UserError(
            f"config.picture.size={picture.size}: model.kind=voice2face makes pictures of "
            f"{voice2face.SIZE} x {voice2face.SIZE} only; use that, or model.kind=gan."
        )
    if kind == "voice2face" and config.voice.kind != "encoder":
        raise errors.UserError(
            "config.model.kind=voice2face needs config.voice.kind=encoder: its generator starts "
            f"from a vector of length 1, which {config.voice.kind} does not give."
        )
    if config.dtype not in ("float32", "bfloat16"):
        raise errors.UserError(f"config.dtype={config.dtype!r}: choose float32 or bfloat16.")
    hears = config.loss.wrong_pairs or config.model.conditional
    if kind == "gan" and config.data.independent and hears:
        raise errors.UserError(
            "config.data.independent: pictures drawn without regard to the voices cannot teach "
            "model.kind=gan which belong together; set model.conditional and loss.wrong_pairs to "
            "False, or data.independent to False."
        )
    if config.loss.wrong_pairs and kind == "voice2face":
        raise errors.UserError(
            "config.loss.wrong_pairs: the discriminator of voice2face does not hear the voice."
        )
    if kind == "gan" and config.loss.wrong_pairs and not config.model.conditional:
        raise errors.UserError(
            "config.loss.wrong_pairs needs a discriminator that hears the voice: set "
            "config.model.conditional=True, or loss.wrong_pairs=False."
        )


def make_gan(config: Any, encoder_config: Any, num_classes: int) -> Networks:
    """The networks of a config; `encoder_config` is that of the run of the voice encoder, if any.

    `num_classes`: training people, whom the discriminator of voice2face, or with `loss.identity`
    any, tells apart.
    """
    model, picture = config.model, config.picture
    heard = hearing.make(config, encoder_config, num_classes)
    options = {"size": picture.size, "channels": picture.channels, "hearing": heard}
    if model.kind == "voice2face":
        return Networks(
            voice2face.Generator(tuple(model.generator_widths), picture.channels),
            voice2face.Discriminator(num_classes, tuple(model.face_widths)),
            noise=heard.size,
            **options,
        )
    shared = {name: model[name] for name in ("width", "most")} | {"dtype": config.dtype}
    return Networks(
        gan.Generator(picture.size, picture.channels, **shared),
        gan.Discriminator(
            picture.size,
            conditional=model.conditional,
            num_classes=num_classes if config.loss.identity else 0,
            **shared,
        ),
        noise=model.noise,
        **options,
    )


def make_matcher(config: Any) -> matcher.Matcher:
    """The judge of a config."""
    return matcher.Matcher(sections.build(matcher.MatcherConfig, config.model.matcher))


def heard_samples(config: Any, key: Key[Array, ""], samples: int) -> Int[Array, ""]:
    """How many samples of every voice are heard in a training step: `config.voice.crop_frames`."""
    low, high = config.voice.crop_frames
    if not high:
        return jnp.int32(samples)
    hop = config.features.hop_ms * config.data.sample_rate_hz / 1000
    frames = jax.random.randint(key, (), low, high + 1)
    return jnp.minimum(frames * math.floor(hop), samples).astype(jnp.int32)
