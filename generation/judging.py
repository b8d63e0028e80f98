"""How well made faces match voices: by a net that has been trained apart, beside what it can do."""

import contextlib
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped, UInt8

from common import errors, trained, workdir
from common.audio import frontend
from common.data import classes
from common.task import Report
from generation import genders, images, likeness, matching, paired, realism

log = logging.getLogger(__name__)


class Seen(NamedTuple):
    """Of pictures: unit vectors, which are near those of their voices, and the features (the net's
    last hidden layer) of which these are made."""

    vectors: Float[np.ndarray, "*b d"]
    features: Float[np.ndarray, "*b k"]


class Matched(NamedTuple):
    """A figure of each person by name ("match_2", "recall_1"), and what chance would give."""

    values: Mapping[str, Float[np.ndarray, "p"]]
    chance: Mapping[str, float]


class Judge:
    """A trained matcher: sounds and pictures to vectors, on the host; the `people` of its training,
    where its folder still says who they were."""

    def __init__(self, found: trained.Trained) -> None:
        task, net = found.task, found.task.net
        self.people: tuple[str, ...] = ()
        with contextlib.suppress(errors.UserError):
            self.people = classes.read(found.folder)
        self._size, self._variables = task.config.picture, found.variables

        def hear(variables: Any, audio: Array) -> Array:
            lengths = paired.lengths_of(audio)
            heard = frontend.log_mel(audio, lengths, task.front_end)
            return net.apply(variables, *heard, method="voice")

        def look(variables: Any, pictures: Array) -> tuple[Array, Array]:
            features = net.apply(variables, images.to_values(pictures), method="features")
            return net.apply(variables, features, method="of_features"), features

        self._hear, self._look = jax.jit(hear), jax.jit(look)

    def hear(self, audio: Float[np.ndarray, "b t"]) -> Float[np.ndarray, "b d"]:
        """The vectors of voices."""
        return np.asarray(self._hear(self._variables, jnp.asarray(audio)))

    def look(self, pictures: UInt8[np.ndarray, "*b h w c"]) -> Seen:
        """Pictures of any size, which is brought to the net's."""
        before = pictures.shape[:-3]
        fitted = self._fitted(pictures.reshape(-1, *pictures.shape[-3:]))
        found = self._look(self._variables, jnp.asarray(fitted))
        return Seen(*(np.asarray(x).reshape(*before, -1) for x in found))

    def features(self, pictures: UInt8[np.ndarray, "b h w c"]) -> Float[np.ndarray, "b k"]:
        """Those of `look`."""
        return self.look(pictures).features

    def kept(
        self,
        probe: Float[np.ndarray, "b t"],
        fakes: UInt8[np.ndarray, "b n h w c"],
        real: UInt8[np.ndarray, "b h w c"],
    ) -> dict[str, np.ndarray]:
        """What `report` takes of a batch: sounds, n made faces of each voice, and real ones."""
        made, true = self.look(fakes), self.look(real)
        vectors = {"voice": self.hear(probe), "made": made.vectors[:, 0], "real": true.vectors}
        return vectors | {"made_features": made.features, "real_features": true.features}

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
    if found.config.picture.channels < config.picture.channels:
        log.info(
            "%s=%s sees no colours, nor do its distances: train one with "
            "--config.picture.channels=3 for these.",
            *(setting, config.judge),
        )
    return Judge(found)


def said_of_seen(split: str, people: Sequence[str], learned: Mapping[str, Sequence[str]]) -> str:
    """What is to be said where networks have `learned` from some of the people, or nothing."""
    said = []
    for what, known in learned.items():
        if seen := sorted(set(known) & set(people)):
            said.append(
                f"{what} has learned from {len(seen)} of these {len(people)} ({seen[0]}, ...)"
            )
    return f"{split}: not figures of unseen people: {', '.join(said)}." if said else ""


