"""Writes mixtures as files: what a training or an evaluation draws, for those who want to see it.

    python -m separation.prepare --config=configs/separation/an4.py --config.data.root=an4.tsv
        --out=DIR [--split=train] [--count=1000]
    python -m separation.prepare --list=dev.tsv --out=DIR

DIR gets SPLIT.csv, a list as LibriMix writes it that --config.data.lists takes, and the files that
it names: SPLIT/mix, SPLIT/s1 (the targets), SPLIT/s2, ... and SPLIT/enrolment. They are the
mixtures that a training of the same config draws, one after the other (--split=train), or those
that it evaluates. A second start goes on where the first one ended.
"""

import concurrent.futures
import csv
import dataclasses
import io as text_io
import itertools
import json
import logging
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tqdm
from jaxtyping import Int
from ml_collections import FrozenConfigDict

from common import app, command_line, errors, files, workdir
from common.audio import io
from common.data import buckets, examples, pipeline, splits
from separation import data, extraction, settings, task

log = logging.getLogger(__name__)

_ROWS = 8  # of a batch of an evaluation
_FEW = 4  # cores that the threads of one process keep busy
WRITERS = {"wav": (io.write_wav, {"subtype": "FLOAT"}), "flac": (io.write_flac, {})}

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Numbered:
    """Some of the examples of an evaluation."""

    examples: examples.Examples
    numbers: Int[np.ndarray, "n"]

    def __len__(self) -> int:
        return len(self.numbers)

    def draw(
        self, i: int, rng: np.random.Generator | None, lengths: Mapping[str, int]
    ) -> examples.Example:
        """The i-th of them."""
        return self.examples.draw(int(self.numbers[i]), rng, lengths)


class Journal:
    """What is written of a split, by number: its line in the list, or None of what was not there.

    A file of JSON lines, the first of which tells what is drawn. Raises UserError where that is
    something else than now.
    """

    def __init__(self, path: pathlib.Path, identity: Mapping[str, str]) -> None:
        self._path = path
        self.rows: dict[int, list[str] | None] = {}
        lines = path.read_text("utf-8").split("\n") if path.exists() else [""]
        if not lines[0]:
            files.write_text(path, json.dumps(identity) + "\n")
            return
        then = json.loads(lines[0])
        if other := sorted(n for n in {*then, *identity} if then.get(n) != identity.get(n)):
            raise errors.UserError(
                f"{path} is of other mixtures; what differs: {', '.join(other)}. Go on with the "
                "settings of then, or choose another --out."
            )
        for line in lines[1:-1]:  # a process that was killed may have left half a line
            number, row = json.loads(line)
            self.rows[number] = row
        if lines[-1]:
            files.write_text(path, "\n".join(lines[:-1]) + "\n")

    def add(self, rows: Mapping[int, list[str] | None]) -> None:
        """Takes rows whose files are there."""
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(item) + "\n" for item in rows.items())
        self.rows.update(rows)

    @property
    def written(self) -> list[list[str]]:
        """The lines of the list in their order."""
        return [row for _, row in sorted(self.rows.items()) if row]


def training(
    found: extraction.SeparationTask, part: splits.Split, known: Mapping[int, Any], workers: int
) -> Iterator[dict[int, Row | None]]:
    """The rows of the batches of a training by number, without those that are known."""
    rows = found.config.data.batch_rows
    stream = data.train_batches(part, found.config, found.around, num_workers=workers)
    first = next(
        k for k in itertools.count() if any(k * rows + r not in known for r in range(rows))
    )
    with pipeline.opened(stream) as batches:
        batches.set_state({**batches.get_state(), "next_batch": first})
        for number, batch in enumerate(batches, start=first):
            yield {number * rows + r: _row(batch, r) for r in range(rows)}


