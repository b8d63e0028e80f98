"""The flags of one mode, `--points=51`, from the fields of a frozen dataclass."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from absl import flags

FILES = "files"  # a field of this name also takes the words that stand alone


def option(
    default: Any, says: str, choices: tuple[str, ...] = (), *, least: int | None = None
) -> Any:
    """A field with its line in --help, and the values that it can have if these are names; `least`
    is of integers."""
    about = {"says": says, "choices": choices, "least": least}
    return dataclasses.field(default=default, metadata=about)


def define(options: type | None, values: flags.FlagValues) -> None:
    """Adds the fields of `options` to the flags. Raises absl's DuplicateFlagError."""
    for field in dataclasses.fields(options) if options else ():
        name, default, says = field.name, field.default, field.metadata["says"]
        if field.metadata["choices"]:
            choices = list(field.metadata["choices"])
            flags.DEFINE_enum(name, default, choices, says, flag_values=values)
            continue
        if type(default) is int:
            least = field.metadata["least"]
            flags.DEFINE_integer(name, default, says, lower_bound=least, flag_values=values)
            continue
        define_one = {
            bool: flags.DEFINE_bool,
            float: flags.DEFINE_float,
            str: flags.DEFINE_string,
            tuple: flags.DEFINE_list,
        }[type(default)]
        define_one(name, default, says, flag_values=values)


def collect(options: type | None, values: flags.FlagValues, words: list[str]) -> Any:
    """An `options` of what was given, with `words` in its files; None without options."""
    if options is None:
        return None
    given: dict[str, Any] = {}
    for field in dataclasses.fields(options):
        value = values[field.name].value
        given[field.name] = tuple(value) if isinstance(field.default, tuple) else value
    if words:
        given[FILES] = (*given[FILES], *words)
    return options(**given)


def takes_words(options: type | None) -> bool:
    """Whether words that stand alone have a meaning."""
    return options is not None and FILES in names(options)


def names(options: type | None) -> tuple[str, ...]:
    """The flags of a mode."""
    return tuple(field.name for field in dataclasses.fields(options)) if options else ()


def lines(options: type | None) -> list[str]:
    """Those of --help."""
    found = []
    for field in dataclasses.fields(options) if options else ():
        choices = field.metadata["choices"]
        says = field.metadata["says"] + (f": {', '.join(choices)}" if choices else "")
        default = field.default
        shown = default if default not in ((), "") and not isinstance(default, bool) else ""
        found.append(f"    --{field.name:<18} {says}" + (f" ({shown})" if shown != "" else ""))
    return found


def owners(name: str, modes: Mapping[str, Any]) -> list[str]:
    """The modes that have the flag `name`."""
    return [mode for mode, it in modes.items() if name in names(it.options)]
