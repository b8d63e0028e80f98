"""From `config.data` to the usable records of a split, and to what is drawn beside them."""

import dataclasses
import functools
import itertools
import logging
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from common import cache, errors
from common.audio import augment
from common.data import (
    clips,
    embedded,
    examples,
    indexing,
    kaldi,
    librispeech,
    manifest,
    prepared_films,
    records,
    stored_faces,
    tfds,
    voxceleb,
    voxceleb_films,
)
from common.data.embedded import talking

log = logging.getLogger(__name__)

# Settings that name parts of the data; the last two are of `separation` and `generation`.
NAMES = ("data.train", "data.eval", "data.test", "data.lists", "data.pool")

EMBEDDED: Mapping[str, Callable[[str, embedded.CorpusSettings], records.Source]] = {
    "embedded": embedded.EmbeddedCorpus,
    "embedded_faces": talking.TalkingFaces,  # the same recordings with what is seen of them
}
FILMED = ("films", "voxceleb_films")  # whose pictures an index looks at
_WHOLE_SECONDS = 300  # an evaluated utterance at most: longer ones are recordings to be cut


def default_config() -> ConfigDict:
    """`config.data`: what every task needs to know of its recordings."""
    return ConfigDict(
        {
            # embedded, librispeech (tree), manifest (tsv, csv, json), folder (of recordings, those
            # of each speaker in a folder), tfds, kaldi, voxceleb; with mouths and portraits:
            # embedded_faces, films (that separation.prepare_video prepared), voxceleb_films
            "kind": "embedded",
            # Tree, prepared tfds folder, manifest files with commas between, or the folder that
            # holds the manifests, the Kaldi data folders or the subsets of VoxCeleb; ~ is expanded.
            "root": "",
            # Where relative paths start. manifest: by default its own folder; lists of VoxCeleb:
            # folders below root with commas between, by default root.
            "audio_root": "",
            # Subsets of a tree, values of `split_column` of a manifest ("." is all), manifests of a
            # folder, splits of a data set, folders of recordings, Kaldi data folders, or
            # subsets and lists of VoxCeleb (see common/data/voxceleb.py).
            # Several on a command line: with commas between; none in `eval`: nothing is evaluated.
            "train": ("train",),
            "eval": ("dev",),
            "test": (),  # --mode=evaluate measures these beside those of `eval`
            "split_column": "split",
            # films: also people beside whom others are in view, though the sound may be theirs
            "several_in_view": False,
            # embedded: speech to render, and by how many voices
            "hours": 2.0,
            "eval_hours": 0.15,
            "voices": 320,
            "eval_voices": 40,
            "sample_rate_hz": 16000,
            "channel": "mean",  # or the number of a channel, as text
            "min_seconds": 0.1,
            "max_seconds": 30.0,
            # Recordings to evaluate without text are kept: what is recognised there is inserted.
            "allow_empty_text": False,
            "max_bad_share": 0.05,  # of rejected recordings; more stops the run
            "num_workers": 0,  # processes; 0 decodes in threads of the main one
        }
    )


def default_augment() -> ConfigDict:
    """The part of `config.augment` that `companions` reads."""
    return ConfigDict(
        {
            # Folders of audio files, searched in depth, or manifests (relative paths as those of
            # the data); empty: none. Mixed into the waveform.
            "noise": {"root": "", "probability": 0.5, "snr_db": (5.0, 25.0)},
            "music": {"root": "", "probability": 0.5, "snr_db": (5.0, 15.0)},
            # Speech of several people at once; how many, at least and at most.
            "babble": {"root": "", "probability": 0.5, "snr_db": (13.0, 20.0), "voices": (3, 7)},
            # Made, not read: steady noise between white and red. A probability of 0: none.
            "hiss": {"probability": 0.0, "snr_db": (10.0, 40.0)},
            # Recorded rooms, or made ones: their least and most reverberation time in seconds.
            "rir": {"root": "", "t60_seconds": (), "probability": 0.5, "max_seconds": 1.0},
        }
    )


