"""Sets of made faces with floor and ceiling; cosines and variety of faces of the same voices."""

import itertools

import numpy as np
import pytest

from generation import likeness, realism

PEOPLE, TURNS, SIZE = 60, 2, 6
FIGURES = ("frechet", "kernel", "precision", "recall", "density", "coverage")


def faces(seed, scale=1.0):
    """Two pictures of everybody, who resemble each other."""
    rng = np.random.default_rng(seed)
    one = np.repeat(rng.normal(size=(PEOPLE, 1, SIZE)), TURNS, axis=1)
    return scale * (one + 0.3 * rng.normal(size=(PEOPLE, TURNS, SIZE)))


def intervals(line):
    """The pairs of numbers in brackets."""
    found = (part.split(")")[0].split(" to ") for part in line.split("(")[1:])
    return [tuple(map(float, pair)) for pair in found if len(pair) == 2]


def test_real_faces_are_at_the_floor():
    found = realism.report("dev", faces(0), faces(0))
    for name in FIGURES:
        expected = 0 if name == "kernel" else found.scalars[f"real_{name}"]
        assert found.scalars[name] == pytest.approx(expected, abs=1e-9), name
    assert found.scalars["frechet"] < found.scalars["one_face_frechet"] / 4
    sets, kernels, shares = found.lines
    title = "dev Frechet distance on the judge's last hidden layer (6), 60 faces of 30 people: "
    assert sets.startswith(title)
    assert "kernel distance on the same, 120 faces of 60 people: " in kernels
    assert intervals(sets)[0] == intervals(sets)[1]  # the floor's
    assert intervals(sets)[2] == pytest.approx((0, 0), abs=1e-9)
    assert len(intervals(shares)) == 8


def test_other_faces_of_the_same_kind_are_no_further_than_chance():
    found = realism.report("dev", faces(1), faces(0))
    low, high = intervals(found.lines[0])[2]
    assert low < 0 < high
    low, high = intervals(found.lines[1])[0]
    assert low < 0 < high


@pytest.mark.parametrize("scale", [0.5, 1.6])
def test_faces_too_much_alike_or_too_different_are_told(scale):
    found = realism.report("dev", faces(1, scale), faces(0))
    assert intervals(found.lines[0])[2][0] > 0
    assert intervals(found.lines[1])[0][0] > 0
    alike = scale < 1
    assert (found.scalars["recall"] < found.scalars["real_recall"]) == alike
    assert (found.scalars["precision"] > found.scalars["real_precision"]) == alike


def test_one_face_for_all_is_at_the_ceiling():
    real = faces(0)
    found = realism.report("dev", np.broadcast_to(real.mean((0, 1)), real.shape), real)
    # The average of all of them, not of a half.
    for name in ("frechet", "kernel"):
        assert found.scalars[name] == pytest.approx(found.scalars[f"one_face_{name}"], rel=0.1)
    assert found.scalars["recall"] == 0


def test_the_unit_of_the_features_does_not_count():
    one = realism.report("dev", faces(1, 0.8), faces(0)).scalars
    other = realism.report("dev", 7 * faces(1, 0.8) + 3, 7 * faces(0) + 3).scalars
    assert one == pytest.approx(other)


def test_few_people_are_refused():
    found = realism.report("dev", faces(1)[:7], faces(0)[:7])
    assert (found.scalars, found.lines) == (
        {},
        ["dev: distances between sets of faces take 8 people."],
    )
    single = realism.report("dev", faces(1)[:11, :1], faces(0)[:11, :1])
    assert "take 12 people" in single.lines[0]  # six on a side have five neighbours
    assert realism.report("dev", faces(1)[:12, :1], faces(0)[:12, :1]).scalars


def pairs(seed, noise):
    """Voices, and faces that are theirs but for some noise; their two parts are of unit vectors'
    size."""
    rng = np.random.default_rng(seed)
    voices = np.repeat(rng.normal(size=(200, 1, 3)), TURNS, axis=1) / np.sqrt(3)
    own = rng.normal(size=(200, TURNS, 3)) / np.sqrt(3)
    return voices, np.sqrt(1 - noise**2) * voices + noise * own


JOINT = ("joint_frechet", "joint_kernel")


def test_faces_that_belong_to_their_voices_are_at_the_floor_of_the_joint_distance():
    voices, real = pairs(0, 0.3)
    found = realism.report_of_pairs("dev", "voices and faces", voices, real, real)
    floor = found.scalars["real_joint_frechet"]
    assert found.scalars["joint_frechet"] == pytest.approx(floor, abs=1e-9)
    assert found.scalars["joint_kernel"] == found.scalars["real_joint_kernel"]
    for name in JOINT:
        shuffled = found.scalars[f"shuffled_{name}"]
        assert shuffled == pytest.approx(found.scalars[f"shuffled_real_{name}"])
        assert shuffled > 5 * abs(found.scalars[f"real_{name}"])
    sets, kernels = found.lines
    title = "dev joint Frechet distance on the judge's vectors of voices and faces (3 + 3), "
    assert sets.startswith(f"{title}200 pairs of 100 people: ")
    assert kernels.startswith("dev joint kernel distance on the same: ")
    for line in found.lines:
        own, floor, more, shuffled, above = intervals(line)
        assert own == floor
        assert more == pytest.approx((0, 0), abs=1e-9)
        assert shuffled[0] > own[0]
        assert above[0] > 0


