"""What an evaluation compares, and the figures that come of it."""

import base64
import logging
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from common import errors
from common.data import splits
from speaker import backend, metrics, trials

log = logging.getLogger(__name__)

RESAMPLES = 200  # of the speakers, for the intervals
COHORT = "train-cohort"  # evaluated like a split, before the others
COHORT_RECORDINGS = 5  # of each speaker of a cohort at most
VOICE_SIZES = (1, 2, 3, 5)  # recordings of the voices that are drawn to calibrate `identify`
VOICE_DRAWS = 5000  # of each size


class Measured(NamedTuple):
    """What was found of one list: figures, what to say of them, what to keep for later decisions,
    and the score of each trial that has one, by places in the list."""

    scalars: dict[str, float]
    lines: list[str]
    decision: dict[str, Any]
    trials: Int[np.ndarray, "t"]
    scores: Float[np.ndarray, "t"]


def measure(
    embeddings: Float[np.ndarray, "n d"],
    scored: Bool[np.ndarray, "n"],
    wanted: trials.LocatedTrials,
    speakers: Shaped[np.ndarray, "n"],
    cohort: Float[np.ndarray, "c d"] | None = None,
) -> Measured:
    """The trials of one list by cosine, with AS-norm against a cohort if there is one.

    `scored` are the recordings that have an embedding. Intervals by resampling the speakers, where
    the labels of the trials follow from them.
    """
    both = scored[wanted.enrol_index] & scored[wanted.test_index]
    enrol, test = wanted.enrol_index[both], wanted.test_index[both]
    # The other rows are zeros, which have no cosine.
    used, places = np.unique(np.concatenate([enrol, test]), return_inverse=True)
    rows = embeddings[used]
    scores = _scores(rows, rows, places[: len(enrol)], places[len(enrol) :], cohort)
    target = wanted.is_target[both]
    summary, bounds = metrics.summarise(scores, target), {}
    # A list may compare recordings whose speakers nobody wrote down.
    if _agrees(speakers, enrol, test, target):
        drawn = metrics.resample(
            scores, target, speakers[enrol], speakers[test], num_resamples=RESAMPLES
        )
        bounds = metrics.intervals(drawn)
    norm = "" if cohort is None else f"AS-norm against {len(cohort)} speakers: "
    lines = [norm + metrics.describe(summary, bounds)]
    if not both.all():
        lines.append(
            f"{int((~both).sum())} trials left out: recordings without an embedding (unreadable, "
            "or without speech)"
        )
    scalars = summary.flat()
    if bounds:
        scalars["eer_low"], scalars["eer_high"] = bounds["eer"]
    decision = _decision(scores, target)
    known = scored & (speakers != "")
    if decision:
        decision |= _voices(embeddings[known], speakers[known], cohort)
    return Measured(scalars, lines, decision, np.flatnonzero(both), scores)


def as_text(wanted: trials.LocatedTrials, found: Measured, ids: Sequence[str]) -> str:
    """A line a trial: enrolment, test, score, and whether it is a target, with tabs between."""
    lines = []
    for place, score in zip(found.trials.tolist(), found.scores.tolist()):
        enrol, test = ids[wanted.enrol_index[place]], ids[wanted.test_index[place]]
        kind = "target" if wanted.is_target[place] else "nontarget"
        lines.append(f"{enrol}\t{test}\t{score:.6f}\t{kind}\n")
    return "".join(lines)


def pack(means: Float[np.ndarray, "c d"]) -> list[str]:
    """Rows of float32 as JSON values; `unpack` reads them."""
    return [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in means]


def unpack(rows: Sequence[str]) -> Float[np.ndarray, "c d"]:
    """The rows that `pack` wrote."""
    return np.stack([np.frombuffer(base64.b64decode(row), "<f4") for row in rows])


def _decision(scores: np.ndarray, target: np.ndarray) -> dict[str, Any]:
    """What `verify` needs to decide by these scores, kept with the checkpoint."""
    try:
        fitted = backend.fit_calibration(scores, target)
    except (backend.CalibrationError, metrics.ScoreError) as error:
        log.info("The scores cannot be calibrated: %s", error)
        return {}
    return {
        "slope": fitted.slope,
        "offset": fitted.offset,
        "p_target": fitted.p_target,
        "eer_threshold": metrics.eer_threshold(metrics.error_curve(scores, target)),
        "trials": len(scores),
    }


