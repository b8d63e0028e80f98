"""Rows to learn and to measure re-voicing by: what is said, who says it, who is to say it."""

import dataclasses
import functools
import math
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from common import parallel
from common.data import buckets, pipeline, splits
from generation import data, people

_MOST_SECONDS = 10.0  # of a source in an evaluation


def _of_people(pairs: data.Pairs) -> tuple[Int[np.ndarray, "k"], ...]:
    """The recordings of every person."""
    return tuple(np.flatnonzero(pairs.labels == p) for p in range(len(pairs.names)))


@dataclasses.dataclass(frozen=True)
class Spoken:
    """Recordings, each with any recording of its speaker and a picture: `Examples`, for training.

    {"audio": f32[t] a stretch, "probe": f32[samples], "face": u8[h, w, c], "label", "index"}.
    """

    pairs: data.Pairs

    @property
    def identity(self) -> Mapping[str, str]:
        return {**self.pairs.identity, "rows": "spoken"}

    def __len__(self) -> int:
        return len(self.pairs)

    @functools.cached_property
    def _of(self) -> tuple[Int[np.ndarray, "k"], ...]:
        return _of_people(self.pairs)

    def draw(self, i: int, rng: np.random.Generator, lengths: Mapping[str, int]) -> dict[str, Any]:
        row = self.pairs.crops.draw(i, rng, lengths)
        data.check_voice(row["audio"], row["id"])
        label = int(row["label"])
        probe = self.pairs.audio(int(rng.choice(self._of[label])), rng)["audio"]
        faces, name = self.pairs.faces, self.pairs.names[label]
        return {**row, "probe": probe, "face": faces.drawn(name, rng, mirrored=True)}


@dataclasses.dataclass(frozen=True)
class Dubbed:
    """`data.Seated`, each row with a recording of somebody else that its person is to say.

    Besides the keys of `data.Seated`: "source": f32[t] from the start, whole where there is room;
    "source_person" and "source_index", whose and which record.
    """

    seated: data.Seated

    @property
    def identity(self) -> Mapping[str, str]:
        return {**self.seated.identity, "rows": "dubbed"}

    def __len__(self) -> int:
        return len(self.seated)

    @functools.cached_property
    def _of(self) -> tuple[Int[np.ndarray, "k"], ...]:
        return _of_people(self.seated.pairs)

    def draw(
        self, i: int, rng: np.random.Generator | None, lengths: Mapping[str, int]
    ) -> dict[str, Any]:
        row, pairs = self.seated.draw(i, None, {}), self.seated.pairs
        chosen = np.random.default_rng([zlib.crc32(b"sources"), i])
        other = (int(row["person"]) + 1 + int(chosen.integers(len(pairs.names) - 1))) % len(
            pairs.names
        )
        room = {"audio": lengths["source"]}
        source = pairs.crops.draw(int(chosen.choice(self._of[other])), None, room)
        data.check_voice(source["audio"], source["id"])
        return {
            **row,
            "source": source["audio"],
            "source_person": np.int32(other),
            "source_index": source["index"],
        }


def train_batches(split: splits.Split, faces: people.Faces, config: Any) -> Any:
    """The endless stream of `batch_rows` stretches."""
    found = Spoken(data.pairs(split, faces, config, train=True))
    parallel.check_rows(config, "model.revoice.said_every", config.model.revoice.said_every)
    return pipeline.train_batches(
        found,
        (buckets.Bucket(config.data.batch_rows, {"audio": found.pairs.samples}),),
        {"audio": np.full(len(found), found.pairs.samples)},
        seed=config.seed,
        num_workers=config.data.num_workers,
        max_failed_share=config.data.max_bad_share,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def eval_batches(split: splits.Split, faces: people.Faces, config: Any) -> Any:
    """`eval_turns` rows of every person, in fixed order."""
    settings = config.data
    seated = data.Seated(data.pairs(split, faces, config, train=False), settings.eval_turns)
    longest = split.index.lengths.max() * settings.sample_rate_hz / split.index.rate_hz
    room = math.ceil(min(longest, _MOST_SECONDS * settings.sample_rate_hz))
    rows = -(-settings.eval_rows // jax.device_count()) * jax.device_count()
    return pipeline.eval_batches(
        Dubbed(seated),
        (buckets.Bucket(rows, {"source": room}),),
        {"source": np.full(len(seated), room)},
        num_workers=settings.num_workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
