"""Which data, faces, voices and networks go together, said before anything is opened.

README.md has the table; tests/generation/test_fitting.py tries every cell of it.
"""

import functools
from typing import Any

from ml_collections import ConfigDict

from common import errors, workdir
from common.data import splits
from generation import dividing, hearing, images, labelled, model, portraits

FACES = (*portraits.KINDS, *labelled.KINDS)
LISTENERS = (
    "voice",
    "matcher",
    "revoice",
)  # networks that hear log-mel frames, whatever config.voice.kind is

_COUNTS = (  # settings of which there has to be one at least
    *("discriminator_updates", "data.batch_rows", "data.eval_rows", "data.eval_turns"),
    *("model.width", "model.most", "model.discriminator_width", "model.discriminator_most"),
    *("model.noise", "model.embedding", "loss.r1_every", "samples.people", "samples.faces"),
    "features.num_mels",
)
_POSITIVE = (
    *("data.crop_seconds", "data.eval_seconds", "features.window_ms", "features.hop_ms"),
    "model.matcher.temperature",
)
_WEIGHTS = tuple(
    f"loss.{name}" for name in ("r1", "r2", "identity", "contrast", "began_gamma", "began_rate")
)


def completed(config: Any) -> Any:
    """The config with what `picture.size` and `picture.channels` of 0 stand for.

    That is what the name of `faces.root` says, or what pictures with classes have. Raises UserError
    where nothing says it.
    """
    picture, faces = config.picture, config.faces
    if picture.size and picture.channels:
        return config
    form = labelled.FORMS.get(faces.kind)
    if faces.kind == "folder":
        form = images.form_of(faces.root)
    if form is None:
        raise errors.UserError(
            f"config.picture.size={picture.size}, channels={picture.channels}: nothing says what 0 "
            "stands for. Name config.faces.root as images_bw_64x64 (grey) or images_c_64x64 "
            f"(colour), not {faces.root!r}, or give both settings, as --config.picture.size=64 "
            "--config.picture.channels=3."
        )
    found = ConfigDict(config.to_dict())
    found.picture.size = picture.size or form.size
    found.picture.channels = picture.channels or form.channels
    return workdir.freeze(found)


def check(config: Any) -> None:
    """Raises UserError for settings that do not fit, with the reason."""
    data, faces, picture = config.data, config.faces, config.picture
    if faces.kind not in FACES:
        raise errors.UserError(
            f"config.faces.kind={faces.kind!r} is unknown; choose one of {', '.join(FACES)}."
        )
    if data.split_by not in dividing.KINDS:
        raise errors.UserError(
            f"config.data.split_by={data.split_by!r} is unknown; choose one of "
            f"{', '.join(dividing.KINDS)}."
        )
    hearing.check(config)
    form = images.form_of(faces.root) if faces.kind == "folder" else None
    if form not in (None, (picture.size, picture.channels)):
        raise errors.UserError(
            f"config.faces.root={faces.root} is named as one of pictures of {form.size} x "
            f"{form.size} in {'grey' if form.channels == 1 else 'colour'}, and config.picture asks "
            f"for size {picture.size} and {picture.channels} channels: set both to 0 to take them "
            "from the name, or name the folder without a size to have them scaled."
        )
    _check_numbers(config)
    _check_people(config)
    _check_voices(config)


def _check_numbers(config: Any) -> None:
    """Of what no network can be made, or no batch."""

    def value_of(name: str) -> Any:
        return functools.reduce(getattr, name.split("."), config)

    for name in _COUNTS:
        if (value := value_of(name)) < 1:
            raise errors.UserError(f"config.{name}={value}: 1 at least.")
    for name in _POSITIVE:
        if not (value := value_of(name)) > 0:
            raise errors.UserError(f"config.{name}={value:g} has to be positive.")
    for name in _WEIGHTS:
        if not (value := value_of(name)) >= 0:
            raise errors.UserError(f"config.{name}={value:g} has to be 0 or more.")
    frames = tuple(config.voice.crop_frames)
    if frames != (0, 0) and not (len(frames) == 2 and 1 <= frames[0] <= frames[1]):
        raise errors.UserError(
            f"config.voice.crop_frames={frames}: the fewest and the most, as (300, 800), or "
            "(0, 0), all of them."
        )


