"""Word and character error rates: alignment, counts, intervals and a file to read errors in."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int

from common import metrics

Unit = Literal["word", "char"]
Operation = Literal["correct", "sub", "ins", "del"]


@dataclasses.dataclass(frozen=True)
class ErrorCounts:
    """Substitutions, insertions, deletions and reference length; add them, then take `rate`."""

    subs: int = 0
    ins: int = 0
    dels: int = 0
    ref: int = 0

    def __add__(self, other: "ErrorCounts") -> "ErrorCounts":
        return ErrorCounts(
            self.subs + other.subs,
            self.ins + other.ins,
            self.dels + other.dels,
            self.ref + other.ref,
        )

    @property
    def errors(self) -> int:
        return self.subs + self.ins + self.dels

    @property
    def rate(self) -> float:
        """errors / ref as a fraction; against an empty reference 0 without errors, else inf."""
        if self.ref == 0:
            return math.inf if self.errors else 0.0
        return self.errors / self.ref


def split_units(text: str, unit: Unit) -> list[str]:
    """The words of a text, or its characters; white space is one space between words, kept in CER.

    Counting the spaces is the habit of the published AN4 figures (1,915 characters on `train_dev`).
    """
    words = text.split()
    return words if unit == "word" else list(" ".join(words))


def _edit_table(reference: Int[np.ndarray, "n"], hypothesis: Int[np.ndarray, "m"]) -> np.ndarray:
    """Levenshtein distances of all pairs of prefixes, int32[n+1, m+1], one NumPy row at a time."""
    columns = np.arange(len(hypothesis) + 1, dtype=np.int32)
    table = np.empty((len(reference) + 1, len(hypothesis) + 1), np.int32)
    table[0] = columns
    for i, unit in enumerate(reference, start=1):
        row = table[i - 1] + 1  # deletion
        np.minimum(row[1:], table[i - 1, :-1] + (hypothesis != unit), out=row[1:])
        # Insertions run along the row: d[j] = min over k <= j of row[k] + (j - k), a running
        # minimum once j is subtracted.
        table[i] = np.minimum.accumulate(row - columns) + columns
    return table


def align(reference: Sequence[str], hypothesis: Sequence[str]) -> tuple[Operation, ...]:
    """Operations of one cheapest alignment, left to right.

    Among alignments of equal cost the walk back from the end takes an insertion before a
    substitution or match, and that before a deletion: this rule gives the published counts of
    LibriSpeech test-clean (`tests/asr/test_wer.py`); the rate does not depend on it.
    """
    ids: dict[str, int] = {}
    ref = np.array([ids.setdefault(u, len(ids)) for u in reference], np.int32)
    hyp = np.array([ids.setdefault(u, len(ids)) for u in hypothesis], np.int32)
    i, j = len(ref), len(hyp)
    if i == j and np.array_equal(ref, hyp):  # most utterances of a good system
        return ("correct",) * i
    table = _edit_table(ref, hyp).tolist()
    operations: list[Operation] = []
    while i or j:
        if j and table[i][j] == table[i][j - 1] + 1:
            operations.append("ins")
            j -= 1
        elif i and j and table[i][j] == table[i - 1][j - 1] + int(ref[i - 1] != hyp[j - 1]):
            operations.append("correct" if ref[i - 1] == hyp[j - 1] else "sub")
            i, j = i - 1, j - 1
        else:
            operations.append("del")
            i -= 1
    return tuple(reversed(operations))


@dataclasses.dataclass(frozen=True)
class UtteranceScore:
    """One scored utterance; the texts have single spaces, `speaker` is "" when unknown."""

    id: str
    counts: ErrorCounts
    reference: str
    hypothesis: str
    alignment: str
    speaker: str = ""


def score(
    id: str, reference: str, hypothesis: str, *, unit: Unit = "word", speaker: str = ""
) -> UtteranceScore:
    """Align one hypothesis with its reference; either text may be empty."""
    ref, hyp = split_units(reference, unit), split_units(hypothesis, unit)
    operations = align(ref, hyp)
    counts = ErrorCounts(
        operations.count("sub"), operations.count("ins"), operations.count("del"), len(ref)
    )
    return UtteranceScore(
        id,
        counts,
        " ".join(reference.split()),
        " ".join(hypothesis.split()),
        _show(ref, hyp, operations, " " if unit == "word" else ""),
        speaker,
    )


def _show(
    ref: Sequence[str], hyp: Sequence[str], operations: Sequence[Operation], separator: str
) -> str:
    """`THE [CAT>HAT] [>OH] SAT [DOWN>]`: errors stand as [reference>hypothesis]."""
    refs, hyps, shown = iter(ref), iter(hyp), []
    for operation in operations:
        left = "" if operation == "ins" else next(refs)
        right = "" if operation == "del" else next(hyps)
        shown.append(left if operation == "correct" else f"[{left}>{right}]")
    return separator.join(shown)


def total(scores: Iterable[UtteranceScore]) -> ErrorCounts:
    """Counts of a whole set: its rate is errors over reference units, not a mean of rates."""
    return sum((s.counts for s in scores), ErrorCounts())


@dataclasses.dataclass(frozen=True)
class Interval:
    """Bounds of an error rate as fractions, NaN where nothing can be said, and what was drawn."""

    low: float
    high: float
    over: str


def _by_speaker(
    scores: Sequence[UtteranceScore],
) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"], str]:
    """(errors, reference units) of what is drawn together, and what that is.

    An utterance without a speaker counts as a speaker of its own. With fewer than two named
    speakers utterances are drawn.
    """
    speakers = {s.speaker for s in scores} - {""}
    groups: dict[tuple[str, int], ErrorCounts] = {}
    for i, row in enumerate(scores):
        key = (row.speaker, -1) if len(speakers) > 1 and row.speaker else ("", i)
        groups[key] = groups.get(key, ErrorCounts()) + row.counts
    over = f"{len(speakers)} speakers" if len(speakers) > 1 else f"{len(scores)} utterances"
    errors = np.array([c.errors for c in groups.values()], np.int64)
    return errors, np.array([c.ref for c in groups.values()], np.int64), over


def interval(scores: Sequence[UtteranceScore]) -> Interval:
    """Bootstrap interval of the error rate, over speakers where two or more are known.

    The errors of one speaker go together, so utterances drawn alone would give an interval too
    narrow for other speakers. See `metrics.resampled_rates`.
    """
    errors, refs, over = _by_speaker(scores)
    rates = metrics.resampled_rates(errors, refs)
    return Interval(*metrics.percentile_interval(rates), over)


@dataclasses.dataclass(frozen=True)
class Difference:
    """A second system's error rate less that of the first, as fractions.

    `better` is the share of resamples in which the second's rate is lower, NaN without any.
    """

    rate: float
    bounds: Interval
    better: float


def compare(first: Sequence[UtteranceScore], second: Sequence[UtteranceScore]) -> Difference:
    """Two systems on the same utterances, drawn together (Bisani and Ney, ICASSP 2004, section 4).

    Both in the same order; drawn are speakers or utterances, as in `interval`.
    """
    if [(s.id, s.counts.ref, s.speaker) for s in first] != [
        (s.id, s.counts.ref, s.speaker) for s in second
    ]:
        raise ValueError("Two systems are compared on the same utterances in the same order.")
    errors, refs, over = _by_speaker(first)
    rates = metrics.resampled_rates(_by_speaker(second)[0] - errors, refs)
    better = float(np.mean(rates < 0)) if len(rates) else math.nan
    bounds = Interval(*metrics.percentile_interval(rates), over)
    return Difference(total(second).rate - total(first).rate, bounds, better)


def describe(name: str, counts: ErrorCounts, bounds: Interval | None = None) -> str:
    """`WER 12.69 % [10.1, 15.4 over 10 speakers] (75/591: 50 subs, 10 ins, 15 dels)`."""
    return (
        f"{name} {100 * counts.rate:.2f} %{_within(bounds)} ({counts.errors}/{counts.ref}: "
        f"{counts.subs} subs, {counts.ins} ins, {counts.dels} dels)"
    )


def describe_difference(name: str, found: Difference) -> str:
    """`WER -1.49 % [-2.90, -0.10 over 10 speakers], lower in 98.3 % of resamples`."""
    if math.isnan(found.better):
        return f"{name} {100 * found.rate:+.2f} %"
    lower = f"lower in {100 * found.better:.1f} % of resamples"
    return f"{name} {100 * found.rate:+.2f} %{_within(found.bounds)}, {lower}"


def _within(bounds: Interval | None) -> str:
    if bounds is None or not (math.isfinite(bounds.low) and math.isfinite(bounds.high)):
        return ""
    return f" [{100 * bounds.low:.2f}, {100 * bounds.high:.2f} over {bounds.over}]"


COLUMNS = ("id", "wer", "subs", "ins", "dels", "ref", "reference", "hypothesis", "alignment")


def as_tsv(rows: Iterable[UtteranceScore]) -> str:
    """A table with a header and one line an utterance.

    `wer` is a fraction. The texts hold no tab or newline (white space is single spaces), so the
    table needs no quoting.
    """
    lines = [COLUMNS]
    for row in rows:
        c = row.counts
        numbers = (f"{c.rate:.6f}", c.subs, c.ins, c.dels, c.ref)
        lines.append((row.id, *numbers, row.reference, row.hypothesis, row.alignment))
    return "".join("\t".join(map(str, line)) + "\n" for line in lines)
