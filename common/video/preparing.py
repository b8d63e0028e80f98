"""One film to files: its sound, and the mouth and the portraits of every person in it.

audio/NAME.flac    16 kHz, mono, whole
mouths/NAME.h5     data uint8[n, 96, 96]: 25 a second, grey (NAME~1, NAME~2, ... of several)
faces/NAME.png     k portraits of 224 x 224 side by side, RGB
"""

import collections
import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image

from common import files
from common.audio import io
from common.data import stored_faces
from common.data.embedded import visemes
from common.video import crops, finding, frames, tracking

SAMPLE_RATE_HZ = 16_000
_SAMPLES = SAMPLE_RATE_HZ // visemes.FRAMES_PER_SECOND
_INTRUDED = 0.1  # of the pictures with two faces in one crop: more is too much
_BESIDE = 25  # pictures in view after which a face is somebody who may be heard
_JUDGED = 5  # pictures of which one is asked how sharp its faces are
_MIDDLE = slice(24, 72)  # of a crop, where the lips are
_THUMBNAIL = 48  # pixels of the longer side, to see cuts in


@dataclasses.dataclass(frozen=True)
class Settings:
    """What of a film is kept: people in view for `min_frames`, of whom `seen` is the share of
    pictures looked at in which the face was found, each with so many portraits."""

    min_frames: int = 64
    seen: float = 0.5
    portraits: int = 5


