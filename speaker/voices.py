"""A file of known voices: who of them speaks in a recording, if any?

    python -m speaker.voices add --workdir=runs/speaker --voices=voices.npz ann a.wav b.wav
    python -m speaker.voices identify --workdir=runs/speaker --voices=voices.npz x.wav y.wav
    python -m speaker.voices list --voices=voices.npz
    python -m speaker.voices remove --voices=voices.npz ann

The file holds the embeddings of one network (one checkpoint of one run); that of another network
is refused. It is replaced as a whole, or stays as it was; of several commands at once none loses
what another changed. `add` gives a voice its first recordings, or more.

`identify` prints for each file the best names, one a line: file, name, score, probability.
`unknown` is one of them: somebody who is not in the file. The score is the cosine with the mean
embedding of a voice, with AS-norm if config.data.cohort had speakers in training; the probability
follows from the calibration of the evaluation split, for voices of as many recordings, the voices
being equally probable beforehand. A file that cannot be used gets one line on stderr, the others go
on, and the exit code is 1. `list` prints name and recordings.
"""

import argparse
import collections
import dataclasses
import logging
import pathlib
import sys
from collections.abc import Sequence

import numpy as np
import scipy.special
from jaxtyping import Float, Int

from common import app, errors, files
from common.audio import io
from speaker import backend, embed, storage, verify

log = logging.getLogger(__name__)

UNKNOWN = "unknown"  # what `identify` calls a voice that is none of the known ones


@dataclasses.dataclass(frozen=True, eq=False)
class Voices:
    """Embeddings f32[n, d] of known voices: `names[i]` speaks in row i.

    `network` and `step` are those of `embed.Embedder`.
    """

    names: tuple[str, ...]
    embeddings: Float[np.ndarray, "n d"]
    network: str
    step: int

    def models(
        self,
    ) -> tuple[tuple[str, ...], Float[np.ndarray, "v d"], Int[np.ndarray, "v"]]:
        """The names in sorted order, the mean of the unit embeddings of each, and their number."""
        rows = backend.length_normalise(self.embeddings)
        names, means, counts = backend.speaker_means(rows, np.array(self.names))
        return tuple(names.tolist()), means, counts


def load(path: pathlib.Path, embedder: embed.Embedder | None = None) -> Voices:
    """The voices of a file, which are to be those of the embedder's network if one is given.

    Raises UserError: no such file, damaged, or of another network.
    """
    fields = [field.name for field in dataclasses.fields(Voices)]
    found = storage.load_arrays(path, fields, kind="file of voices")
    names, embeddings = found["names"], found["embeddings"]
    if names.ndim != 1 or embeddings.ndim != 2 or len(names) != len(embeddings) or not len(names):
        raise storage.ModelFileError(f"{path} is no file of voices. Add the voices again.")
    voices = Voices(tuple(names.tolist()), embeddings, str(found["network"]), int(found["step"]))
    if embedder is not None and voices.network != embedder.network:
        raise errors.UserError(
            f"{path} holds embeddings of another network (checkpoint of step {voices.step}, "
            f"{voices.network}) than step {embedder.step} of {embedder.folder} "
            f"({embedder.network}). Name its --workdir and --checkpoint, or add the voices "
            "again in another file."
        )
    return voices


def _save(path: pathlib.Path, voices: Voices) -> None:
    storage.save_arrays(path, {**vars(voices), "names": np.array(voices.names)})


def add(
    path: pathlib.Path, embedder: embed.Embedder, name: str, recordings: Sequence[str]
) -> tuple[Voices, int]:
    """Writes the voices with the recordings of `name` added; how many that voice had before.

    Raises UserError as `load` does, for a name that cannot be one, and io.AudioError for a file
    that cannot be used; then nothing is written.
    """
    if name == UNKNOWN or not name.isprintable() or name != name.strip() or not name:
        raise errors.UserError(
            f"{name!r} cannot name a voice: {UNKNOWN!r}, control characters and blanks at the "
            "ends have another meaning in the output. Choose another name."
        )
    if path.exists():
        load(path, embedder)  # raises before the work
    embeddings = embedder.embed_files(recordings)
    names = (name,) * len(recordings)
    with files.locked(path):
        old = load(path, embedder) if path.exists() else None
        if old is not None:
            names, embeddings = old.names + names, np.concatenate([old.embeddings, embeddings])
        voices = Voices(names, embeddings, embedder.network, embedder.step)
        _save(path, voices)
    return voices, 0 if old is None else old.names.count(name)


