"""The embedded corpus with its faces: for each utterance a mouth film, for each voice portraits.

`TalkingFaces("train")` draws what the cache does not hold yet, beside the corpus that
`EmbeddedCorpus` reads and without a change to it. In a folder named by the corpus's key and the
version of the drawings each split has

    mouths-*.npz     by utterance id: uint8[n, 96, 96], 25 a second, grey
    portraits-*.npz  by speaker: uint8[5, 224, 224, 3], RGB
    faces.jsonl      a line a speaker: what the voice has, and every factor of the face (faces.py)

Frame k shows the middle of the samples from 640 k to 640 (k + 1) at 16 kHz; the last frame may
stand for fewer. `draw(corpus, mouths=False)` draws the portraits alone, in a folder of their own,
which `Portraits` reads. Drawings, not people: results on them have to be labelled so.
"""

import dataclasses
import functools
import json
import os
import pathlib
import re
import shutil
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from common.data import embedded
from common.data.embedded import faces, visemes, voices

# Part of the folder's name: raise it whenever the same corpus gives other pictures.
_DRAW_VERSION = 1
_VOICES_PER_JOB = 16
_BYTES_PER_SECOND, _BYTES_PER_SPEAKER = 50_000, 80_000  # measured: 39,000 and 55,000
_LAST = "faces.json"
_MOUTH, _PORTRAIT = (96, 96), (224, 224, 3)  # pixels


def voice_factors(voice: voices.Voice, data: pathlib.Path) -> tuple[float, float]:
    """Mean fundamental frequency (Hz) and the mean of formants 1 and 2 (%, the plain voice: 100).

    As the voice asks for them in its variant's file in eSpeak NG's folder `data`; what is heard
    also depends on the accent and the sentence.
    """
    names = (voice.variant.replace("_", " "), voice.variant)
    paths = [data / "voices" / "!v" / name for name in names]
    text = next((path.read_text(errors="replace") for path in paths if path.is_file()), None)
    if text is None:
        raise RuntimeError(f"eSpeak NG's data in {data} have no voice variant {voice.variant}")
    found = re.search(r"^\s*pitch\s+(\d+)\s+(\d+)", text, re.MULTILINE)
    low, high = map(int, found.groups()) if found else (82, 118)
    formants = dict(re.findall(r"^\s*formant\s+([12])\s+(\d+)", text, re.MULTILINE))
    percent = (float(formants.get("1", 100)) + float(formants.get("2", 100))) / 2
    return round((low + high) / 2 * 2 ** ((voice.pitch - 50) / 50), 2), percent


def face_of(speaker: str, data: pathlib.Path) -> faces.Face:
    """The face of a voice, given its id."""
    return faces.make_face(speaker, *voice_factors(voices.parse_voice(speaker), data))


def write_mouths(path: pathlib.Path, films: Sequence[dict], data: pathlib.Path) -> list[dict]:
    """Draws the mouths of utterances into one file; returns how many frames each has."""
    drawn = {}
    for film in films:
        face = face_of(film["speaker"], data)
        milliseconds = film["samples"] * 1000 / embedded.SAMPLE_RATE_HZ
        phones = [(float(ms), phone) for ms, phone in film["phones"]]
        track = visemes.mouth_track(phones, milliseconds, strength=face.strength)
        drawn[film["id"]] = faces.draw_mouths(face, track, film["id"])
    np.savez_compressed(path, **drawn)
    return [{"frames": len(mouths)} for mouths in drawn.values()]


def write_portraits(path: pathlib.Path, films: Sequence[dict], data: pathlib.Path) -> list[dict]:
    """Draws the portraits of voices into one file; returns the lines of `faces.jsonl`."""
    lines, drawn = [], {}
    for film in films:
        speaker = film["speaker"]
        pitch_hz, percent = voice_factors(voices.parse_voice(speaker), data)
        face = faces.make_face(speaker, pitch_hz, percent)
        drawn[speaker] = faces.draw_portraits(face, speaker)
        lines.append(
            {
                "speaker": speaker,
                "pitch_hz": pitch_hz,
                "formants_percent": percent,
                "factors": face.factors(),
            }
        )
    np.savez_compressed(path, **drawn)
    return lines


