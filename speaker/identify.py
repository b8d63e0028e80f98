"""Which of the enrolled voices speaks, if any?

    python -m speaker.identify --workdir=runs/speaker --voices=voices.npz a.wav b.wav

For each file the best names, one a line: file, name, score, probability. `unknown` is one of them:
somebody who was not enrolled. The score is the cosine with the mean embedding of a voice; the
probability follows from the calibration of the evaluation split (fitted to pairs of recordings, so
it is cautious for voices of several), the voices being equally probable beforehand. A file that
cannot be used gets one line on stderr, the others go on, and the exit code is 1.
"""

import argparse
import logging
import pathlib
import sys
from collections.abc import Sequence

import numpy as np
import scipy.special
from jaxtyping import Float

from common import app, errors
from common.audio import io
from speaker import backend, embed, enroll, verify

log = logging.getLogger(__name__)


def posteriors(ratios: Float[np.ndarray, "n v"], p_known: float) -> Float[np.ndarray, "n v1"]:
    """P(voice | recording) of v voices, and last of none of them, by Bayes' rule.

    `ratios` are natural-log likelihood ratios of each voice against somebody else; beforehand the
    voices share `p_known` equally and somebody else has the rest.
    """
    known = ratios + np.log(p_known / ratios.shape[1])
    nobody = np.full((len(ratios), 1), np.log1p(-p_known))
    return scipy.special.softmax(np.concatenate([known, nobody], axis=1), axis=1)


def identify(
    embedder: embed.Embedder, voices: enroll.Voices, files: Sequence[str], p_known: float
) -> list[list[tuple[str, float | None, float | None]]]:
    """For each file (name, score, probability), the most probable first.

    `unknown` has no score. Without a calibration there are no probabilities and no `unknown`.
    """
    names, models = voices.models()
    scores = backend.cosine_matrix(embedder.embed_files(files), models)
    decision = embedder.decision
    answers = []
    if decision is None:
        for row in scores:
            order = np.argsort(-row, kind="stable")
            answers.append([(names[i], float(row[i]), None) for i in order])
        return answers
    ratios = decision.calibration(scores.ravel()).reshape(scores.shape)
    for row, shares in zip(scores, posteriors(ratios, p_known)):
        order = np.argsort(-shares, kind="stable")
        known = [*zip(names, row.tolist()), (enroll.UNKNOWN, None)]
        answers.append([(*known[i], float(shares[i])) for i in order])
    return answers


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m speaker.identify",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="of a training run")
    parser.add_argument("--checkpoint", type=int, help="step; default: the best on the dev set")
    parser.add_argument("--voices", required=True, type=pathlib.Path, metavar="NPZ")
    parser.add_argument("--top", type=int, default=3, help="names a file (default 3)")
    parser.add_argument(
        "--prior",
        type=verify.prior,
        default=0.5,
        help="probability beforehand that it is one of the voices (default 0.5)",
    )
    parser.add_argument("files", nargs="+", metavar="FILE")
    args = parser.parse_args(argv)

    def work() -> None:
        if args.top < 1:
            raise errors.UserError(f"--top={args.top}: ask for at least one name.")
        embedder = embed.Embedder(args.workdir, args.checkpoint)
        voices = enroll.load(args.voices.expanduser(), embedder)
        if embedder.decision is None:
            log.warning(
                "The checkpoint holds no calibration: these are the nearest voices, with no word "
                "on whether it is one of them."
            )
        else:
            log.info("Calibrated on %s.", embedder.decision.source)
        failed = 0
        for file in args.files:
            try:
                (answer,) = identify(embedder, voices, [file], args.prior)
            except io.AudioError as error:
                failed += 1
                print(f"speaker.identify: {error}", file=sys.stderr)
                continue
            for name, score, probability in answer[: args.top]:
                shown = ["-" if x is None else f"{x:.4f}" for x in (score, probability)]
                print("\t".join([file, name, *shown]), flush=True)
        if failed:
            sys.exit(1)

    app.command("speaker.identify", work)


if __name__ == "__main__":
    main()
