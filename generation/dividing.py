"""Who is in which part of the data: train, dev and test out of one collection of people."""

import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from common import errors
from common.data import records, splits

PARTS = ("train", "dev", "test")
KINDS = ("parts", "person", "letter", "recording")
_LETTERS = {**dict.fromkeys("AB", "dev"), **dict.fromkeys("CDE", "test")}  # Wen et al. (2019)


def by_person(people: Sequence[str]) -> dict[str, str]:
    """A tenth of the people, two at least, for dev, as many for test, the others for training.

    By a hash of their names: the same ones whatever the order and the seed are. Raises UserError
    for fewer than six.
    """
    if len(people) < 6:
        raise errors.UserError(
            f"config.data.split_by=person: {len(people)} people with a voice and a face cannot be "
            "divided into train, dev and test with two each: it takes 6."
        )
    return _ranked(people, max(2, round(len(people) / 10)))


def by_letter(people: Sequence[str], called: Mapping[str, str]) -> dict[str, str]:
    """By the first letter of what people are `called`: A, B dev; C, D, E test; others train.

    Wen, Raj and Singh (NeurIPS 2019), on the names of VGGFace.
    """
    return {p: _LETTERS.get(called.get(p, p)[:1].upper(), "train") for p in people}


def by_recording(ids: Sequence[str], speakers: Sequence[str]) -> list[str]:
    """The part of every recording: of each person a tenth, one at least, for dev and for test.

    Of people with fewer than three recordings none is in any part: "".
    """
    found, of = [""] * len(ids), {}
    for place, person in enumerate(speakers):
        of.setdefault(person, {})[ids[place]] = place
    for places in of.values():
        if len(places) >= 3:
            for name, part in _ranked([*places], max(1, round(len(places) / 10))).items():
                found[places[name]] = part
    return found


def _ranked(names: Sequence[str], least: int) -> dict[str, str]:
    ranked = sorted(
        names, key=lambda name: hashlib.sha256(name.encode("utf-8", "replace")).digest()
    )
    parts = ["dev"] * least + ["test"] * least
    return dict(zip(ranked, [*parts, *["train"] * (len(ranked) - len(parts))]))


def divided(
    pool: splits.Split, name: str, kind: str, called: Callable[[], Mapping[str, str]]
) -> splits.Split:
    """The part `name` ("dev", "train+dev") of a collection.

    `called` gives names of people other than those of the recordings, for `by_letter`. Raises
    UserError for a part with fewer than two people.
    """
    wanted = name.split("+")
    if unknown := sorted(set(wanted) - set(PARTS)):
        raise errors.UserError(
            f"config.data.split_by={kind} divides the people of config.data.pool into "
            f"{', '.join(PARTS)}; {unknown[0]!r} is none of them."
        )
    speakers = splits.speakers_of(pool)
    people = sorted(set(speakers))
    if kind == "recording":
        parts = by_recording(pool.ids, speakers)
    else:
        of = by_person(people) if kind == "person" else by_letter(people, called())
        parts = [of[person] for person in speakers]
    kept = np.isin(np.array(parts), wanted)
    if len({person for person, there in zip(speakers, kept) if there}) < 2:
        raise errors.UserError(
            f"{pool.name}: config.data.split_by={kind} leaves fewer than two of {len(people)} "
            f"people for {name}."
            + (" Are they named? See config.faces.names." if kind == "letter" else "")
        )
    index = records.Index(pool.index.positions[kept], pool.index.lengths[kept], pool.index.rate_hz)
    return splits.Split(name, pool.source, index)
