"""Mixtures of fixed lists, as the batches of an evaluation take them."""

import dataclasses
import functools
import hashlib
import logging
import math
import os
import pathlib
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from common import cache
from common.audio import io
from common.data import indexing, prepared_films, records, splits, stored_faces
from separation import films as films_lib
from separation import lists, sight, signals

log = logging.getLogger(__name__)

SHORTEST_SECONDS = 0.1
REST_SECONDS = 2.0  # of a recording that is its own enrolment, less where it is short
_REST_SHARE = 0.4


@dataclasses.dataclass(frozen=True)
class ListSplit(splits.Split):
    """A list with its recordings, of which `place` gives the position, and how they are read.

    `films`: what is seen beside them. Where they are not known `by_voice`, enrolments have no use,
    and no mixture is cut for one.
    """

    fixed: lists.FixedList
    place: Mapping[str, int]
    channel: str | int
    num_enrolment: int
    films: films_lib.Films | None = None
    by_voice: bool = True

    @property
    def genders(self) -> tuple[str, ...]:
        """Of the voices of each mixture ("fm"), "" where the list does not tell."""
        return tuple(entry.genders for entry in self.fixed.entries)

    @property
    def note(self) -> str:
        """What is not as published."""
        cut = int((self._cuts < self._published).sum())
        own = sum(not entry.enrolment for entry in self.fixed.entries)
        if not own or not self.by_voice:
            return ""
        share = 100 * self._cuts.sum() / self._published.sum()
        return (
            f"{own} of {len(self.fixed.entries)} targets have no other recording in the list: the "
            f"enrolment is of the end of the same one, for which {cut} mixtures are cut to what "
            f"comes before (the list is {share:.0f} % as long)"
        )

    @functools.cached_property
    def _published(self) -> Int[np.ndarray, "m"]:
        """Samples of each mixture of the list."""
        found = []
        for entry in self.fixed.entries:
            if entry.mixture:
                found.append(self._length(entry.mixture))
            else:
                lengths = [self._length(voice.path) for voice in entry.voices if voice.path]
                found.append(lengths[0] if entry.whole_target else min(lengths))
        return np.array(found, np.int64)

    @functools.cached_property
    def _cuts(self) -> Int[np.ndarray, "m"]:
        """Samples of each mixture that are evaluated."""
        found = self._published.copy()
        for i, entry in enumerate(self.fixed.entries):
            if not entry.enrolment and self.by_voice:
                whole = self._length(entry.voices[0].path)
                rest = min(round(REST_SECONDS * self.index.rate_hz), int(_REST_SHARE * whole))
                found[i] = min(found[i], whole - rest)
        return found

    def check_lengths(self) -> None:
        """Raises records.DataError for a mixture or an enrolment that is too short for either."""
        for entry, count in zip(self.fixed.entries, self._cuts, strict=True):
            known = entry.enrolment or entry.voices[0].path
            rest = self._length(known) - (0 if entry.enrolment or not self.by_voice else count)
            for what, length in (("mixture", count), ("enrolment", rest)):
                if length < SHORTEST_SECONDS * self.index.rate_hz:
                    raise records.DataError(
                        f"{self.fixed.path}, line {entry.line}: its {what} has "
                        f"{length / self.index.rate_hz:.3f} s, less than {SHORTEST_SECONDS:g} s. "
                        "Take the line off the list."
                    )

    def _length(self, path: str) -> int:
        return int(self.index.lengths[self.place[path]])

    # What follows is `examples.Examples`.

    @property
    def identity(self) -> Mapping[str, str]:
        """Which mixtures, and what of them."""
        entries = hashlib.sha256(repr(self.fixed.entries).encode()).hexdigest()
        lengths = hashlib.sha256(self._cuts.tobytes()).hexdigest()
        how = repr((self.index.rate_hz, self.channel, self.num_enrolment))
        seen = {"films": repr(self.films.pictures)} if self.films else {}
        return {"recordings": entries, "lengths": lengths, "settings": how, **seen}

    @property
    def lengths(self) -> Int[np.ndarray, "m"]:
        """Samples of each mixture."""
        return self._cuts

    @property
    def num_samples(self) -> int:
        """Those of the longest."""
        return int(self._cuts.max())

    @property
    def num_voices(self) -> int:
        """Of a mixture, at most."""
        return 1 + self._most

    def __len__(self) -> int:
        return len(self.fixed.entries)

    def draw(
        self, i: int, rng: np.random.Generator | None, lengths: Mapping[str, int]
    ) -> dict[str, Any]:
        """Mixture i, as `mixing.Mixtures` gives it; "index" is i."""
        del rng, lengths
        entry, count = self.fixed.entries[i], int(self._cuts[i])
        most, published = self._most, int(self._published[i])
        sources = np.zeros((published, 1 + most + self._noisy), np.float32)
        for k, voice in enumerate(entry.voices):
            if voice.path:
                audio = self._load(voice.path)
                if voice.rms is not None:
                    audio = _at_rms(audio, voice.rms)
                sources[: len(audio), k] = audio[:published]
        if entry.mixture:
            mixture = self._load(entry.mixture)
            sources[:, -1] = mixture - sources.sum(1)
        elif entry.noise:
            noise = np.resize(self._load(entry.noise), published)
            sources[:, -1] = _at_rms(noise, entry.noise_rms)
        sources = sources[:count]
        target = entry.voices[0].path
        rest = sources[:, 1:].sum(1)
        ratio = signals.power(sources[:, 0]) / signals.power(rest)
        heard = np.full(most, -1, np.int32)
        heard[: len(entry.voices) - 1] = [self.place[v.path] for v in entry.voices[1:]]
        known = self._load(entry.enrolment or target)
        if not entry.enrolment and self.by_voice:
            known = known[count:]
        named = entry.enrolment or target
        seen = self._seen(entry, count) if self.films else {}
        return {
            "sources": sources,
            "enrolment": known[: self.num_enrolment],
            "present": np.bool_(bool(target)),
            "noisy": np.bool_(entry.noisy),
            "snr_db": np.float32(signals.decibels(ratio)),
            "index": np.int32(i),
            "target_index": np.int32(self.place[target or named]),
            "enrolment_index": np.int32(self.place[named]),
            "interferer_index": heard,
            "id": entry.id,
            **seen,
        }

    def _seen(self, entry: lists.Entry, count: int) -> dict[str, np.ndarray]:
        """What is shown of a mixture of films, as `mixing.Mixtures` gives it."""
        shown = {"": entry.voices[0].path, "other_": entry.voices[1].path}
        if strange := self._strange(entry):
            shown["strange_"] = strange
        found = {}
        for whose, path in shown.items():
            mouth, there = self.films.mouth(self.place[path], 0, count)
            found |= {f"{whose}mouth": mouth, f"{whose}mouth_seen": there}
            if whose != "strange_":
                face, shown_face = self.films.face(self.place[path], None)
                found |= {f"{whose}face": face, f"{whose}face_seen": shown_face}
        if not strange:
            found |= {"strange_mouth": mouth, "strange_mouth_seen": np.zeros_like(there)}
        return found

    def _strange(self, entry: lists.Entry) -> str:
        """A film of somebody who is not heard, or where all are, of another than the target."""
        of = {voice.path: voice.speaker for other in self.fixed.entries for voice in other.voices}
        here = [voice.speaker for voice in entry.voices]
        for heard in (here, here[:1]):
            if others := sorted(path for path, speaker in of.items() if speaker not in heard):
                key = f"{entry.id} {entry.voices[0].path}".encode()
                return others[zlib.crc32(key) % len(others)]
        return ""

    @functools.cached_property
    def _most(self) -> int:
        """Interferers of a mixture."""
        return max(1, max(len(entry.voices) for entry in self.fixed.entries) - 1)

    @functools.cached_property
    def _noisy(self) -> bool:
        return any(entry.mixture or entry.noise for entry in self.fixed.entries)

    def _load(self, path: str) -> Float[np.ndarray, "t"]:
        record = self.source[self.place[path]]
        return records.load_record(record, int(self.index.rate_hz), self.channel)