def _check_space(folder: pathlib.Path, seconds: float, num_speakers: int) -> None:
    needed = seconds * _BYTES_PER_SECOND + num_speakers * _BYTES_PER_SPEAKER
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise embedded.RenderError(
            f"the faces of {seconds / 3600:.3g} hours of speech need {needed / 2**30:.1f} GiB and"
            f" {folder.parent} has {free / 2**30:.1f} GiB free; ask for fewer hours or set"
            " SPEECH_CACHE elsewhere"
        )


def _read_records(corpus: pathlib.Path, split: str) -> list[dict]:
    with (corpus / split / "records.jsonl").open() as lines:
        return [json.loads(line) for line in lines]


def _mouth_jobs(folder: pathlib.Path, records: Sequence[dict]) -> list[dict]:
    """Jobs that draw the mouths of a split's utterances, a file for each of its shards."""
    shards: dict[int, list[dict]] = {}
    for record in records:
        film = {key: record[key] for key in ("id", "speaker", "samples", "phones")}
        shards.setdefault(record["shard"], []).append(film)
    paths = {shard: folder / f"mouths-{shard:05d}.npz" for shard in shards}
    return [{"path": str(paths[n].absolute()), "films": films} for n, films in shards.items()]


def _draw_into(
    folder: pathlib.Path, corpus: pathlib.Path, num_workers: int, progress: bool, *, mouths: bool
) -> None:
    """Draws the portraits, and with `mouths` the films, of a rendered corpus into an empty folder,
    `faces.json` last."""
    jobs, speakers, seconds = [], {}, 0.0
    for split in embedded.SPLITS:
        (folder / split).mkdir()
        records = _read_records(corpus, split)
        speakers[split] = list(dict.fromkeys(record["speaker"] for record in records))
        if mouths:
            jobs += _mouth_jobs(folder / split, records)
            seconds += sum(record["samples"] for record in records) / embedded.SAMPLE_RATE_HZ
    portraits = []
    _check_space(folder, seconds, sum(map(len, speakers.values())))
    for split, some in speakers.items():
        for start in range(0, len(some), _VOICES_PER_JOB):
            path = folder / split / f"portraits-{start // _VOICES_PER_JOB:05d}.npz"
            films = [{"speaker": speaker} for speaker in some[start : start + _VOICES_PER_JOB]]
            portraits.append((split, start // _VOICES_PER_JOB))
            jobs.append({"path": str(path.absolute()), "films": films, "portraits": True})
    answers = embedded.run_jobs(
        jobs, min(num_workers, len(jobs)), progress, title="drawing faces", unit="films"
    )
    drawn: dict[str, list[dict]] = {split: [] for split in embedded.SPLITS}
    for (split, shard), lines in zip(portraits, answers[len(jobs) - len(portraits) :]):
        drawn[split] += [line | {"shard": shard} for line in lines]
    for split, lines in drawn.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / split / "faces.jsonl").write_text(text)
    about = {
        "pictures": "drawn, no people",
        "version": _DRAW_VERSION,
        "corpus": corpus.name,
        "frames_per_second": visemes.FRAMES_PER_SECOND,
        "follow_the_voice": list(faces.VOICED),
        "do_not": list(faces.FREE),
    }
    (folder / _LAST).write_text(json.dumps(about, indent=2) + "\n")


def draw(
    corpus: pathlib.Path,
    *,
    mouths: bool = True,
    num_workers: int | None = None,
    progress: bool = True,
) -> pathlib.Path:
    """Draws all faces of a corpus that `embedded.render` made, beside it, unless they are there.

    Returns their folder, which appears whole or not at all. Without `mouths`, which take most of
    the time, it is another one, of portraits.

    Raises:
      RenderError: they cannot be written.
    """
    workers = num_workers or os.cpu_count() or 1
    kind = "faces" if mouths else "portraits"
    final = corpus.with_name(f"{corpus.name}-{kind}{_DRAW_VERSION}")

    def write(folder: pathlib.Path) -> None:
        _draw_into(folder, corpus, workers, progress, mouths=mouths)

    return embedded.write_once(final, _LAST, write, progress)


@dataclasses.dataclass(frozen=True)
class Stored:
    """Pictures of one shape in an NPZ file, which `np.asarray` reads, in any number of threads.

    Raises OSError for a file that is damaged.
    """

    path: pathlib.Path
    key: str
    shape: tuple[int, ...]

    def __fspath__(self) -> str:
        return str(self.path)

    def __getitem__(self, key: Any) -> UInt8[np.ndarray, "..."]:
        return np.asarray(self)[key]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> UInt8[np.ndarray, "..."]:
        del copy  # it always is one
        try:
            with zipfile.ZipFile(self.path) as arrays:
                stored = arrays.read(f"{self.key}.npy")
            # NumPy reads the header with `ast`, which fails in threads (Python 3.11, gh-106905).
            header = 10 + int.from_bytes(stored[8:10], "little")
            pictures = np.frombuffer(stored, np.uint8, offset=header).reshape(-1, *self.shape)
            return pictures.astype(dtype or np.uint8, copy=False)
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError) as error:
            raise OSError(
                f"{self.path} is damaged: delete {self.path.parent.parent} to draw it again"
            ) from error


