"""Scores of listed trials: a back end, cohort normalisation, enrolment, and who speaks in them."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int, Shaped

from common import errors
from speaker import backend, plda, score_norm, trials

MOST_LDA = 200  # dimensions if nobody says how many, as Kaldi's recipe for VoxCeleb has


@dataclasses.dataclass(frozen=True, eq=False)
class BackEnd:
    """What happens to embeddings before they are compared; a cosine unless there is a `model`."""

    transform: backend.Transform
    model: plda.Plda | None


@dataclasses.dataclass(frozen=True, eq=False)
class Sides:
    """Transformed embeddings of both sides of k trials: row enrol_index[i] against test_index[i].

    Rows of the enrolled side are means of `counts` utterances.
    """

    enrol: Float[np.ndarray, "m p"]
    counts: Int[np.ndarray, "m"]
    test: Float[np.ndarray, "n p"]
    enrol_index: Int[np.ndarray, "k"]
    test_index: Int[np.ndarray, "k"]


def fit_back_end(
    kind: str,
    dimensions: int | None,
    train: tuple[Float[np.ndarray, "n d"], Sequence[str]] | None,
    centre: Float[np.ndarray, "d"] | None,
    size: int,
) -> BackEnd:
    """The back end `kind` (cosine, lda, plda) for embeddings of `size` dimensions.

    Mean subtraction, LDA to `dimensions` (plda: only if given), length normalisation, and PLDA.
    `train` are embeddings and their speakers. `centre` is subtracted from the embeddings to be
    scored: that of another domain than the training set's moves them to where it was trained;
    None takes the training set's, without one nothing is subtracted.
    """
    if train is None:
        mean = np.zeros(size) if centre is None else centre
        return BackEnd(backend.Transform(mean, np.eye(size)), None)
    embeddings, speakers = train
    if kind == "lda" or (kind == "plda" and dimensions is not None):
        most = min(MOST_LDA, size, len(set(speakers)) - 1)
        wanted = most if dimensions is None else dimensions
        fitted = backend.fit_lda(embeddings, np.array(speakers), wanted)
    else:
        fitted = backend.fit_mean(embeddings)
    model = plda.train(fitted(embeddings), np.array(speakers)) if kind == "plda" else None
    return BackEnd(fitted if centre is None else dataclasses.replace(fitted, mean=centre), model)


def score(fitted: BackEnd, sides: Sides) -> Float[np.ndarray, "k"]:
    """Cosines, or natural-log likelihood ratios of the PLDA model."""
    rows = (sides.enrol, sides.test, sides.enrol_index, sides.test_index)
    if fitted.model is None:
        return backend.cosine_trials(*rows)
    return plda.score_trials(fitted.model, *rows, enrol_counts=sides.counts)


def normalise(
    fitted: BackEnd,
    sides: Sides,
    scores: Float[np.ndarray, "k"],
    cohort: tuple[Float[np.ndarray, "c p"], Int[np.ndarray, "c"]],
    top_k: int | None,
) -> Float[np.ndarray, "k"]:
    """S-norm (`top_k` None) or AS-norm against the transformed `cohort`: means and their counts."""
    means, cohort_counts = cohort

    def statistics(rows, counts) -> score_norm.CohortStatistics:
        mean, deviation = np.empty(len(rows)), np.empty(len(rows))
        for count in np.unique(counts):

            def against(part, others, count=count) -> np.ndarray:
                if fitted.model is None:
                    return backend.cosine_matrix(part, others)
                return plda.score_matrix(
                    fitted.model,
                    part,
                    others,
                    enrol_counts=np.full(len(part), count),
                    test_counts=cohort_counts,
                )

            chosen = counts == count
            found = score_norm.cohort_statistics(rows[chosen], means, top_k=top_k, score=against)
            mean[chosen], deviation[chosen] = found.mean, found.deviation
        return score_norm.CohortStatistics(mean, deviation)

    return score_norm.normalise(
        scores,
        statistics(sides.enrol, sides.counts),
        statistics(sides.test, np.ones(len(sides.test), np.int64)),
        sides.enrol_index,
        sides.test_index,
    )


def sides(
    listed: trials.Trials,
    fitted: BackEnd,
    test: tuple[Sequence[str], Float[np.ndarray, "n d"]],
    enrol: tuple[Sequence[str], Float[np.ndarray, "m d"]],
    enrolment: trials.Enrolment | None,
    *,
    allow_unknown: bool,
) -> tuple[Sides, trials.LocatedTrials]:
    """The trials that can be scored, and where they are in the list.

    `test` and `enrol` are ids and embeddings. With an `enrolment` the enrolled side are those of
    its models that the list names, the means of their transformed utterances. Raises
    UnknownIdsError, see `trials.locate`.
    """
    names, rows = enrol
    counts = np.ones(len(rows), np.int64)
    if enrolment is not None:
        named = {m: enrolment.models[m] for m in listed.enrol_ids if m in enrolment.models}
        if named:  # else `locate` says what is wrong
            enrolment = dataclasses.replace(enrolment, models=named)
        wanted = {name for utterances in enrolment.models.values() for name in utterances}
        kept = [row for row, name in enumerate(names) if name in wanted]
        names, rows, counts = trials.enrol(
            enrolment,
            [names[row] for row in kept],
            fitted.transform(rows[kept]),
            allow_unknown=allow_unknown,
        )
    located = trials.locate(listed, names, test[0], allow_unknown=allow_unknown)
    # Only the rows in use: no other may be bad, and a cohort costs time for each.
    enrol_used, enrol_index = np.unique(located.enrol_index, return_inverse=True)
    test_used, test_index = np.unique(located.test_index, return_inverse=True)
    used = rows[enrol_used]
    found = Sides(
        used if enrolment is not None else fitted.transform(used),
        counts[enrol_used],
        fitted.transform(test[1][test_used]),
        enrol_index,
        test_index,
    )
    return found, located


def trial_speakers(
    listed: trials.Trials,
    located: trials.LocatedTrials,
    speakers: Mapping[str, str],
    enrolment: trials.Enrolment | None,
    enrolled: Collection[str],
) -> tuple[Shaped[np.ndarray, "k"], Shaped[np.ndarray, "k"]]:
    """The speakers on both sides of each located trial, by the speakers of the utterances.

    Of the utterances of an enrolled model only those in `enrolled` count, which have embeddings.

    Raises UserError for an utterance without a speaker, or an enrolled model of several.
    """

    def speaker(names: Sequence[str]) -> str:
        missing = [name for name in names if name not in speakers]
        if missing:
            raise errors.UserError(
                f"--utt2spk names no speaker for {missing[0]!r}, which is in the trials. Add it, "
                "or leave --utt2spk out and do without intervals."
            )
        found = sorted({speakers[name] for name in names})
        if len(found) > 1:
            raise errors.UserError(
                f"{enrolment.path}: a model has utterances of {' and '.join(found[:2])} by "
                "--utt2spk. Correct one of them."
            )
        return found[0]

    models = {}
    if enrolment is not None:
        enrolled = frozenset(enrolled)
        for model, members in enrolment.models.items():
            models[model] = tuple(name for name in members if name in enrolled)
    enrol_index, test_index = listed.enrol_index[located.kept], listed.test_index[located.kept]
    sides_of = []
    for ids, index, members in (
        (listed.enrol_ids, enrol_index, models),
        (listed.test_ids, test_index, {}),
    ):
        used, place = np.unique(index, return_inverse=True)
        named = np.array([speaker(members.get(ids[i], (ids[i],))) for i in used])
        sides_of.append(named[place])
    return sides_of[0], sides_of[1]