def evaluation(
    drawn: Any, known: Mapping[int, Any], count: int, workers: int
) -> Iterator[dict[int, Row | None]]:
    """The first `count` mixtures of an evaluation by number, without those that are known."""
    numbers = np.array([i for i in range(count) if i not in known], np.int64)
    if not len(numbers):
        return
    most = {"sources": drawn.num_samples, "enrolment": drawn.num_enrolment}
    stream = pipeline.eval_batches(
        Numbered(drawn, numbers),
        (buckets.Bucket(_ROWS, most),),
        {name: np.full(len(numbers), length) for name, length in most.items()},
        num_workers=workers,
    )
    with pipeline.opened(stream) as batches:
        for k, batch in enumerate(batches):
            some = numbers[k * _ROWS : (k + 1) * _ROWS]
            yield {int(number): _row(batch, r) for r, number in enumerate(some)}


def _row(batch: pipeline.Batch, r: int) -> Row | None:
    """A row of a batch without its padding; None where it could not be read."""
    if not batch["mask"][r]:
        return None
    row = {name: values[r] for name, values in batch.items()}
    for name in ("sources", "enrolment"):
        row[name] = row[name][: row[f"{name}_lengths"]]
    return row


@dataclasses.dataclass(frozen=True)
class Writer:
    """Puts a mixture into files below `out`/`name`."""

    out: pathlib.Path
    name: str
    part: splits.Split
    format: str
    sample_rate_hz: int
    num_voices: int
    clipped: list[int] = dataclasses.field(default_factory=list)  # numbers

    @property
    def header(self) -> list[str]:
        """The columns of the list."""
        voices = range(1, self.num_voices + 1)
        of_voices = [f"{name}_{k}" for name in ("speaker", "utterance") for k in voices]
        paths = [f"source_{k}_path" for k in voices]
        rest = ["enrolment_1_path", "noisy", "genders"]
        return ["mixture_ID", "mixture_path", *paths, "length", *of_voices, *rest]

    def write(self, number: int, row: Row) -> list[str]:
        """Writes the files of a mixture, each whole or not at all; its line in the list."""
        name, sources = f"{number:07d}", row["sources"]
        heard = [row["target_index"], *row["interferer_index"]]
        there = [bool(row["present"]), *(k >= 0 for k in heard[1:])]
        of = [self.part.written_at(int(k)) if k >= 0 else {} for k in heard]
        sounds = {f"s{k}": sources[:, k - 1] for k, yes in enumerate(there, start=1) if yes}
        sounds |= {"mix": sources.sum(1), "enrolment": row["enrolment"]}
        write, options = WRITERS[self.format]
        if self.format == "flac" and max(np.abs(audio).max() for audio in sounds.values()) > 1:
            self.clipped.append(number)
        paths = {}
        for folder, audio in sounds.items():
            paths[folder] = f"{self.name}/{folder}/{name}.{self.format}"
            write(self.out / paths[folder], audio, self.sample_rate_hz, **options)
        genders = [voice.get("gender", "") for voice in of if voice]
        if hasattr(self.part, "genders"):
            genders = [self.part.genders[row["index"]]]
        return [
            *(name, paths["mix"], *(paths.get(f"s{k}", "") for k in range(1, 1 + len(heard)))),
            str(len(sources)),
            *(io.printable(voice.get("speaker", "")) for voice in of),
            *(io.printable(voice.get("id", "")) for voice in of),
            *(paths["enrolment"], str(int(row["noisy"]))),
            "".join(sorted(genders)) if all(genders) else "",
        ]


