"""Settings that the network of a config never reads: none of them is ignored in silence."""

import logging
import pathlib
from collections.abc import Iterator
from typing import Any

from common import errors, workdir
from separation import settings

log = logging.getLogger(__name__)

# Networks of an enrolment: one config may hold sizes of all three, to choose one on a command line.
_ENROLLED = ("causal", "voicefilter", "quality")
_SPECTRAL = tuple(f"loss.{name}" for name in ("magnitude", "complex", "si_sdr", "power"))
_COMPARED = ("matching", "consistency", "margin", "true_share")  # of two people
_UNREAD = {
    **dict.fromkeys(
        _ENROLLED,
        ("model.visualvoice", "model.lite", "loss.visualvoice", "loss.lite", "suppression"),
    ),
    "visualvoice": (
        *("cue", "loss.lite", "suppression", "model.lite", "mixing.enrolment_snr_db"),
        *(*_SPECTRAL, "loss.speaker", *(f"model.{kind}" for kind in _ENROLLED)),
    ),
    "lite": (
        *("sight", "loss.visualvoice", "model.visualvoice"),
        *(*_SPECTRAL, *(f"model.{kind}" for kind in _ENROLLED)),
    ),
}


def changed(config: Any) -> dict[str, tuple[Any, Any]]:
    """The settings that are not as by default and that the network of a config never reads:
    (what they are, the default) by their names."""
    default, found = workdir.freeze(settings.default_config()), {}
    for place in (*_UNREAD.get(config.model.kind, ()), *_conditional(config)):
        section, by_default = config, default
        for name in place.split("."):
            section, by_default = section[name], by_default[name]
        for name, value, expected in _leaves(place, section, by_default):
            if value != expected:
                found[name] = value, expected
    return found


def check(config: Any, folder: pathlib.Path) -> None:
    """Raises UserError for settings that this network never reads.

    A run that has begun with them goes on, and is used, with a warning.
    """
    found = changed(config)
    if not found:
        return
    named = ", ".join(f"config.{name}={value!r}" for name, (value, _) in found.items())
    defaults = ", ".join(f"{name}={value!r}" for name, (_, value) in found.items())
    message = f"{named}: never read by this network, config.model.kind={config.model.kind}."
    if workdir.has_checkpoints(folder):
        log.warning("%s", message)
        return
    hint = ""
    if config.model.kind == "visualvoice" and any(name.startswith("sight.") for name in found):
        hint = " Its lips and face are config.model.visualvoice.lip and .face."
    raise errors.UserError(f"{message} Leave the default ({defaults}).{hint}")


def _conditional(config: Any) -> Iterator[str]:
    """What is never read beside some other setting. Sizes of a part that is switched off are left:
    switching it off is a matter of one flag."""
    sizes, sight = config.model.visualvoice, config.sight
    if config.model.kind == "visualvoice":
        yield from (f"sight.{name}" for name in sight if name != "pictures")
        if not sizes.face:
            yield "sight.pictures"
        if sizes.enhancement:
            yield from (f"loss.visualvoice.{name}" for name in _COMPARED)
        elif not sizes.face:
            yield "loss.visualvoice.matching"
    elif config.model.kind in _ENROLLED:
        if not sight.face:
            yield "sight.pictures"
        if not (sight.face or sight.lips):
            yield "sight.dropout"


def _leaves(place: str, section: Any, default: Any) -> Iterator[tuple[str, Any, Any]]:
    """(name, value, default) of every setting of a section, or of one setting."""
    if not hasattr(default, "items"):
        yield place, section, default
        return
    for name in default:
        yield from _leaves(f"{place}.{name}", section[name], default[name])
