"""How the network of an evaluation is told whom to extract; each way has figures of its own."""

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from common import errors
from common.data import speech
from separation import signals, surroundings

# Each with what stands before its figures' names, and in the words of a report.
MODES = {
    "given": ("", "with an enrolment"),
    "noisy": ("noisy_", "with another voice or noise in the enrolment"),
    "none": ("blind_", "without one, of the loudest voice"),
    "self": ("self_", "self-enrolled, of the loudest voice"),
}
BLIND = ("none", "self")  # nothing says whom: the loudest voice is wanted
IN_TRAINING = ("given", "none")


def check(names: tuple[str, ...]) -> None:
    """Raises UserError for a mode that there is not, or without those that training has."""
    unknown = [name for name in names if name not in MODES]
    if unknown or not set(IN_TRAINING) <= set(names):
        raise errors.UserError(
            f"config.modes={tuple(names)}: of {', '.join(MODES)}, {' and '.join(IN_TRAINING)} at "
            "least."
        )


@dataclasses.dataclass(frozen=True)
class Full:
    """Mixtures with what an evaluation in all modes takes beside them: see `examples.Examples`.

    `mixtures` give {"enrolment", "target_index", "interferer_index", ...}. Beside that stand
    "full", true, and with `disturb` "disturbed": the enrolment with another voice or noise in it,
    at a ratio drawn from `ratio_db`, from `seed` and the mixture's number. The voice is a recording
    of the `crops` of somebody who is not in the mixture, if there is one; noise is of any kind that
    is `around`. Crops of label -1 are no voices.
    """

    mixtures: Any
    crops: speech.SpeechCrops
    disturb: bool
    ratio_db: tuple[float | int, float | int]
    seed: int
    around: surroundings.Surroundings | None = None

    @property
    def identity(self) -> Mapping[str, str]:
        """That of the mixtures, and what is beside them."""
        how = repr((self.disturb, self.ratio_db, self.seed))
        return {**self.mixtures.identity, "modes": how}

    def __len__(self) -> int:
        return len(self.mixtures)

    def draw(
        self, i: int, rng: np.random.Generator | None, lengths: Mapping[str, int]
    ) -> dict[str, Any]:
        """Mixture i."""
        row = dict(self.mixtures.draw(i, rng, lengths))
        row["full"] = np.bool_(True)
        if self.disturb:
            own = np.random.default_rng([self.seed, zlib.crc32(b"disturbed enrolment"), i])
            audio = row["enrolment"]
            added = self._disturbance(row, own)
            ratio = own.uniform(*self.ratio_db)
            row["disturbed"] = audio + signals.at_ratio(added, audio, ratio)
        return row

    def _disturbance(
        self, row: Mapping[str, Any], rng: np.random.Generator
    ) -> Float[np.ndarray, "n"]:
        count = len(row["enrolment"])
        kinds = self.around.kinds if self.around else ()
        kind, labels = int(rng.integers(1 + len(kinds))), self.crops.labels
        if kind:
            return self.around.stretch(kinds[kind - 1], count, row, rng)
        here = (row["target_index"], *(k for k in row["interferer_index"] if k >= 0))
        heard = [labels[np.searchsorted(self.crops.index.positions, k)] for k in here]
        others = np.flatnonzero((labels >= 0) & ~np.isin(labels, heard))
        if not len(others):
            others = np.flatnonzero((labels >= 0) & (labels != heard[0]))
        if not len(others):
            return np.zeros(count, np.float32)
        place = int(others[rng.integers(len(others))])
        return np.resize(self.crops.draw(place, rng, {"audio": count})["audio"], count)