def prepare(
    config: FrozenConfigDict,
    split: str,
    out: pathlib.Path,
    *,
    count: int | None,
    workers: int,
    format: str,
) -> tuple[pathlib.Path, int]:
    """Writes mixtures of a split; (the list of them, how many could not be read)."""
    found = task.make_task(config, out)
    part = found.part(split)
    train = split == "+".join(config.data.train) and part is found.train_split
    drawn = data.mixtures(part, config, found.around, train=True) if train else found.drawn(split)
    wanted = len(drawn) if count is None else count
    if not train and wanted > len(drawn):
        raise errors.UserError(f"--count={count}: {split} has {len(drawn)} mixtures.")
    identity = {**drawn.identity, "seed": str(config.seed), "format": format, "train": str(train)}
    if train:
        identity["config.data.batch_rows"] = str(config.data.batch_rows)
    name = files.safe_name(split)
    journal = Journal(out / f"{name}.jsonl", identity)
    if train:
        batches = training(found, part, journal.rows, workers)
    else:
        batches = evaluation(drawn, journal.rows, wanted, workers)
    writer = Writer(out, name, part, format, config.data.sample_rate_hz, drawn.num_voices)
    done = len(journal.written)
    for left in (out / name).rglob(".*.tmp"):  # by one that was killed: we hold the lock
        left.unlink()
    with (
        concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool,
        tqdm.tqdm(desc=split, total=wanted, initial=done, unit="mixture") as bar,
    ):
        while done < wanted and (batch := next(batches, None)) is not None:
            new = {k: row for k, row in batch.items() if k not in journal.rows}
            good = [k for k, row in new.items() if row is not None][: wanted - done]
            lines = dict(zip(good, pool.map(writer.write, good, [new[k] for k in good])))
            empty = dict.fromkeys(k for k, row in new.items() if row is None)
            journal.add({**lines, **empty})
            done += len(lines)
            bar.update(len(lines))
    batches.close()
    if writer.clipped:
        log.warning(
            "%d mixtures go beyond full scale and are clipped: --format=wav keeps them whole.",
            len(writer.clipped),
        )
    lines = journal.written[:wanted]
    text = text_io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([writer.header, *lines])
    path = out / f"{name}.csv"
    files.write_text(path, text.getvalue())
    return path, wanted - len(lines)


def _config(args: Any, words: Sequence[str]) -> tuple[FrozenConfigDict, str]:
    """The config of the command line and the split that is meant."""
    if (args.config is None) == (args.list is None):
        raise errors.UserError("Give --config=FILE.py, or --list=FILE: whose mixtures?")
    if args.list is None:
        config = command_line.read_config(args.config, words)
        return config, args.split or "+".join(config.data.train)
    name = args.split or files.safe_name(pathlib.PurePath(args.list).stem)
    base = settings.default_config()
    base.data.lists = (f"{name}={args.list}",)
    return command_line.read_config(base, words), name


def main() -> None:
    """The command line."""
    parser = app.parser("separation.prepare", __doc__)
    parser.allow_abbrev = False
    parser.add_argument("--config", help="experiment; --config.a.b=v sets one setting of it")
    parser.add_argument("--list", metavar="FILE", help="a list (see separation/lists.py)")
    parser.add_argument("--out", required=True, type=pathlib.Path, metavar="DIR")
    parser.add_argument("--split", help="default: what is trained on; or any that is evaluated")
    parser.add_argument("--count", type=int, help="mixtures; default: all, or an epoch")
    cores = os.cpu_count() or 1
    parser.add_argument(
        "--workers",
        type=int,
        default=cores if cores > _FEW else 0,
        help="processes, by default as many as cores; 0, the default on a few: threads",
    )
    parser.add_argument(
        "--format", choices=WRITERS, default="wav", help="wav: the very samples; flac: 16 bits"
    )
    args, words = parser.parse_known_args()

    def work() -> None:
        jax.config.update("jax_platforms", "cpu")  # nothing is computed on a device
        config, split = _config(args, words)
        if args.count is not None and args.count < 1:
            raise errors.UserError(f"--count={args.count}: at least one mixture.")
        out = args.out.expanduser().resolve()
        files.check_output(out / "list.csv")
        with workdir.Lock(out):
            path, failed = prepare(
                *(config, split, out),
                count=args.count,
                workers=max(0, args.workers),
                format=args.format,
            )
        print(path)
        print(f"Evaluate on it: --config.data.lists={path}")
        if failed:
            sys.exit(f"separation.prepare: {failed} mixtures could not be read: see above.")

    app.command("separation.prepare", work)


if __name__ == "__main__":
    main()
