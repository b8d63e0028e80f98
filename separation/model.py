"""The separation network: cue encoder and extractor, from one config."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from common import errors, sections
from common.nn import masking
from separation import causal, cue, voicefilter

KINDS = ("causal", "voicefilter")


class SeparationNet(nn.Module):
    """Mixtures and enrolments -> voices. Without an enrolment a learned null cue stands in."""

    cue_encoder: nn.Module
    extractor: nn.Module
    cue_size: int

    def setup(self) -> None:
        self.null = self.param("null_cue", nn.initializers.normal(1.0), (self.cue_size,))

    def cue(self, enrolment: Float[Array, "b n"], lengths: Int[Array, "b"]) -> Float[Array, "b c"]:
        """What the enrolments say; the null cue where there are none (a length of 0)."""
        null = cue.unit(self.null[None, :])
        return jnp.where((lengths > 0)[:, None], self.cue_encoder(enrolment, lengths), null)

    def extract(
        self,
        mixture: Float[Array, "b t"],
        lengths: Int[Array, "b"],
        cue: Float[Array, "b c"],
        *,
        train: bool = False,
    ) -> Float[Array, "b t"]:
        """The voice of each cue; 0 beyond the lengths."""
        mixture = masking.zero_padding(mixture[:, :, None], lengths)[:, :, 0]
        audio = self.extractor(mixture, lengths, cue, train=train)
        return masking.zero_padding(audio[:, :, None], lengths)[:, :, 0]

    def step(
        self, state: Any, chunk: Float[Array, "b t"], cue: Float[Array, "b c"]
    ) -> tuple[Any, Float[Array, "b t"]]:
        """See `causal.CausalExtractor.step`."""
        return self.extractor.step(state, chunk, cue)

    def __call__(
        self,
        mixture: Float[Array, "b t"],
        lengths: Int[Array, "b"],
        enrolment: Float[Array, "b n"],
        enrolment_lengths: Int[Array, "b"],
        *,
        train: bool,
        mask: Bool[Array, "b"],
    ) -> Float[Array, "b t"]:
        """Rows that are not real (`mask`) have no part in statistics, and are 0."""
        lengths = masking.fold_row_mask(lengths, mask)
        return self.extract(mixture, lengths, self.cue(enrolment, enrolment_lengths), train=train)


def make_model(config: Any) -> SeparationNet:
    """The network of a config."""
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
        else:
            raise errors.UserError(
                f"config.model.kind={model.kind!r} is unknown; choose one of {', '.join(KINDS)}."
            )
    except ValueError as error:
        raise errors.UserError(f"config.model.{model.kind}: {error}") from error
    cues = sections.build(cue.CueConfig, config.cue, sample_rate_hz=rate)
    return SeparationNet(cue.CueEncoder(cues), extractor, cues.size)


def init(model: SeparationNet, key: Key[Array, ""]) -> dict[str, Any]:
    """Fresh variables of the network."""
    audio, lengths = jnp.zeros((1, 8000)), jnp.full((1,), 8000, jnp.int32)
    mask = jnp.ones((1,), bool)
    return dict(model.init(key, audio, lengths, audio, lengths, train=False, mask=mask))
