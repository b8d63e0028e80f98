"""Error counts against a recursive definition, the published counts, and the file written."""

import dataclasses
import functools
import gzip
import math
import random

import numpy as np
import pytest

from asr import wer


def test_counts_and_alignment_of_a_known_pair():
    scored = wer.score("a", "A CAT SAT ON THE MAT DOWN", "A HAT OH SAT ON THE MAT")
    assert scored.counts == wer.ErrorCounts(subs=1, ins=1, dels=1, ref=7)
    assert scored.counts.rate == 3 / 7
    # The insertion could stand before or after the substitution; the rule for ties picks one.
    assert scored.alignment == "A [CAT>HAT] [>OH] SAT ON THE MAT [DOWN>]"


@pytest.mark.parametrize(
    ("reference", "hypothesis", "counts", "rate"),
    [
        ("", "", wer.ErrorCounts(), 0.0),
        ("", "A B", wer.ErrorCounts(ins=2), math.inf),
        ("A B", "", wer.ErrorCounts(dels=2, ref=2), 1.0),
        ("  A\tB ", "A  B", wer.ErrorCounts(ref=2), 0.0),
        ("A", "B A C A", wer.ErrorCounts(ins=3, ref=1), 3.0),
    ],
)
def test_edges(reference, hypothesis, counts, rate):
    scored = wer.score("x", reference, hypothesis)
    assert scored.counts == counts
    assert scored.counts.rate == rate


def test_characters_count_the_spaces():
    scored = wer.score("x", "AB CD", "AB  XD", unit="char")
    assert scored.counts == wer.ErrorCounts(subs=1, ref=5)
    assert scored.alignment == "AB [C>X]D"


def test_distance_equals_the_recursive_definition():
    @functools.cache
    def distance(a, b):
        if not a or not b:
            return len(a) + len(b)
        return min(
            distance(a[1:], b) + 1,
            distance(a, b[1:]) + 1,
            distance(a[1:], b[1:]) + (a[0] != b[0]),
        )

    rng = random.Random(0)
    for _ in range(300):
        a, b = ("".join(rng.choices("abc", k=rng.randrange(8))) for _ in range(2))
        operations = wer.align(a, b)
        assert sum(o != "correct" for o in operations) == distance(a, b)
        # The operations must spell both sequences.
        assert sum(o != "ins" for o in operations) == len(a)
        assert sum(o != "del" for o in operations) == len(b)
        left, right = iter(a), iter(b)
        for operation in operations:
            u = None if operation == "ins" else next(left)
            v = None if operation == "del" else next(right)
            assert operation != "correct" or u == v
            assert operation != "sub" or u != v


def test_published_counts_of_librispeech_test_clean(speech_data):
    """Rates exactly, and with our rule for ties also substitutions, insertions and deletions."""
    folder = speech_data / "reference" / "wer"

    def texts(name):
        with gzip.open(folder / name, "rt", encoding="utf-8") as file:
            return dict(line.rstrip("\n").split("\t") for line in file)

    reference = texts("test-clean.ref.tsv.gz")
    header, *rows = [
        line.split("\t") for line in (folder / "published.tsv").read_text().split("\n")
    ]
    published = [dict(zip(header, row)) for row in rows if len(row) == len(header)]
    assert len(published) == 2
    for system in published:
        hypothesis = texts(f"test-clean.{system['system']}.hyp.tsv.gz")
        assert hypothesis.keys() == reference.keys()
        counts = wer.total(wer.score(k, reference[k], hypothesis[k]) for k in reference)
        assert counts == wer.ErrorCounts(
            *(int(system[k]) for k in ("subs", "ins", "dels", "ref_words"))
        )
        # The published rate is a float32 printed in full, in one of the two: half a unit of that.
        assert 100 * counts.rate == pytest.approx(float(system["wer_percent"]), rel=6e-8)


def _scores():
    rng = random.Random(1)
    scores = []
    for i in range(60):
        words = rng.choices("ABCDEFGH", k=10)
        heard = [w if rng.random() > 0.3 else "X" for w in words]
        scores.append(wer.score(f"u{i}", " ".join(words), " ".join(heard)))
    return scores


def test_interval_holds_the_rate_and_is_repeatable():
    scores = _scores()
    rate = wer.total(scores).rate
    bounds = wer.interval(scores)
    assert bounds.low < rate < bounds.high
    assert wer.interval(scores) == bounds

    alone = wer.interval([wer.score("a", "A", "A")])
    assert np.isnan(alone.low)
    assert np.isnan(alone.high)
    assert wer.describe("WER", wer.ErrorCounts(ref=1), alone).startswith("WER 0.00 % (0/1:")


def test_a_line_of_the_table_is_an_utterance():
    scores = [wer.score("a", "ONE\tTWO", "ONE\nTO"), wer.score("b", "", "OH")]
    header, first, second = [line.split("\t") for line in wer.as_tsv(scores).splitlines()]
    assert tuple(header) == wer.COLUMNS
    first, second = dict(zip(header, first)), dict(zip(header, second))
    assert first["alignment"] == "ONE [TWO>TO]"
    assert (first["wer"], first["subs"], first["ref"]) == ("0.500000", "1", "2")
    assert (second["wer"], second["ins"], second["reference"]) == ("inf", "1", "")