@dataclasses.dataclass(frozen=True)
class Split:
    """The usable records of one named part of the data."""

    name: str
    source: records.Source
    index: records.Index

    @functools.cached_property
    def identity(self) -> str:
        """Changes with the usable records."""
        return examples.recordings(self.source, self.index.positions)

    @functools.cached_property
    def written(self) -> records.RecordList:
        """The usable records without their audio, read once: some sources cannot give them
        without it. What one does not have is "": id, text, speaker, gender, and path, the audio as
        a manifest writes it."""
        rows = (self.source[int(position)] for position in self.index.positions)
        names = ("text", "speaker", "gender", "path")
        short = ({"id": row["id"], **{n: row.get(n) or "" for n in names}} for row in rows)
        return records.RecordList(self.name, short)

    def written_at(self, position: int) -> records.Record:
        """What is written of the record at a position of the source."""
        return self.written[int(np.searchsorted(self.index.positions, position))]

    @property
    def texts(self) -> list[str]:
        """Transcripts of the usable records, as they stand in the source."""
        return self.written.column("text")

    @property
    def ids(self) -> list[str]:
        """Ids of the usable records."""
        return self.written.column("id")

    @property
    def speakers(self) -> list[str]:
        """Speakers of the usable records, empty where a record names none."""
        return self.written.column("speaker")

    @property
    def paths(self) -> list[str]:
        """Audio paths of the usable records as a manifest writes them, empty in other sources."""
        return self.written.column("path")


def speakers_of(split: Split) -> list[str]:
    """The speaker of every usable record; UserError naming the first record without one."""
    for name, speaker in zip(split.ids, split.speakers, strict=True):
        if not speaker:
            raise errors.UserError(
                f"{split.source.name}: record {name!r} names no speaker. Every recording needs "
                "one: add a column `speaker` to the manifest."
            )
    return split.speakers


def open_source(
    data: Any, names: Sequence[str], *, hop_ms: float | int | None = None, vad: bool = False
) -> records.Source:
    """The source that `config.data` describes, restricted to the subsets `names`.

    With `hop_ms` it is to give features of that frame shift instead of recordings, with `vad`
    beside them which frames hold speech.
    """
    if data.kind == "kaldi":
        rate = data.sample_rate_hz
        return kaldi.read_folders(
            data.root, list(names), hop_ms=hop_ms, vad=vad, sample_rate_hz=rate
        )
    if hop_ms is not None:
        raise errors.UserError(
            f"config.features.kind=given needs data with features: config.data.kind=kaldi, not "
            f"{data.kind!r}."
        )
    if data.kind in EMBEDDED:
        settings = embedded.CorpusSettings(
            hours=data.hours,
            eval_hours=data.eval_hours,
            train_voices=data.voices,
            eval_voices=data.eval_voices,
        )
        if len(names) != 1:
            raise errors.UserError(
                f"config.data names the splits {tuple(names)} together; the embedded corpus gives "
                "one at a time: train, dev or test."
            )
        return EMBEDDED[data.kind](names[0], settings)
    if not data.root:
        raise errors.UserError(
            f"config.data.root is empty: set --config.data.root=... to the data of kind "
            f"{data.kind!r} (see the docstring of the config)."
        )
    root = pathlib.Path(data.root).expanduser()
    if data.kind == "librispeech":
        return librispeech.read_tree(root, list(names))
    if data.kind == "manifest":
        where, start = _rows_of(data, names), data.audio_root or None
        paths = data.root.split(",")
        if root.is_dir():
            where, paths = {}, [manifest.find(root, name) for name in names]
        parts, empty = [], None
        for path in paths:
            try:
                parts.append(manifest.read_manifest(str(path).strip(), root=start, where=where))
            except manifest.NoRows as error:  # Another one may have some.
                empty = error
        if not parts:
            raise empty
        rows = itertools.chain.from_iterable(parts)
        return records.RecordList(", ".join(part.name for part in parts), rows)
    if data.kind == "folder":
        return clips.read_speakers(root, list(names))
    if data.kind == "voxceleb":
        return voxceleb.read_tree(root, list(names), audio_root=data.audio_root)
    if data.kind == "films":
        return _films(root, data, names)
    if data.kind == "voxceleb_films":
        if len(names) != 1:
            raise errors.UserError(
                f"config.data names the splits {tuple(names)} together; voxceleb_films gives one "
                "at a time."
            )
        listed = root / f"{names[0]}.h5"
        return voxceleb_films.VoxCelebFilms(
            root, names[0], listed=listed if listed.is_file() else None
        )
    if data.kind == "tfds":
        return tfds.TfdsSource(root, "+".join(names))
    raise errors.UserError(
        f"config.data.kind={data.kind!r} is unknown; choose {', '.join(EMBEDDED)}, "
        "librispeech, manifest, folder, tfds, kaldi, voxceleb, films or voxceleb_films."
    )