def _at_rms(audio: Float[np.ndarray, "t"], rms: float) -> Float[np.ndarray, "t"]:
    return audio * np.float32(rms / signals.power(audio) ** 0.5)


def open_list(name: str, path: pathlib.Path, config: Any, workdir: pathlib.Path) -> ListSplit:
    """The list `path`, called `name`, with its recordings validated; one of films for networks that
    see, and for those that are measured beside them by the sound of the same films.

    Raises records.DataError where a file of it is missing or cannot be used: nothing is left out.
    """
    data, sees, of_films = config.data, sight.wanted(config), lists.names_films(path)
    if sees and not of_films:
        raise records.DataError(
            f"{path}: this network sees (config.sight, config.model.kind), and the list is of "
            "recordings without films: give one with the columns video1, video2, s1_over_s2_db."
        )
    if of_films:
        folder = data.audio_root or (data.root if data.kind == "films" else "")
        if not folder:
            raise records.DataError(
                f"{path}: its films are those that separation.prepare_video prepared in a folder: "
                "set config.data.audio_root to it."
            )
        prepared = prepared_films.PreparedFilms(folder)
        fixed, found = lists.read_films(path, prepared)
        place = {film: i for i, film in enumerate(found)}
        source = _Some(str(path), prepared, tuple(found.values()))
        lines = {prepared[found[film]]["id"]: line for film, line in _lines(fixed).items()}
    else:
        root = data.audio_root or (data.root if data.kind == "librispeech" else "")
        fixed = lists.read(path, pathlib.Path(root).expanduser() if root else None)
        source, lines = _recordings(fixed), _lines(fixed)
        place = {source[i]["id"]: i for i in range(len(source))}
    index = indexing.build_index(
        source,
        cache=cache.folder() / "index",
        rejected_tsv=workdir / "rejected.tsv",
        sample_rate_hz=data.sample_rate_hz,
        channel=splits.channel(data),
        min_seconds=0.01,  # noise is repeated; how long mixtures are is looked at below
        max_seconds=math.inf,
        require_text=False,
        max_bad_share=1.0,
        num_workers=os.cpu_count() or 1,
        progress=jax.process_index() == 0,
        inspect=stored_faces.inspect if sees else None,
    )
    if index.rejected:
        first = min(index.rejected, key=lambda rejected: lines[rejected.id])
        raise records.DataError(
            f"{path}, line {lines[first.id]}: {first.path} cannot be used: {first.reason} "
            f"({len(index.rejected)} of {len(source)} files of the list are like that: see "
            f"{workdir / 'rejected.tsv'}). Nothing of a list is left out: repair the files, or "
            "take their lines off it."
        )
    _check_rates(fixed)
    listed = ListSplit(
        *(name, source, index, fixed, place, splits.channel(data)),
        round(data.enrolment_seconds * data.sample_rate_hz),
        sight.films_of(source, config) if sees else None,
        "voice" in sight.cues(config) or not of_films,
    )
    listed.check_lengths()
    log.info("%s: %d mixtures of %s.", name, len(listed), path)
    return listed