def _check_people(config: Any) -> None:
    """Of people and their faces."""
    data, faces = config.data, config.faces
    by_class = faces.kind in labelled.KINDS
    if faces.kind == "embedded" and data.kind != "embedded":
        raise errors.UserError(
            "config.faces.kind=embedded has the portraits of the voices of config.data.kind="
            f"embedded, not of {data.kind!r}: name faces of its speakers by config.faces.kind="
            "folder, or films."
        )
    filmed = (*splits.FILMED, "embedded_faces")
    if faces.kind == "films" and data.kind not in filmed:
        raise errors.UserError(
            f"config.faces.kind=films goes with config.data.kind={', '.join(filmed)}, whose "
            f"records have portraits; those of {data.kind!r} have none."
        )
    if by_class and data.kind != "none" and data.split_by in ("person", "letter"):
        raise errors.UserError(
            f"config.faces.kind={faces.kind} with voices: each class has a speaker, who has to be "
            f"heard in all parts. With config.data.split_by={data.split_by} nobody is; take "
            "recording, or parts of the same speakers."
        )
    if by_class and data.kind == "none" and data.split_by != "parts":
        raise errors.UserError(
            f"config.data.split_by={data.split_by} divides people: {faces.kind} has parts, train "
            "and test. Leave it at parts."
        )


def _check_voices(config: Any) -> None:
    """Of what is heard, by whom."""
    data, faces, kind, heard = config.data, config.faces, config.model.kind, config.voice.kind
    if data.kind == "none":
        if faces.kind not in labelled.KINDS:
            raise errors.UserError(
                f"config.data.kind=none has no recordings: config.faces.kind={faces.kind} needs "
                f"those of its people; pictures alone are {', '.join(labelled.KINDS)}."
            )
        if kind in LISTENERS:
            raise errors.UserError(
                f"config.model.kind={kind} hears voices, and config.data.kind=none has none: name "
                "recordings by config.data.kind and config.data.root."
            )
        if heard in hearing.SOUNDS:
            raise errors.UserError(
                f"config.voice.kind={heard} is of voices, and config.data.kind=none has none: take "
                "class or none, or recordings, of which a speaker stands for each class."
            )
        if config.judge:
            raise errors.UserError(
                "config.judge says which face belongs to which voice, and config.data.kind=none "
                "has no voices."
            )
    if kind in LISTENERS and heard != "statistics":
        raise errors.UserError(
            f"config.model.kind={kind} hears log-mel frames: config.voice.kind={heard} is for the "
            "networks that make pictures. Leave it at statistics."
        )
    if kind == "face2voice" and heard not in hearing.SOUNDS:
        raise errors.UserError(
            f"config.model.kind=face2voice learns of voices, and config.voice.kind={heard} is none "
            f"of theirs: take {', '.join(hearing.SOUNDS)}."
        )
    if heard == "class" and data.split_by in ("person", "letter"):
        raise errors.UserError(
            f"config.voice.kind=class with config.data.split_by={data.split_by}: the people of dev "
            "are none of those whom the network has a class for. Take recording, or another voice."
        )
    if heard == "none" and model.hears(config):
        raise errors.UserError(
            "config.voice.kind=none leaves nothing for the discriminator to hear: set config.model."
            "conditional and config.loss.wrong_pairs to False"
            + (", with another config.model.kind than cgan." if kind == "cgan" else ".")
        )
    if heard == "none" and config.loss.contrast > 0:
        raise errors.UserError(
            f"config.loss.contrast={config.loss.contrast} compares faces with what is heard, and "
            "config.voice.kind=none hears nothing: set it to 0."
        )
