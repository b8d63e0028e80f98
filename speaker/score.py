"""Scores lists of trials on embeddings, and says how good the scores are.

    python -m speaker.score --trials=trials.txt --embeddings=eval_vectors
    python -m speaker.score --trials o.txt e.txt h.txt --embeddings=vox1 --out=scores.txt
    python -m speaker.score --trials=trials.txt --embeddings=eval_vectors --out=scores.txt
        --backend=plda --lda-dim=128 --train-embeddings=train_vectors
        --norm=asnorm --cohort=train_vectors

Trials are `1 enrol test` or `enrol test target` lines. Embeddings are what speaker.extract wrote
(its folder), or .npz, .ark, .scp, .txt files. With --enrolment (spk2utt) the enrolled side names
speakers with several utterances. Lists match the embeddings by their ids: the lists of VoxCeleb,
which name files, those of data of kind voxceleb, or of recordings whose ids are their paths.

Several lists share embeddings, back end and cohort: each has figures of its own after its name,
--out becomes scores.<list>.txt, --det shows all their curves.

Printed are EER, minDCF and minCllr, actDCF and Cllr where scores are likelihood ratios (plda,
--calibrate-on, --calibrate), and with --utt2spk intervals over the speakers.
"""

import argparse
import dataclasses
import functools
import logging
import pathlib
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int, Shaped

from common import app, errors, files
from speaker import backend, metrics, plda, trials, vectors

log = logging.getLogger(__name__)

_TOP_K = 300  # of the cohort, without --top-k
_MOST_LDA = 200  # dimensions if nobody says how many, as Kaldi's recipe for VoxCeleb has


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
        most = min(_MOST_LDA, size, len(set(speakers)) - 1)
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

    def statistics(rows, counts) -> backend.CohortStatistics:
        if fitted.model is None:
            return backend.cohort_statistics(rows, means, top_k=top_k)
        against = functools.partial(plda.score_matrix, fitted.model, test_counts=cohort_counts)
        return backend.cohort_statistics(rows, means, top_k=top_k, score=against, counts=counts)

    enrol, test = statistics(sides.enrol, sides.counts), statistics(sides.test, None)
    return backend.normalise_scores(scores, enrol, test, sides.enrol_index, sides.test_index)


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


def _labelled(
    path: pathlib.Path, table: pathlib.Path | None
) -> tuple[Float[np.ndarray, "n d"], list[str] | None]:
    """Embeddings and their speakers, by `table` or by the utt2spk beside them; None without."""
    ids, embeddings = vectors.read(path)
    table = table or vectors.beside(path, vectors.UTT2SPK)
    if table is None:
        return embeddings, None
    known = vectors.read_speakers(table)
    missing = [name for name in ids if name not in known]
    if missing:
        raise errors.UserError(
            f"{table} names no speaker for {len(missing)} of the {len(ids)} embeddings of {path}, "
            f"first {missing[0]!r}. Add them."
        )
    return embeddings, [known[name] for name in ids]


