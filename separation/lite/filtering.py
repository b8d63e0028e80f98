"""A trained VoiceFilter-Lite in use: the features of a voice in front of a recogniser."""

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from common import errors, trained
from common.audio import io
from common.data import splits
from separation import enrolling
from separation import task as separation_task
from separation.lite import network
from separation.lite import task as lite_task

_ROOMS_SECONDS = (4.0, 8.0, 16.0, 32.0)  # pieces are filled up to one of them: few programs


class Filter:
    """A trained network. `features_of(pieces, cue)` is for `asr.transcriber.Transcriber.many`."""

    def __init__(self, found: trained.Trained) -> None:
        self._task = task = found.task
        if not isinstance(task, lite_task.LiteTask):
            raise errors.UserError(
                f"{found.folder}: config.model.kind={found.config.model.kind} gives sound and no "
                "features. Name a work directory of configs/separation/lite.py."
            )
        self.sizes, self.sample_rate_hz = task.sizes, found.config.data.sample_rate_hz
        self._folder = found.folder
        self._variables = jax.device_put(jax.device_get(found.variables), jax.devices()[0])
        encode = jax.jit(lambda v, *x: task.model.apply(v, *x, method="cue"))
        self._enroller = enrolling.Enroller(
            functools.partial(encode, self._variables),
            self.sample_rate_hz,
            splits.channel(found.config.data),
            found.config.data.enrolment_seconds,
        )
        self._filter = jax.jit(self._filtered)
        self._step = jax.jit(self._stepped)

    def check(self, recogniser: Any) -> None:
        """Raises UserError where a `asr.transcriber.Transcriber` has other features."""
        network.check_same(self.sizes, recogniser.front_end, str(self._folder))

    def cue(
        self,
        enrolment: enrolling.Recording | Sequence[enrolling.Recording],
        rate: int | None = None,
    ) -> Float[Array, "1 c"]:
        """See `enrolling.Enroller.cue`; there is always an enrolment."""
        return self._enroller.cue(enrolment, rate)

    def features_of(
        self, pieces: Sequence[Float[np.ndarray, "_"]], cue: Float[Array, "1 c"]
    ) -> list[Float[np.ndarray, "_ m"]]:
        """Of samples at the network's rate, up to 32 s each, which begins anew with every piece."""
        found = []
        for audio in pieces:
            seconds = len(audio) / self.sample_rate_hz
            room = next((x for x in _ROOMS_SECONDS if seconds <= x), seconds)
            padded = np.zeros(round(room * self.sample_rate_hz), np.float32)
            padded[: len(audio)] = audio
            x, frames = self._filter(self._variables, padded[None], np.int32([len(audio)]), cue)
            found.append(np.asarray(x[0, : int(frames[0])]))
        return found

    def start(self) -> network.State:
        """That of a new stream."""
        return network.initial_state(1, self.sizes)

    def step(
        self, state: network.State, x: Float[np.ndarray, "1 l m"], cue: Float[Array, "1 c"]
    ) -> tuple[network.State, Float[Array, "1 l m"]]:
        """The next frames of a stream, of which none waits for a later one."""
        return self._step(self._variables, state, x, cue)

    def _stepped(
        self,
        variables: Any,
        state: network.State,
        x: Float[Array, "1 l m"],
        cue: Float[Array, "1 c"],
    ) -> tuple[network.State, Float[Array, "1 l m"]]:
        found = self._task.filtered(variables, x, jnp.full(1, x.shape[1]), cue, state)
        return found.state, found.features

    def _filtered(
        self,
        variables: Any,
        audio: Float[Array, "1 t"],
        lengths: Int[Array, "1"],
        cue: Float[Array, "1 c"],
    ) -> tuple[Float[Array, "1 l m"], Int[Array, "1"]]:
        x, frames = network.features(audio, lengths, self.sizes)
        return self._task.filtered(variables, x, frames, cue).features, frames


def load(workdir: io.PathLike, *, step: int | None = None) -> Filter:
    """The network that a training left in `workdir`: its best checkpoint, or that of `step`.

    Raises UserError: no work directory of such a network, or no such checkpoint.
    """
    return Filter(trained.load(separation_task.PACKAGE, pathlib.Path(workdir), step=step))