def test_the_interval_over_speakers_is_that_of_another_bootstrap():
    """Ten speakers who differ much; every draw counts the utterances of the drawn ones."""
    rng = random.Random(2)
    scores, said = [], {}
    for speaker in range(10):
        for i in range(12):
            words = rng.choices("ABCDEFGH", k=rng.randint(2, 9))
            heard = [w if rng.random() > 0.06 * speaker else "X" for w in words]
            texts = map(" ".join, (words, heard))
            scores.append(wer.score(f"{speaker}-{i}", *texts, speaker=f"s{speaker}"))
            said.setdefault(speaker, []).append(scores[-1].counts)
    rates = []
    for _ in range(4000):
        rows = [c for _ in said for c in said[rng.randrange(10)]]
        rates.append(sum(c.errors for c in rows) / sum(c.ref for c in rows))
    low, high = np.percentile(rates, [2.5, 97.5])
    found = wer.interval(scores)
    # A bound of 1,000 draws has a standard error of 0.09 of theirs, 0.02 of the interval.
    np.testing.assert_allclose((found.low, found.high), (low, high), atol=0.08 * (high - low))
    alone = wer.interval([dataclasses.replace(s, speaker="") for s in scores])
    assert alone.high - alone.low < 0.6 * (high - low)


def test_the_interval_draws_speakers_whole():
    def rows(speakers):
        errors = [("a", "b"), ("a", "b"), ("a", "a"), ("a", "a")]
        return [wer.score(str(i), *e, speaker=s) for i, (e, s) in enumerate(zip(errors, speakers))]

    by_speaker = wer.interval(rows("xxyy"))  # one is always wrong, the other never
    assert (by_speaker.low, by_speaker.high, by_speaker.over) == (0.0, 1.0, "2 speakers")
    many = [r for i in range(25) for r in rows("xxyy")]
    assert (wer.interval(many).low, wer.interval(many).high) == (0.0, 1.0)
    for unknown in (["", "", "", ""], "xxxx"):
        found = wer.interval([r for _ in range(25) for r in rows(unknown)])
        assert 0.35 < found.low < 0.45
        assert 0.55 < found.high < 0.65
        assert found.over == "100 utterances"
    line = wer.describe("WER", wer.total(many), by_speaker)
    assert line == "WER 50.00 % [0.00, 100.00 over 2 speakers] (50/100: 50 subs, 0 ins, 0 dels)"


def test_two_systems_are_compared_as_another_paired_bootstrap_does():
    """Errors of both rise with the speaker, so that their rates apart say little of the difference.

    Every draw of the reference counts the words of the drawn speakers' utterances in both systems.
    """
    rng = random.Random(3)
    systems, rows = ([], []), {}
    for speaker in range(12):
        for i in range(8):
            words = rng.choices("ABCDEFGH", k=rng.randint(2, 9))
            # The second mends some of the first's errors, and makes some of its own.
            first = [w if rng.random() > 0.06 * speaker else "X" for w in words]
            second = [
                u if rng.random() < 0.08 else w if rng.random() > 0.05 else "Y"
                for u, w in zip(words, first)
            ]
            said = [" ".join(text) for text in (words, first, second)]
            for system, heard in zip(systems, said[1:]):
                system.append(wer.score(f"{speaker}-{i}", said[0], heard, speaker=f"s{speaker}"))
            wrong = [sum(a != b for a, b in zip(words, heard)) for heard in (first, second)]
            rows.setdefault(speaker, []).append((*wrong, len(words)))
    draws = []
    for _ in range(4000):
        drawn = [row for _ in rows for row in rows[rng.randrange(12)]]
        first, second, count = map(sum, zip(*drawn))
        draws.append((second - first) / count)
    low, high = np.percentile(draws, [2.5, 97.5])
    better = np.mean([d < 0 for d in draws])
    assert 0.05 < better < 0.95  # or the share would say nothing

    found = wer.compare(*systems)
    first, second, count = map(sum, zip(*(row for group in rows.values() for row in group)))
    assert found.rate == pytest.approx((second - first) / count, abs=1e-12)
    assert found.bounds.over == "12 speakers"
    # As above for the bounds; a share of 1,000 draws has a standard error of at most 0.016.
    found_bounds = (found.bounds.low, found.bounds.high)
    np.testing.assert_allclose(found_bounds, (low, high), atol=0.08 * (high - low))
    assert found.better == pytest.approx(better, abs=0.06)
    apart = [wer.interval(system) for system in systems]
    assert all(high - low < 0.5 * (bounds.high - bounds.low) for bounds in apart)

    same = wer.compare(systems[0], systems[0])
    assert (same.rate, same.bounds.low, same.bounds.high, same.better) == (0, 0, 0, 0)
    back = wer.compare(*systems[::-1])
    assert (back.rate, back.bounds.low) == (-found.rate, -found.bounds.high)
    with pytest.raises(ValueError, match="same utterances in the same order"):
        wer.compare(systems[0], systems[1][::-1])
    assert wer.describe_difference("WER", found).startswith(f"WER {100 * found.rate:+.2f} % [")
