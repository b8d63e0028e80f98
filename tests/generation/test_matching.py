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


def test_galleries_may_be_of_some_only():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, (9, 9)).astype(float)
    group = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1])
    found = matching.ranked(scores, group[:, None] == group[None, :])
    for size in (2, 3, 4):
        for label in (0, 1):
            own = group == label
            alone = enumerated(scores[own][:, own], size)
            np.testing.assert_allclose(matching.one_of(found, size)[own], alone)
    # The second group has four people.
    np.testing.assert_array_equal(np.isnan(matching.one_of(found, 5)), group == 1)


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
        "made": np.stack([made[p] for p, _ in rows]),
        "real_features": np.stack([2 * eye[p] for p, _ in rows]),
        "made_features": np.stack([[made[p], 3 * made[p]] for p, _ in rows]),
    }
    half = len(rows) // 2
    return [
        {name: x[part] for name, x in found.items()} for part in (slice(half), slice(half, None))
    ]


def test_the_report_has_the_ceiling_and_chance_beside_the_figures():
    found = judging.report("dev", outputs(6, 2), [""] * 6)
    # A swapped face is below the other's and equal to four more.
    assert found.scalars["match_2"] == pytest.approx((4 + 2 * (4 / 5) / 2) / 6)
    assert found.scalars["real_match_2"] == found.scalars["real_recall_1"] == 1
    assert found.scalars["recall_1"] == pytest.approx(4 / 6)
    assert "match_10" not in found.scalars
    expected = (found.scalars["match_2"] - 0.5) / 0.5
    assert found.scalars["share_of_ceiling"] == pytest.approx(expected)
    made, real, control, share, joint, cosine, varied, sets = found.lines
    assert made.startswith("dev voice to made face: 6 people, %: 1:2 80.0 (")
    assert "chance 50.0), 1:5" in made
    assert "R@1 66.7 (" in made
    assert "chance 16.7), R@5" in made
    assert "real faces: 6 people, %: 1:2 100.0 (100.0 to 100.0, chance 50.0)" in real
    # Of six people each voice has five faces of others, one of which it is given.
    assert control.startswith("dev control, made faces of other people: 6 people, %: 1:2 ")
    assert "chance 50.0), 1:5" in control
    assert "chance 20.0), R@5 100.0 (100.0 to 100.0, chance 100.0)" in control
    assert "60 % of the ceiling" in share
    assert joint == "dev: joint distances of voices and faces take 8 people."
    assert found.scalars["cosine"] == pytest.approx(4 / 6)
    assert "person's 0.667, another's 0.067; 0.600 more" in cosine
    # Real ones are 2 sqrt 2 apart, those of a voice 2, those of different voices sqrt 2.
    assert found.scalars["diversity"] == pytest.approx(0.5**0.5)
    assert "of one voice 70.7 (70.7 to 70.7), of different voices 50.0" in varied
    assert sets == "dev: distances between sets of faces take 8 people."


def test_a_gender_is_matched_within_itself():
    """The two whose faces are swapped are of different ones; nobody knows that of the last.

    A swapped face is equal to all others of its gender, and was below one of the other's.
    """
    found = judging.report("dev", outputs(6, 2), ["f", "m", "f", "m", "m", ""])
    assert found.scalars["same_gender_match_2"] == pytest.approx((2 * 0.5 + 3) / 5)
    assert found.scalars["real_same_gender_match_2"] == 1
    assert "same_gender_recall_1" not in found.scalars
    made, real, control = (line for line in found.lines if "same gender" in line)
    assert made.startswith("dev voice to made face, same gender (2 f, 3 m): 5 people, %: 1:2 80.0")
    assert real.startswith("dev ceiling, same gender: 5 people, %: 1:2 100.0")
    # There are no two others of the first gender to be told apart.
    assert control.startswith("dev control, made faces of other people, same gender: 3 people")
    alone = judging.report("dev", outputs(6, 2), ["f", "m", "", "", "", ""])
    assert not any("same gender" in line for line in alone.lines)


def test_everybody_is_given_somebody_else_of_the_same_group():
    groups = np.array(list("abbcaacbbbaaa"))
    order = matching.deranged(groups)
    assert sorted(order) == list(range(len(groups)))
    assert (order != np.arange(len(groups))).all()
    np.testing.assert_array_equal(groups[order], groups)
    np.testing.assert_array_equal(order, matching.deranged(groups))
    assert matching.deranged(np.array([0, 1, 0]))[1] == 1


@pytest.mark.parametrize("groups", [None, ["f", "m"] * 100])
def test_faces_of_other_people_are_at_chance(groups):
    """However well faces fit their own voices."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(200, 4))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    own = judging.matched([vectors], [vectors], groups)
    other = judging.matched([vectors], [vectors], groups, shuffled=True)
    assert set(own.values) == set(other.values)
    for name, values in other.values.items():
        assert own.values[name].mean() == 1
        low, high = matching.interval(values)
        assert low <= other.chance[name] <= high < 0.6, name
    if groups is None:
        assert other.chance["recall_10"] == 10 / 199


def test_a_control_needs_two_faces_to_choose_from():
    """The face that is a voice's own is in no gallery of it."""
    three = judging.matched([np.eye(3)], [np.eye(3)], shuffled=True)
    assert three.values["match_2"] == pytest.approx(np.full(3, 0.5))  # both are equal
    assert judging.matched([np.eye(2)], [np.eye(2)], shuffled=True).values == {}


@pytest.mark.parametrize("way", ["faces", "voices"])
def test_both_ways_are_measured_as_pairs(way):
    """Everybody has a direction in the plane."""
    batches, none = outputs(24, 2), [""] * 24
    for batch in batches:
        angles = 2 * np.pi * batch["person"] / 24
        unit = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        batch |= dict.fromkeys(("voice", "face", "made", "real"), unit)
    if way == "faces":
        found, title = judging.report("dev", batches, none), "voices and faces (2 + 2)"
    else:
        found, title = judging.report_of_voices("dev", batches, none), "faces and voices (2 + 2)"
    assert sum(title in line for line in found.lines) == 1
    for kind in ("frechet", "kernel"):
        own, shuffled = (found.scalars[f"{name}joint_{kind}"] for name in ("", "shuffled_"))
        assert found.scalars[f"real_joint_{kind}"] == pytest.approx(own)
        assert shuffled > own + 0.1, kind


def test_a_judge_at_chance_says_nothing():
    batches = [{**batch, "real": batch["made"][::-1]} for batch in outputs(6, 2)]
    found = judging.report("dev", batches, [""] * 6)
    assert "share_of_ceiling" not in found.scalars
    assert "not above chance on real faces" in found.lines[3]


def test_a_judge_to_whom_all_faces_are_the_same_measures_none():
    batches = [
        {**batch, "real_features": np.ones_like(batch["real_features"])} for batch in outputs(6, 2)
    ]
    found = judging.report("dev", batches, [""] * 6)
    assert found.lines[-1] == "dev: all real faces are the same to the judge."
    assert not {"cosine", "spread"} & set(found.scalars)


def test_who_lacks_a_row_is_left_out():
    found = judging.report("dev", outputs(6, 2, missing={(5, 1)}), [""] * 6)
    assert "5 people" in found.lines[0]
    missing = {(p, 0) for p in range(5)}
    with pytest.raises(errors.UserError, match="fewer than two people"):
        judging.report("dev", outputs(6, 2, missing=missing), [""] * 6)
