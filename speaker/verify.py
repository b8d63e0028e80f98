"""Are two recordings of the same speaker?

    python -m speaker.verify a.wav b.mp3 --workdir=runs/speaker

Prints the score (cosine of the two embeddings, with AS-norm if config.data.cohort had speakers in
training), the log-likelihood ratio that the calibration of the evaluation split makes of it, the
probability of one speaker at the given prior, and the verdict (the more probable of the two). Files
of any format, rate and length.
"""

import argparse
from collections.abc import Sequence

from common import app
from speaker import embed


def prior(text: str) -> float:
    """The argument of --prior: a probability between 0 and 1, neither included."""
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} does not lie between 0 and 1")
    return value


def verify(embedder: embed.Embedder, first: str, second: str, p_target: float) -> list[str]:
    """What the command prints. Raises io.AudioError for a file that cannot be used."""
    found, decision = embedder.compare(first, second, prior=p_target), embedder.decision
    norm = "" if decision is None or decision.cohort is None else ", AS-norm"
    lines = [f"score        {found.score:.4f}  (cosine{norm})"]
    if decision is None:
        lines.append(
            "There is no verdict: the checkpoint holds no calibration. Its evaluation could not "
            "fit one, was at another step (with a cohort), or an earlier version saved it; "
            "evaluations while training save one."
        )
        return lines
    verdict = "same speaker" if found.probability >= 0.5 else "different speakers"
    return [
        *lines,
        f"ratio        {found.ratio:.3f}  (natural-log likelihood ratio)",
        f"probability  {found.probability:.4f}  (of one speaker, at the prior {p_target:g})",
        f"verdict      {verdict}",
        f"Calibrated on {decision.source}; there the error rates are equal from the score "
        f"{decision.eer_threshold:.4f} on.",
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = app.parser("speaker.verify", __doc__)
    app.add_run(parser)
    parser.add_argument(
        "--prior", type=prior, default=0.5, help="probability of one speaker beforehand"
    )
    parser.add_argument("files", nargs=2, metavar="FILE")
    args = parser.parse_args(argv)

    def work() -> None:
        embedder = embed.Embedder(args.workdir, args.checkpoint)
        print("\n".join(verify(embedder, *args.files, args.prior)))

    app.command("speaker.verify", work)


if __name__ == "__main__":
    main()
