"""The mouth that eSpeak's phonemes make, picture by picture."""

import numpy as np
import pytest

from common.data.embedded import visemes

OPENING, WIDTH, ROUNDING = range(3)


def track(*names, each=120.0, **options):
    phones = [(each * k, name) for k, name in enumerate(names)]
    return visemes.mouth_track(phones, each * len(names), **options)


@pytest.mark.parametrize(
    ("name", "start", "end"), [("p", 155, 200), ("b", 155, 200), ("m", 205, 395)]
)
def test_lips_meet_at_a_bilabial(name, start, end):
    """Through a nasal; of a stop before its event, which is the release."""
    found = track("a:", name, "a:", each=200.0)
    time = 40 * (np.arange(len(found)) + 0.5)
    closed = (time >= start) & (time <= end)
    assert closed.any()
    assert (found[closed, OPENING] == 0).all()
    vowels = (np.abs(time - 100) < 40) | (np.abs(time - 500) < 40)
    assert (found[vowels, OPENING] > 0.4).all()


def test_stops_begin_before_their_events_and_nothing_else_does():
    phones = [(0.0, "p"), (90.0, "'a"), (200.0, "t"), (210.0, "d"), (300.0, "tS"), (400.0, "m")]
    assert visemes.spans(phones, 500.0) == [
        *((0.0, 5.0, "p"), (90.0, 150.0, "'a"), (150.0, 160.0, "t"), (160.0, 215.0, "d")),
        *((300.0, 400.0, "tS"), (400.0, 500.0, "m")),
    ]


def test_round_and_spread_vowels():
    middle = {name: track("_", name, "_", each=240.0)[9] for name in ("u:", "i:", "A:")}
    assert middle["u:"][ROUNDING] > 0.7 > 0.2 > middle["i:"][ROUNDING]
    assert middle["i:"][WIDTH] > 0.5 > -0.2 > middle["u:"][WIDTH]
    assert middle["A:"][OPENING] > middle["i:"][OPENING] > 0


def test_a_vowel_rounds_the_consonant_before_it():
    assert track("s", "u:")[1][ROUNDING] > track("s", "i:")[1][ROUNDING] + 0.05


def test_it_rests_before_after_and_without_phonemes():
    late = visemes.mouth_track([(400.0, "a:")], 800.0)
    assert (late[:8, OPENING] == 0).all()
    assert late[12, OPENING] > 0.4
    assert late[-1, OPENING] < 0.3
    assert not visemes.mouth_track([], 400.0)[:, OPENING].any()
    assert (visemes.mouth_track([(0.0, "_:")], 1000.0)[6:20, OPENING] == 0).all()


def test_pictures_of_a_duration():
    """40 ms each; the last one may stand for less."""
    assert visemes.num_frames(16000, 16000) == 25
    assert visemes.num_frames(16001, 16000) == 26
    assert visemes.num_frames(1, 16000) == 1
    assert len(track("a:", "p", each=100.0)) == 5


def test_shifted_phonemes_are_shifted_pictures():
    phones = [(0.0, "a:"), (150.0, "p"), (260.0, "u:")]
    early = visemes.mouth_track(phones, 600.0)
    later = visemes.mouth_track([(ms + 400.0, name) for ms, name in phones], 1000.0)
    np.testing.assert_allclose(later[12:-1], early[2:-1], atol=0.05)


def test_strength_opens_the_lips_alone():
    soft, wide = track("a:", "l", strength=0.6), track("a:", "l", strength=1.0)
    np.testing.assert_allclose(soft[:, OPENING], 0.6 * wide[:, OPENING], atol=2e-3)
    np.testing.assert_array_equal(soft[:, WIDTH:], wide[:, WIDTH:])


def test_every_mnemonic_has_a_shape():
    for name in ("'eI", "tS", "dZ", "@L", "_:", "~", "??", "r-"):
        for shape in visemes.shapes_of(name):
            assert 0 <= shape.opening <= 1
    assert len(visemes.shapes_of("aI")) == 2
    assert visemes.shapes_of("tS") == visemes.shapes_of("S")