def _scores(enrol, test, enrol_index, test_index, cohort):
    rows = (enrol, test, enrol_index, test_index)
    scores = backend.cosine_trials(*rows)
    return scores if cohort is None else backend.as_norm(scores, *rows, cohort)


def cohort_places(speakers: Shaped[np.ndarray, "n"], most: int) -> Int[np.ndarray, "k"]:
    """At most COHORT_RECORDINGS recordings each of at most `most` speakers, evenly spread."""
    names, number = np.unique(speakers, return_inverse=True)
    members = [np.flatnonzero(number == i) for i in _spread(len(names), most)]
    return np.sort(np.concatenate([m[_spread(len(m), COHORT_RECORDINGS)] for m in members]))


def _voices(
    embeddings: np.ndarray, speakers: np.ndarray, cohort: np.ndarray | None
) -> dict[str, Any]:
    """What `identify` needs to decide by the cosine with the mean of several recordings."""
    drawn = [draw_voices(speakers, size, VOICE_DRAWS) for size in VOICE_SIZES]
    drawn = [trials for trials in drawn if trials is not None]
    if len(drawn) < 2:
        log.info("Too few recordings a speaker to calibrate voices of several.")
        return {}
    rows, scores = backend.length_normalise(embeddings), []
    for voices, own, other in drawn:
        means, each = rows[voices].mean(1), np.arange(len(voices))
        scores += [_scores(means, rows, each, test, cohort) for test in (own, other)]
    scores = np.concatenate(scores)
    counts = np.repeat([voices.shape[1] for voices, _, _ in drawn], 2 * VOICE_DRAWS)
    target = np.tile(np.arange(2 * VOICE_DRAWS) < VOICE_DRAWS, len(drawn))
    try:
        measures = backend.voice_measures(scores, counts)
        names = backend.VOICE_MEASURES
        fitted = backend.fit_calibration(scores, target, measures, quality_names=names)
    except (backend.CalibrationError, metrics.ScoreError) as error:
        log.info("Voices of several recordings cannot be calibrated: %s", error)
        return {}
    return {"voices": [fitted.slope, fitted.offset, *fitted.quality_weights]}


def draw_voices(
    speakers: Shaped[np.ndarray, "n"], size: int, count: int
) -> tuple[Int[np.ndarray, "k s"], Int[np.ndarray, "k"], Int[np.ndarray, "k"]] | None:
    """`count` voices of `size` recordings, for each another one of its speaker and one of another.

    Speakers are drawn equally often, the same ones in every call. None where no speaker has
    recordings enough, or there is no other.
    """
    rng = np.random.default_rng(0)
    names, number, counts = np.unique(speakers, return_inverse=True, return_counts=True)
    members = [np.flatnonzero(number == i) for i in np.flatnonzero(counts > size)]
    if not members or len(names) < 2:
        return None
    voices, own, other = np.empty((count, size), np.int64), *np.empty((2, count), np.int64)
    for i in range(count):
        chosen = rng.permutation(members[rng.integers(len(members))])[: size + 1]
        voices[i], own[i], other[i] = chosen[:-1], chosen[-1], chosen[-1]
        while number[other[i]] == number[own[i]]:
            other[i] = rng.integers(len(speakers))
    return voices, own, other


def _agrees(speakers: np.ndarray, enrol: np.ndarray, test: np.ndarray, target: np.ndarray) -> bool:
    """Whether all speakers are known and the labels of the trials follow from them."""
    return bool(speakers.all() and ((speakers[enrol] == speakers[test]) == target).all())


