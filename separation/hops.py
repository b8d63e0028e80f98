"""A stream of samples as hops, and what a network makes of them on time again."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from common import errors


class Hops:
    """`put` chunks of any size, `take` hops, `give` what became of them, which comes late.

    What `give` returns is, in all, as many samples as were put in, without the network's delay.
    With a `strength` below 1 what was put in is heard too. `heard` is told what was put in and what
    was made of it, side by side.
    """

    def __init__(
        self,
        hop_size: int,
        delay_samples: int,
        strength: float = 1.0,
        heard: Callable[[np.ndarray, np.ndarray], None] | None = None,
    ) -> None:
        self._hop, self._delay, self._strength = hop_size, delay_samples, strength
        self._heard = heard
        self._mixture = np.zeros(0, np.float32)  # of what is not given back yet
        self._waiting = np.zeros(0, np.float32)
        self._early = delay_samples  # samples of output that are before the first of the input
        self._left = 0  # that were put in and not given back yet
        self._is_ended = False

    @property
    def ready(self) -> int:
        """Whole hops that wait."""
        return len(self._waiting) // self._hop

    @property
    def is_over(self) -> bool:
        """Whether all has been given after `end`."""
        return self._is_ended and not self._left

    def put(self, chunk: Float[np.ndarray, "n"]) -> None:
        """The next samples. Raises UserError after `end`: the silence is no place for more."""
        if self._is_ended:
            raise errors.UserError(
                "This stream is over: its end was asked for (flush), and what comes now would not "
                "be on time. Begin another one."
            )
        self._left += len(chunk)
        self._waiting = np.concatenate([self._waiting, np.asarray(chunk, np.float32)])
        if self._strength < 1 or self._heard:
            self._mixture = np.concatenate([self._mixture, np.asarray(chunk, np.float32)])

    def end(self) -> None:
        """There are no more: silence brings out what is left. Once is enough."""
        if self._is_ended:
            return
        self._is_ended = True
        silence = np.zeros(self._delay + self._hop, np.float32)
        self._waiting = np.concatenate([self._waiting, silence])

    def take(self, hops: int) -> Float[np.ndarray, "t"]:
        """The next hops, of those that are ready."""
        size = hops * self._hop
        found, self._waiting = self._waiting[:size], self._waiting[size:]
        return found

    def give(self, out: Float[np.ndarray, "t"]) -> Float[np.ndarray, "m"]:
        """What the hops that were taken became, without what is early or after the end."""
        early = min(self._early, len(out))
        self._early -= early
        out = out[early:][: self._left]
        self._left -= len(out)
        if self._strength == 1 and not self._heard:
            return out
        mixture, self._mixture = np.split(self._mixture, [len(out)])
        if self._heard:
            self._heard(mixture, out)
        return mixed(out, mixture, self._strength)


def mixed(
    voice: Float[np.ndarray, "n"], mixture: Float[np.ndarray, "n"], strength: float
) -> Float[np.ndarray, "n"]:
    """A `strength` of 0.8 leaves a fifth of the mixture."""
    return np.float32(strength) * voice + np.float32(1 - strength) * mixture
