"""Generator, discriminator and what is heard of a voice or seen of a face, from one config."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from common import errors, parallel, sections
from common.task import Batch
from generation import (
    asariri,
    diff_augment,
    gan,
    hearing,
    looking,
    matcher,
    r3gan,
    residual,
    revoice,
    sides,
    sounds,
    voice,
    voice2face,
)

_SEED = ("vanilla_gan", "cgan", "began")  # of asariri; their discriminators normalise by batches
# With model.conditional.
_PROJECTING = ("gan", "voice2face_plus", "sngan_projection", "r3gan", "face2voice")
_TELLING = ("gan", "voice2face", "voice2face_plus", "face2voice")  # people, with loss.identity
_MEETING = ("gan", "voice2face_plus", "face2voice")  # voices and faces, with loss.contrast
GANS = ("gan", "voice2face", "voice2face_plus", *_SEED, "sngan_projection", "r3gan", "face2voice")
KINDS = (*GANS, "voice", "matcher", "revoice")


@dataclasses.dataclass(frozen=True)
class Networks:
    """Of a GAN: variables hold "generator" and "discriminator", and what of `hearing` is frozen.

    `noise` is the size of what the generator draws beside the condition, `form` height, width and
    channels of what it makes. Where voices are made of faces, variables also hold "face", the
    network of `looker` for pictures of the form `seen`, and the scales of `stretches`.
    """

    generator: nn.Module
    discriminator: nn.Module
    noise: int
    form: tuple[int, int, int]
    hearing: hearing.Hearing
    looker: looking.FaceEncoder | None = None
    seen: tuple[int, int, int] | None = None
    stretches: sounds.Sounds | None = None

    def condition(
        self,
        variables: Mapping[str, Any],
        batch: Batch,
        lengths: Int[Array, "b"] | None = None,
    ) -> Float[Array, "b d"]:
        """What is known of the rows: of the first `lengths` samples of their voices."""
        return self.hearing(variables.get(voice.FROZEN), batch, lengths)

    def look(
        self, variables: Mapping[str, Any], pictures: Float[Array, "b h w c"]
    ) -> Float[Array, "b d"]:
        """What is known of faces in [-1, 1], where voices are made of them: numbers of order 1."""
        params = {"params": variables["params"]["face"]}
        return math.sqrt(self.looker.size) * self.looker.apply(params, pictures, method="face")

    def meet(
        self,
        variables: Mapping[str, Any],
        pictures: Float[Array, "b h w c"],
        heard: Float[Array, "b n"],
    ) -> tuple[Float[Array, "b d"], Float[Array, "b d"]]:
        """The vectors of faces and of what was heard (`condition`), in one space."""
        return self.looker.apply({"params": variables["params"]["face"]}, pictures, heard)

    def generate(
        self,
        variables: Mapping[str, Any],
        condition: Float[Array, "b d"],
        noise: Float[Array, "b z"],
    ) -> Float[Array, "b h w c"]:
        """Pictures in [-1, 1], by running statistics; voice2face's and r3gan's may lie outside."""
        return self.play(variables, condition, noise, None)[0]

    def play(
        self,
        variables: Mapping[str, Any],
        condition: Float[Array, "b d"],
        noise: Float[Array, "b z"],
        training: sides.Training | None,
    ) -> tuple[Float[Array, "b h w c"], dict[str, Any]]:
        """Pictures, and the generator's new state."""
        return _apply(self.generator, "generator", variables, (condition, noise), training)

    def judge(
        self,
        variables: Mapping[str, Any],
        pictures: Float[Array, "b h w c"],
        condition: Float[Array, "b d"],
        training: sides.Training | None,
    ) -> tuple[sides.Judged, dict[str, Any]]:
        """What the discriminator says, and its new state."""
        given = (pictures, condition)
        return _apply(self.discriminator, "discriminator", variables, given, training)

    @property
    def condition_size(self) -> int:
        return self.hearing.size if self.looker is None else self.looker.size

    def init(self, key: Key[Array, ""]) -> dict[str, Any]:
        """Fresh variables; frozen ones are those of no training."""
        first, second, third = jax.random.split(key, 3)
        condition, noise = shape(self.condition_size), shape(self.noise)
        made = {
            "generator": self.generator.lazy_init(first, condition, noise),
            "discriminator": self.discriminator.lazy_init(second, shape(*self.form), condition),
        }
        variables: dict[str, Any] = {}
        if self.looker is not None:
            pair = shape(*self.seen), shape(self.hearing.size)
            made["face"] = self.looker.lazy_init(jax.random.fold_in(key, 3), *pair)
            variables[sounds.SCALES] = self.stretches.init()
        for side, collections in made.items():
            for name, tree in collections.items():
                variables.setdefault(name, {})[side] = tree
        if (frozen := self.hearing.init(third)) is not None:
            variables[voice.FROZEN] = frozen
        return variables