def find_trials(
    split: splits.Split, lists: str, most: int, *, allow_unknown: bool = False
) -> dict[str, trials.LocatedTrials]:
    """The trials of each list (paths with commas between) by its name; without any, `most` of all
    pairs under "".

    UserError when there is nothing to measure, or for recordings that are not there unless
    `allow_unknown`: then their trials are left out, counted in the log.
    """
    paths = [pathlib.Path(part.strip()).expanduser() for part in lists.split(",") if part.strip()]
    found = {path.stem: _listed(split, path, allow_unknown) for path in paths}
    speakers = np.asarray(split.speakers)
    if len(found) < len(paths):
        raise errors.UserError(f"{lists}: two trial lists of one name; give them different names.")
    for name, located in (found or {"": all_pairs(splits.speakers_of(split), most)}).items():
        found[name] = located
        if not _agrees(speakers, located.enrol_index, located.test_index, located.is_target):
            log.warning(
                "%s: the labels of the trials are not those of the speakers that the data name "
                "(or it names none): no intervals by speaker.",
                name,
            )
        if located.is_target.all() or not located.is_target.any():
            raise errors.UserError(
                f"{split.source.name}: {int(located.is_target.sum())} of {len(located.is_target)} "
                "trials are target trials, and error rates need both kinds: two speakers at least, "
                "one of them with two recordings."
            )
    return found


def _listed(split: splits.Split, path: pathlib.Path, allow_unknown: bool) -> trials.LocatedTrials:
    """The trials of a list, which names records by their ids or, as VoxCeleb's, by their files."""
    listed = trials.read_trials(path)
    wanted = {*listed.enrol_ids, *listed.test_ids}
    names = max(split.ids, split.paths, key=lambda names: len(wanted.intersection(names)))
    try:
        return trials.locate(listed, names, names, allow_unknown=allow_unknown)
    except trials.UnknownIdsError as error:
        raise errors.UserError(
            f"{error} Here: rejected.tsv in the work directory says what is left out of the data; "
            "--config.data.allow_unknown_trials goes on without those trials."
        ) from error


def all_pairs(speakers: Sequence[str], most: int) -> trials.LocatedTrials:
    """Trials from all pairs of n recordings, at most `most`, in time and memory of that order.

    Half of them at most are target pairs; where a kind has more than its room, pairs at equal
    distances in the list of all of its kind are taken.
    """
    _, number = np.unique(np.asarray(speakers), return_inverse=True)
    order = np.argsort(number, kind="stable")
    counts = np.bincount(number)
    n, starts = len(speakers), np.cumsum(counts) - counts
    # Pairs of one speaker, numbered speaker by speaker; of all recordings, numbered row by row.
    per_speaker = counts * (counts - 1) // 2
    ends = np.cumsum(per_speaker)
    targets, every = int(ends[-1]), n * (n - 1) // 2
    chosen = _spread(targets, max(most // 2, most - (every - targets)))
    speaker = np.searchsorted(ends, chosen, side="right")
    first, second = _unrank(chosen - (ends - per_speaker)[speaker])
    left, right = order[starts[speaker] + first], order[starts[speaker] + second]
    # Some of all pairs are target pairs again: those are dropped.
    i, j = _unrank(_spread(every, max(most - len(chosen), 0) * every // max(every - targets, 1)))
    other = number[i] != number[j]
    left, right = np.concatenate([left, i[other]]), np.concatenate([right, j[other]])
    target = np.arange(len(left)) < len(chosen)
    return trials.LocatedTrials(
        np.minimum(left, right), np.maximum(left, right), target, np.arange(len(left))
    )


def _spread(count: int, most: int) -> Int[np.ndarray, "k"]:
    """0 to count - 1, or `most` of them at equal distances."""
    return np.arange(count) if count <= most else np.arange(most, dtype=np.int64) * count // most


def _unrank(k: Int[np.ndarray, "k"]) -> tuple[Int[np.ndarray, "k"], Int[np.ndarray, "k"]]:
    """The k-th pair (i, j), i < j, in the order (0, 1), (0, 2), (1, 2), (0, 3), ..."""
    j = ((1 + np.sqrt(1 + 8 * k.astype(np.float64))) / 2).astype(np.int64)
    j -= j * (j - 1) // 2 > k  # where the root was rounded up
    j += (j + 1) * j // 2 <= k
    return k - j * (j - 1) // 2, j
