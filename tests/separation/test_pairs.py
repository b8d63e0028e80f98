"""Lists of pairs: drawn the same again, cut where films can be, read back, refused by line."""

import numpy as np
import pytest

from common import errors
from common.data import records, splits
from separation import pairs

RATE_HZ, GRAIN = 16000, 640


def split(speakers: str = "aabbc") -> splits.Split:
    rows = [{"id": f"{name}{k}", "audio": "x", "speaker": name} for k, name in enumerate(speakers)]
    lengths = RATE_HZ * np.arange(2, 2 + len(rows)) + 77
    source = records.RecordList("dev", rows)
    return splits.Split("dev", source, records.Index(np.arange(len(rows)), lengths, RATE_HZ))


def drawn(count: int, seed: int = 0) -> tuple[pairs.Pair, ...]:
    return pairs.draw(split(), count, seed, seconds=2.5, grain=GRAIN)


def test_pairs_are_of_two_people_and_drawn_the_same_again():
    found = drawn(200)
    assert drawn(50) == found[:50]
    assert drawn(50, seed=1) != found[:50]
    assert {pair.first for pair in found} == {pair.second for pair in found} == set(split().ids)
    length = dict(zip(split().ids, split().index.lengths / RATE_HZ))
    for pair in found:
        assert pair.first[0] != pair.second[0]
        assert pair.seconds == min(length[pair.first], length[pair.second], 2.5)
        for name, start in ((pair.first, pair.first_start), (pair.second, pair.second_start)):
            assert (start * RATE_HZ) % GRAIN == 0
            assert start + pair.seconds <= length[name] + 1e-9
    assert len({pair.first_start for pair in found}) > 10
    with pytest.raises(errors.UserError, match="dev: a pair takes two speakers"):
        pairs.draw(split("aaa"), 1, 0, seconds=1.0, grain=GRAIN)


def test_a_list_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "pairs.tsv"
    pairs.write(path, drawn(9))
    assert pairs.read(path, split()) == drawn(9)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a0\t1.5\tb2\t0.0\t1.0", r"line 2: 'a0' has 2\.00 s, not what lies from 1\.5 to 2\.5 s"),
        ("a0\tx\tb2\t0.0\t1.0", r"line 2: could not convert"),
        ("a0\t0.0\tb2\t0.0\t0.0", r"line 2: 'a0' has"),
        ("a0\t0.0\tb2\t0.0\tnan", r"line 2: .* are not all finite"),
    ],
)
def test_a_line_that_cannot_be_is_named(tmp_path, line, message):
    path = tmp_path / "pairs.tsv"
    path.write_text("\t".join(pairs.FIELDS) + f"\n{line}\n")
    with pytest.raises(errors.UserError, match=message):
        pairs.read(path, split())


def test_what_a_split_has_not_is_named_and_the_others_go_on(tmp_path):
    path = tmp_path / "pairs.tsv"
    lines = ["a0\t0.0\tz9\t0.0\t1.0", "a0\t0.0\tb2\t0.0\t1.0"]
    path.write_text("\n".join(["\t".join(pairs.FIELDS), *lines]) + "\n")
    gone, there = pairs.read(path, split())
    assert gone.problem == f"{path}, line 2: dev has no 'z9'."
    assert there == pairs.Pair("a0", 0.0, "b2", 0.0, 1.0)


def test_a_list_of_films(tmp_path):
    """As GRID's: films by paths that begin anywhere, and how loud one is over the other."""
    rows = [
        {"id": f"{name}{k}", "audio": "x", "speaker": name, "path": f"/data/av/{name}/{k}.mpg"}
        for k, name in enumerate("ab")
    ]
    index = records.Index(np.arange(2), np.array([32_000, 24_000]), RATE_HZ)
    films = splits.Split("dev", records.RecordList("dev", rows), index)
    path = tmp_path / "list.tsv"
    head = "mix\tvideo1\tvideo2\ts1_over_s2_db\n"
    path.write_text(f"{head}m0\tav/a/0.mpg\tav/b/1.mpg\t-1.5\n")
    assert pairs.read(path, films) == (pairs.Pair("a0", 0.0, "b1", 0.0, 1.5, -1.5),)
    lines = ["m0\tav/a/0.mpg\tb/2.mpg\t0", "m1\tav/a/0.mpg", "m2\ta/0.mpg\tb/1.mpg\t0"]
    path.write_text(head + "\n".join(lines) + "\n")
    gone, cut, there = pairs.read(path, films)
    assert gone.problem == f"{path}, line 2: dev has nobody in view in 'b/2.mpg', not one."
    assert cut.problem == f"{path}, line 3: dev has nobody in view in '', not one."
    assert there == pairs.Pair("a0", 0.0, "b1", 0.0, 1.5)


def test_a_file_that_is_no_list(tmp_path):
    (tmp_path / "a.tsv").write_text("one\ttwo\n1\t2\n")
    with pytest.raises(errors.UserError, match="no list of pairs; it has the columns first"):
        pairs.read(tmp_path / "a.tsv", split())
    (tmp_path / "a.tsv").write_bytes(b"\xff\xfe\0")
    with pytest.raises(errors.UserError, match=r"a\.tsv: no table of text in UTF-8"):
        pairs.read(tmp_path / "a.tsv", split())
    with pytest.raises(errors.UserError, match="No such file"):
        pairs.read(tmp_path / "b.tsv", split())
