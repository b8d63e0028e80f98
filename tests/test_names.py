"""Every name that a module uses is there: ruff's F821 is off, as it takes the dimensions of array
annotations ("b t") for names."""

import builtins
import pathlib
import symtable

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = sorted(
    path.name
    for path in ROOT.iterdir()
    if path.is_dir() and not path.name.startswith(".") and any(path.rglob("*.py"))
)
IMPLICIT = {*dir(builtins), "__file__", "__name__", "__doc__"}


def missing(source: str, name: str) -> list[str]:
    """The names that no scope of a module binds, with where they are used."""
    module = symtable.symtable(source, name, "exec")
    scopes, tables = [module], []
    while scopes:
        tables.append(scopes.pop())
        scopes += tables[-1].get_children()
    known = {symbol.get_name() for symbol in module.get_symbols() if _is_bound(symbol)}
    known |= {s.get_name() for t in tables for s in t.get_symbols() if s.is_declared_global()}
    found = []
    for table in tables:
        for symbol in table.get_symbols():
            used = symbol.is_referenced() and symbol.is_global()
            used |= table is module and symbol.is_referenced() and not _is_bound(symbol)
            if used and symbol.get_name() not in known | IMPLICIT:
                found.append(f"{name}: {symbol.get_name()} in {table.get_name()}")
    return found


def _is_bound(symbol: symtable.Symbol) -> bool:
    return symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace()


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_name_is_bound(folder):
    paths = sorted((ROOT / folder).rglob("*.py"))
    found = [line for path in paths for line in missing(path.read_text(), str(path))]
    assert not found


def test_a_missing_name_is_found():
    source = (
        "import os\nx = 1\nclass A:\n    def f(self, y: 'b t'):\n        return z(x, os, len(y))\n"
    )
    assert missing(source, "m.py") == ["m.py: z in f"]
    assert (
        missing("def f():\n    return g()\ndef g():\n    return [i for i in f()]\n", "m.py") == []
    )
