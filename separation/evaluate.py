"""Scores of a network that sees on mixtures of two people: SDR, SIR, SAR, SDRi, PESQ, STOI.

    python -m separation.evaluate --workdir=runs/vv --pairs=100 [--seed=0] [--split=dev]
        [--seconds=8] [--list=pairs.tsv] [--out=DIR] [--oracle_gain] [--config.data.root=...]

Draws N pairs of recordings of a split, mixes each with both voices equally loud, extracts both by
what is seen of them, and scores them against the true voices. DIR (RUN/results/pairs) gets

    pairs-SPLIT-K.tsv  the list of the pairs that run K drew; --list takes one in place of drawing,
                       or a list of films with the columns video1, video2, s1_over_s2_db
    pairs-SPLIT.txt    a line for each pair, and the means of each run with their intervals: a run
                       is appended to those of before
    pairs-SPLIT.csv    a line for each voice of each pair, with the number of its run in there

Intervals (95 %) are over speakers. Nothing but the mixture says how loud a voice comes out.
--oracle_gain is the protocol of the original's test.py, for comparison with published figures: in
windows of the training's length, side by side, each true voice is scaled to one level, and what
comes out by the true level of that window, which leaks from the answer.
"""

import csv
import io as text_io
import logging
import math
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from common import app, command_line, errors, files, metrics, trained, workdir
from common.audio import io
from common.data import records, splits
from separation import metrics as separation_metrics
from separation import pairs, perceptual, sight, task, watching

log = logging.getLogger(__name__)

_DRAWN = {"pairs": 100, "seed": 0, "seconds": 8.0}  # flags and their defaults
_LEVEL = 0.1  # RMS of each voice in a mixture
_ABOUT = ("voice", "other", "speaker", "seconds")  # what is no measure of a row


class Clips:
    """The recordings of a split with what is seen of their speakers, by id."""

    def __init__(self, split: splits.Split, config: Any) -> None:
        self._split, self._rate = split, config.data.sample_rate_hz
        self._channel = splits.channel(config.data)
        self._places = {name: place for place, name in enumerate(split.ids)}
        self._films = sight.films_of(split.source, config)

    def speaker(self, name: str) -> str:
        """Of a recording."""
        return self._split.speakers[self._places[name]]

    def clip(
        self, name: str, start: float, seconds: float
    ) -> tuple[Float[np.ndarray, "t"], watching.Person]:
        """(samples at an RMS of 0.1, who is seen). Raises io.AudioError or OSError."""
        position = int(self._split.index.positions[self._places[name]])
        record = self._split.source[position]
        audio = records.load_record(
            record, self._rate, self._channel, start=start, duration=seconds
        )
        count = round(seconds * self._rate)
        audio = np.pad(audio[:count], (0, max(0, count - len(audio))))
        level = float(np.sqrt(np.mean(np.square(audio))))
        if not level:
            raise io.AudioError(name, f"silent between {start:g} and {start + seconds:g} s")
        mouth, there = self._films.mouth(position, round(start * self._rate), count)
        face, shown = self._films.face(position, None)
        person = watching.Person(name, mouth[: int(there.sum())], 0, face[shown])
        return (audio * (_LEVEL / level)).astype(np.float32), person


def extracted(
    watcher: watching.Watcher, voices: Float[np.ndarray, "2 t"], people: Sequence[watching.Person]
) -> Float[np.ndarray, "2 t"]:
    """Both voices of their mixture."""
    mixture = voices.sum(0)

    def sound(start: int, count: int) -> np.ndarray:
        return mixture[start : start + count]

    return np.concatenate(list(watcher.voices(sound, len(mixture), people)), axis=1)