def _films(root: pathlib.Path, data: Any, names: Sequence[str]) -> prepared_films.PreparedFilms:
    alone = not data.several_in_view
    source = prepared_films.PreparedFilms(root, _rows_of(data, names), alone=alone)
    if source.together:
        log.warning(
            "%s: %d of %d people are in view together with others; nobody knows whose voice is "
            "heard. %s",
            *(source.name, source.together, len(source) + alone * source.together),
            "They are left out (config.data.several_in_view=True takes them)."
            if alone
            else "Each of them is taken for the one who speaks (config.data.several_in_view=True).",
        )
    return source


def _rows_of(data: Any, names: Sequence[str]) -> dict[str, list[str]]:
    """Which rows of a manifest these parts are."""
    return {} if list(names) == ["."] else {data.split_column: list(names)}


def separate_names(config: ConfigDict) -> ConfigDict:
    """The config with one name an entry in the settings of `NAMES`.

    A command line gives several as one text with commas between. Raises UserError where there is
    nothing to train on.
    """
    config = config.copy_and_resolve_references()
    for key in {name.removeprefix("data.") for name in NAMES} & set(config.data):
        names = [part.strip() for name in config.data[key] for part in str(name).split(",")]
        config.data[key] = tuple(name for name in names if name)
    if not config.data.get("train", True):
        raise errors.UserError("config.data.train names no part of the data: give one at least.")
    return config


def open_split(
    config: Any,
    names: Sequence[str],
    workdir: pathlib.Path,
    *,
    require_text: bool,
    whole: bool = False,
) -> Split:
    """Opens and validates a part of the data; what is unusable goes to DIR/rejected.tsv.

    With `whole` nothing is left out for its length: instead of `max_seconds` there is a limit
    against files that are no utterances, and one beyond it raises records.DataError.
    """
    data = config.data
    name = "+".join(names)
    features = config.get("features", {})  # a task of waveforms has no such section
    given = features.get("kind") == "given"
    vad = given and data.get("vad") == "kaldi"
    source = open_source(data, names, hop_ms=features.hop_ms if given else None, vad=vad)
    index = indexing.build_index(
        source,
        cache=cache.folder() / "index",
        rejected_tsv=workdir / "rejected.tsv",
        sample_rate_hz=data.sample_rate_hz,
        channel=channel(data),
        min_seconds=data.min_seconds,
        max_seconds=math.inf if whole else data.max_seconds,
        require_text=require_text,
        max_bad_share=data.max_bad_share,
        num_workers=os.cpu_count() or 1,
        progress=jax.process_index() == 0,
        feature_size=features.num_mels if given else None,
        **({"inspect": stored_faces.inspect} if data.kind in FILMED else {}),
    )
    if whole and len(index) and index.seconds.max() > _WHOLE_SECONDS:
        longest = int(index.seconds.argmax())
        raise records.DataError(
            f"{name}: {source[int(index.positions[longest])]['id']} lasts "
            f"{index.seconds[longest]:.0f} s; evaluation leaves nothing out and takes at most "
            f"{_WHOLE_SECONDS} s. Cut it into utterances or take it off the list."
        )
    hours = float(index.seconds.sum()) / 3600
    log.info("%s: %d recordings, %.2f hours.", name, len(index), hours)
    return Split(name, source, index)