def test_the_same_faces_given_to_other_voices_are_at_the_ceiling():
    """As a set they are still the real ones; shuffling them once more changes nothing."""
    voices, real = pairs(0, 0.3)
    made = real[np.roll(np.arange(200), 1)]
    found = realism.report_of_pairs("dev", "voices and faces", voices, made, real)
    for name, line in zip(JOINT, found.lines):
        low, high = intervals(line)[-1]  # of what shuffling adds
        assert low < 0 < high, name
        assert found.scalars[name] > 5 * abs(found.scalars[f"real_{name}"])


def test_the_joint_distance_of_shuffled_pairs_is_that_of_the_formula():
    """Of so many people that halves are alike: voices and faces of variance 1 and correlation r in
    each of three dimensions against uncorrelated ones, 4 - 2 (sqrt(1 + r) + sqrt(1 - r))."""
    rng = np.random.default_rng(0)
    voices = rng.normal(size=(600, 1, 3))
    faces = 0.8 * voices + 0.6 * rng.normal(size=(600, 1, 3))
    found = realism.report_of_pairs("dev", "voices and faces", voices, faces, faces).scalars
    expected = 3 * (4 - 2 * (np.sqrt(1.8) + np.sqrt(0.2)))
    assert found["shuffled_joint_frechet"] == pytest.approx(expected, rel=0.1)
    assert found["real_joint_frechet"] < expected / 10


def test_a_half_related_set_lies_between():
    voices, real = pairs(0, 0.3)
    _, made = pairs(0, 0.8)
    found = realism.report_of_pairs("dev", "voices and faces", voices, made, real)
    for name, line in zip(JOINT, found.lines):
        assert intervals(line)[-1][0] > 0, name  # they do belong to their voices
        assert found.scalars[f"real_{name}"] < found.scalars[name]
        assert found.scalars[name] < found.scalars[f"shuffled_{name}"]
    few = realism.report_of_pairs("dev", "faces and voices", voices[:7], made[:7], real[:7])
    assert (few.scalars, few.lines) == (
        {},
        ["dev: joint distances of faces and voices take 8 people."],
    )


def test_cosines_and_distances_are_those_of_loops():
    rng = np.random.default_rng(2)
    made, real = rng.normal(size=(2, 2, 5, 3))
    own, others = likeness.cosines(list(made), list(real))
    for i in range(5):
        pairs = [[made[t, i] @ real[t, j] for t in range(2)] for j in range(5)]
        assert own[i] == pytest.approx(np.mean(pairs[i]))
        assert others[i] == pytest.approx(np.mean(pairs[:i] + pairs[i + 1 :]))
    some = rng.normal(size=(2, 3, 4))
    for i in range(2):
        apart = [np.linalg.norm(a - b) for a, b in itertools.combinations(some[i], 2)]
        assert likeness.within(some)[i] == pytest.approx(np.mean(apart))
    apart = [np.linalg.norm(made[0, 1] - made[0, j]) for j in (0, 2, 3, 4)]
    assert likeness.between(made[0])[1] == pytest.approx(np.mean(apart))


def test_two_pictures_of_a_person_are_two_however_often_they_are_shown():
    """One person has three, one two (the first of which comes again), one only one."""
    a, b, c = np.eye(3)
    far = (b + c) / np.sqrt(2)
    turns = [np.stack(turn) for turn in ((a, a, a), (b, far, a), (far, a, a))]
    found = likeness.of_two_pictures(turns)
    assert found == pytest.approx([(0 + 0 + np.sqrt(0.5)) / 3, 0])
    near = (a + b) / np.sqrt(2)
    assert likeness.of_two_pictures([a[None], near[None], a[None]]) == pytest.approx([np.sqrt(0.5)])
    assert len(likeness.of_two_pictures([a[None]])) == 0


def test_a_voice_has_one_face_or_many():
    real = [faces(0)[:, t] for t in range(TURNS)]
    units = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in real]
    same = [np.repeat(one[:, None], 3, axis=1) for one in real]
    found = likeness.report("dev", (units, units), (same, real))
    assert found.scalars["cosine"] == pytest.approx(1)
    assert found.scalars["spread"] == pytest.approx(1)
    assert found.scalars["diversity"] == pytest.approx(0, abs=1e-12)
    assert 0.5 < found.scalars["real_cosine"] < 1  # two pictures of a person
    assert "two real faces of a person 0.9" in found.lines[0]
    # Of one picture of each, and one made face, nothing can be said.
    once = likeness.report("dev", (units[:1], units[:1]), ([same[0][:, :1]], real[:1]))
    assert not {"diversity", "real_cosine"} & set(once.scalars)
    assert "of one voice" not in once.lines[1]
