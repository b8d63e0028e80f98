"""Pairs of recordings to mix, two voices each: drawn from a split, kept in a list, read again."""

import csv
import dataclasses
import io
import pathlib
import zlib
from collections.abc import Sequence

import numpy as np

from common import errors, files
from common.data import splits
from separation import films

FIELDS = ("first", "first_start", "second", "second_start", "seconds", "ratio_db")
_FILMS = ("video1", "video2", "s1_over_s2_db")  # of lists of films


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two recordings by their ids, where each begins, and how long both are, in seconds.

    `ratio_db`: power of the first over that of the second, of the stretches. `problem`: why they
    cannot be mixed, "" where they can.
    """

    first: str
    first_start: float
    second: str
    second_start: float
    seconds: float
    ratio_db: float = 0.0
    problem: str = ""


def draw(
    split: splits.Split, count: int, seed: int, *, seconds: float, grain: int
) -> tuple[Pair, ...]:
    """`count` pairs of different speakers, of up to `seconds`, each from numbers of its own.

    Stretches begin at multiples of `grain` samples, where a film can be cut. More pairs are the
    same ones and others behind them. Raises UserError for a split of one speaker.
    """
    speakers, ids = np.array(split.speakers), split.ids
    if len(set(speakers)) < 2:
        raise errors.UserError(f"{split.name}: a pair takes two speakers, and it has one.")
    rate, lengths, found = split.index.rate_hz, split.index.lengths, []
    for number in range(count):
        rng = np.random.default_rng([seed, zlib.crc32(b"pairs"), number])
        one = int(rng.integers(len(ids)))
        others = np.flatnonzero(speakers != speakers[one])
        other = int(others[rng.integers(len(others))])
        size = int(min(lengths[one], lengths[other], round(seconds * rate)))
        starts = [grain * int(rng.integers((lengths[k] - size) // grain + 1)) for k in (one, other)]
        first, second = (start / rate for start in starts)
        found.append(Pair(ids[one], first, ids[other], second, size / rate))
    return tuple(found)


def write(path: pathlib.Path, pairs: Sequence[Pair]) -> None:
    """A table with a line for each."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(FIELDS)
    writer.writerows([getattr(pair, name) for name in FIELDS] for pair in pairs)
    files.write_text(path, text.getvalue())


def read(path: pathlib.Path, split: splits.Split) -> tuple[Pair, ...]:
    """The pairs of a table that `write` wrote, or of a list of films (video1, video2,
    s1_over_s2_db: both from the start, cut to the shorter one).

    One of recordings that the split has not has a `problem` that names the line. Raises UserError
    for a line that holds no numbers or does not fit into its recordings.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
    except OSError as error:
        raise errors.UserError(f"{path}: {error.strerror}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise errors.UserError(f"{path}: no table of text in UTF-8 ({error}).") from error
    of_films = bool(rows) and not set(_FILMS) - set(rows[0])
    if not rows or (set(FIELDS[:-1]) - set(rows[0]) and not of_films):
        raise errors.UserError(
            f"{path}: no list of pairs; it has the columns {', '.join(FIELDS)}, or "
            f"{', '.join(_FILMS)}, tabs between."
        )
    length = dict(zip(split.ids, split.index.lengths / split.index.rate_hz, strict=True))
    by_path, found = films.ByPath(split.paths), []
    for line, row in enumerate(rows, 2):
        names = [row[name] or "" for name in (_FILMS[:2] if of_films else ("first", "second"))]
        if of_films:
            seen = [by_path.ending(name) for name in names]
            wrong = [_in_view(len(k), name) for k, name in zip(seen, names) if len(k) != 1]
        else:
            wrong = [f"no {name!r}" for name in names if name not in length]
        if wrong:
            problem = f"{path}, line {line}: {split.name} has {wrong[0]}."
            found.append(Pair(names[0], 0.0, names[1], 0.0, 0.0, problem=problem))
            continue
        if of_films:
            names = [split.ids[k] for (k,) in seen]
            starts = {"first": names[0], "second": names[1], "first_start": 0, "second_start": 0}
            seconds = min(length[name] for name in names)
            row = {**starts, "seconds": seconds, "ratio_db": row[_FILMS[2]]}
        try:
            starts = [float(row[name]) for name in ("first_start", "second_start", "seconds")]
            numbers = [*starts, float(row.get("ratio_db") or 0)]
            if not np.isfinite(numbers).all():
                raise ValueError(f"{numbers} are not all finite")
        except (TypeError, ValueError) as error:
            raise errors.UserError(f"{path}, line {line}: {error}.") from error
        pair = Pair(row["first"], numbers[0], row["second"], *numbers[1:])
        for name, start in ((pair.first, pair.first_start), (pair.second, pair.second_start)):
            if start < 0 or pair.seconds <= 0 or start + pair.seconds > length[name] + 1e-6:
                raise errors.UserError(
                    f"{path}, line {line}: {name!r} has {length[name]:.2f} s, not what lies from "
                    f"{start:g} to {start + pair.seconds:g} s."
                )
        found.append(pair)
    return tuple(found)


def _in_view(count: int, name: str) -> str:
    return f"{f'{count} people' if count else 'nobody'} in view in {name!r}, not one"