def state_of(variables: Mapping[str, Any], side: str) -> dict[str, Any]:
    """What a side of the game has beside its parameters, at its place in the variables."""
    return {
        name: {side: tree[side]}
        for name, tree in variables.items()
        if name != "params" and side in tree
    }


def _apply(
    net: nn.Module,
    side: str,
    variables: Mapping[str, Any],
    given: tuple[Array, Array],
    training: sides.Training | None,
) -> tuple[Any, dict[str, Any]]:
    state = state_of(variables, side)
    own = {"params": variables["params"][side], **{n: tree[side] for n, tree in state.items()}}
    if training is None:
        return net.apply(own, *given), {}
    found, new = net.apply(own, *given, training, mutable=list(state))
    return found, {name: {side: tree} for name, tree in new.items()}


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
    _check_size(config)
    if kind in ("matcher", "revoice") and (picture.size % 8 or picture.size < 8):
        raise errors.UserError(
            f"config.picture.size={picture.size}: a {kind} takes multiples of 8."
        )
    if kind == "revoice":
        _check_revoice(config)
    if kind == "voice2face" and config.voice.kind != "encoder":
        raise errors.UserError(
            "config.model.kind=voice2face needs config.voice.kind=encoder: its generator starts "
            f"from a vector of length 1, which {config.voice.kind} does not give."
        )
    if kind == "face2voice":
        _check_sounds(config)
    if config.dtype not in ("float32", "bfloat16"):
        raise errors.UserError(f"config.dtype={config.dtype!r}: choose float32 or bfloat16.")
    if kind not in GANS and config.dtype != "float32":
        raise errors.UserError(
            f"config.dtype={config.dtype} is of the convolutions of GANs: a network of kind {kind} "
            "computes in float32."
        )
    _check_loss(config)


def hears(config: Any) -> bool:
    """Whether the discriminator is given the condition beside the picture."""
    kind = config.model.kind
    return kind == "cgan" or (kind in _PROJECTING and config.model.conditional)


def _check_size(config: Any) -> None:
    kind, size = config.model.kind, config.picture.size
    deconvolved = kind == "voice2face_plus" and not config.model.residual
    if (kind == "voice2face" or deconvolved) and size != voice2face.SIZE:
        raise errors.UserError(
            f"config.picture.size={size}: model.kind={kind} makes pictures of {voice2face.SIZE} x "
            f"{voice2face.SIZE} only; use that, or "
            + ("model.residual=True." if deconvolved else "model.kind=gan.")
        )
    if kind == "face2voice" and size != voice2face.SIZE:
        raise errors.UserError(
            f"config.picture.size={size}: model.kind={kind} looks at pictures of "
            f"{voice2face.SIZE} x {voice2face.SIZE}; others are scaled to that. Use it."
        )
    if kind in _SEED and size not in asariri.SIZES:
        raise errors.UserError(
            f"config.picture.size={size}: model.kind={kind} makes "
            f"{', '.join(map(str, asariri.SIZES))}."
        )
    if kind in _PROJECTING and not 8 <= size <= 256:
        raise errors.UserError(f"config.picture.size={size}: model.kind={kind} makes 8 to 256.")