def _check_options(args: argparse.Namespace) -> None:
    """Raises UserError for options that need others, before anything is read."""
    for wrong, message in (
        (
            args.backend != "cosine" and not args.train_embeddings,
            f"--backend={args.backend} is fitted to a training set: give --train-embeddings.",
        ),
        (
            args.backend == "cosine" and args.lda_dim is not None,
            "--lda-dim is for --backend=lda or plda; choose one of them.",
        ),
        (args.norm and not args.cohort, f"--norm={args.norm} needs a --cohort."),
        (args.cohort and not args.norm, "--cohort does nothing without --norm=asnorm or snorm."),
        (
            args.top_k is not None and args.norm != "asnorm",
            "--top-k is for --norm=asnorm only.",
        ),
        (args.lda_dim is not None and args.lda_dim < 1, "--lda-dim is at least 1."),
        (args.top_k is not None and args.top_k < 1, "--top-k is at least 1."),
        (
            args.train_utt2spk and not args.train_embeddings,
            "--train-utt2spk does nothing without --train-embeddings.",
        ),
        (
            args.cohort_utt2spk and not args.cohort,
            "--cohort-utt2spk does nothing without --cohort.",
        ),
        (
            args.calibrate and args.calibrate_on,
            "--calibrate fits to the trials themselves, --calibrate-on to others; choose one.",
        ),
        (
            args.calibrate_embeddings and not args.calibrate_on,
            "--calibrate-embeddings does nothing without --calibrate-on.",
        ),
        (
            args.quality and not (args.calibrate or args.calibrate_on),
            "--quality is for --calibrate-on or --calibrate; choose one of them.",
        ),
        (
            args.quality and args.enrolment,
            "--quality is for trials of two utterances, without --enrolment.",
        ),
    ):
        if wrong:
            raise errors.UserError(message)
    names = [path.stem for path in args.trials]
    if len(set(names)) < len(names):
        raise errors.UserError("--trials: two lists of one name; give them different names.")
    outs = [_out(args, name) for name in names] if args.out else []
    for path in (*outs, args.det):
        if path is not None:
            files.check_output(path)
    if args.det:
        metrics.plot_format(args.det)


def _check_size(name: str, found: np.ndarray, size: int) -> None:
    if found.shape[-1] != size:
        raise errors.UserError(
            f"{name} has {found.shape[-1]} dimensions, --embeddings {size}. Take embeddings of one "
            "network."
        )


def _back_end(args: argparse.Namespace, size: int) -> BackEnd:
    train = centre = None
    if args.train_embeddings:
        train = _labelled(args.train_embeddings, args.train_utt2spk)
        if train[1] is None and args.backend != "cosine":
            raise errors.UserError(
                f"--train-utt2spk is missing: the speakers of {args.train_embeddings} are needed."
            )
    if args.center == "none":
        centre = np.zeros(size)
    elif args.center is not None:
        centre = backend.fit_mean(vectors.read(args.center)[1]).mean
    for name, found in (("--train-embeddings", train and train[0]), ("--center", centre)):
        if found is not None:
            _check_size(name, found, size)
    return fit_back_end(args.backend, args.lda_dim, train, centre, size)


def _cohort(
    args: argparse.Namespace, fitted: BackEnd, size: int
) -> tuple[Float[np.ndarray, "c p"], Int[np.ndarray, "c"]]:
    embeddings, speakers = _labelled(args.cohort, args.cohort_utt2spk)
    _check_size("--cohort", embeddings, size)
    if speakers is None:
        log.warning(
            "No utt2spk beside --cohort %s: each embedding in it counts as another speaker. If "
            "that is not so, give --cohort-utt2spk.",
            args.cohort,
        )
        speakers = range(len(embeddings))
    _, means, counts = backend.speaker_means(fitted.transform(embeddings), np.array(speakers))
    log.info("Cohort: %d speakers, %d embeddings.", len(means), len(embeddings))
    return means, counts


def _scored(
    args: argparse.Namespace,
    listed: trials.Trials,
    fitted: BackEnd,
    cohort: tuple[Float[np.ndarray, "c p"], Int[np.ndarray, "c"]] | None,
    enrol: tuple[Sequence[str], Float[np.ndarray, "m d"]],
    test: tuple[Sequence[str], Float[np.ndarray, "n d"]],
    enrolment: trials.Enrolment | None,
) -> tuple[trials.LocatedTrials, Float[np.ndarray, "k"]]:
    """The trials of a list that can be scored, and their scores, normalised if asked for."""
    both, located = sides(listed, fitted, test, enrol, enrolment, allow_unknown=args.allow_unknown)
    scores = score(fitted, both)
    if cohort is not None:
        top_k = None
        if args.norm == "asnorm":
            top_k = min(_TOP_K, len(cohort[0])) if args.top_k is None else args.top_k
        scores = normalise(fitted, both, scores, cohort, top_k)
    return located, scores