@dataclasses.dataclass(frozen=True)
class Refused:
    """A stretch of a film, in seconds, that was not taken, and why."""

    start: float
    end: float
    reason: str


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What was made of a film: a row of values for each person, and the stretches not taken."""

    people: list[Mapping[str, Any]]
    refused: list[Refused]


@dataclasses.dataclass
class _Seen:
    """A film looked at: who is where, which pictures are held and how sharp faces are."""

    tracks: list[tracking.Track]
    held: np.ndarray
    portraits: dict[int, list[tuple[finding.Face, float]]]
    end: int


def prepare(
    film: str | os.PathLike,
    name: str,
    out: pathlib.Path,
    finder: finding.Finder,
    settings: Settings,
) -> Prepared:
    """Makes the files of a film below `out`, each whole or not at all.

    The film is read twice, a picture at a time. Raises FilmError or io.AudioError for a film of
    which nothing can be used, UserError where the files cannot be written.
    """
    zero = frames.sound_start(film)
    seen = _look(film, zero, finder)
    if not seen.tracks:
        raise frames.FilmError(film, "no face")
    sound = out / "audio" / f"{name}.flac"
    samples, peak = io.convert_to_flac(film, sound, sample_rate_hz=SAMPLE_RATE_HZ)
    try:
        if not peak:
            raise frames.FilmError(film, "no sound (every sample is zero)")
        end = visemes.num_frames(samples, SAMPLE_RATE_HZ)
        tracks = [track.until(end) for track in seen.tracks if track.first < end]
        if not tracks:
            raise frames.FilmError(film, "no sound (it ends before a face is seen)")
        kept, refused = _choose(tracks, finder.every, settings)
        if not kept:
            longest = max(refused, key=lambda one: one.end - one.start)
            raise frames.FilmError(film, longest.reason)
        least = min(_BESIDE, settings.min_frames)
        in_view = [t for t in tracks if len(t) >= least and _steady(t, finder.every, settings)]
        people = _write(film, name, out, zero, seen, kept, in_view, samples, finder.every, settings)
    except BaseException:
        sound.unlink(missing_ok=True)
        raise
    return Prepared(people, refused)


def _look(film: str | os.PathLike, zero: float, finder: finding.Finder) -> _Seen:
    """Finds and follows the faces of a film."""
    tracker, held, number = tracking.Tracker(finder.every), [], -1
    sharp: dict[int, list[tuple[finding.Face, float]]] = {}
    every = finder.every
    looked = -finder.step
    for picture in frames.pictures(film, zero):
        if number < 0:
            tracker.cut(picture.number)  # before the first picture nobody is in view
            held += [False] * picture.number
        held.append(picture.held)
        number = picture.number
        if tracker.is_cut(picture.grey(_THUMBNAIL)[0]):
            tracker.cut(number)
            looked = number - finder.step
        if number - looked < finder.step:
            continue
        looked = number
        faces = finder.find(picture)
        tracker.add(number, faces)
        if faces and (every >= 2 or number % _JUDGED == 0):
            image = picture.rgb()
            sharp[number] = [(face, _sharpness(image, face)) for face in faces]
    return _Seen(tracker.finish(number + 1), np.array(held, bool), sharp, number + 1)


def _sharpness(image: PIL.Image.Image, face: finding.Face) -> float:
    left, top = round(face.box[0]), round(face.box[1])
    width, height = max(1, round(face.box[2])), max(1, round(face.box[3]))
    return crops.sharpness(image.crop((left, top, left + width, top + height)))


def _choose(
    tracks: Sequence[tracking.Track], every: float | int, settings: Settings
) -> tuple[list[tracking.Track], list[Refused]]:
    """The tracks that are used, and why others are not."""
    kept, refused = [], []
    # What a finder saw for a moment is no person who could stand in a crop.
    people = [track for track in tracks if _steady(track, every, settings)]
    for track in tracks:
        reason = ""
        if len(track) < settings.min_frames:
            reason = f"shorter than a window ({len(track)} of {settings.min_frames} pictures)"
        elif not _steady(track, every, settings):
            reason = f"no face (found in {_share_seen(track, every):.0%} of pictures)"
        else:
            share = crops.intruded(track, [other for other in people if other is not track])
            if share > _INTRUDED:
                reason = f"two faces in one crop (in {share:.0%} of pictures)"
        if reason:
            span = (track.first / visemes.FRAMES_PER_SECOND, track.last / visemes.FRAMES_PER_SECOND)
            refused.append(Refused(*span, reason))
        else:
            kept.append(track)
    return kept, refused


def _steady(track: tracking.Track, every: float | int, settings: Settings) -> bool:
    return _share_seen(track, every) >= settings.seen


def _share_seen(track: tracking.Track, every: float | int) -> float:
    """Of the pictures that the finder was asked about: one in `every`."""
    return min(1.0, float(track.seen.sum()) * every / max(1, len(track)))


def _write(
    film: str | os.PathLike,
    name: str,
    out: pathlib.Path,
    zero: float,
    seen: _Seen,
    kept: Sequence[tracking.Track],
    in_view: Sequence[tracking.Track],
    samples: int,
    every: float | int,
    settings: Settings,
) -> list[dict[str, Any]]:
    """Cuts the mouths and portraits of the `kept` tracks; a row for each.

    Whoever is `in_view` beside one of them may be heard, also if their own track is not kept.
    """
    names = [name] if len(kept) == 1 else [f"{name}~{k}" for k in range(1, len(kept) + 1)]
    mouths = [crops.mouth_views(track) for track in kept]
    faces = [crops.face_views(track) for track in kept]
    wanted = [_portrait_places(track, seen.portraits, settings.portraits) for track in kept]
    portraits: list[dict[int, np.ndarray]] = [{} for _ in kept]
    before: list[np.ndarray | None] = [None for _ in kept]
    moved = [0.0 for _ in kept]
    shown = [len(some) for some in wanted]
    with contextlib.ExitStack() as stack:
        writers, strips, ended = [], [], set()
        for own in names:
            temporary = stack.enter_context(files.replacing(out / "mouths" / f"{own}.h5"))
            writers.append(stack.enter_context(stored_faces.MouthWriter(temporary)))
            strips.append(stack.enter_context(files.replacing(out / "faces" / f"{own}.png")))

        def end(t: int) -> None:
            """A film may have thousands of tracks: nothing of one that has ended is kept."""
            ended.add(t)
            writers[t].flush()
            some, portraits[t] = portraits[t], {}
            stored_faces.write_portraits(strips[t], np.stack([some[p] for p in sorted(some)]))

        for picture in frames.pictures(film, zero):
            k = picture.number
            here = [t for t, track in enumerate(kept) if track.first <= k < track.last]
            image = picture.rgb() if here else None
            for t in here:
                place = k - kept[t].first
                mouth = crops.as_array(mouths[t].cut(image, place).convert("L"))
                writers[t].add(mouth)
                middle = mouth[_MIDDLE, _MIDDLE].astype(np.int16)
                if before[t] is not None:
                    moved[t] += float(np.abs(middle - before[t]).mean())
                before[t] = middle
                if place in wanted[t]:
                    portraits[t][place] = crops.as_array(faces[t].cut(image, place))
                if k + 1 == kept[t].last:
                    end(t)
        for t in set(range(len(kept))) - ended:  # the film was longer when it was looked at
            end(t)
    rows = []
    for t, (own, track) in enumerate(zip(names, kept)):
        start = track.first * _SAMPLES
        beside = (o for o in in_view if o is not track)
        others = sum(o.first < track.last and track.first < o.last for o in beside)
        rows.append(
            {
                "id": own,
                "audio": f"audio/{name}.flac",
                "mouth": f"mouths/{own}.h5",
                "face": f"faces/{own}.png",
                "portraits": shown[t],
                "offset": start / SAMPLE_RATE_HZ,
                "duration": (min(track.last * _SAMPLES, samples) - start) / SAMPLE_RATE_HZ,
                "frames": len(track),
                "others": others,
                "person": track.person or "",
                "found": round(_share_seen(track, every), 3),
                "held": int(seen.held[track.first : track.last].sum()),
                "motion": round(moved[t] / max(1, len(track) - 1), 2),
                "face_px": round(float(np.median(track.boxes[:, 2]))),
            }
        )
    return rows


def _portrait_places(
    track: tracking.Track, found: Mapping[int, list[tuple[finding.Face, float]]], count: int
) -> set[int]:
    """The sharpest sight of each of `count` equal parts of a track, as places in it; of a part
    without a sight its middle."""
    edges = np.linspace(0, len(track), count + 1)
    best: dict[int, tuple[float, int]] = collections.defaultdict(lambda: (-1.0, -1))
    for number, faces in found.items():
        place = number - track.first
        if not 0 <= place < len(track) or not track.seen[place]:
            continue
        part = min(count - 1, int(np.searchsorted(edges, place, side="right")) - 1)
        own = max(faces, key=lambda pair: finding.overlap(pair[0].box, tuple(track.boxes[place])))
        best[part] = max(best[part], (own[1], -place))
    middles = ((edges[:-1] + edges[1:]) / 2).astype(int)
    return {-best[part][1] if part in best else int(middles[part]) for part in range(count)}
