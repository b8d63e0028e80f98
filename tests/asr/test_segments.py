"""Where recordings are cut: at pauses, without losing speech; none in silence and steady noise."""

import itertools

import numpy as np
import pytest

from asr import segments

RATE_HZ = 16000


def speech(seconds, seed=0):
    """Noise that comes and goes four times a second, as syllables do, without pauses."""
    rng = np.random.default_rng(seed)
    shape = 0.3 + np.abs(np.sin(np.arange(int(seconds * RATE_HZ)) * np.pi * 4 / RATE_HZ))
    return (0.1 * shape * rng.standard_normal(len(shape))).astype(np.float32)


def room(seconds, level=1e-3, seed=9):
    rng = np.random.default_rng(seed)
    return (level * rng.standard_normal(int(seconds * RATE_HZ))).astype(np.float32)


@pytest.mark.parametrize(
    "audio",
    [
        np.zeros(0, np.float32),
        np.ones(1, np.float32),
        0.1 * np.ones(100, np.float32),
        np.zeros(2 * RATE_HZ, np.float32),
        room(3.0),
        room(3.0, level=0.3),
    ],
    ids=["empty", "one", "hundred", "zeros", "soft noise", "loud noise"],
)
def test_what_surely_holds_no_speech_has_no_pieces(audio):
    assert segments.split(audio, RATE_HZ) == []


def test_speech_in_noise_as_loud_as_itself_is_kept():
    audio = speech(3.0)
    audio = audio + room(3.0, level=float(audio.std()))
    assert segments.split(audio, RATE_HZ) == [(0, len(audio))]


@pytest.mark.parametrize("level", [0.0, 1e-3])
def test_a_long_recording_is_cut_in_its_pauses(level):
    parts = [speech(4.0, seed) for seed in range(5)]
    pauses = [room(0.5, level, seed) for seed in range(5)]
    audio = np.concatenate([x for pair in zip(parts, pauses) for x in pair])
    pieces = segments.split(audio, RATE_HZ)
    assert len(pieces) == 5
    for number, (start, end) in enumerate(pieces):
        first = int(4.5 * number * RATE_HZ)  # every sample of speech lies in one piece
        assert start <= first
        assert first + 4 * RATE_HZ <= end
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(pieces))


def test_short_recordings_are_not_cut_but_silence_around_them_goes():
    audio = np.concatenate([speech(2.0), room(0.6), speech(2.0)])
    assert segments.split(audio, RATE_HZ) == [(0, len(audio))]
    zeros = np.zeros(3 * RATE_HZ, np.float32)
    ((start, end),) = segments.split(np.concatenate([zeros, audio, zeros]), RATE_HZ)
    assert start == pytest.approx(2.85 * RATE_HZ, abs=0.03 * RATE_HZ)
    assert end == pytest.approx(len(zeros) + len(audio) + 0.15 * RATE_HZ, abs=0.03 * RATE_HZ)


def test_without_pauses_nothing_is_lost_and_no_piece_is_too_long():
    audio = speech(40.0)
    pieces = segments.split(audio, RATE_HZ, 10.0)
    assert pieces[0][0] == 0
    assert pieces[-1][1] == len(audio)
    assert [end for _, end in pieces[:-1]] == [start for start, _ in pieces[1:]]
    assert max(end - start for start, end in pieces) <= 10 * RATE_HZ


@pytest.mark.parametrize("level", [0.0, 1e-3])
def test_one_word_in_a_minute_is_kept_and_the_rest_is_not(level):
    audio = room(60.0, level)
    audio[40 * RATE_HZ : 40 * RATE_HZ + 6400] += speech(0.4)
    pieces = segments.split(audio, RATE_HZ)
    assert any(start <= 40 * RATE_HZ and end >= 40.4 * RATE_HZ for start, end in pieces)
    assert sum(end - start for start, end in pieces) <= 16 * RATE_HZ


@pytest.mark.parametrize(("before", "after"), [(0.4, 0.8), (0.8, 0.4)])
def test_a_click_between_two_pauses_goes_to_the_nearer_side(before, after):
    """It is no piece by itself, at the ends of a recording neither; a short word is one."""
    click, word = speech(0.1), speech(0.3)
    parts = [room(0.3), click, room(0.5), speech(8.0), room(before), click, room(after)]
    parts += [speech(8.0, 1), room(0.5), word, room(0.5)]
    ends = np.cumsum([len(part) for part in parts]) / RATE_HZ
    pieces = segments.split(np.concatenate(parts), RATE_HZ)
    bounds = [(start / RATE_HZ, end / RATE_HZ) for start, end in pieces]
    assert len(bounds) == 3
    assert bounds[0][0] < ends[0]
    assert (bounds[0][1] > ends[5]) == (bounds[1][0] > ends[5]) == (before < after)
    assert bounds[2][0] < ends[8]
    assert bounds[1][1] < ends[8]
