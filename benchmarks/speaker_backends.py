"""Error rates of trained speaker networks on trial lists, for every back end.

python -m benchmarks.speaker_backends --data_root=DIR --trials=a.txt,b.txt RUN [RUN ...]

RUN is a work directory of speaker.main whose training data are still where they were: the mean, the
cohort (one mean embedding a speaker), LDA and PLDA are fitted on them. Lists name audio files below
DIR in VoxCeleb's manner; the speaker of a file, for the intervals, is the folder that `--speaker`
counts. Prints a Markdown table: EER in % with its 95 % interval by resampling speakers, and minDCF
at a prior of 0.01.
"""

import argparse
import dataclasses
import logging
import pathlib
import tempfile
from collections.abc import Iterator

import numpy as np

from common import app
from common.data import records, splits
from speaker import backend, embed, metrics, plda, score, trials

BACK_ENDS = ("cosine", "AS-norm", "LDA", "PLDA")


@dataclasses.dataclass(frozen=True)
class TrainingSet:
    """Embeddings of the training recordings and their speakers."""

    embeddings: np.ndarray
    speakers: np.ndarray


def embed_source(
    embedder: embed.Embedder, source: records.Source
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids, speakers, embeddings of unit length) of the usable records."""
    with tempfile.TemporaryDirectory() as folder:
        split = embedder.open(source, pathlib.Path(folder))
        found = embedder(split)
    ids, speakers = (np.asarray(part)[found.places] for part in (split.ids, split.speakers))
    # Unit length: the network is trained on directions.
    return ids, speakers, backend.length_normalise(found.embeddings)


def fitted(kind: str, train: TrainingSet, dimensions: int) -> score.BackEnd:
    """The back end of a row of the table."""
    centred = backend.fit_mean(train.embeddings)
    if kind in ("cosine", "AS-norm"):
        return score.BackEnd(centred, None)
    projected = backend.fit_lda(train.embeddings, train.speakers, dimensions)
    if kind == "LDA":
        return score.BackEnd(projected, None)
    return score.BackEnd(projected, plda.train(projected(train.embeddings), train.speakers))


def rows(
    embedder: embed.Embedder, args: argparse.Namespace
) -> Iterator[tuple[str, str, metrics.Summary, tuple[float, float]]]:
    """(list, back end, figures, interval of the EER) of one run."""
    source = splits.open_source(embedder.config.data, embedder.config.data.train)
    _, speakers, embeddings = embed_source(embedder, source)
    train = TrainingSet(embeddings, speakers)
    _, cohort, counts = backend.speaker_means(embeddings, speakers)
    for path in args.trials.split(","):
        listed = trials.read_trials(path)
        names = sorted({*listed.enrol_ids, *listed.test_ids})
        files = tuple({"id": name, "audio": str(args.data_root / name)} for name in names)
        ids, _, found = embed_source(embedder, records.RecordList(path, files))
        for kind in BACK_ENDS:
            back_end = fitted(kind, train, args.lda_dim)
            sides, located = score.sides(
                listed, back_end, (ids, found), (ids, found), None, allow_unknown=False
            )
            scores = score.score(back_end, sides)
            if kind == "AS-norm":
                others = (back_end.transform(cohort), counts)
                scores = score.normalise(back_end, sides, scores, others, args.top_k)
            of = [pathlib.PurePath(name).parts[args.speaker] for name in ids]
            left, right = (np.asarray(of)[i] for i in (located.enrol_index, located.test_index))
            drawn = metrics.resample(scores, located.is_target, left, right, num_resamples=1000)
            bounds = metrics.intervals(drawn)["eer"]
            yield (
                pathlib.Path(path).stem,
                kind,
                metrics.summarise(scores, located.is_target),
                bounds,
            )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=pathlib.Path)
    parser.add_argument("--data_root", type=pathlib.Path, required=True)
    parser.add_argument("--trials", required=True)
    parser.add_argument("--speaker", type=int, default=3, help="folder that names the speaker")
    parser.add_argument("--lda_dim", type=int, default=40)
    parser.add_argument("--top_k", type=int, default=50)
    args = parser.parse_args()
    app.keep_memory()
    app.use_compile_cache()
    logging.getLogger("common").setLevel(logging.ERROR)
    print(f"| run | list | {' | '.join(BACK_ENDS)} |")
    print("|---|---|" + "---|" * len(BACK_ENDS))
    for run in args.runs:
        cells: dict[str, list[str]] = {}
        for name, _, found, (low, high) in rows(embed.Embedder(run), args):
            flat = found.flat()
            text = f"{100 * flat['eer']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
            cells.setdefault(name, []).append(f"{text} {flat['min_dcf_0.01']:.2f}")
        for name, texts in cells.items():
            print(f"| {run.name} | {name} | {' | '.join(texts)} |", flush=True)


if __name__ == "__main__":
    main()
