"""The separation network: cue encoder and extractor, from one config."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from common import errors, sections
from common.nn import marks, masking
from separation import causal, cue, films, quality, sight, voice, voicefilter

KINDS = ("causal", "voicefilter", "quality", "visualvoice", "lite")


class SeparationNet(nn.Module):
    """Mixtures and enrolments -> voices. Without an enrolment a learned null cue stands in.

    With `num_speakers` a linear layer tells the training speakers apart by their cues: the cue
    encoder learns from it long before the extractor makes use of cues (as in SpEx+, Ge et al. 2020,
    arXiv:2005.04686).
    """

    cue_encoder: nn.Module
    extractor: nn.Module
    cue_size: int
    num_speakers: int
    lips: sight.LipEncoder | None = None
    faces: sight.FaceEncoder | None = None

    def setup(self) -> None:
        self.null = self.param("null_cue", nn.initializers.normal(1.0), (self.cue_size,))
        self.speakers = nn.Dense(self.num_speakers, name="speakers") if self.num_speakers else None
        self.outputs = marks.Outputs()

    def cue(self, enrolment: Float[Array, "b n"], lengths: Int[Array, "b"]) -> Float[Array, "b c"]:
        """What the enrolments say; the null cue where there are none (a length of 0)."""
        null = cue.unit(self.null[None, :])
        return jnp.where((lengths > 0)[:, None], self.cue_encoder(enrolment, lengths), null)

    def extract(
        self,
        mixture: Float[Array, "b t"],
        lengths: Int[Array, "b"],
        cue: Float[Array, "b c"],
        motion: sight.Motion | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "b t"]:
        """The voice of each cue; 0 beyond the lengths. Without a `motion` no lips are seen."""
        mixture = masking.zero_padding(mixture[:, :, None], lengths)[:, :, 0]
        seen = {}
        if self.lips is not None:
            seen["motion"] = self.lips.nothing(len(mixture)) if motion is None else motion
        audio = self.extractor(mixture, lengths, cue, train=train, **seen)
        return masking.zero_padding(audio[:, :, None], lengths)[:, :, 0]

    def with_cue(self, state: Any, cue: Float[Array, "b c"]) -> Any:
        """See `causal.CausalExtractor.with_cue`."""
        return self.extractor.with_cue(state, cue)

    def step(
        self,
        state: Any,
        chunk: Float[Array, "b t"],
        motion: Float[Array, "b k d"] | None = None,
    ) -> tuple[Any, Float[Array, "b t"]]:
        """See `causal.CausalExtractor.step`. Without a `motion` no lips are seen."""
        if self.lips is None:
            return self.extractor.step(state, chunk)
        if motion is None:
            hop, rate = self.extractor.hop_size, self.extractor.config.sample_rate_hz
            motion = self.lips.nothing(len(chunk)).at_hops(chunk.shape[1] // hop, hop, rate)
        return self.extractor.step(state, chunk, motion)

    def motion(
        self, mouth: UInt8[Array, "b v 96 96"], seen: Bool[Array, "b v"]
    ) -> Float[Array, "b v d"]:
        """What `step` is to know of lips, at each picture."""
        return self.lips(mouth, seen).frames

    def looks(
        self, face: UInt8[Array, "b k 224 224 3"], seen: Bool[Array, "b k"]
    ) -> Float[Array, "b c"]:
        """What portraits add to a cue."""
        return self.faces(face, seen)

    def __call__(
        self,
        mixture: Float[Array, "b t"],
        lengths: Int[Array, "b"],
        enrolment: Float[Array, "b n"],
        enrolment_lengths: Int[Array, "b"],
        *,
        train: bool,
        mask: Bool[Array, "b"],
        hidden: Bool[Array, "b"] | None = None,
        seen: sight.Seen | None = None,
    ) -> tuple[Float[Array, "b t"], Float[Array, "b s"] | None]:
        """The voices, and in training what the enrolments say of the speaker (logits).

        Of `hidden` rows the enrolment is not shown to the extractor; `seen` is what else is, to a
        network that sees. Rows that are not real (`mask`) have no part in statistics, and are 0.
        """
        lengths = masking.fold_row_mask(lengths, mask)
        known = self.cue(enrolment, enrolment_lengths)
        logits = None
        if self.speakers is not None and (train or self.is_initializing()):
            logits = self.speakers(known)
        if hidden is not None:
            known = jnp.where(hidden[:, None], cue.unit(self.null[None, :]), known)
        motion = None
        if seen is not None and self.faces is not None:
            known = known + self.faces(seen.face, seen.face_seen)
        if seen is not None and self.lips is not None:
            motion = self.lips(seen.mouth, seen.mouth_seen)
        return self.outputs((self.extract(mixture, lengths, known, motion, train=train), logits))


def make_model(
    config: Any, num_speakers: int = 0, known: voice.Voice | None = None
) -> SeparationNet:
    """The network of a config; `num_speakers` of its training, where it is to tell them apart.

    `known`: what the cues are of, in place of an encoder that learns beside the extractor.
    """
    rate, model = config.data.sample_rate_hz, config.model
    try:
        if model.kind == "causal":
            sizes = sections.build(causal.CausalConfig, model.causal, sample_rate_hz=rate)
            extractor = causal.CausalExtractor(sizes)
        elif model.kind == "voicefilter":
            sizes = sections.build(
                voicefilter.VoiceFilterConfig, model.voicefilter, sample_rate_hz=rate
            )
            extractor = voicefilter.VoiceFilter(sizes)
        elif model.kind == "quality":
            sizes = sections.build(quality.QualityConfig, model.quality, sample_rate_hz=rate)
            extractor = quality.QualityExtractor(sizes)
        else:
            raise errors.UserError(
                f"config.model.kind={model.kind!r} is unknown; choose one of {', '.join(KINDS)}."
            )
    except ValueError as error:
        raise errors.UserError(f"config.model.{model.kind}: {error}") from error
    seen = sections.build(sight.SightConfig, config.sight)
    if seen.lips and model.kind != "causal":
        raise errors.UserError(
            f"config.sight.lips=True goes with config.model.kind=causal, not {model.kind}."
        )
    return SeparationNet(
        *(cue_encoder(config, known), extractor, config.cue.size, num_speakers),
        sight.LipEncoder(seen) if seen.lips else None,
        sight.FaceEncoder(seen, config.cue.size) if seen.face else None,
    )


def cue_encoder(config: Any, known: voice.Voice | None) -> cue.CueEncoder | cue.FrozenEncoder:
    """What makes cues of enrolments: see `make_model`."""
    cues = sections.build(cue.CueConfig, config.cue, sample_rate_hz=config.data.sample_rate_hz)
    if known is None:
        return cue.CueEncoder(cues)
    return cue.FrozenEncoder(known.embed, known.fresh, cues.size)


def init(model: SeparationNet, key: Key[Array, ""]) -> dict[str, Any]:
    """Fresh variables of the network."""
    audio, lengths = jnp.zeros((1, 8000)), jnp.full((1,), 8000, jnp.int32)
    mask, there = jnp.ones((1,), bool), jnp.ones((1, 1), bool)
    pictures = (jnp.zeros((1, 1, *size), jnp.uint8) for size in (films.MOUTH, films.FACE))
    mouth, face = pictures
    seen = sight.Seen(mouth, there, face, there)
    return dict(model.init(key, audio, lengths, audio, lengths, train=False, mask=mask, seen=seen))
