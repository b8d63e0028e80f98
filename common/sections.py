"""From a section of the config to the frozen dataclass that the code takes."""

import dataclasses
from typing import Any, TypeVar

T = TypeVar("T")


def fields(cls: type, section: Any) -> dict[str, Any]:
    """The settings of `section` that are fields of the dataclass `cls`, by their common names."""
    return {f.name: section[f.name] for f in dataclasses.fields(cls) if f.name in section}


def build(cls: type[T], section: Any, **others: Any) -> T:
    """A `cls` with the settings of `section` that it has fields for; `others` go before them."""
    return cls(**{**fields(cls, section), **others})
