"""How often `speaker.voices identify` is wrong about one voice, by how many recordings it has.

    python -m benchmarks.identification --workdir=DIR --data DATA [--draws=4000]

DIR is a run of speaker.main, DATA as of speaker.extract, of other speakers than those that its
calibration was fitted on. Voices of 1, 2, ... recordings are drawn, for each another recording of
its speaker and one of somebody else; said is which of them are accepted at a log likelihood ratio
of 0, the threshold of equally probable answers:

    calibrated   as identify decides: the score with the mean embedding, calibrated for so many
    uncorrected  the same score by the calibration of single recordings
    pair by pair the mean of the scores with each recording, by that calibration
"""

import argparse
import pathlib
import tempfile

import numpy as np

import speaker
from speaker import backend, evaluation, extract

SIZES = (1, 2, 4, 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workdir", required=True, help="of speaker.main")
    parser.add_argument("--data", required=True, nargs="+", help="as of speaker.extract")
    parser.add_argument("--draws", type=int, default=4000, help="voices of each size")
    args = parser.parse_args()
    embedder = speaker.load(args.workdir)
    if (decision := embedder.decision) is None:
        parser.error(f"{args.workdir} has no calibration: no evaluation of it could make one")
    with tempfile.TemporaryDirectory() as folder:
        source = extract.open_data(args.data, embedder.config)
        split = embedder.open(source, pathlib.Path(folder))
        found = embedder(split)
    speakers = np.array(split.speakers)[found.places]
    rows = backend.length_normalise(found.embeddings)
    pairs = decision.scores(rows, rows)
    print(f"{len(rows)} recordings of {len(set(speakers))} speakers; {decision.source}")
    print("recordings of a voice, decision: wrongly refused, wrongly accepted, %")
    for size in SIZES:
        drawn = evaluation.draw_voices(speakers, size, args.draws)
        if drawn is None:
            print(f"{size}: no speaker has as many")
            continue
        voices, *sides = drawn
        scores, counts = decision.scores(rows[voices].mean(1), rows), np.full(args.draws, size)
        shares: dict[str, list[float]] = {}
        for tests in sides:
            of_mean = scores[np.arange(args.draws), tests]
            each = pairs[voices, tests[:, None]].mean(axis=1)
            ways = {
                "calibrated": decision.ratios(of_mean, counts),
                "uncorrected": decision.calibration(of_mean),
                "pair by pair": decision.calibration(each),
            }
            for name, ratios in ways.items():
                shares.setdefault(name, []).append(100 * np.mean(ratios > 0))
        for name, (own, other) in shares.items():
            print(f"{size}, {name:12s}: {100 - own:5.2f} {other:5.2f}")


if __name__ == "__main__":
    main()