class Splits(Mapping[str, Split]):
    """The parts of a config's data by name, each opened and validated when it is first asked for.

    A name may be several together: "test+enroll". With `whole`, `max_seconds` is for training only.
    """

    def __init__(
        self, config: Any, workdir: pathlib.Path, *, require_text: bool, whole: bool = False
    ) -> None:
        self._whole = whole
        self._config, self._workdir, self._require_text = config, workdir, require_text
        self._open: dict[str, Split] = {}

    def __getitem__(self, name: str) -> Split:
        if name not in self._open:
            data = self._config.data
            evaluated = name != "+".join(data.train)
            empty = data.allow_empty_text and evaluated
            self._open[name] = open_split(
                *(self._config, name.split("+"), self._workdir),
                require_text=self._require_text and not empty,
                whole=self._whole and evaluated,
            )
        return self._open[name]

    def __iter__(self) -> Iterator[str]:
        data = self._config.data
        return iter(dict.fromkeys(("+".join(data.train), *data.eval, *data.test)))

    def __len__(self) -> int:
        return len(list(iter(self)))


class SplitTask:
    """The data of tasks that take them from `Splits`.

    They add `config`, `parts` and `eval_batches`.
    """

    config: Any
    parts: Mapping[str, Split]
    eval_batches: Callable[[str], Any]  # of a split by its name

    @property
    def train_split(self) -> Split:
        return self.parts["+".join(self.config.data.train)]

    def names(self, index: Int[np.ndarray, "n"]) -> list[str]:
        """The ids of the training records at these places of the source."""
        return [self.train_split.source[int(place)]["id"] for place in index]

    def about(self, split: str, index: int) -> records.Record:
        """What is written of the record at this place of a split's source."""
        return self.parts[split].written_at(index)

    @functools.cached_property
    def _made(self) -> dict[str, Any]:
        return {}  # evaluation batches by split, filled when they are asked for

    def eval_data(self, *, test: bool = False) -> dict[str, Any]:
        """Evaluation batches of the splits of `data.eval`, with `test` of `data.test` too."""
        names, made = self.eval_names(test=test), self._made
        for name in names:
            if name not in made:
                made[name] = self.eval_batches(name)
        return {name: made[name] for name in names}

    def eval_names(self, *, test: bool) -> tuple[str, ...]:
        """What is evaluated, in its order."""
        return (*self.config.data.eval, *(self.config.data.test if test else ()))


def companions(config: Any, workdir: pathlib.Path) -> dict[str, examples.Companion]:
    """What `config.augment` mixes into recordings, validated like any of them."""
    rate, found = config.data.sample_rate_hz, {}
    for name in ("rir", *augment.ADDED):
        settings = config.augment[name]
        if name == "hiss":
            if settings.probability > 0:
                found[name] = examples.Companion(clips.Hiss(), settings.probability)
            continue
        length = round(settings.max_seconds * rate) if name == "rir" else None
        if name == "rir" and len(settings.t60_seconds):
            if settings.root:
                raise errors.UserError(
                    "config.augment.rir: give a root with recorded rooms, or t60_seconds of made "
                    "ones, not both."
                )
            made = clips.MadeRooms(tuple(settings.t60_seconds), rate)
            found[name] = examples.Companion(made, settings.probability, length)
        if not settings.root:
            continue
        if pathlib.Path(settings.root).expanduser().is_file():
            start = config.data.audio_root if config.data.kind == "manifest" else ""
            source = manifest.read_manifest(settings.root, root=start or None)
        else:
            source = clips.read_folder(settings.root)
        index = indexing.build_index(
            source,
            cache=cache.folder() / "index",
            rejected_tsv=workdir / "rejected.tsv",
            sample_rate_hz=rate,
            # Of a room response the first channel is read: see `Clips`.
            channel=0 if name == "rir" else "mean",
            min_seconds=0.01,
            max_seconds=1e9,
            require_text=False,
            max_bad_share=config.data.max_bad_share,
            num_workers=os.cpu_count() or 1,
            progress=jax.process_index() == 0,
        )
        voices = tuple(settings.voices) if name == "babble" else (1, 1)
        drawn = clips.Clips(source, index, rate, crop=name != "rir", voices=voices)
        found[name] = examples.Companion(drawn, settings.probability, length)
    return found


def channel(data: Any) -> str | int:
    """`config.data.channel`: "mean" or a channel number. Raises UserError for anything else."""
    if str(data.channel).isdecimal():
        return int(data.channel)
    if data.channel != "mean":
        raise errors.UserError(
            f"config.data.channel={data.channel!r}: give mean, or the number of a channel from 0."
        )
    return data.channel
