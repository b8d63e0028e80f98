"""Where a recording is cut for recognition: at pauses, as training's utterances are.

Cutting is cheap to get wrong, dropping is not: only what is surely silent is left out, and a cut
falls where it is quietest.
"""

import itertools

import numpy as np
from jaxtyping import Float

from common.audio import vad

SPLIT_SECONDS = 15.0  # recordings beyond this are cut at pauses
LONGEST_SECONDS = 32.0  # that a piece may be
_PAUSE_SECONDS = 0.25  # a shorter one may be the closure of a consonant
_SOUND_SECONDS = 0.2  # less of it between two pauses may be no word
_CONTEXT_SECONDS = 0.15  # of silence that stays at both ends
_SILENT_DB = 60.0  # below the loud frames: 20 dB below the floor of a usual room
_STEADY_DB = 1.0  # speech changes by more within a recording, even at 0 dB above noise
_SHORTEST_SECONDS = 0.05  # holds no word


def split(
    audio: Float[np.ndarray, "t"], sample_rate_hz: int, split_seconds: float = SPLIT_SECONDS
) -> list[tuple[int, int]]:
    """First sample, and the one after the last, of each piece to recognise, in their order.

    None of a recording without speech: digital silence, steady noise (0.1 s are about as loud as
    any other), or a few samples; nor of such a stretch between two cuts. Beyond `split_seconds`
    the recording is cut in the middle of every pause, and what is still longer where it is
    quietest; less than 0.2 s of sound between two pauses, a click or a breath, stays with what is
    nearer. Silence at the ends of a piece, 60 dB below the loud frames, is left out but for 0.15 s.
    """
    if not has_speech(audio, sample_rate_hz):
        return []
    hop = int(sample_rate_hz * 0.001) * 10
    decibels = vad.log_energy(audio, sample_rate_hz) * (10 / np.log(10))
    sounding = decibels[decibels > 0]  # a frame of 16-bit samples that are not all the same
    loud = float(np.percentile(sounding if len(sounding) else decibels, 95))
    cuts = [0, len(audio)]
    if len(audio) > split_seconds * sample_rate_hz:
        cuts[1:1] = [int(middle * hop) for middle in _pauses(decibels, loud)]
    pieces = []
    for first, last in itertools.pairwise(cuts):
        for start, end in quietest_cuts(audio[first:last], sample_rate_hz, split_seconds):
            start, end = first + start, first + end
            heard = np.flatnonzero(decibels[start // hop : -(-end // hop)] > loud - _SILENT_DB)
            if not len(heard) or not has_speech(audio[start:end], sample_rate_hz):
                continue
            context = int(_CONTEXT_SECONDS * sample_rate_hz)
            from_, to = (start // hop + heard[[0, -1]]) * hop
            pieces.append((max(start, int(from_) - context), min(end, int(to) + hop + context)))
    return pieces


def has_speech(audio: Float[np.ndarray, "t"], sample_rate_hz: int) -> bool:
    """False only of what surely holds none."""
    if len(audio) < _SHORTEST_SECONDS * sample_rate_hz or not audio.any():
        return False
    tenth = sample_rate_hz // 10
    tenths = len(audio) // tenth
    if tenths < 10:  # too few to tell
        return True
    powers = np.square(audio[: tenths * tenth].astype(np.float64)).reshape(tenths, tenth)
    powers = powers.mean(axis=1)
    return bool(powers.max() > np.median(powers) * 10 ** (_STEADY_DB / 10))


def quietest_cuts(
    audio: Float[np.ndarray, "t"], sample_rate_hz: int, max_seconds: float
) -> list[tuple[int, int]]:
    """Pieces of at most `max_seconds` that cover `audio`, cut where 0.2 s are quietest.

    Each cut is sought in the second half of the longest piece possible.
    """
    longest, window = int(max_seconds * sample_rate_hz), int(0.2 * sample_rate_hz)
    pieces, start = [], 0
    while len(audio) - start > longest:
        lower = start + longest // 2
        stretch = np.square(audio[lower : start + longest].astype(np.float64))
        sums = np.cumsum(np.concatenate([[0.0], stretch]))
        energy = sums[window:] - sums[:-window]
        cut = lower + int(np.argmin(energy)) + window // 2
        pieces.append((start, cut))
        start = cut
    return [*pieces, (start, len(audio))]


def _pauses(decibels: Float[np.ndarray, "l"], loud: float) -> list[float]:
    """The middle frame of every pause: frames nearer to the quiet ones than to the loud."""
    floor = max(float(np.percentile(decibels, 5)), loud - _SILENT_DB)
    quiet = decibels < floor + 0.4 * (loud - floor)
    edges = np.flatnonzero(np.diff(quiet, prepend=False, append=False)).reshape(-1, 2)
    inside = (edges[:, 0] > 0) & (edges[:, 1] < len(quiet))
    long = edges[:, 1] - edges[:, 0] >= _PAUSE_SECONDS * 100
    sounding, least = np.concatenate([[0], np.cumsum(~quiet)]), _SOUND_SECONDS * 100
    kept: list[tuple[int, int]] = []
    for start, end in edges[inside & long].tolist():
        if sounding[start] - sounding[kept[-1][1] if kept else 0] >= least:
            kept.append((start, end))
        elif kept and end - start > kept[-1][1] - kept[-1][0]:
            kept[-1] = start, end  # what is between goes to the side of the shorter pause
    while kept and sounding[-1] - sounding[kept[-1][1]] < least:
        kept.pop()
    return [(start + end) / 2 for start, end in kept]
