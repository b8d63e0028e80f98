"""Writes the embeddings of recordings with a trained speaker network.

    python -m speaker.extract --workdir=runs/speaker --data eval --out=runs/speaker/eval
    python -m speaker.extract --workdir=runs/speaker --data *.wav --format=ark --out=vectors
    python -m speaker.extract --workdir=runs/speaker --data recordings --out=vectors

DIR gets embeddings.<format> (ark: with an .scp), utt2dur with the seconds, utt2spk where speakers
are known, and rejected.tsv with the recordings that cannot be used; these are counted and named,
the others go on, and the exit code is 1. Files of any format, rate and length; long ones get the
mean over equal pieces.
"""

import contextlib
import logging
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from common import app, errors, files
from common.data import clips, indexing, kaldi, records, splits
from speaker import embed, vectors

log = logging.getLogger(__name__)

_SPLITS = ("train", "eval", "test")
_TABLES = ("wav.scp", "feats.scp")  # of Kaldi folders
_NAMED = 20  # bad recordings in the log; all are in rejected.tsv


def open_data(names: Sequence[str], config: Any) -> records.Source:
    """The recordings that `--data` names: a split of the run, Kaldi folders, audio files, or
    folders of them, below which those of each speaker may be in a folder."""
    given = config.features.kind == "given"
    options = {"hop_ms": config.features.hop_ms if given else None}
    options["vad"] = given and config.data.vad == "kaldi"
    if len(names) == 1 and names[0] in _SPLITS:
        # `test+enroll` are two together; without config.data.test the split is called test.
        wanted = config.data[names[0]] or (names[0],)
        parts = list(dict.fromkeys(part for name in wanted for part in name.split("+")))
        return splits.open_source(config.data, parts, **options)
    folders = [name for name in names if pathlib.Path(name).is_dir()]
    of_kaldi = [n for n in folders if any((pathlib.Path(n) / t).is_file() for t in _TABLES)]
    if folders == list(names) and not of_kaldi and not given:
        return clips.read_speakers(".", names)
    if folders:
        for name in names:
            if name not in of_kaldi:
                raise errors.UserError(
                    f"--data {name} is no Kaldi folder: it has neither {' nor '.join(_TABLES)}. "
                    "Name such folders alone, folders of recordings alone, audio files, or one of "
                    "train, eval, test."
                )
            if not given and not (pathlib.Path(name) / "wav.scp").is_file():
                raise errors.UserError(
                    f"--data {name} holds features only, and this network takes recordings: give "
                    "a folder with wav.scp, or audio files."
                )
        return kaldi.read_folders("", names, **options)
    if given:
        raise errors.UserError(
            "The network takes features that were computed elsewhere (config.features.kind=given), "
            f"so --data {names[0]} has to be a Kaldi folder with feats.scp."
        )
    if not any(pathlib.Path(name).exists() for name in names):
        raise errors.UserError(
            f"--data {' '.join(names[:3])}: no such file or folder. Name audio files or Kaldi "
            "folders, or one of train, eval, test alone."
        )
    rows = tuple({"id": name, "audio": name} for name in names)
    return records.RecordList("the files of --data", rows)


def extract(
    embedder: embed.Embedder, source: records.Source, kind: str, out: pathlib.Path
) -> tuple[pathlib.Path, list[str]]:
    """Writes the embeddings of a source into `out`; (the file, ids of what could not be used)."""
    names = []
    for i in range(len(source)):
        with contextlib.suppress(Exception):  # `open` rejects it and says why
            record = source[i]
            names.append((record["id"], record.get("speaker") or ""))
    vectors.check(kind, [name for name, _ in names], [speaker for _, speaker in names])
    split = embedder.open(source, out)
    started = time.monotonic()
    found = embedder(split, progress=True)
    seconds = max(time.monotonic() - started, 1e-9)
    ids, speakers = ([part[i] for i in found.places] for part in (split.ids, split.speakers))
    known = [bool(speaker) for speaker in speakers]
    if any(known) and not all(known):
        log.warning("%d recordings name no speaker: no utt2spk is written.", known.count(False))
    lengths = split.index.seconds[found.places]
    path = vectors.write(
        out, kind, ids, found.embeddings, speakers if all(known) else None, lengths.tolist()
    )
    bad = [*split.index.rejected]
    for place, reason in sorted(found.failed.items()):
        position = int(split.index.positions[place])
        audio = source[position].get("audio", source[position].get("features"))
        path_of = f"{source.name}[{position}]" if isinstance(audio, np.ndarray) else str(audio)
        bad.append(records.Rejected(split.ids[place], path_of, reason))
    indexing.write_rejected(out / "rejected.tsv", source.name, bad)
    hours = float(lengths.sum()) / 3600
    print(
        f"{len(ids)} embeddings of {found.embeddings.shape[1]} dimensions, {hours:.2f} hours, "
        f"{len(ids) / seconds:.1f} utterances/s: {path}"
    )
    return path, [f"{r.id}: {r.reason}" for r in bad]


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = app.parser("speaker.extract", __doc__)
    app.add_run(parser)
    parser.add_argument(
        "--data",
        required=True,
        nargs="+",
        metavar="DATA",
        help="train, eval or test of the run; Kaldi folders (wav.scp, feats.scp); folders of "
        "recordings, those of each speaker in a folder; or audio files",
    )
    parser.add_argument("--format", choices=vectors.FORMATS, default="npz")
    parser.add_argument("--out", required=True, type=pathlib.Path, metavar="DIR")
    args = parser.parse_args(argv)

    def work() -> None:
        vectors.check(args.format, ())
        out = args.out.expanduser()
        files.check_output(out / "rejected.tsv")
        embedder = embed.Embedder(args.workdir, args.checkpoint)
        source = open_data(args.data, embedder.config)
        _, bad = extract(embedder, source, args.format, out)
        for line in bad[:_NAMED]:
            log.warning("%s", line)
        if bad:
            raise errors.UserError(
                f"{len(bad)} of {len(source)} recordings have no embedding; all are listed in "
                f"{out / 'rejected.tsv'} with the reason."
            )

    app.command("speaker.extract", work)


if __name__ == "__main__":
    main()
