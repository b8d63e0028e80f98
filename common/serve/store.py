"""What clients leave for later requests: in memory, under names that cannot be guessed."""

import collections
import secrets
from typing import Any


class Store:
    """At most `capacity` values; what was not used for longest makes room."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._values: collections.OrderedDict[str, Any] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def add(self, value: Any) -> str:
        """The name of a value from now on."""
        name = secrets.token_urlsafe(16)
        self._values[name] = value
        if len(self._values) > self._capacity:
            self._values.popitem(last=False)
        return name

    def get(self, name: str) -> Any:
        """KeyError: never here, removed, or made room."""
        value = self._values[name]
        self._values.move_to_end(name)
        return value

    def remove(self, name: str) -> None:
        """KeyError as in `get`."""
        del self._values[name]
