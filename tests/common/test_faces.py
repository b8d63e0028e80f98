"""Faces of the embedded corpus: what follows the voice, what does not, and how mouths look."""

import numpy as np
import pytest

from common.data.embedded import faces

IDS = [f"voice{k}" for k in range(60)]


def mouth(face, **changes):
    """One picture of a mouth, the head as it is at the first."""
    values = {"opening": 0.0, "width": 0.0, "rounding": 0.0, "teeth": 0.0, "tongue": 0.0} | changes
    return faces.draw_mouths(face, np.array([list(values.values())]), "still")[0].astype(int)


def test_some_factors_follow_the_voice():
    low = [faces.make_face(name, 90.0, 88.0) for name in IDS]
    high = [faces.make_face(name, 220.0, 125.0) for name in IDS]
    for name in faces.VOICED:
        a, b = (np.array([getattr(face, name) for face in some]) for some in (low, high))
        # Four parts of five are the voice's: the two ends hardly meet.
        assert abs(a.mean() - b.mean()) > 0.3, name
        assert min(a.max(), b.max()) < max(a.min(), b.min()) + 0.2, name
    for name in faces.FREE:
        assert [getattr(x, name) for x in low] == [getattr(x, name) for x in high], name
        assert len({getattr(x, name) for x in low}) > 1, name


def test_a_face_is_always_the_same_and_every_id_has_its_own():
    assert faces.make_face("a", 120.0, 100.0) == faces.make_face("a", 120.0, 100.0)
    assert len({tuple(faces.make_face(x, 120.0, 100.0).factors().values()) for x in IDS}) == 60


def test_a_mouth_that_opens_is_darker_inside_and_then_has_teeth():
    face = faces.make_face("a", 150.0, 100.0)
    closed, half, wide = (mouth(face, opening=x) for x in (0.0, 0.5, 1.0))
    dark = [int((picture < 60).sum()) for picture in (closed, half, wide)]
    assert dark[0] < dark[1] < dark[2]
    inside = mouth(face, opening=0.8, teeth=1.0) - mouth(face, opening=0.8)
    assert (inside > 30).sum() > 50  # teeth are bright, and nothing else changes much
    assert (inside < -30).sum() == 0
    row = np.abs(mouth(face, opening=0.5) - mouth(face, opening=0.5, rounding=1.0)).sum()
    assert row > 1000


def test_pictures_are_the_same_to_the_bit(tmp_path):
    face = faces.make_face("b", 110.0, 95.0)
    track = np.random.default_rng(0).uniform(0, 1, (5, 5))
    one, two = (faces.draw_mouths(face, track, "x") for _ in range(2))
    assert one.shape == (5, 96, 96)
    assert one.dtype == np.uint8
    np.testing.assert_array_equal(one, two)
    # The head moves with the utterance.
    assert (one != faces.draw_mouths(face, track, "y")).any()


def test_portraits_are_nearest_to_their_own_mean():
    some = [faces.draw_portraits(faces.make_face(x, 150.0, 100.0), x) for x in IDS[:6]]
    assert some[0].shape == (faces.PORTRAITS, 224, 224, 3)
    rows = np.stack(some).astype(float)
    means = rows.mean(axis=1)
    apart = np.abs(rows[:, :, None] - means[None, None]).mean(axis=(3, 4, 5))
    own = apart.argmin(axis=2) == np.arange(6)[:, None]
    assert own.mean() > 0.9
    assert all(len(np.unique(x.reshape(-1, 3), axis=0)) > 50 for x in some)


@pytest.mark.parametrize("name", IDS[:6])
def test_nothing_but_the_ground_is_above_the_head(name):
    pictures = faces.draw_portraits(faces.make_face(name, 150.0, 100.0), name)
    top = pictures[:, 0].astype(int)
    assert np.ptp(top, axis=1).max() <= 2
