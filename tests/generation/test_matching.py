"""Chances of matching against the enumeration of galleries and of orders of ties."""

import itertools

import numpy as np
import pytest

from common import errors
from generation import judging, matching


def enumerated(scores, size):
    """Over all galleries of `size` with the own face, which wins by lot among equals."""
    people = len(scores)
    chances = []
    for i, row in enumerate(scores):
        others = [j for j in range(people) if j != i]
        wins = []
        for gallery in itertools.combinations(others, size - 1):
            best = max(row[j] for j in gallery)
            equal = sum(row[j] == row[i] for j in gallery)
            wins.append(0.0 if best > row[i] else 1 / (1 + equal))
        chances.append(np.mean(wins))
    return chances


def recalled(scores, at):
    """Over all orders of equals."""
    found = []
    for i, row in enumerate(scores):
        above, equal = (row > row[i]).sum(), (row == row[i]).sum() - 1
        places = range(above + 1, above + equal + 2)
        found.append(np.mean([place <= at for place in places]))
    return found


@pytest.mark.parametrize("levels", [3, 1000])
def test_chances_are_those_of_all_galleries(levels):
    scores = np.random.default_rng(levels).integers(0, levels, (7, 7)).astype(float)
    found = matching.ranked(scores)
    for size in (2, 3, 5, 7):
        np.testing.assert_allclose(matching.one_of(found, size), enumerated(scores, size))
    for at in (1, 2, 5, 7):
        np.testing.assert_allclose(matching.recall(found, at), recalled(scores, at))
    assert np.isnan(matching.one_of(found, 8)).all()


def test_equal_scores_are_worth_chance():
    found = matching.ranked(np.zeros((11, 11)))
    for size in matching.GALLERIES:
        assert matching.one_of(found, size) == pytest.approx(np.full(11, 1 / size))
    for at in matching.RECALLS:
        assert matching.recall(found, at) == pytest.approx(np.full(11, at / 11))


def outputs(people, turns, missing=()):
    """Vectors by which made faces are right for all but the first two people, whose are swapped."""
    rows = [(p, t) for p in range(people) for t in range(turns)]
    eye = np.eye(people, dtype=np.float32)
    made = eye[[1, 0, *range(2, people)]]
    order = np.random.default_rng(0).permutation(len(rows))
    rows = [rows[k] for k in order]
    found = {
        "person": np.array([p for p, _ in rows]),
        "turn": np.array([t for _, t in rows]),
        "mask": np.array([row not in missing for row in rows]),
        "index": np.arange(len(rows)),
        "voice": np.stack([eye[p] for p, _ in rows]),
        "real": np.stack([eye[p] for p, _ in rows]),
        "fake": np.stack([made[p] for p, _ in rows]),
    }
    half = len(rows) // 2
    return [
        {name: x[part] for name, x in found.items()} for part in (slice(half), slice(half, None))
    ]


def test_the_report_has_the_ceiling_and_chance_beside_the_figures():
    found = judging.report("dev", outputs(6, 2))
    # A swapped face is below the other's and equal to four more.
    assert found.scalars["match_2"] == pytest.approx((4 + 2 * (4 / 5) / 2) / 6)
    assert found.scalars["real_match_2"] == found.scalars["real_recall_1"] == 1
    assert found.scalars["recall_1"] == pytest.approx(4 / 6)
    assert "match_10" not in found.scalars
    expected = (found.scalars["match_2"] - 0.5) / 0.5
    assert found.scalars["share_of_ceiling"] == pytest.approx(expected)
    made, real, share = found.lines
    assert made.startswith("dev voice to made face: 6 people, %: 1:2 80.0 (")
    assert "chance 50.0), 1:5" in made
    assert "R@1 66.7 (" in made
    assert "chance 16.7), R@5" in made
    assert "real faces: 6 people, %: 1:2 100.0 (100.0 to 100.0, chance 50.0)" in real
    assert "60 % of the ceiling" in share


def test_a_judge_at_chance_says_nothing():
    batches = [{**batch, "real": batch["fake"][::-1]} for batch in outputs(6, 2)]
    found = judging.report("dev", batches)
    assert "share_of_ceiling" not in found.scalars
    assert "not above chance on real faces" in found.lines[2]


def test_who_lacks_a_row_is_left_out():
    found = judging.report("dev", outputs(6, 2, missing={(5, 1)}))
    assert "5 people" in found.lines[0]
    missing = {(p, 0) for p in range(5)}
    with pytest.raises(errors.UserError, match="fewer than two people"):
        judging.report("dev", outputs(6, 2, missing=missing))