def seated(
    outputs: Sequence[Mapping[str, np.ndarray]], names: Sequence[str]
) -> dict[str, list[Shaped[np.ndarray, "p ..."]]]:
    """By name the values of all people, in their order, one array for each turn.

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


def matched(
    voices: Sequence[Float[np.ndarray, "p d"]],
    faces: Sequence[Float[np.ndarray, "p d"]],
    groups: Sequence[str] | None = None,
    *,
    shuffled: bool = False,
) -> Matched:
    """Voices against faces, or faces against voices, turn by turn; the mean over turns for each
    person.

    With `groups`, a name of each person's, galleries are of people of one group, and there are no
    recalls; those of the group "" and who are alone in theirs are left out. `shuffled`, the
    control: everybody's voice is taken to be that of somebody else (`matching.deranged`), and the
    face that is its own is in no gallery: whatever the faces are, chance is what is expected.
    """
    names = np.array([""] * len(voices[0]) if groups is None else groups)
    among = names[:, None] == names[None, :]
    there = (among.sum(1) > 1 + shuffled) & ((names != "") | (groups is None))
    among, names = among[there][:, there], names[there]
    voices, faces = ([some[there] for some in side] for side in (voices, faces))
    people = len(names)
    if shuffled:
        order = matching.deranged(names)
        faces = [some[order] for some in faces]
        among &= order[None, :] != np.arange(people)[:, None]
        people -= 1
    each = [matching.ranked(v @ f.T, among) for v, f in zip(voices, faces)]
    values = {f"match_{n}": [matching.one_of(r, n) for r in each] for n in matching.GALLERIES}
    chance = {f"match_{n}": 1 / n for n in matching.GALLERIES}
    if groups is None:
        values |= {f"recall_{k}": [matching.recall(r, k) for r in each] for k in matching.RECALLS}
        chance |= {f"recall_{k}": min(1.0, k / people) for k in matching.RECALLS}
    means = {name: np.mean(found, axis=0) for name, found in values.items()}
    usable = {name: x for name, x in means.items() if len(x) and np.isfinite(x).all()}
    return Matched(usable, chance)


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


def report(
    split: str,
    outputs: Sequence[Mapping[str, np.ndarray]],
    of_people: Sequence[str],
    regression: genders.Regression | None = None,
) -> Report:
    """Voices and made faces, beside the same net's figures with the real faces in their place.

    `outputs` are batches of "person", "turn", "mask" and `Judge.kept`; `of_people` the genders of
    all people by number, "" where unknown, and `regression` what tells faces of the two apart. The
    voice that is matched is another recording than the one that the face was made of.
    """
    names = ("person", "voice", "made", "real", "made_features", "real_features")
    seats = seated(outputs, names)
    own = [of_people[person] for person in seats["person"][0]]
    made, real = (np.stack(seats[f"{side}_features"], axis=1) for side in ("made", "real"))
    found = [_matching(split, seats, own, "voice", "face"), _joint(split, seats, "voice", "face")]
    if real.std() > 0:
        features = seats["made_features"], seats["real_features"]
        found.append(likeness.report(split, (seats["made"], seats["real"]), features))
        found.append(realism.report(split, made[:, :, 0], real))
        if regression is not None:
            found.append(genders.report(split, regression, own, made[:, :, 0], real))
    else:
        found.append(Report({}, [f"{split}: all real faces are the same to the judge."]))
    numbers = {name: x for one in found for name, x in one.scalars.items()}
    return Report(numbers, [line for one in found for line in one.lines])


def report_of_voices(
    split: str, outputs: Sequence[Mapping[str, np.ndarray]], of_people: Sequence[str]
) -> Report:
    """Faces and made voices, beside the same net's figures with the real voices in their place.

    `outputs` are batches of "person", "turn", "mask" and the vectors "face", "made" and "real".
    """
    seats = seated(outputs, ("person", "face", "made", "real"))
    own = [of_people[person] for person in seats["person"][0]]
    both = _matching(split, seats, own, "face", "voice"), _joint(split, seats, "face", "voice")
    return Report(both[0].scalars | both[1].scalars, [*both[0].lines, *both[1].lines])


def _joint(split: str, seats: Mapping[str, Sequence[np.ndarray]], known: str, what: str) -> Report:
    """The joint distances."""
    sides = (np.stack(seats[side], axis=1) for side in (known, "made", "real"))
    return realism.report_of_pairs(split, f"{known}s and {what}s", *sides)


def _matching(
    split: str,
    seats: Mapping[str, Sequence[np.ndarray]],
    of_people: Sequence[str],
    known: str,
    what: str,
) -> Report:
    """Of what is `known` and what is made: among all people, and those of the same gender."""
    given = seats[known]
    control = f"made {what}s of other people"
    made, real = (matched(given, seats[side]) for side in ("made", "real"))
    shuffled = matched(given, seats["made"], shuffled=True)
    numbers = scalars(made) | scalars(real, "real_") | scalars(shuffled, "shuffled_")
    lines = [
        f"{split} {known} to made {what}: {describe(made)}",
        f"{split} ceiling, real {what}s: {describe(real)}",
    ]
    if shuffled.values:
        lines.append(f"{split} control, {control}: {describe(shuffled)}")
    alike, real_alike = (matched(given, seats[side], of_people) for side in ("made", "real"))
    if alike.values:
        numbers |= scalars(alike, "same_gender_") | scalars(real_alike, "real_same_gender_")
        counts = ", ".join(f"{of_people.count(gender)} {gender}" for gender in genders.GENDERS)
        lines += [
            f"{split} {known} to made {what}, same gender ({counts}): {describe(alike)}",
            f"{split} ceiling, same gender: {describe(real_alike)}",
        ]
    shuffled = matched(given, seats["made"], of_people, shuffled=True)
    if shuffled.values:
        numbers |= scalars(shuffled, "shuffled_same_gender_")
        lines.append(f"{split} control, {control}, same gender: {describe(shuffled)}")
    if matching.interval(real.values["match_2"])[0] > 0.5:
        share = (numbers["match_2"] - 0.5) / (numbers["real_match_2"] - 0.5)
        numbers["share_of_ceiling"] = share
        lines.append(f"{split} 1:2 above chance: {100 * share:.0f} % of the ceiling's")
    else:
        lines.append(
            f"{split}: the judge is not above chance on real {what}s and says nothing of made "
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
