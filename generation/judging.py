"""How well made faces match voices: by a net that has been trained apart, beside what it can do."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from common import errors, trained, workdir
from common.audio import frontend
from common.task import Report
from generation import images, matching, paired

SIDES = ("voice", "fake", "real")  # of which a judge has vectors


class Matched(NamedTuple):
    """A figure of each person by name ("match_2", "recall_1"), and what chance would give."""

    values: Mapping[str, Float[np.ndarray, "p"]]
    chance: Mapping[str, float]


class Judge:
    """A trained matcher: sounds and pictures to vectors, on the host."""

    def __init__(self, found: trained.Trained) -> None:
        task, net = found.task, found.task.net
        self._size, self._variables = task.config.picture, found.variables

        def hear(variables: Any, audio: Array) -> Array:
            lengths = paired.lengths_of(audio)
            heard = frontend.log_mel(audio, lengths, task.front_end)
            return net.apply(variables, *heard, method="voice")

        def look(variables: Any, pictures: Array) -> Array:
            return net.apply(variables, images.to_values(pictures), method="face")

        self._hear, self._look = jax.jit(hear), jax.jit(look)

    def vectors(self, of: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """{"fake", "real"}: bytes [b, h, w, c], {"voice"}: audio [b, t]; their vectors [b, d].

        Pictures of another size than the net's are brought to it.
        """
        found = {}
        for name, values in of.items():
            if name == "voice":
                vectors = self._hear(self._variables, jnp.asarray(values))
            else:
                vectors = self._look(self._variables, jnp.asarray(self._fitted(values)))
            found[name] = np.asarray(vectors)
        return found

    def _fitted(self, pictures: np.ndarray) -> np.ndarray:
        size, channels = self._size.size, self._size.channels
        if pictures.shape[1:] == (size, size, channels):
            return pictures
        colour = np.broadcast_to(pictures, (*pictures.shape[:3], 3))
        return np.stack([images.resized(one, size, channels) for one in colour])


def open_judge(package: Any, config: Any) -> Judge:
    """The net of the run `config.judge`. Raises UserError for a run of something else."""

    def load(folder: pathlib.Path) -> trained.Trained:
        return trained.load(package, folder)

    setting = "config.judge"
    found = workdir.of_setting(setting, config.judge, package.name, load)
    kind, rate = found.config.model.kind, found.config.data.sample_rate_hz
    if kind != "matcher":
        raise errors.UserError(
            f"{setting}={config.judge} has trained a network of kind {kind!r}: name a run of "
            "configs/generation/matcher.py."
        )
    if rate != config.data.sample_rate_hz:
        raise errors.UserError(
            f"{setting}={config.judge}: it was trained at {rate} Hz, not "
            f"config.data.sample_rate_hz={config.data.sample_rate_hz}."
        )
    return Judge(found)


def seated(
    outputs: Sequence[Mapping[str, np.ndarray]], names: Sequence[str]
) -> dict[str, list[Float[np.ndarray, "p d"]]]:
    """By name the vectors of all people, in their order, one array for each turn.

    A person of whom a row could not be read is left out in all turns.
    """
    real = np.concatenate([batch["mask"] for batch in outputs])
    people, turns = (
        np.concatenate([batch[name] for batch in outputs])[real] for name in ("person", "turn")
    )
    count = int(turns.max(initial=0)) + 1
    present = [set(people[turns == turn].tolist()) for turn in range(count)]
    everywhere = np.array(sorted(set.intersection(*present)))
    if len(everywhere) < 2:
        raise errors.UserError("there are fewer than two people to match: nothing can be measured.")
    found = {}
    for name in names:
        vectors = np.concatenate([batch[name] for batch in outputs])[real]
        found[name] = []
        for turn in range(count):
            rows = np.flatnonzero((turns == turn) & np.isin(people, everywhere))
            found[name].append(vectors[rows[np.argsort(people[rows])]])
    return found


def matched(seats: Mapping[str, Sequence[np.ndarray]], side: str) -> Matched:
    """Voices against the faces of `side`, the mean over turns for each person."""
    each = [matching.ranked(v @ f.T) for v, f in zip(seats["voice"], seats[side])]
    people = len(seats["voice"][0])
    values = {f"match_{n}": [matching.one_of(r, n) for r in each] for n in matching.GALLERIES}
    values |= {f"recall_{k}": [matching.recall(r, k) for r in each] for k in matching.RECALLS}
    chance = {f"match_{n}": 1 / n for n in matching.GALLERIES}
    chance |= {f"recall_{k}": min(1.0, k / people) for k in matching.RECALLS}
    means = {name: np.mean(found, axis=0) for name, found in values.items()}
    return Matched({name: x for name, x in means.items() if np.isfinite(x).all()}, chance)


def scalars(found: Matched, prefix: str = "") -> dict[str, float]:
    """The figures' means over people."""
    return {f"{prefix}{name}": float(x.mean()) for name, x in found.values.items()}


def describe(found: Matched) -> str:
    """All figures in one line, in per cent, with 95 % intervals over people and with chance."""
    said = []
    for name, x in found.values.items():
        kind, number = name.split("_")
        low, high = matching.interval(x)
        title = f"1:{number}" if kind == "match" else f"R@{number}"
        said.append(
            f"{title} {100 * x.mean():.1f} ({100 * low:.1f} to {100 * high:.1f}, chance "
            f"{100 * found.chance[name]:.1f})"
        )
    return f"{len(next(iter(found.values.values())))} people, %: " + ", ".join(said)


def report(split: str, outputs: Sequence[Mapping[str, np.ndarray]]) -> Report:
    """Voices and made faces, beside the same net's figures with the real faces in their place.

    The voice that is matched is another recording than the one that the face was made of.
    """
    seats = seated(outputs, SIDES)
    made, real = matched(seats, "fake"), matched(seats, "real")
    numbers = scalars(made) | scalars(real, "real_")
    lines = [
        f"{split} voice to made face: {describe(made)}",
        f"{split} ceiling, real faces: {describe(real)}",
    ]
    if matching.interval(real.values["match_2"])[0] > 0.5:
        share = (numbers["match_2"] - 0.5) / (numbers["real_match_2"] - 0.5)
        numbers["share_of_ceiling"] = share
        lines.append(f"{split} 1:2 above chance: {100 * share:.0f} % of the ceiling's")
    else:
        lines.append(
            f"{split}: the judge is not above chance on real faces and says nothing of made "
            "ones: train it longer, or on more people."
        )
    return Report(numbers, lines)


def check_kind(meta: Mapping[str, Any], kind: str, folder: pathlib.Path) -> None:
    """Raises UserError for a checkpoint of another kind of network."""
    if meta.get("kind") != kind:
        raise errors.UserError(
            f"The checkpoint in {folder} is of a network of kind {meta.get('kind')!r}, not "
            f"{kind!r}: use another --workdir."
        )