def _check_sounds(config: Any) -> None:
    """Of stretches of voices that are made."""
    data, made, rate = config.data, make_sounds(config), config.data.sample_rate_hz
    if config.features.normalize != "none":
        raise errors.UserError(
            f"config.features.normalize={config.features.normalize!r} loses the level of a voice, "
            "which config.model.kind=face2voice has to make: take none."
        )
    if min(made.form[:2]) < 8:
        raise errors.UserError(
            f"config.model.frames={config.model.frames}, config.features.num_mels="
            f"{config.features.num_mels}: 8 at least of each."
        )
    seconds = made.samples / rate
    if min(data.crop_seconds, data.eval_seconds) < seconds:
        raise errors.UserError(
            f"config.model.frames={config.model.frames} are {seconds:g} s of a voice: config.data."
            f"crop_seconds={data.crop_seconds:g} and config.data.eval_seconds="
            f"{data.eval_seconds:g} have to be as long."
        )
    if config.loss.augment:
        raise errors.UserError(
            f"config.loss.augment={tuple(config.loss.augment)} is of pictures, and model.kind="
            "face2voice makes voices: leave it at ()."
        )


def _check_revoice(config: Any) -> None:
    sizes = config.model.revoice
    low, high = sizes.warp
    if not 0.5 <= low <= 1.0 <= high <= 2.0:
        raise errors.UserError(
            f"config.model.revoice.warp={tuple(sizes.warp)}: from a factor of 0.5 to 1 to one of 1 "
            "to 2; (1.0, 1.0) is none."
        )
    if min(sizes.width, sizes.code, sizes.blocks, sizes.said_every) < 1:
        raise errors.UserError(
            "config.model.revoice: width, code, blocks and said_every have to be positive."
        )
    if config.features.normalize != "none":
        raise errors.UserError(
            f"config.features.normalize={config.features.normalize!r} loses the level of a voice, "
            "which config.model.kind=revoice has to make: take none."
        )


def _check_loss(config: Any) -> None:
    kind, loss = config.model.kind, config.loss
    if kind not in GANS:
        return
    diff_augment.check(loss.augment, loss.augment_strength)
    if config.data.independent and hears(config):
        raise errors.UserError(
            "config.data.independent: pictures drawn without regard to the voices cannot teach "
            f"model.kind={kind} which belong together; set data.independent to False, or "
            "model.conditional (not of cgan) and loss.wrong_pairs."
        )
    if loss.wrong_pairs and not hears(config):
        raise errors.UserError(
            f"config.loss.wrong_pairs needs a discriminator that hears the voice, and that of "
            f"model.kind={kind} does not: set loss.wrong_pairs=False"
            + (", or model.conditional=True." if kind in _PROJECTING else ".")
        )
    if (loss.kind == "began") != (kind == "began"):
        raise errors.UserError(
            f"config.loss.kind={loss.kind!r} with config.model.kind={kind!r}: the loss began is of "
            "model.kind=began, which has no other."
        )
    if kind in _SEED and (loss.r1 > 0 or loss.r2 > 0):
        raise errors.UserError(
            f"config.loss.r1={loss.r1}, config.loss.r2={loss.r2}: the discriminator of "
            f"model.kind={kind} normalises by the batch, so that no picture has a gradient of its "
            "own; set both to 0."
        )
    if loss.identity > 0 and kind not in _TELLING:
        raise errors.UserError(
            f"config.loss.identity={loss.identity}: only {', '.join(_TELLING)} tell people apart."
        )
    if loss.contrast_temperature <= 0:
        raise errors.UserError(
            f"config.loss.contrast_temperature={loss.contrast_temperature} has to be above 0."
        )
    if loss.contrast > 0 and (kind not in _MEETING or config.data.independent):
        raise errors.UserError(
            f"config.loss.contrast={loss.contrast} needs pairs (data.independent=False) and a "
            f"discriminator with vectors of voices and faces, as that of {', '.join(_MEETING)}: "
            "set it to 0 without."
        )


