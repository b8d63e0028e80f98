"""Columns of a table with millions of rows: text end to end, numbers as they lie in memory."""

import array
from typing import Any, Protocol


class Column(Protocol):
    """Values by row; None where there is none."""

    def put(self, row: int, value: Any) -> None:
        """Adds the value of a row below all others."""

    def get(self, row: int) -> Any: ...


class Strings:
    """Text, 9 bytes a row beside its UTF-8. Takes the names of files whatever their bytes are."""

    def __init__(self) -> None:
        self._text = bytearray()
        self._ends = array.array("q")
        self._there = bytearray()

    def put(self, row: int, value: str) -> None:
        missing = row - len(self._ends)
        if missing:
            self._ends.extend([len(self._text)] * missing)
            self._there.extend(bytes(missing))
        self._text += value.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._text))
        self._there.append(1)

    def get(self, row: int) -> str | None:
        if row >= len(self._ends) or not self._there[row]:
            return None
        start = self._ends[row - 1] if row else 0
        return self._text[start : self._ends[row]].decode("utf-8", "surrogatepass")


class Floats:
    """Floating-point numbers, 8 bytes a row; NaN is none."""

    def __init__(self) -> None:
        self._values = array.array("d")

    def put(self, row: int, value: float) -> None:
        self._values.extend([float("nan")] * (row - len(self._values)))
        self._values.append(value)

    def get(self, row: int) -> float | None:
        value = self._values[row] if row < len(self._values) else float("nan")
        return None if value != value else value


class Objects:
    """Anything else."""

    def __init__(self) -> None:
        self._values: list[Any] = []

    def put(self, row: int, value: Any) -> None:
        self._values.extend([None] * (row - len(self._values)))
        self._values.append(value)

    def get(self, row: int) -> Any:
        return self._values[row] if row < len(self._values) else None


class Table:
    """Rows of named values, kept by columns. A value None is none: the row has no such name."""

    def __init__(self) -> None:
        self._columns: dict[str, Column] = {}
        self._types: dict[str, type] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, row: Any) -> None:
        """Adds a mapping."""
        for name, value in row.items():
            if value is None:
                continue
            kind = self._types.get(name)
            if kind is not type(value):
                self._change(name, kind, type(value))
            self._columns[name].put(self._count, value)
        self._count += 1

    def __getitem__(self, row: int) -> dict[str, Any]:
        row = range(self._count)[row]
        found = ((name, column.get(row)) for name, column in self._columns.items())
        return {name: value for name, value in found if value is not None}

    def column(self, name: str) -> list[Any]:
        """The values of one name, None where a row has none."""
        if name not in self._columns:
            return [None] * self._count
        get = self._columns[name].get
        return [get(row) for row in range(self._count)]

    def _change(self, name: str, kind: type | None, wanted: type) -> None:
        """Makes the column of values of a type; one of several types is one of objects."""
        if isinstance(self._columns.get(name), Objects):
            return
        forms = {str: Strings, float: Floats}
        column = Objects() if kind is not None else forms.get(wanted, Objects)()
        for row in range(self._count) if kind is not None else ():
            if (value := self._columns[name].get(row)) is not None:
                column.put(row, value)
        self._columns[name], self._types[name] = column, wanted