def _seconds(path: pathlib.Path, ids: Sequence[str]) -> Float[np.ndarray, "n"]:
    """Durations by the utt2dur that lies beside a set of embeddings."""
    table = vectors.beside(path, vectors.UTT2DUR)
    known = vectors.read_durations(table)
    missing = [name for name in ids if name not in known]
    if missing:
        raise errors.UserError(
            f"{table} has no duration for {len(missing)} of the {len(ids)} embeddings of {path}, "
            f"first {missing[0]!r}. Add them, or remove the table."
        )
    return np.array([known[name] for name in ids])


def _quality(
    args: argparse.Namespace,
    paths: tuple[pathlib.Path, pathlib.Path],
    enrol: tuple[Sequence[str], Float[np.ndarray, "m d"]],
    test: tuple[Sequence[str], Float[np.ndarray, "n d"]],
    located: trials.LocatedTrials,
) -> tuple[tuple[str, ...], Float[np.ndarray, "k q"] | None]:
    """Quality measures of trials if they are asked for: by durations where all sets have them."""
    if not args.quality:
        return (), None
    used = {args.embeddings, args.enrol_embeddings, args.calibrate_embeddings} - {None}
    without = sorted(str(p) for p in used if vectors.beside(p, vectors.UTT2DUR) is None)
    seconds = None
    if without:
        log.warning("No utt2dur beside %s: quality is that of magnitudes.", ", ".join(without))
    else:
        seconds = (_seconds(paths[0], enrol[0]), _seconds(paths[1], test[0]))
    lengths = [np.linalg.norm(rows.astype(np.float64), axis=1) for rows in (enrol[1], test[1])]
    return backend.quality_measures(*lengths, located.enrol_index, located.test_index, seconds)


def _warn_of_shared(listed: trials.Trials, other: trials.Trials) -> None:
    """Trials that were fitted to judge a calibration too kindly."""
    shared = {*listed.enrol_ids, *listed.test_ids} & {*other.enrol_ids, *other.test_ids}
    if shared:
        log.warning(
            "%s: %d ids are in --calibrate-on too: actDCF and Cllr flatter. Calibrate on other "
            "speakers.",
            *(listed.path, len(shared)),
        )


def _work(args: argparse.Namespace) -> None:
    _check_options(args)
    lists = {path.stem: trials.read_trials(path) for path in args.trials}
    for path, listed in zip(args.trials, lists.values()):
        try:
            metrics.check(np.zeros(len(listed)), listed.is_target)
        except metrics.ScoreError as error:
            raise errors.UserError(f"{path}: {error}") from None
    other = trials.read_trials(args.calibrate_on) if args.calibrate_on else None
    speakers = vectors.read_speakers(args.utt2spk) if args.utt2spk else None
    enrolment = trials.read_enrolment(args.enrolment) if args.enrolment else None
    test = vectors.read(args.embeddings)
    enrol = vectors.read(args.enrol_embeddings) if args.enrol_embeddings else test
    size = test[1].shape[1]
    _check_size("--enrol-embeddings", enrol[1], size)
    fitted = _back_end(args, size)
    cohort = _cohort(args, fitted, size) if args.norm else None
    paths = (args.enrol_embeddings or args.embeddings, args.embeddings)
    calibrate = calibrated = None
    if other is not None:
        there_paths, sets = paths, (enrol, test)
        if args.calibrate_embeddings:
            there_paths = (args.calibrate_embeddings,) * 2
            sets = (vectors.read(args.calibrate_embeddings),) * 2
            _check_size("--calibrate-embeddings", sets[0][1], size)
        there, scores = _scored(args, other, fitted, cohort, *sets, enrolment)
        names, quality = _quality(args, there_paths, *sets, there)
        calibrate = backend.fit_calibration(scores, there.is_target, quality, quality_names=names)
        calibrated = f"{len(scores)} trials of {args.calibrate_on}"
    curves = {}
    for name, listed in lists.items():
        located, scores = _scored(args, listed, fitted, cohort, enrol, test, enrolment)
        target = located.is_target
        if args.calibrate or other is not None:
            names, quality = _quality(args, paths, enrol, test, located)
            if args.calibrate:
                calibrate = backend.fit_calibration(scores, target, quality, quality_names=names)
                calibrated = "these trials themselves"
            else:
                _warn_of_shared(listed, other)
            scores = calibrate(scores, quality)
        are_llrs = calibrate is not None or (args.backend == "plda" and not args.norm)
        bounds = {}
        if speakers is not None:
            pairs = trial_speakers(listed, located, speakers, enrolment, enrol[0])
            drawn = metrics.resample(scores, target, *pairs, are_llrs=are_llrs)
            bounds = metrics.intervals(drawn)
        summary = metrics.summarise(scores, target, are_llrs=are_llrs)
        title = f"{name}: " if len(lists) > 1 else ""
        print(title + metrics.describe(summary, bounds))
        if calibrated:
            flatter = ": actDCF and Cllr flatter" if args.calibrate else ""
            used = f", with {', '.join(names)}" if names else ""
            print(f"{title}Calibrated on {calibrated}{used}{flatter}.")
        if len(located.kept) < len(listed):
            left = len(listed) - len(located.kept)
            print(f"{title}{left} of {len(listed)} trials left out: unknown ids.")
        if args.out:
            rows = zip(listed.enrol_index[located.kept], listed.test_index[located.kept], scores)
            lines = [f"{listed.enrol_ids[i]} {listed.test_ids[j]} {s:.9g}\n" for i, j, s in rows]
            files.write_text(_out(args, name), "".join(lines))
        curves[name] = metrics.error_curve(scores, target)
    if args.det:
        metrics.save_det(args.det, curves)