def make_gan(config: Any, encoder_config: Any, num_classes: int) -> Networks:
    """The networks of a config; `encoder_config` is that of the run of the voice encoder, if any.

    `num_classes`: training people, whom the discriminator of voice2face, or with `loss.identity`
    those of gan, voice2face_plus and face2voice, tell apart.
    """
    model, picture = config.model, config.picture
    form, more = (picture.size, picture.size, picture.channels), {}
    heard = hearing.make(config, encoder_config, num_classes)
    if model.kind == "face2voice":
        encoded, made = config.voice.kind == "encoder", make_sounds(config)
        size = heard.size if encoded else model.embedding
        look = looking.FaceEncoder(size, tuple(model.face_widths), project=not encoded)
        form, more = made.form, {"looker": look, "seen": form, "stretches": made}
    both = _sides(config, form, num_classes)
    networks = Networks(*both, noise=model.noise, form=form, hearing=heard, **more)
    if isinstance(networks.generator, voice2face.Generator):  # its noise is added to what it hears
        return dataclasses.replace(networks, noise=networks.condition_size)
    return networks


def _sides(
    config: Any, form: tuple[int, int, int], num_classes: int
) -> tuple[nn.Module, nn.Module]:
    """Generator and discriminator of pictures of this height, width and number of channels."""
    model, (size, _, channels) = config.model, form
    dtype, across = {"dtype": config.dtype}, {"axis_name": parallel.AXIS}
    widths = {"width": model.width, "most": model.most, **dtype}
    told = num_classes if config.loss.identity > 0 else 0
    projects = {"conditional": model.conditional}
    vectors = model.embedding if config.loss.contrast > 0 else 0  # in which voices and faces meet
    wen = voice2face.Generator(tuple(model.generator_widths), channels, **dtype)
    if model.kind == "voice2face":
        return wen, voice2face.Discriminator(num_classes, tuple(model.face_widths), **dtype)
    if model.kind in ("gan", "face2voice"):
        return (
            gan.Generator(form[:2], channels, **widths),
            gan.Discriminator(form[:2], num_classes=told, embedding=vectors, **projects, **widths),
        )
    if model.kind == "r3gan":
        return (
            r3gan.Generator(size, channels, **widths),
            r3gan.Discriminator(size, **projects, **widths),
        )
    if model.kind in _SEED:
        hears_voice = model.kind == "cgan"
        last = {"normalize_last": hears_voice}
        generator = asariri.Generator(size, channels, model.most, **last, **across, **dtype)
        if model.kind == "began":
            return generator, asariri.Autoencoder(model.width, **across, **dtype)
        return generator, asariri.Discriminator(model.width, hears_voice, **across, **dtype)
    judging = {"width": model.discriminator_width, "most": model.discriminator_most}
    if model.kind == "sngan_projection":
        return (
            residual.Generator(size, channels, **widths, **across),
            residual.Discriminator(size, **judging, **projects, **dtype),
        )
    generator = residual.Generator(size, channels, **widths, norm="pixel")
    told = {"embedding": model.embedding if told else vectors, "num_classes": told}
    return (
        generator if model.residual else wen,
        residual.Discriminator(size, **judging, **projects, **told, **dtype, spectral=False),
    )


def make_sounds(config: Any) -> sounds.Sounds:
    """What is made of a voice: `config.model.frames` of `config.features`."""
    return sounds.Sounds(voice.front_end(config), config.model.frames)


def make_matcher(config: Any) -> matcher.Matcher:
    """The judge of a config."""
    return matcher.Matcher(sections.build(matcher.MatcherConfig, config.model.matcher))


def make_revoicer(config: Any) -> revoice.Revoicer:
    """The network that says a recording in another voice."""
    return revoice.Revoicer(
        sections.build(revoice.RevoiceConfig, config.model.revoice),
        sections.build(matcher.MatcherConfig, config.model.matcher),
        revoice.front_end(voice.front_end(config)),
    )


def heard_samples(config: Any, key: Key[Array, ""], samples: int) -> Int[Array, ""]:
    """How many samples of every voice are heard in a training step: `config.voice.crop_frames`."""
    low, high = config.voice.crop_frames
    if not high:
        return jnp.int32(samples)
    hop = config.features.hop_ms * config.data.sample_rate_hz / 1000
    frames = jax.random.randint(key, (), low, high + 1)
    return jnp.minimum(frames * math.floor(hop), samples).astype(jnp.int32)
