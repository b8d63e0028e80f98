"""A trained GAN as a function from recordings to faces."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num, UInt8

from common import errors, trained
from common.audio import io, vad
from common.data import splits
from generation import data, directions, hearing, images, revoicing
from generation import task as task_lib

Recording = io.PathLike | bytes | Num[np.ndarray, "t *c"]

_AT_ONCE = 16  # pictures in a batch
_MOST_SEED = 2**32 - 1  # of a larger one a key has the last 32 bits


def check_seed(seed: int) -> None:
    """Raises UserError for a --seed that no key is made of."""
    if not 0 <= seed <= _MOST_SEED:
        raise errors.UserError(f"--seed={seed} is not from 0 to {_MOST_SEED}.")


class FaceMaker:
    """The network of a work directory.

    `maker(recording, count=4)` draws faces of a voice. A recording is a file in any format, its
    bytes, or samples at `config.data.sample_rate_hz`; of a network of classes (config.voice.kind)
    the name of one, and None of one that takes nothing but noise.
    """

    def __init__(self, found: trained.Trained) -> None:
        task = found.task
        revoicing.check_task(task, found.folder)
        if not isinstance(task, task_lib.GanTask):
            raise errors.UserError(
                f"{found.folder} has trained a network of kind {found.config.model.kind!r}, which "
                "makes no faces: name a run of a GAN."
            )
        if task.direction.made != directions.FACE:
            raise errors.UserError(
                f"{found.folder} has a network that makes voices of faces, and no faces: give it a "
                "face (generation.sample --face=face.jpg --out=voice.wav), or name another run."
            )
        self.folder, self.config, self.step = found.folder, found.config, found.step
        self._networks, self._variables = task.networks, found.variables
        self._classes = task.classes if found.config.voice.kind == "class" else ()
        networks = self._networks

        def draw(variables: Any, condition: Array, noise: Array) -> Array:
            return networks.generate(variables, condition, noise)

        self._condition = jax.jit(networks.condition)
        self._draw = jax.jit(draw)

    @property
    def sample_rate_hz(self) -> int:
        """Of all samples that it is given."""
        return self.config.data.sample_rate_hz

    @property
    def size(self) -> tuple[int, int, int]:
        """Height, width and channels of its faces."""
        picture = self.config.picture
        return picture.size, picture.size, picture.channels

    def heard(
        self, recording: Recording | None, name: object = "recording"
    ) -> Float[np.ndarray, "d"]:
        """What it hears of a voice, or takes for a class or for nothing.

        Raises io.AudioError: not to be read, or silent; UserError: no such class.
        """
        kind = self.config.voice.kind
        if kind in hearing.SOUNDS and recording is not None:
            return self.vector(self._read(recording, name))
        if isinstance(recording, str) and recording in self._classes:
            batch = {"label": np.array([self._classes.index(recording)])}
        elif kind == "none" and recording is None:
            batch = {"mask": np.ones(1, bool)}
        else:
            raise errors.UserError(
                f"{self.folder} has a network that takes {self._takes}, not {recording!r}."
            )
        return np.asarray(self._condition(self._variables, batch))[0]

    def vector(
        self, voice: Float[np.ndarray, "t"], length: int | None = None
    ) -> Float[np.ndarray, "d"]:
        """What it hears of samples at its rate that are all speech, or of the first `length`."""
        lengths = np.array([len(voice) if length is None else length], np.int32)
        batch = {"audio": voice[None].astype(np.float32)}
        return np.asarray(self._condition(self._variables, batch, lengths))[0]

    def check_hears(self) -> None:
        """Raises UserError for a network that draws of something else than of voices."""
        if self.config.voice.kind not in hearing.SOUNDS:
            raise errors.UserError(
                f"{self.folder} has a network that takes {self._takes}, and hears nothing: draw "
                "with it by python -m generation.sample."
            )

    @property
    def _takes(self) -> str:
        """What it draws of, in words."""
        kinds = {"class": f"one of {', '.join(self._classes)}", "none": "no voice"}
        return kinds.get(self.config.voice.kind, "a recording")

    def _read(self, recording: Recording, name: object) -> Float[np.ndarray, "n"]:
        """As in evaluations: the first seconds, what is shorter repeated."""
        settings, rate = self.config.data, self.sample_rate_hz
        given = {"source_rate_hz": rate} if isinstance(recording, np.ndarray) else {}
        channel = splits.channel(settings)
        audio = io.load_audio(recording, sample_rate_hz=rate, channel=channel, **given)
        if not isinstance(recording, np.ndarray | bytes):
            name = recording
        data.check_voice(audio, name)
        if len(audio) < settings.min_seconds * rate:
            raise io.AudioError(
                name,
                f"{len(audio) / rate:.2f} s are too short to make a face of; it takes "
                f"{settings.min_seconds:g} s (config.data.min_seconds)",
            )
        if (detector := data.detector(self.config)) is not None:
            audio = vad.keep_speech(audio, rate, detector)
            if not len(audio):
                raise io.AudioError(name, "no speech in it, says config.data.vad")
        return np.resize(audio, round(settings.eval_seconds * rate)).astype(np.float32)

    def noise(self, seed: int, count: int) -> Float[np.ndarray, "n z"]:
        """What it draws beside voices; the first of many are those of few."""
        keys = jax.vmap(lambda n: jax.random.fold_in(jax.random.key(seed), n))(jnp.arange(count))
        return np.asarray(jax.vmap(lambda k: jax.random.normal(k, (self._networks.noise,)))(keys))

    def drawn(
        self, heard: Float[np.ndarray, "n d"], noise: Float[np.ndarray, "n z"]
    ) -> UInt8[np.ndarray, "n h w c"]:
        """Faces of what was heard."""
        found = []
        for start in range(0, len(heard), _AT_ONCE):
            part = [x[start : start + _AT_ONCE] for x in (heard, noise)]
            padded = [np.resize(x, (_AT_ONCE, x.shape[1])) for x in part]
            found.append(np.asarray(self._draw(self._variables, *padded))[: len(part[0])])
        return images.to_bytes(np.concatenate(found))

    def __call__(
        self, recording: Recording | None = None, *, count: int = 1, seed: int = 0
    ) -> UInt8[np.ndarray, "n h w c"]:
        """`count` faces of a voice; the same ones for the same seed."""
        heard = self.heard(recording)
        return self.drawn(np.tile(heard, (count, 1)), self.noise(seed, count))

    def between(
        self, one: Recording, other: Recording, *, frames: int, seed: int = 0
    ) -> UInt8[np.ndarray, "n h w c"]:
        """Faces on the way from one voice to another, with one noise: those of the ends are what
        the voices alone give."""
        ends = [self.heard(recording) for recording in (one, other)]
        share = np.linspace(0, 1, frames, dtype=np.float32)[:, None]
        heard = (1 - share) * ends[0][None] + share * ends[1][None]
        return self.drawn(heard, np.tile(self.noise(seed, 1), (frames, 1)))


def load(workdir: pathlib.Path | str, *, step: int | None = None) -> FaceMaker:
    """The network of a work directory. Raises UserError: none, damaged, or of another kind."""
    return FaceMaker(trained.load(task_lib.PACKAGE, workdir, step=step))