def _out(args: argparse.Namespace, name: str) -> pathlib.Path:
    """The file of a list's scores: `--out`, with the list's name in it if there are several."""
    several = len(args.trials) > 1
    return args.out.with_stem(f"{args.out.stem}.{name}") if several else args.out


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = app.parser("speaker.score", __doc__)
    add = parser.add_argument

    def path(text: str) -> pathlib.Path:
        return pathlib.Path(text).expanduser()

    add("--trials", required=True, type=path, nargs="+", metavar="FILE", help="pairs of ids")
    add("--embeddings", required=True, type=path, metavar="E", help="of the tested side")
    add("--enrol-embeddings", type=path, metavar="E", help="of the other side; default: the same")
    add("--enrolment", type=path, metavar="SPK2UTT", help="models and their utterances")
    add("--backend", choices=("cosine", "lda", "plda"), default="cosine")
    add("--train-embeddings", type=path, metavar="E", help="to fit mean, LDA and PLDA to")
    add("--train-utt2spk", type=path, metavar="FILE", help="default: that beside E")
    add("--lda-dim", type=int, metavar="N", help=f"lda: default at most {_MOST_LDA}; plda: none")
    add("--center", metavar="E|none", help="mean to subtract; default: the training set's")
    add("--norm", choices=("asnorm", "snorm"))
    add("--cohort", type=path, metavar="E", help="other speakers, one mean each")
    add("--cohort-utt2spk", type=path, metavar="FILE", help="default: that beside E")
    add("--top-k", type=int, metavar="K", help=f"asnorm: default at most {_TOP_K}")
    add("--calibrate", action="store_true", help="to likelihood ratios, on these trials")
    add("--calibrate-on", type=path, metavar="FILE", help="the same, on trials of other speakers")
    add("--calibrate-embeddings", type=path, metavar="E", help="of these; default: the same")
    add(
        "--quality",
        action="store_true",
        help="calibrate with lengths of embeddings, and with seconds where utt2dur is beside E",
    )
    add("--utt2spk", type=path, metavar="FILE", help="of the trials, for intervals")
    add("--allow-unknown", action="store_true", help="leave out trials without embeddings")
    add(
        "--out",
        type=path,
        metavar="FILE",
        help="`enrol test score` lines; of several lists OUT.<list>.txt",
    )
    add("--det", type=path, metavar="PNG", help="plot of both kinds of error")
    args = parser.parse_args(argv)
    app.command("speaker.score", lambda: _work(args))


if __name__ == "__main__":
    main()