def remove(path: pathlib.Path, name: str) -> Voices:
    """Writes the voices without `name`. Raises UserError: not in the file, or the only one."""
    with files.locked(path):
        old = load(path)
        kept = np.array(old.names) != name
        if kept.all():
            known = ", ".join(sorted(set(old.names))[:10])
            raise errors.UserError(f"{path} knows no voice {name!r}, but {known}.")
        if not kept.any():
            raise errors.UserError(f"{name!r} is the only voice of {path}: delete the file.")
        names = tuple(np.array(old.names)[kept].tolist())
        voices = dataclasses.replace(old, names=names, embeddings=old.embeddings[kept])
        _save(path, voices)
    return voices


def posteriors(ratios: Float[np.ndarray, "n v"], p_known: float) -> Float[np.ndarray, "n v1"]:
    """P(voice | recording) of v voices, and last of none of them, by Bayes' rule.

    `ratios` are natural-log likelihood ratios of each voice against somebody else; beforehand the
    voices share `p_known` equally and somebody else has the rest.
    """
    known = ratios + np.log(p_known / ratios.shape[1])
    nobody = np.full((len(ratios), 1), np.log1p(-p_known))
    return scipy.special.softmax(np.concatenate([known, nobody], axis=1), axis=1)


def identify(
    embedder: embed.Embedder, voices: Voices, recording: str, p_known: float
) -> list[tuple[str, float | None, float | None]]:
    """(name, score, probability) of each voice, the most probable first.

    `unknown` has no score. Without a calibration there are no probabilities and no `unknown`.
    Raises io.AudioError for a file that cannot be used.
    """
    names, models, counts = voices.models()
    decision = embedder.decision
    rows = embedder.embed_files([recording])
    if decision is None:
        scores = backend.cosine_matrix(models, rows)[:, 0]
        return [(names[i], float(scores[i]), None) for i in np.argsort(-scores, kind="stable")]
    scores = decision.scores(models, rows)[:, 0]
    (shares,) = posteriors(decision.ratios(scores, counts)[None], p_known)
    known = [*zip(names, scores.tolist()), (UNKNOWN, None)]
    return [(*known[i], float(shares[i])) for i in np.argsort(-shares, kind="stable")]


def _add(args: argparse.Namespace, path: pathlib.Path) -> None:
    files.check_output(path)
    embedder = embed.Embedder(args.workdir, args.checkpoint)
    voices, before = add(path, embedder, args.name, args.files)
    print(
        f"{args.name}: {before + len(args.files)} recordings, {before} of them from before. "
        f"{path} knows {len(set(voices.names))} voices."
    )


def _identify(args: argparse.Namespace, path: pathlib.Path) -> None:
    if args.top < 1:
        raise errors.UserError(f"--top={args.top}: ask for at least one name.")
    embedder = embed.Embedder(args.workdir, args.checkpoint)
    voices, decision = load(path, embedder), embedder.decision
    if decision is None:
        log.warning(
            "The checkpoint holds no calibration: these are the nearest voices, with no word "
            "on whether it is one of them."
        )
    else:
        log.info("Calibrated on %s.", decision.source)
        if decision.voices is None and len(set(voices.names)) < len(voices.names):
            log.warning(
                "The checkpoint holds no calibration for voices of several recordings: theirs "
                "are too probable. An evaluation while training saves one."
            )
    failed = False
    for file in args.files:
        try:
            answer = identify(embedder, voices, file, args.prior)
        except io.AudioError as error:
            failed = True
            print(f"speaker.voices: {error}", file=sys.stderr)
            continue
        for name, score, probability in answer[: args.top]:
            shown = ["-" if x is None else f"{x:.4f}" for x in (score, probability)]
            print("\t".join([file, name, *shown]), flush=True)
    if failed:
        sys.exit(1)


def _list(args: argparse.Namespace, path: pathlib.Path) -> None:
    for name, count in sorted(collections.Counter(load(path).names).items()):
        print(f"{name}\t{count}")


def _remove(args: argparse.Namespace, path: pathlib.Path) -> None:
    voices = remove(path, args.name)
    print(f"{path} knows {len(set(voices.names))} voices.")


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = app.parser("speaker.voices", __doc__)
    commands = parser.add_subparsers(required=True, metavar="add|identify|list|remove")
    works = {"add": _add, "identify": _identify, "list": _list, "remove": _remove}
    for name, work in works.items():
        command = commands.add_parser(name)
        command.set_defaults(work=work)
        option = command.add_argument
        option("--voices", required=True, type=pathlib.Path, metavar="NPZ")
        if name in ("add", "identify"):
            app.add_run(command)
        if name == "identify":
            option("--top", type=int, default=3, help="names a file (default 3)")
            option(
                "--prior",
                type=verify.prior,
                default=0.5,
                help="probability beforehand that it is one of the voices (default 0.5)",
            )
        if name in ("add", "remove"):
            option("name", metavar="NAME")
        if name in ("add", "identify"):
            option("files", nargs="+", metavar="FILE")
    args = parser.parse_args(argv)
    app.command("speaker.voices", lambda: args.work(args, args.voices.expanduser()))


if __name__ == "__main__":
    main()
