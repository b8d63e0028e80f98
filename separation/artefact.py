"""A network that `separation.export` wrote, as streams: `separation.exported`."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from common import export
from common.audio import io
from separation import enhancer, enrolling, self_enrolment

KIND = "separation.export"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """See `causal.CausalExtractor`."""

    hop_size: int
    delay_samples: int


class Exported:
    """The programs of a file. `exported.stream(enrolment)` is as that of `separation.load`.

    Without an enrolment a stream extracts the voice that the file was made with (--enroll), or the
    loudest. `about` is what the file says of itself.
    """

    def __init__(self, found: export.Artefact) -> None:
        self.about, about = found.about, found.about
        self.sample_rate_hz, self.channel = about["sample_rate_hz"], about["channel"]
        self.extractor = Sizes(about["hop_size"], about["delay_samples"])
        device = jax.devices()[0]
        self._weights = [jax.device_put(found.arrays[name], device) for name in about["weights"]]
        self._first = [found.arrays[name] for name in about["state"]]
        self._calls = {name: jax.jit(one.call) for name, one in found.programs.items()}
        self._enroller = enrolling.Enroller(
            functools.partial(self._calls["cue"], self._weights),
            self.sample_rate_hz,
            self.channel,
            about["enrolment_samples"] / self.sample_rate_hz,
        )

    @property
    def latency_ms(self) -> float:
        """How much of the future a sample of the output hangs on."""
        return self.about["latency_ms"]

    def cue(
        self,
        enrolment: enrolling.Recording | Sequence[enrolling.Recording] | None,
        rate: int | None = None,
    ) -> Float[Array, "1 c"]:
        """See `enhancer.Enhancer.cue`."""
        return self._enroller.cue(enrolment, rate)

    def cue_of(self, audio: Float[np.ndarray, "n"]) -> Float[Array, "1 c"]:
        """See `enhancer.Enhancer.cue_of`."""
        return self._enroller.cue_of(audio)

    def collector(self) -> self_enrolment.Collector:
        """See `enhancer.Enhancer.collector`."""
        return self_enrolment.Collector(self.sample_rate_hz, self._enroller.longest)

    def stream(
        self,
        enrolment: enrolling.Recording | Sequence[enrolling.Recording] | None = None,
        rate: int | None = None,
        strength: float = 1.0,
        self_enroll: bool = False,
    ) -> enhancer.Stream:
        """See `enhancer.Enhancer.stream`."""
        enhancer.check_wishes(enrolment, self_enroll, strength)
        cue = None if enrolment is None else self.cue(enrolment, rate)
        return enhancer.Stream(self, cue, strength, self_enroll)

    def start(self, cue: Float[Array, "1 c"] | None) -> list[Any]:
        """The state of a new stream. None: for the voice of the file."""
        return self._first if cue is None else self.with_cue(self._first, cue)

    def with_cue(self, state: list[Any], cue: Float[Array, "1 c"]) -> list[Any]:
        """`state` with another cue from here on."""
        return self._calls["with_cue"](self._weights, state, cue)

    def step(
        self, state: list[Any], chunk: Float[np.ndarray, "1 t"], motion: None = None
    ) -> tuple[list[Any], Float[Array, "1 t"]]:
        """The next hops: those of a block together, others one by one."""
        del motion
        hop = self.extractor.hop_size
        if chunk.shape[1] == self.about["block_hops"] * hop:
            return self._calls["block"](self._weights, state, chunk)
        parts = []
        for hop_of in np.split(chunk, chunk.shape[1] // hop, axis=1):
            state, audio = self._calls["step"](self._weights, state, hop_of)
            parts.append(audio)
        return state, jnp.concatenate(parts, axis=1)

    def watched(self) -> None:
        """No lips are seen."""
        return


def read(path: io.PathLike) -> Exported:
    """The network of a file of `separation.export`. Raises UserError, see `common.export.read`."""
    return Exported(export.read(path, KIND))