@dataclasses.dataclass(frozen=True)
class Portraits:
    """The portraits of the voices of one split, by speaker: a split's part of what `draw` made."""

    folder: pathlib.Path

    @property
    def fingerprint(self) -> str:
        """Changes when the pictures do."""
        return f"{self.folder.parent.name}/{self.folder.name}"

    @functools.cached_property
    def lines(self) -> dict[str, dict]:
        """By speaker: `pitch_hz` and `formants_percent` of the voice, the face's `factors`, and
        where its pictures are."""
        with (self.folder / "faces.jsonl").open() as lines:
            return {line["speaker"]: line for line in map(json.loads, lines)}

    def stored(self, speaker: str) -> Stored:
        """Pictures of a speaker where they lie; KeyError for one who is not in this split."""
        shard = self.lines[speaker]["shard"]
        return Stored(self.folder / f"portraits-{shard:05d}.npz", speaker, _PORTRAIT)

    def __getitem__(self, speaker: str) -> UInt8[np.ndarray, "k 224 224 3"]:
        """Pictures of a speaker."""
        return np.asarray(self.stored(speaker))


class TalkingFaces:
    """One split of the embedded corpus with its faces, a random-access source of records.

    Records are those of `EmbeddedCorpus` and have besides `video`, the mouth (uint8[n, 96, 96],
    frame k at samples 640 k to 640 (k + 1)), `face`, portraits of the speaker (uint8[5, 224, 224,
    3]), both `Stored`, and `factors`, of the face by name (`faces.VOICED` follow the voice,
    `faces.FREE` do not).
    It pickles as two paths. The constructor renders and draws what is not in the cache yet.
    """

    def __init__(
        self,
        split: str,
        settings: embedded.CorpusSettings | None = None,
        cache: pathlib.Path | None = None,
        *,
        num_workers: int | None = None,
        progress: bool = True,
    ) -> None:
        self.speech = embedded.EmbeddedCorpus(
            split, settings, cache, num_workers=num_workers, progress=progress
        )
        corpus = self.speech.folder.parent
        self.folder = draw(corpus, num_workers=num_workers, progress=progress) / split

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"the talking faces of {self.speech.name}"

    @property
    def fingerprint(self) -> str:
        """Changes when the samples or the pictures do."""
        return f"{self.folder.parent.name}/{self.folder.name}"

    def __getstate__(self) -> dict:
        return {"speech": self.speech, "folder": self.folder}

    @functools.cached_property
    def _portraits(self) -> Portraits:
        return Portraits(self.folder)

    @property
    def speakers(self) -> dict[str, dict]:
        """By speaker: `pitch_hz` and `formants_percent` of the voice, and the face's `factors`."""
        return {
            speaker: {key: line[key] for key in ("pitch_hz", "formants_percent", "factors")}
            for speaker, line in self._portraits.lines.items()
        }

    def portraits(self, speaker: str) -> Stored:
        """Pictures of a speaker; KeyError for one who is not in this split."""
        return self._portraits.stored(speaker)

    def mouths(self, index: int) -> Stored:
        """The mouth of an utterance."""
        record = self.speech.entry(index)
        return Stored(self.folder / f"mouths-{record['shard']:05d}.npz", record["id"], _MOUTH)

    def __len__(self) -> int:
        return len(self.speech)

    def __getitem__(self, index: int) -> dict:
        record = self.speech[index]
        speaker = record["speaker"]
        return record | {
            "video": self.mouths(index),
            "face": self.portraits(speaker),
            "factors": self._portraits.lines[speaker]["factors"],
        }
