"""The voices of people in a film, by a network that sees them: window by window, of any length."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from common import errors
from separation import films, sight

_FADE_SECONDS = 0.4  # from a window to the next
_AT_ONCE = 4  # people: memory does not grow with their number
# Samples of the mixture from a place on, so many of them.
Sound = Callable[[int, int], Float[np.ndarray, "n"]]


@dataclasses.dataclass(frozen=True)
class Person:
    """Somebody in a film.

    Attributes:
        name: in messages and files.
        mouth: uint8[n, 96, 96], 25 a second, or what gives that when it is sliced.
        first: the frame of the film, counted by its sound, at which `mouth` begins.
        face: uint8[k, 224, 224, 3].
    """

    name: str
    mouth: Any
    first: int
    face: Any


class Watcher:
    """A trained network that sees. `voices` gives everybody's voice in constant memory."""

    def __init__(self, task: Any, variables: Any) -> None:
        """`task`: an `extraction.SeparationTask`. Raises UserError for one that sees nothing."""
        self._task = task
        self._config = config = task.config
        if not sight.wanted(config):
            raise errors.UserError(
                "This network sees nothing (config.sight, config.model.kind). Train one by "
                "configs/separation/visualvoice.py or audiovisual_quickstart.py."
            )
        self.sample_rate_hz = config.data.sample_rate_hz
        self.grain = self.sample_rate_hz // films.FRAMES_PER_SECOND
        frames = max(4, int(config.data.crop_seconds * films.FRAMES_PER_SECOND))
        fade = min(round(_FADE_SECONDS * films.FRAMES_PER_SECOND), frames // 4)
        self.window, self.fade = self.grain * frames, self.grain * fade
        self._variables = jax.device_put(jax.device_get(variables), jax.devices()[0])
        self._extract = jax.jit(functools.partial(self._task.extracted, name="given"))

    def voices(
        self, sound: Sound, samples: int, people: Sequence[Person]
    ) -> Iterator[Float[np.ndarray, "p n"]]:
        """Everybody's voice, piece by piece, `samples` in all.

        Windows of the training's length overlap, and one fades into the next. Where somebody is
        not in view the network has the face alone, if that. Raises UserError for a number of people
        that the network cannot separate.
        """
        self.check_number(len(people))
        step, before = self.window - self.fade, None
        rising = (np.arange(self.fade, dtype=np.float32) + 0.5) / self.fade
        faces = self._faces(people)
        for start in range(0, max(1, samples - self.fade), step):
            count = min(self.window, samples - start)
            found = self._window(sound(start, count), start, people, faces)
            if before is not None:
                size = min(self.fade, count)
                found[:, :size] *= rising[:size]
                found[:, :size] += before[:, :size] * rising[::-1][:size]
            is_last = start + step >= samples - self.fade
            yield found[:, :count] if is_last else found[:, :step]
            before = found[:, step:]

    def check_number(self, people: int) -> None:
        """Raises UserError for a number of people that the network cannot separate."""
        by_sight = self._config.model.kind == "visualvoice"
        if by_sight and self._config.model.visualvoice.context and people != 2:
            raise errors.UserError(
                f"This network (context=True) separates two people, and {people} are in view: "
                "train one without context."
            )

    def _faces(self, people: Sequence[Person]) -> tuple[np.ndarray, np.ndarray]:
        most = self._config.sight.pictures
        faces = np.zeros((len(people), most, *films.FACE), np.uint8)
        there = np.zeros((len(people), most), bool)
        for row, person in enumerate(people):
            some = np.asarray(person.face)[:most]
            faces[row, : len(some)], there[row, : len(some)] = some, True
        return faces, there

    def _window(
        self, audio: np.ndarray, start: int, people: Sequence[Person], faces: Any
    ) -> Float[np.ndarray, "p t"]:
        found = []
        for first in range(0, len(people), _AT_ONCE):
            some = slice(first, first + _AT_ONCE)
            found.append(self._some(audio, start, people[some], [x[some] for x in faces]))
        return np.concatenate(found)

    def _some(
        self, audio: np.ndarray, start: int, people: Sequence[Person], faces: Any
    ) -> Float[np.ndarray, "p t"]:
        rows, frames = len(people), self.window // self.grain
        mouth = np.zeros((rows, frames, *films.MOUTH), np.uint8)
        there = np.zeros((rows, frames), bool)
        for row, person in enumerate(people):
            first = start // self.grain - person.first
            skipped = max(0, -first)
            some = np.asarray(person.mouth[max(0, first) : max(0, first + frames)])
            some = some[: frames - skipped]
            mouth[row, skipped : skipped + len(some)] = some
            there[row, skipped : skipped + len(some)] = True
        padded = np.zeros((rows, self.window), np.float32)
        padded[:, : len(audio)] = audio
        seen = sight.Seen(mouth, there, *faces)._asdict()
        batch = {
            **seen,
            # With context each row is shown the other one too.
            **{f"other_{name}": value[::-1] for name, value in seen.items()},
            "sources": padded[:, :, None],
            "enrolment": np.zeros((rows, self.window), np.float32),
            "enrolment_lengths": np.zeros(rows, np.int32),
            "mask": np.ones(rows, bool),
        }
        lengths = np.full(rows, len(audio), np.int32)
        found = self._extract(self._variables, batch, padded, lengths)
        return np.array(found)
