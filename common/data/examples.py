"""What batches are made of: examples, and what is drawn at random beside each."""

import dataclasses
import hashlib
import logging
import zlib
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from common.audio import io
from common.data import records

log = logging.getLogger(__name__)

Example = Mapping[str, Any]


@runtime_checkable
class Examples(Protocol):
    """Random access to examples: mappings of arrays and numbers, with the same names in each.

    `draw` gives example i as training sees it, every choice made by `rng`; with None as evaluation
    does, whole and always the same. `lengths` says for each sequence (its first axis is time) how
    much of it the batch has room for: examples of which a stretch will do give no more, and whole
    ones what they are. A sequence that it does not name may have any length. All other arrays,
    pictures for instance, have one shape in all examples.

    An `index` goes into the batch in place of the example's number. Text does not: an `id` is for
    messages, a `speaker` for companions.
    Raises io.AudioError with the name of a recording that cannot be read, or OSError.

    A stream tells by `identity`, where there is one, whether these are the examples of a
    checkpoint: {"recordings": which there are, "settings": how they are read}, as short texts.
    """

    def __len__(self) -> int: ...

    def draw(
        self, i: int, rng: np.random.Generator | None, lengths: Mapping[str, int]
    ) -> Example: ...


@runtime_checkable
class Clips(Protocol):
    """What a companion is drawn from, see `common.data.clips.Clips`."""

    def draw(
        self, rng: np.random.Generator, max_samples: int, beside: Example
    ) -> Float[np.ndarray, "n"]: ...


@dataclasses.dataclass(frozen=True)
class Companion:
    """What is drawn beside a row (noise, a room, another speaker): at most `length` samples.

    A `length` of None is the room that there is for the row's sequence `like`.
    """

    clips: Clips
    probability: float = 1.0
    length: int | None = None
    like: str = "audio"

    @property
    def identity(self) -> str:
        """Changes with what is drawn."""
        clips = getattr(self.clips, "fingerprint", "")
        return f"{self.probability:g} {self.length} {self.like} {clips}"


@dataclasses.dataclass(frozen=True)
class WithCompanions:
    """Examples, and in training beside each what is drawn for it: see `Examples`.

    Every companion adds `<name>: f32[length]`, filled up with zeros, and `<name>_lengths: i32`, 0
    where there is none. It throws its coin before it reads anything and has random numbers of its
    own, so that one more changes none of the others. It is given the row's example: an interferer
    can be another speaker. One that cannot be read is named in a warning, once, and is left out.
    """

    examples: Examples
    companions: Mapping[str, Companion]
    said: set[str] = dataclasses.field(default_factory=set, compare=False)

    @property
    def identity(self) -> Mapping[str, str]:
        """That of the examples, and what is drawn beside them."""
        found = dict(getattr(self.examples, "identity", {}))
        return found | {name: one.identity for name, one in self.companions.items()}

    def __len__(self) -> int:
        return len(self.examples)

    def draw(
        self, i: int, rng: np.random.Generator | None, lengths: Mapping[str, int]
    ) -> dict[str, Any]:
        """Example i and what is beside it."""
        row = dict(self.examples.draw(i, rng, lengths))
        if rng is None:
            return row
        beside = {}
        for name, companion in self.companions.items():
            length = companion.length
            if length is None:
                length = lengths.get(companion.like, len(row[companion.like]))
            stream = own_stream(rng, name)
            drawn = draw_beside(row, name, companion, stream, length, self.said)
            beside[name] = np.zeros(length, np.float32)
            beside[name][: len(drawn)] = drawn
            beside[f"{name}_lengths"] = np.int32(len(drawn))
        return row | beside


def draw_beside(
    row: Example,
    name: str,
    companion: Companion,
    rng: np.random.Generator,
    length: int,
    said: set[str],
) -> Float[np.ndarray, "n"]:
    """At most `length` samples of a companion; none where the coin, thrown first, says so.

    Nor of one that cannot be read: a warning names it, unless it is among those already `said`.
    """
    nothing = np.zeros(0, np.float32)
    if rng.random() >= companion.probability:
        return nothing
    try:
        return companion.clips.draw(rng, length, row)
    except (io.AudioError, OSError) as error:
        which = error.name if isinstance(error, io.AudioError) else str(error)
        if which not in said:
            said.add(which)
            log.warning("A row goes without %s: %s", name, error)
        return nothing


def own_stream(rng: np.random.Generator, name: str) -> np.random.Generator:
    """The random numbers called `name` beside `rng`, however many were drawn from that.

    NumPy's own way of spawning, with a name in place of a count.
    """
    seed = rng.bit_generator.seed_seq
    key = (*seed.spawn_key, zlib.crc32(name.encode()))
    return np.random.default_rng(np.random.SeedSequence(seed.entropy, spawn_key=key))


def recordings(source: records.Source, positions: Int[np.ndarray, "n"]) -> str:
    """Changes with the ids of the records at `positions`, in their order.

    Sources with a `fingerprint` are asked for that instead, or for their `contents`: a record of
    theirs may hold samples, which nobody wants to read for an id.
    """
    digest = hashlib.sha256(np.ascontiguousarray(positions, np.int64).tobytes())
    known = getattr(source, "contents", "") or getattr(source, "fingerprint", "")
    for name in (known,) if known else (source[int(i)]["id"] for i in positions):
        digest.update(f"{name}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]