def extracted_with_oracle_gain(
    watcher: watching.Watcher, voices: Float[np.ndarray, "2 t"], people: Sequence[watching.Person]
) -> Float[np.ndarray, "2 t"]:
    """As the original's test.py: the true level of each window is given back to what comes out."""
    found, size = np.zeros_like(voices), watcher.window
    for start in range(0, voices.shape[1], size):
        part = voices[:, start : start + size]
        level = np.sqrt(np.mean(np.square(part), axis=1, keepdims=True)) + 1e-8
        here = [
            watching.Person(p.name, p.mouth[start // watcher.grain :], 0, p.face) for p in people
        ]
        alike = extracted(watcher, part * (_LEVEL / level), here)
        found[:, start : start + size] = alike * (level / _LEVEL)
    return found


def scores(
    found: Float[np.ndarray, "2 t"],
    voices: Float[np.ndarray, "2 t"],
    measures: Mapping[str, perceptual.Measure],
) -> list[dict[str, float]]:
    """Of either voice. NaN where a measure says nothing."""
    rows, mixture = [], voices.sum(0)
    for i in range(2):
        bss = separation_metrics.bss_eval(found[i], voices, i)
        before = separation_metrics.bss_eval(mixture, voices, i)
        after = separation_metrics.si_sdr(found[i], voices[i])
        row = {
            "sdr": bss.sdr,
            "sdr_mixture": before.sdr,
            "sdri": bss.sdr - before.sdr,
            "sir": bss.sir,
            "sar": bss.sar,
            "si_sdri": after - separation_metrics.si_sdr(mixture, voices[i]),
        }
        for name, measure in measures.items():
            try:
                row[name] = measure(voices[i], found[i])
            except perceptual.Unmeasurable as error:
                log.warning("%s", error)
                row[name] = float("nan")
        rows.append({name: float(value) for name, value in row.items()})
    return rows


def evaluated(
    watcher: watching.Watcher,
    clips: Clips,
    chosen: Sequence[pairs.Pair],
    measures: Mapping[str, perceptual.Measure],
    *,
    oracle_gain: bool,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(the pair's number, a voice of it) for all that can be read; others are named."""
    extract = extracted_with_oracle_gain if oracle_gain else extracted
    for number, pair in enumerate(chosen):
        if pair.problem:
            log.warning("Pair %d is left out: %s", number + 1, pair.problem)
            continue
        try:
            both = [
                clips.clip(name, start, pair.seconds)
                for name, start in (
                    (pair.first, pair.first_start),
                    (pair.second, pair.second_start),
                )
            ]
        except (io.AudioError, OSError) as error:
            log.warning("Pair %d is left out: %s", number + 1, error)
            continue
        voices = np.stack([audio for audio, _ in both])
        voices[1] *= np.float32(10 ** (-pair.ratio_db / 20))
        people = [person for _, person in both]
        found = extract(watcher, voices, people)
        for i, row in enumerate(scores(found, voices, measures)):
            names = {"voice": people[i].name, "other": people[1 - i].name}
            about = {**names, "speaker": clips.speaker(people[i].name), "seconds": pair.seconds}
            yield number, about | row


def means(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float, float]]:
    """Mean and interval of each measure, over speakers; of what it says something of."""
    found = {}
    speakers = np.array([row["speaker"] for row in rows])
    for name in [n for n in rows[0] if n not in _ABOUT]:
        values = np.array([row[name] for row in rows])
        known = np.isfinite(values)
        if known.any():
            interval = metrics.group_interval(values[known], speakers[known], np.mean)
            found[name] = (float(values[known].mean()), *interval)
    return found


def _table(before: str, rows: Sequence[tuple[int, Mapping[str, Any]]], *how: Any) -> str:
    """A table with the lines of another run; `how` are its number and whether gains leak. What was
    there before stays, but where it has other columns."""
    text = text_io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "oracle_gain", "pair", *rows[0][1]])
    if before.startswith(text.getvalue()):
        text = text_io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
    else:
        before = ""
    for number, row in rows:
        values = (f"{x:.4f}" if isinstance(x, float) else x for x in row.values())
        writer.writerow([*how, number + 1, *values])
    return before + text.getvalue()


def _text(head: str, rows: Sequence[tuple[int, Mapping[str, Any]]]) -> str:
    lines = [head]
    for number in dict.fromkeys(number for number, _ in rows):
        both = [row for k, row in rows if k == number]
        mean = {n: np.mean([row[n] for row in both]) for n in both[0] if n not in _ABOUT}
        said = "  ".join(f"{name} {value:.3f}" for name, value in mean.items())
        lines.append(f"{number + 1}  {both[0]['voice']} + {both[1]['voice']}  {said}")
    for name, (value, low, high) in means([row for _, row in rows]).items():
        lines.append(f"mean {name} {value:.3f} [{low:.3f}, {high:.3f}]")
    return "\n".join(lines) + "\n"


def _config(args: Any) -> Any:
    """That of the run, with the settings of the command line that leave its weights alone."""
    package = task.PACKAGE
    config = workdir.load_config(args.workdir, package.name, package.default_config())
    for word in args.settings:
        name = word.removeprefix("--config.").partition("=")[0]
        if not word.startswith("--config.") or not package.may_change(name):
            raise errors.UserError(
                f"{word}: here only --config.{', --config.'.join(package.changeable)}."
            )
    return command_line.read_config(ConfigDict(config.to_dict()), args.settings)


def _run(args: Any) -> None:
    drawn = {name: getattr(args, name) for name in _DRAWN if getattr(args, name) is not None}
    if args.list and drawn:
        raise errors.UserError(f"--{next(iter(drawn))} is of drawn pairs: not with --list.")
    drawn = {**_DRAWN, **drawn}
    if drawn["pairs"] < 1 or not 0 < drawn["seconds"] < math.inf or drawn["seed"] < 0:
        raise errors.UserError("--pairs and --seconds are above 0, --seed is not below.")
    found = trained.load(task.PACKAGE, args.workdir, step=args.checkpoint, config=_config(args))
    watcher = watching.Watcher(found.task, found.variables)
    split = found.task.part(args.split)
    out = (args.out or pathlib.Path(args.workdir) / "results" / "pairs").expanduser()
    path = out / f"pairs-{files.safe_name(args.split)}.txt"
    before = path.read_text("utf-8") if path.exists() else ""
    number = 1 + sum(line.startswith("# ") for line in before.splitlines())
    if args.list:
        chosen = pairs.read(args.list.expanduser(), split)
    else:
        settings = {"seconds": drawn["seconds"], "grain": watcher.grain}
        chosen = pairs.draw(split, drawn["pairs"], drawn["seed"], **settings)
        pairs.write(path.with_name(f"{path.stem}-{number}.tsv"), chosen)
    measures = perceptual.measures(("pesq", "stoi"), watcher.sample_rate_hz)
    clips = Clips(split, found.config)
    rows = list(evaluated(watcher, clips, chosen, measures, oracle_gain=args.oracle_gain))
    if not rows:
        raise errors.UserError("None of the pairs can be read: see above.")
    used = len({number for number, _ in rows})
    head = (
        f"# {time.strftime('%Y-%m-%d %H:%M:%S')}  {args.workdir} step {found.step}, {args.split}: "
        f"{used} of {len(chosen)} pairs, {args.list or 'seed ' + str(drawn['seed'])}"
    )
    if args.oracle_gain:
        head += "  ORACLE GAIN: levels come from the true voices"
    text = _text(head, rows)
    table = path.with_suffix(".csv")
    lines = table.read_text("utf-8") if table.exists() else ""
    files.write_text(table, _table(lines, rows, number, int(args.oracle_gain)))
    files.write_text(path, before + text)
    print(head)
    for line in text.splitlines():
        if line.startswith("mean"):
            print(line)
    if found.config.data.kind in splits.EMBEDDED:
        print("Drawings and synthetic voices: the figures say nothing about real people.")
    print(f"{path}\n{table}")


def main() -> None:
    """The command line."""
    parser = app.parser("separation.evaluate", __doc__)
    app.add_run(parser)
    parser.add_argument("--split", default="dev", help="of the data; default: dev")
    parser.add_argument("--pairs", type=int, metavar="N", help="default: 100")
    parser.add_argument("--seed", type=int, help="of what is drawn; default: 0")
    parser.add_argument("--seconds", type=float, help="of a mixture, at most; default: 8")
    parser.add_argument("--list", type=pathlib.Path, metavar="TSV", help="pairs to take")
    parser.add_argument("--out", type=pathlib.Path, metavar="DIR")
    parser.add_argument("--oracle_gain", action="store_true", help="the original's protocol")
    args, args.settings = parser.parse_known_args()
    app.command("separation.evaluate", lambda: _run(args))


if __name__ == "__main__":
    main()
