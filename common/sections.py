"""From a section of the config to the frozen dataclass that the code takes."""

import dataclasses
from typing import Any, TypeVar

T = TypeVar("T")


def fields(cls: type, section: Any) -> dict[str, Any]:
    """The settings of `section` that are fields of the dataclass `cls`, by their common names."""
    return {f.name: section[f.name] for f in dataclasses.fields(cls) if f.name in section}


def check_sizes(found: Any, *names: str) -> None:
    """Raises ValueError where one of several fields is below 1."""
    values = [getattr(found, name) for name in names]
    if min(values) < 1:
        *others, last = (f"{name}={value}" for name, value in zip(names, values, strict=True))
        raise ValueError(f"{', '.join(others)} and {last} have to be 1 at least")


def build(cls: type[T], section: Any, **others: Any) -> T:
    """A `cls` with the settings of `section` that it has fields for; `others` go before them."""
    return cls(**{**fields(cls, section), **others})
