"""A trained GAN as a function from faces to voices."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt8

from common import errors, trained
from generation import directions, images, revoicing, sounds
from generation import task as task_lib

Face = pathlib.Path | str | bytes | UInt8[np.ndarray, "h w 3"]


class VoiceMaker:
    """The network of a work directory, see `config.model.kind=face2voice`.

    `maker.voice(face, 4)` makes stretches of a voice for a face: a file, its bytes, or the bytes of
    its pixels. They are `samples` samples at `sample_rate_hz`, and say nothing.
    """

    def __init__(self, found: trained.Trained) -> None:
        task = found.task
        revoicing.check_task(task, found.folder)
        if not isinstance(task, task_lib.GanTask) or task.direction.made != directions.VOICE:
            raise errors.UserError(
                f"{found.folder} has trained a network of kind {found.config.model.kind!r}, which "
                "makes no voices: name a run of configs/generation/face2voice.py"
                + (", or give it --voice." if isinstance(task, task_lib.GanTask) else ".")
            )
        self.folder, self.config, self.step = found.folder, found.config, found.step
        networks, self._variables = task.networks, found.variables
        self.sample_rate_hz = found.config.data.sample_rate_hz
        self.samples = networks.stretches.samples

        def make(variables: Any, seen: Array, key: Key[Array, ""]) -> Array:
            noise = jax.random.normal(jax.random.fold_in(key, 0), (1, networks.noise))
            made = networks.generate(variables, seen, noise)
            phases = jax.random.fold_in(key, 1)[None]
            return networks.stretches.sounds(variables[sounds.SCALES], made, phases)[0]

        self._look, self._make = jax.jit(networks.look), jax.jit(make)

    def seen(self, face: Face, name: object = "picture") -> Float[np.ndarray, "1 d"]:
        """What it sees of a face. Raises images.ImageError: no picture, or too small."""
        values = images.of_face(face, self.config.picture, name)
        return np.asarray(self._look(self._variables, values))

    def voice(self, face: Face, n: int = 1, seed: int = 0) -> Float[np.ndarray, "n t"]:
        """`n` stretches of a voice in [-1, 1]; the same ones for the same seed, and the first of
        many are those of few."""
        seen = self.seen(face)
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(n))
        return np.stack([np.asarray(self._make(self._variables, seen, key)) for key in keys])


def load(workdir: pathlib.Path | str, *, step: int | None = None) -> VoiceMaker:
    """The network of a work directory. Raises UserError: none, damaged, or of another kind."""
    return VoiceMaker(trained.load(task_lib.PACKAGE, workdir, step=step))
