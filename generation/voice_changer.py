"""A trained network as a function from recordings to the same words in another voice."""

import itertools
import math
import pathlib
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Key, Num, UInt8

from common import errors, trained
from common.audio import io
from common.data import splits
from generation import data, harmonics, images, revoicing
from generation import task as task_lib

Recording = io.PathLike | bytes | Num[np.ndarray, "t *c"]
Face = pathlib.Path | str | bytes | UInt8[np.ndarray, "h w 3"]

_PIECE_SECONDS = 15.0  # of a longer recording, at most
_OVERLAP_SECONDS = 0.1  # in which one piece goes over into the next


class VoiceChanger:
    """The network of a work directory, see `config.model.kind=revoice`.

    `changer(recording, face="ann.jpeg")` says the recording in the voice of a face, with `voice`
    in that of another recording: samples at `sample_rate_hz`, as many as the source has. A
    recording is a file in any format and of any length, its bytes, or samples at that rate; a face
    a file, its bytes, or the bytes of its pixels.
    """

    def __init__(self, found: trained.Trained) -> None:
        task = found.task
        if not isinstance(task, revoicing.RevoiceTask):
            raise errors.UserError(
                f"{found.folder} has trained a network of kind {found.config.model.kind!r}, which "
                "says no words of others: name a run of configs/generation/revoice.py, or leave "
                "--say out."
            )
        self.folder, self.config, self.step = found.folder, found.config, found.step
        self._task, self._variables = task, found.variables
        self.sample_rate_hz = found.config.data.sample_rate_hz
        net = task.net

        def say(variables: Any, audio: Array, lengths: Array, middle: Array, who: Array) -> Array:
            height = task.height(audio, lengths)
            heard = task.heard(audio, lengths)
            return net.apply(variables, *heard, height, middle, who, method="say")

        def hear(variables: Any, audio: Array, lengths: Array) -> Array:
            return net.apply(variables, *task.heard(audio, lengths), method="voice")

        self._say, self._hear = jax.jit(say), jax.jit(hear)
        self._mean = jax.jit(lambda audio, lengths: harmonics.mean(*task.height(audio, lengths)))
        self._look = jax.jit(lambda variables, x: net.apply(variables, x, method="face"))

    def compile(self) -> None:
        """All programs that pictures and recordings of any length need, so that none waits for
        them."""
        pixels = images.LEAST_PIXELS
        who, key = self.seen(np.zeros((pixels, pixels, 3), np.uint8)), jax.random.key(0)
        for doubled in range(math.ceil(math.log2(_PIECE_SECONDS)) + 1):  # see `_padded`
            silence = np.zeros(self.sample_rate_hz << doubled, np.float32)
            self._piece(silence, who, self._middle([silence]), jax.random.fold_in(key, 0))
            self._hear(self._variables, *self._padded(silence))

    def seen(self, face: Face, name: object = "picture") -> Float[np.ndarray, "1 k"]:
        """Whose voice it is by a face. Raises images.ImageError: no picture, or too small."""
        values = images.of_face(face, self.config.picture, name)
        return np.asarray(self._look(self._variables, values))

    def heard(self, voice: Recording, name: object = "recording") -> Float[np.ndarray, "1 k"]:
        """Whose voice it is by a recording, or its first quarter of a minute. Raises
        io.AudioError."""
        audio = self._read(voice, name)[: round(_PIECE_SECONDS * self.sample_rate_hz)]
        return np.asarray(self._hear(self._variables, *self._padded(audio)))

    def say(
        self, source: Recording, who: Float[np.ndarray, "1 k"], seed: int = 0, name: object = ""
    ) -> Float[np.ndarray, "t"]:
        """A recording by the voice of `seen` or `heard`, as loud as it was. `seed` draws the phases
        that Griffin-Lim begins with. Raises io.AudioError: not to be read, silent, too short."""
        audio = self._read(source, name or "recording")
        whole = np.zeros(len(audio), np.float32)
        half = round(_OVERLAP_SECONDS * self.sample_rate_hz / 2)
        pieces = -(-len(audio) // round(_PIECE_SECONDS * self.sample_rate_hz))
        ends = np.linspace(0, len(audio), pieces + 1).astype(int)
        rise = ((np.arange(2 * half) + 0.5) / (2 * half)).astype(np.float32)
        cuts = list(itertools.pairwise(ends.tolist()))
        middle = self._middle([audio[start:end] for start, end in cuts])
        for i, (start, end) in enumerate(cuts):
            first, last = i == 0, i == pieces - 1
            start, end = start - (0 if first else half), end + (0 if last else half)
            key = jax.random.fold_in(jax.random.key(seed), i)
            said = self._piece(audio[start:end], who, middle, key)
            if not first:
                said[: 2 * half] *= rise
            if not last:
                said[-2 * half :] *= rise[::-1]
            whole[start:end] += said
        return whole

    def __call__(
        self,
        source: Recording,
        *,
        face: Face | None = None,
        voice: io.PathLike | bytes | Num[np.ndarray, "n *d"] | None = None,
        seed: int = 0,
    ) -> Float[np.ndarray, "t"]:
        """A recording in the voice of a face or of another recording."""
        if (face is None) == (voice is None):
            raise ValueError("give either a face or a voice")
        who = self.seen(face) if voice is None else self.heard(voice)
        return self.say(source, who, seed)

    def _middle(self, pieces: list[Float[np.ndarray, "_"]]) -> Float[np.ndarray, "1"]:
        """How high the voice of a recording is in all its pieces, octaves above 1 Hz."""
        means, counts = zip(*(self._mean(*self._padded(piece)) for piece in pieces))
        means, counts = np.concatenate(means), np.concatenate(counts)
        return np.average(means, weights=np.maximum(counts, 1e-6), keepdims=True)

    def _piece(
        self,
        audio: Float[np.ndarray, "t"],
        who: Float[np.ndarray, "1 k"],
        middle: Float[np.ndarray, "1"],
        key: Key[Array, ""],
    ) -> Float[np.ndarray, "t"]:
        padded, lengths = self._padded(audio)
        frames = self._say(self._variables, padded, lengths, middle, who)
        return self._task.sounds(frames, padded, lengths, key[None])[0, : len(audio)]

    def _padded(self, audio: Float[np.ndarray, "t"]) -> tuple[Float[np.ndarray, "1 n"], np.ndarray]:
        """To 1, 2, 4, ... seconds: few programs are compiled."""
        size = self.sample_rate_hz
        while size < len(audio):
            size *= 2
        return np.pad(audio, (0, size - len(audio)))[None], np.array([len(audio)], np.int32)

    def _read(self, recording: Recording, name: object) -> Float[np.ndarray, "t"]:
        rate, least = self.sample_rate_hz, self.config.data.min_seconds
        given = {"source_rate_hz": rate} if isinstance(recording, np.ndarray) else {}
        channel = splits.channel(self.config.data)
        audio = io.load_audio(recording, sample_rate_hz=rate, channel=channel, **given)
        if not isinstance(recording, np.ndarray | bytes):
            name = recording
        if data.is_silent(audio):
            raise io.AudioError(name, "is silent: nobody speaks in it")
        if len(audio) < least * rate:
            raise io.AudioError(
                name,
                f"{len(audio) / rate:.2f} s are too short; it takes {least:g} s "
                "(config.data.min_seconds)",
            )
        return audio.astype(np.float32)


def load(workdir: pathlib.Path | str, *, step: int | None = None) -> VoiceChanger:
    """The network of a work directory. Raises UserError: none, damaged, or of another kind."""
    return VoiceChanger(trained.load(task_lib.PACKAGE, workdir, step=step))
