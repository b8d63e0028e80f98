"""Losses of an extracted voice against the true one: compressed spectra and SI-SDR."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from common import errors
from common.audio import stft
from common.metrics import Term
from common.nn import masking
from separation import metrics

_FLOOR = 1e-8  # added to the power of a bin: that of the rounding of 16 bits


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights of the terms; a weight of 0 leaves a term out.

    Attributes:
        magnitude: squared difference of magnitudes to the power `power`, as in VoiceFilter (Wang
            et al. 2019, section 2.2, there 0.3) and Wilson et al. 2018 (arXiv:1811.09010).
        complex: that of spectra of such magnitudes with their phases (the same).
        si_sdr: minus the SI-SDR in dB, of rows whose target is present.
        speaker: cross-entropy of the training speakers, told apart by the cues of the enrolments.
    """

    magnitude: float | int = 1.0
    complex: float | int = 1.0
    si_sdr: float | int = 0.1
    speaker: float | int = 2.0
    power: float = 0.3

    def __post_init__(self) -> None:
        weights = self.magnitude, self.complex, self.si_sdr, self.speaker
        if min(weights) < 0 or not any(weights[:3]):
            raise errors.UserError(
                f"config.loss: magnitude={self.magnitude}, complex={self.complex}, "
                f"si_sdr={self.si_sdr} and speaker={self.speaker} are weights: none below 0, and "
                "one of the first three above."
            )


def terms(
    estimate: Float[Array, "b t"],
    target: Float[Array, "b t"],
    lengths: Int[Array, "b"],
    present: Bool[Array, "b"],
    config: LossConfig,
) -> dict[str, Term]:
    """The terms of the loss over rows of which those of length 0 do not count.

    Both signals are 0 beyond the lengths. Spectral terms are means over the bins of the STFT of
    25 ms every 10 ms at 16 kHz, over all true frames.
    """
    found = {}
    sizes = stft.StftConfig()
    frames = jnp.where(lengths > 0, sizes.num_frames(lengths), 0)
    both = [stft.stft(x, sizes) for x in (estimate, target)]
    powers = [jnp.square(x.real) + jnp.square(x.imag) + _FLOOR for x in both]
    count = jnp.sum(frames).astype(jnp.float32) * sizes.num_bins

    def total(squares: Array) -> Array:
        return jnp.sum(masking.zero_padding(squares, frames))

    if config.magnitude:
        one, other = (power ** (config.power / 2) for power in powers)
        found["magnitude_loss"] = Term(total(jnp.square(one - other)), count, config.magnitude)
    if config.complex:
        one, other = (x * p ** ((config.power - 1) / 2) for x, p in zip(both, powers, strict=True))
        apart = one - other
        squares = jnp.square(apart.real) + jnp.square(apart.imag)
        found["complex_loss"] = Term(total(squares), count, config.complex)
    if config.si_sdr:
        counted = present & (lengths > 0)
        ratios = metrics.batched_si_sdr(estimate, target, lengths)
        found["si_sdr_loss"] = Term(
            -jnp.sum(jnp.where(counted, ratios, 0.0)),
            jnp.sum(counted).astype(jnp.float32),
            config.si_sdr,
        )
    return found


def speaker_term(
    logits: Float[Array, "b s"], speakers: Int[Array, "b"], counted: Bool[Array, "b"], weight: float
) -> Term:
    """Cross-entropy of the speakers of enrolments over the rows `counted`."""
    chosen = jnp.take_along_axis(logits, speakers[:, None], axis=1)[:, 0]
    losses = jax.nn.logsumexp(logits, axis=1) - chosen
    count = jnp.sum(counted).astype(jnp.float32)
    return Term(jnp.sum(jnp.where(counted, losses, 0.0)), count, weight)
