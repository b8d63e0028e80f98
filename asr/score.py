"""Scores transcripts of any recogniser against references.

    python -m asr.score data/dev/text transcripts.tsv --out=errors.tsv
    python -m asr.score data/dev/text transcripts.tsv --against=others.tsv

Each file is one of: Kaldi's text (`id words`), trn (`words (id)`), or what asr.transcribe writes as
txt or tsv, where the id is the file's name without folder and suffix. Prints word and character
error rates; the interval of the first is over speakers if `utt2spk` lies beside the references. A
reference without hypothesis is all deletions, a hypothesis without reference is not scored; both
are counted and named. `--against` compares a second system with the first: the difference of their
error rates, its interval over the same speakers, and the share of resamples in which the second has
fewer errors (Bisani and Ney, ICASSP 2004).
"""

import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import get_args

from asr import tokenizer, wer
from common import app, errors, files
from common.data import tables

_NAMED = 20  # ids in a message
_TRN = re.compile(r"(.*?)\s*\(([^()\s]+)\)\s*")
_SEGMENTS = ["file", "start", "end", "confidence", "text"]
_TXT = re.compile(r"([^\t]+)\t\d+\.\d\d\t([^\t]*)")


def read_transcripts(path: pathlib.Path) -> dict[str, str]:
    """Id -> text of a file in one of the forms above, told by its lines.

    Raises UserError: not readable, empty, a damaged line, or an id that occurs twice.
    """
    lines = {n: line for n, line in enumerate(tables.read_lines(path), 1) if line.strip()}
    if lines and next(iter(lines.values())).split("\t") == _SEGMENTS:
        texts = _read_segments(path, lines)
    else:
        texts = {}
        for number, name, text in _rows(lines):
            if name in texts:
                raise errors.UserError(
                    f"{path}, line {number}: {name!r} was there before. Leave one line for each id."
                )
            texts[name] = text
    if not texts:
        raise errors.UserError(f"{path} is empty. Write a line of an id and its words.")
    return texts


def _rows(lines: Mapping[int, str]) -> list[tuple[int, str, str]]:
    """(line, id, text) of files with a line for each."""
    if trn := _matches(_TRN, lines):
        return [(number, match[2], match[1]) for number, match in trn.items()]
    if txt := _matches(_TXT, lines):
        return [(number, pathlib.Path(match[1]).stem, match[2]) for number, match in txt.items()]
    return [(number, *line.split(maxsplit=1), "")[:3] for number, line in lines.items()]


def _matches(form: re.Pattern, lines: Mapping[int, str]) -> dict[int, re.Match]:
    """The matches of all lines, none if one has another form."""
    found = {number: form.fullmatch(line) for number, line in lines.items()}
    return found if all(found.values()) else {}


def _read_segments(path: pathlib.Path, lines: Mapping[int, str]) -> dict[str, str]:
    """The texts of the segments of a file, in their order, with spaces between."""
    parts: dict[str, list[str]] = {}
    places: dict[str, str] = {}
    for number, line in list(lines.items())[1:]:
        fields = line.split("\t")
        if len(fields) != len(_SEGMENTS):
            raise errors.UserError(
                f"{path}, line {number}: {len(fields)} fields with tabs between, not the "
                f"{len(_SEGMENTS)} of its header. Repair the line."
            )
        name = pathlib.Path(fields[0]).stem
        if places.setdefault(name, fields[0]) != fields[0]:
            raise errors.UserError(
                f"{path}, line {number}: {places[name]} and {fields[0]} have the same id {name!r}. "
                "Score them apart."
            )
        parts.setdefault(name, []).append(fields[-1])
    return {name: " ".join(texts) for name, texts in parts.items()}


def read_speakers(references: pathlib.Path) -> dict[str, str]:
    """Id -> speaker from the utt2spk beside the references; {} without one."""
    path = references.parent / "utt2spk"
    if not path.is_file():
        return {}
    found, differing = tables.read_pairs(path, "speaker")
    for name, number in differing.items():
        raise errors.UserError(
            f"{path}, line {number}: {name!r} had another speaker before. Remove the wrong line."
        )
    return found


def report(
    references: Mapping[str, str], hypotheses: Mapping[str, str], speakers: Mapping[str, str]
) -> tuple[list[str], list[wer.UtteranceScore]]:
    """What is printed, and the words of every reference scored, by id.

    Raises UserError where the two have no id in common.
    """
    missing, extra = sorted(references.keys() - hypotheses), sorted(hypotheses.keys() - references)
    if len(missing) == len(references):
        raise errors.UserError(
            f"References and hypotheses have no id in common: {_named(sorted(references)[:1])} and "
            f"{_named(extra[:1])} come first. Give both the same ids."
        )
    words, chars = (
        [
            wer.score(
                name,
                references[name],
                hypotheses.get(name, ""),
                unit=unit,
                speaker=speakers.get(name, ""),
            )
            for name in sorted(references)
        ]
        for unit in get_args(wer.Unit)
    )
    lines = [
        wer.describe("WER", wer.total(words), wer.interval(words)),
        wer.describe("CER", wer.total(chars)),
        f"  {len(words)} of {len(references)} utterances scored",
    ]
    if missing:
        lines.append(f"  {len(missing)} without hypothesis, all deletions: {_named(missing)}")
    if extra:
        lines.append(f"  {len(extra)} without reference, not scored: {_named(extra)}")
    return lines, words


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} others" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = app.parser("asr.score", __doc__)
    parser.add_argument("references", type=pathlib.Path, metavar="REF")
    parser.add_argument("hypotheses", type=pathlib.Path, metavar="HYP")
    parser.add_argument(
        "--against", type=pathlib.Path, metavar="HYP2", help="transcripts of a second system"
    )
    parser.add_argument(
        "--case", choices=get_args(tokenizer.Case), default="keep", help="of both, before scoring"
    )
    parser.add_argument(
        "--out", type=pathlib.Path, metavar="TSV", help="errors and alignments of HYP"
    )
    args = parser.parse_args(argv)
    paths = [args.references, args.hypotheses, *filter(None, [args.against])]

    def work() -> None:
        if args.out is not None:
            files.check_output(args.out)
        references, *systems = [
            {name: tokenizer.normalize(text, args.case) for name, text in found.items()}
            for found in map(read_transcripts, paths)
        ]
        speakers = read_speakers(args.references)
        scores = []
        for path, hypotheses in zip(paths[1:], systems):
            lines, words = report(references, hypotheses, speakers)
            if len(systems) > 1:
                print(f"{path}:")
            print("\n".join(lines))
            scores.append(words)
        if len(systems) > 1:
            difference = wer.describe_difference("WER", wer.compare(*scores))
            print(f"{args.against} less {args.hypotheses}:\n{difference}")
        if args.out is not None:
            files.write_text(args.out, wer.as_tsv(scores[0]))

    app.command("asr.score", work)


if __name__ == "__main__":
    main()
