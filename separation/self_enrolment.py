"""A cue without a sample: a voice is known by the first seconds of it that are surely its own.

The null cue extracts the loudest voice. Of what comes out, blocks count in which it is stronger
than all that was taken away from the mixture, and not a pause of its own. So many of them as make
an enrolment are kept, in their order.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from common.nn import masking

SECONDS = 2.0  # that make an enrolment, or as many as the network takes of one
LEAST_SECONDS = 1.0  # fewer in all of a recording make none
BLOCK_SECONDS = 0.032
_OVER_REST = 2.0  # 3 dB: energy of the output over that of what it leaves of the mixture
_UNDER_LOUDEST = 1e-3  # -30 dB: energy against that of the loudest block so far


def _sure(voice: ArrayLike, rest: ArrayLike, loudest: ArrayLike) -> ArrayLike:
    """Of energies of blocks: whether the voice is in it, and little else was."""
    return (voice >= _OVER_REST * rest) & (voice >= _UNDER_LOUDEST * loudest) & (voice > 0)


def _sizes(rate_hz: int, longest: int) -> tuple[int, int, int]:
    """(samples of a block, blocks of an enrolment, the fewest)"""
    block = round(BLOCK_SECONDS * rate_hz)
    most = max(1, min(round(SECONDS * rate_hz), longest) // block)
    return block, most, min(most, round(LEAST_SECONDS * rate_hz) // block)


def enrolments(
    voice: Float[Array, "b t"],
    mixture: Float[Array, "b t"],
    lengths: Int[Array, "b"],
    rate_hz: int,
    longest: int,
) -> tuple[Float[Array, "b n"], Int[Array, "b"]]:
    """The enrolment of each row out of its `voice`, of at most `longest` samples; 0 long: none."""
    block, most, least = _sizes(rate_hz, longest)
    rows, count = voice.shape[0], max(most, -(-voice.shape[1] // block))
    short = count * block - voice.shape[1]

    def cut(x: Array) -> Array:
        return jnp.pad(x, ((0, 0), (0, short))).reshape(rows, count, block)

    parts = cut(voice)
    whole = (jnp.arange(count)[None, :] + 1) * block <= lengths[:, None]
    energy = jnp.where(whole, jnp.sum(jnp.square(parts), axis=2), 0.0)
    rest = jnp.sum(jnp.square(cut(mixture) - parts), axis=2)
    sure = _sure(energy, rest, jax.lax.cummax(energy, axis=1))
    first = jnp.argsort(~sure, axis=1, stable=True)[:, :most]
    found = jnp.minimum(jnp.sum(sure, axis=1), most)
    sizes = jnp.where(found >= least, found, 0).astype(jnp.int32) * block
    kept = jnp.take_along_axis(parts, first[:, :, None], axis=1).reshape(rows, most * block, 1)
    return masking.zero_padding(kept, sizes)[:, :, 0], sizes


class Collector:
    """`enrolments` of a stream, on the host: `put` what was heard and what was made of it.

    The memory is that of one enrolment.
    """

    def __init__(self, rate_hz: int, longest: int) -> None:
        self._block, self._most, self._least = _sizes(rate_hz, longest)
        self._waiting = np.zeros((2, 0), np.float32)  # mixture and voice
        self._kept: list[Float[np.ndarray, "_"]] = []
        self._loudest = 0.0

    @property
    def is_full(self) -> bool:
        """Nothing more is needed."""
        return len(self._kept) == self._most

    @property
    def enrolment(self) -> Float[np.ndarray, "n"] | None:
        """What there is so far; None if that is too little."""
        return np.concatenate(self._kept) if len(self._kept) >= self._least else None

    def put(self, mixture: Float[np.ndarray, "n"], voice: Float[np.ndarray, "n"]) -> None:
        """The next samples of both."""
        waiting = np.concatenate([self._waiting, np.stack([mixture, voice])], axis=1)
        count = waiting.shape[1] // self._block * self._block
        blocks = waiting[:, :count].reshape(2, -1, self._block)
        self._waiting = waiting[:, count:]
        for heard, made in zip(*blocks):
            energy, rest = (float(np.sum(np.square(x))) for x in (made, heard - made))
            self._loudest = max(self._loudest, energy)
            if not self.is_full and _sure(energy, rest, self._loudest):
                self._kept.append(made.copy())
