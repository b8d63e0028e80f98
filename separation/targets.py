"""What attributions of a separator explain: how well a voice is extracted, and how much of it."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from common import state
from common.data import speech
from common.nn import masking
from common.task import Batch, Input, Target
from separation import metrics


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The inputs and targets of a `SeparationTask`."""

    task: Any

    @functools.cached_property
    def inputs(self) -> dict[str, Input]:
        """The mixture alone: each extractor has a front end of its own inside."""
        rate = self.task.config.data.sample_rate_hz
        return {"waveform": Input("samples of the mixture", 1 / rate, _read_mixture)}

    @functools.cached_property
    def targets(self) -> dict[str, Target]:
        """Energy is there of any mixture, SI-SDR where the sources are known."""
        return {
            "energy": Target(
                "energy of the extracted voice, by the enrolment of --against if there is one",
                self._energy,
                _choose,
            ),
            "si_sdr": Target(
                "SI-SDR in dB of the extracted voice against the wanted one",
                self._si_sdr,
                _choose,
                needs="present",
            ),
        }

    def _extracted(
        self, variables: state.Variables, batch: Batch, given: Mapping[str, Array]
    ) -> tuple[Float[Array, "b t"], Array]:
        lengths = masking.fold_row_mask(batch["sources_lengths"], batch["mask"])
        mixture = given.get("waveform", jnp.sum(batch["sources"], axis=2))
        found = self.task.extracted(variables, batch, mixture, lengths, "given")
        return found, lengths

    def _energy(
        self, variables: state.Variables, batch: Batch, given: Mapping[str, Array]
    ) -> Float[Array, "b 1"]:
        voice, _ = self._extracted(variables, batch, given)
        return jnp.sum(jnp.square(voice), axis=1, keepdims=True)

    def _si_sdr(
        self, variables: state.Variables, batch: Batch, given: Mapping[str, Array]
    ) -> Float[Array, "b 1"]:
        voice, lengths = self._extracted(variables, batch, given)
        return metrics.batched_si_sdr(voice, batch["sources"][:, :, 0], lengths)[:, None]


def _choose(variables: state.Variables, batch: Batch) -> dict[str, Array]:
    """The other recording as enrolment, if there is one."""
    del variables
    if "against" not in batch:
        return {}
    return {"enrolment": batch["against"], "enrolment_lengths": batch["against_lengths"]}


def _read_mixture(variables: state.Variables, batch: Batch) -> tuple[Array, Array, Array]:
    del variables
    lengths = masking.fold_row_mask(batch["sources_lengths"], batch["mask"])
    mixture = masking.zero_padding(batch["sources"], lengths).sum(axis=2)
    return mixture, lengths, jnp.zeros_like(mixture)


def batch_of(audio: Sequence[Float[np.ndarray, "_"]]) -> dict[str, np.ndarray]:
    """Mixtures of unknown sources, without an enrolment."""
    batch, rows = speech.batch_of(audio), len(audio)
    return {
        "sources": batch.pop("audio")[:, :, None],
        "sources_lengths": batch.pop("audio_lengths"),
        "enrolment": np.zeros((rows, 1), np.float32),
        "enrolment_lengths": np.zeros(rows, np.int32),
        **batch,
    }
