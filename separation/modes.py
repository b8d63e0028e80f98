"""How the network of an evaluation is told whom to extract; each way has figures of its own."""

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from common import errors
from common.data import speech
from separation import sight, signals, surroundings


@dataclasses.dataclass(frozen=True)
class Mode:
    """`prefix` of its figures' names; `words` of a report; whose voice is `wanted`.

    "target", "other", the first interferer, or "loudest", where nothing says whom. `shows` are the
    cues of networks that see: voice, lips, face.
    """

    prefix: str
    words: str
    wanted: str = "target"
    shows: tuple[str, ...] = ()


MODES: Mapping[str, Mode] = {
    "given": Mode("", "with an enrolment", shows=("voice",)),
    "noisy": Mode("noisy_", "with another voice or noise in the enrolment", shows=("voice",)),
    "none": Mode("blind_", "without one, of the loudest voice", "loudest"),
    "self": Mode("self_", "self-enrolled, of the loudest voice", "loudest"),
}
SEEN: Mapping[str, Mode] = {
    "given": Mode("", "with all cues", shows=("voice", "lips", "face")),
    "lips": Mode("lips_", "by lips alone", shows=("lips",)),
    "face": Mode("face_", "by a face alone", shows=("face",)),
    "voice": Mode("voice_", "with an enrolment alone", shows=("voice",)),
    "none": Mode("blind_", "without any cue, of the loudest voice", "loudest"),
    "shuffled": Mode("shuffled_", "by the lips of somebody else", shows=("lips",)),
    "swapped": Mode("swapped_", "by the other's lips, of the other", "other", ("lips",)),
}
IN_TRAINING = ("given", "none", "lips")
SHOWN = {"shuffled": "strange_", "swapped": "other_"}  # of whom, in a batch; else of the target


def table(config: Any) -> Mapping[str, Mode]:
    """Those that the network of a config has. Raises UserError for names that are none of them."""
    found, cues = MODES, sight.cues(config)
    if config.model.kind == "lite":
        found = {"given": MODES["given"]}
    elif not cues:
        found = {"given": Mode("", "without any cue, the better of both voices")}
    elif cues != ("voice",):
        found = {n: m for n, m in SEEN.items() if n == "given" or set(m.shows) <= set(cues)}
        for one in cues:  # that would be all
            found = {n: m for n, m in found.items() if n != one or len(cues) > 1}
        if "voice" not in cues:  # it was never trained to do without
            found.pop("none")
        if not config.mixing.interferers[1]:
            found.pop("swapped", None)  # there is nobody else
    elif not config.cue.dropout:  # it was never trained to do without
        found = {name: found[name] for name in ("given", "noisy")}
    names = tuple(config.modes)
    least = [name for name in ("given", "none") if name in found]
    if names and not set(least) <= set(names) <= set(found):
        raise errors.UserError(
            f"config.modes={names}: of {', '.join(found)}, {' and '.join(least)} at least; () is "
            "all."
        )
    return {name: mode for name, mode in found.items() if not names or name in names}


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
