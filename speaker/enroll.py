"""Adds a voice to a file of known voices, or more recordings to a voice in it.

    python -m speaker.enroll --workdir=runs/speaker --voices=voices.npz ann a.wav b.wav

The file holds the embeddings of one network (one checkpoint of one run); that of another network
is refused. It is replaced as a whole, or stays as it was; of several commands at once none loses
what another added. See `python -m speaker.identify`.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from common import app, errors, files
from speaker import backend, embed, storage

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

    def models(self) -> tuple[tuple[str, ...], Float[np.ndarray, "v d"]]:
        """The names in sorted order, and the mean of the unit embeddings of each."""
        rows = backend.length_normalise(self.embeddings)
        names, means, _ = backend.speaker_means(rows, np.array(self.names))
        return tuple(names.tolist()), means


def load(path: pathlib.Path, embedder: embed.Embedder) -> Voices:
    """The voices of a file. Raises UserError: no such file, damaged, or of another network."""
    fields = [field.name for field in dataclasses.fields(Voices)]
    found = storage.load_arrays(path, fields, kind="file of voices")
    names, embeddings = found["names"], found["embeddings"]
    if names.ndim != 1 or embeddings.ndim != 2 or len(names) != len(embeddings) or not len(names):
        raise storage.ModelFileError(f"{path} is no file of voices. Enroll the voices again.")
    voices = Voices(tuple(names.tolist()), embeddings, str(found["network"]), int(found["step"]))
    if voices.network != embedder.network:
        raise errors.UserError(
            f"{path} holds embeddings of another network (checkpoint of step {voices.step}, "
            f"{voices.network}) than step {embedder.step} of {embedder.folder} "
            f"({embedder.network}). Name its --workdir and --checkpoint, or enroll the voices "
            "again in another file."
        )
    return voices


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
        storage.save_arrays(path, {**vars(voices), "names": np.array(names)})
    return voices, 0 if old is None else old.names.count(name)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m speaker.enroll",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="of a training run")
    parser.add_argument("--checkpoint", type=int, help="step; default: the best on the dev set")
    parser.add_argument("--voices", required=True, type=pathlib.Path, metavar="NPZ")
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("files", nargs="+", metavar="FILE")
    args = parser.parse_args(argv)

    def work() -> None:
        path = args.voices.expanduser()
        files.check_output(path)
        embedder = embed.Embedder(args.workdir, args.checkpoint)
        voices, before = add(path, embedder, args.name, args.files)
        print(
            f"{args.name}: {before + len(args.files)} recordings, {before} of them from before. "
            f"{path} knows {len(set(voices.names))} voices."
        )

    app.command("speaker.enroll", work)


if __name__ == "__main__":
    main()