@dataclasses.dataclass(frozen=True)
class _Some:
    """Some records of a source."""

    name: str
    source: records.Source
    positions: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, position: int) -> records.Record:
        return self.source[self.positions[position]]


def _lines(fixed: lists.FixedList) -> dict[str, int]:
    """The files of a list, and the line of each that names it first."""
    found: dict[str, int] = {}
    for entry in fixed.entries:
        for path in entry.paths:
            found.setdefault(path, entry.line)
    return found


def _recordings(fixed: lists.FixedList) -> records.RecordList:
    """The files of a list."""
    speakers = {}
    for entry in fixed.entries:
        for voice in entry.voices:
            speakers.setdefault(voice.path, voice.speaker)
        if entry.enrolment:
            speakers.setdefault(entry.enrolment, entry.voices[0].speaker)

    def rows() -> Iterator[records.Record]:
        for path in _lines(fixed):
            named = {"speaker": speakers[path]} if path in speakers else {}
            yield {"id": path, "audio": str(fixed.resolve(path)), "path": path, **named}

    return records.RecordList(str(fixed.path), rows())


def _check_rates(fixed: lists.FixedList) -> None:
    """A file of a mixture and those of its sources have to have one sampling rate."""
    rate = functools.cache(lambda path: io.probe(fixed.resolve(path)).sample_rate_hz)
    for entry in fixed.entries:
        for voice in entry.voices if entry.mixture else ():
            if voice.path and rate(voice.path) != rate(entry.mixture):
                raise records.DataError(
                    f"{fixed.path}, line {entry.line}: {fixed.resolve(voice.path)} is at "
                    f"{rate(voice.path)} Hz, but its mixture at {rate(entry.mixture)} Hz: they do "
                    "not belong together. Take both from one folder of the data set."
                )
