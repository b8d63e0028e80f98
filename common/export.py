"""Networks as files that run without the code that made them: `jax.export` programs and arrays.

A file is a ZIP archive in the form of `numpy.savez`, whatever its suffix: "about", a text in JSON;
"programs/NAME", the bytes of a serialised program; and arrays by their names, weights among them,
so that programs which share them stay small. The checksums of ZIP tell what is damaged. It is read
by `jax` and `flatbuffers` alone:

    file = numpy.load(path)
    about = json.loads(str(file["about"]))
    program = jax.export.deserialize(bytearray(file["programs/NAME"]))
    result = jax.jit(program.call)(*arguments)

Programs take and give lists of arrays, no trees of classes that a reader would have to know. They
run on the platforms that they were made for, by this version of jax or a later one (for how many is
said by jax.export's documentation on compatibility).
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import export

from common import errors, files

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
_FORMAT = 1
_PROGRAM = "programs/"
_MISSING = "Files of jax.export need flatbuffers: pip install flatbuffers."


@dataclasses.dataclass(frozen=True)
class Artefact:
    """What a file holds. `about` is anything that JSON can say."""

    about: Mapping[str, Any]
    programs: Mapping[str, export.Exported]
    arrays: Mapping[str, np.ndarray]


def program(
    function: Callable[..., Any], *arguments: Any, platforms: Sequence[str]
) -> export.Exported:
    """`function` of arguments of these shapes, lowered for all `platforms`, which need not be here.

    Arguments and results are arrays, or lists and tuples of them.
    """
    return export.export(jax.jit(function), platforms=platforms)(*arguments)


def write(path: pathlib.Path | str, kind: str, found: Artefact) -> None:
    """Writes a file whole or not at all. `kind`: the command that makes such files.

    Raises UserError where the system refuses, or flatbuffers is missing.
    """
    about = {
        "format": _FORMAT,
        "kind": kind,
        "jax": jax.__version__,
        "platforms": list(next(iter(found.programs.values())).platforms),
        **found.about,
    }
    try:
        programs = {
            f"{_PROGRAM}{name}": np.frombuffer(one.serialize(), np.uint8)
            for name, one in found.programs.items()
        }
    except ImportError as error:
        raise errors.UserError(_MISSING) from error
    with files.replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, about=np.array(json.dumps(about, indent=1)), **programs, **found.arrays)


def read(path: pathlib.Path | str, kind: str) -> Artefact:
    """What `write` wrote as `kind`. Raises UserError: no such file, one that is damaged, of another
    kind, or made for other platforms or a later jax, or flatbuffers is missing."""
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise errors.UserError(f"There is no file {path}: python -m {kind} makes one.")
    try:
        # Opened here: numpy leaves a file open that it cannot read.
        with path.open("rb") as opened:
            loaded = np.load(opened)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                raise ValueError("an array")
            with loaded:
                found = {name: loaded[name] for name in loaded.files}
        about = json.loads(str(found.pop("about")))
        form, made_by, platforms = about["format"], about["kind"], about["platforms"]
    except Exception as error:  # of damaged files numpy and zipfile raise a dozen kinds
        raise errors.UserError(
            f"{path} is damaged, or not of python -m {kind} ({error}): make it anew."
        ) from error
    if (form, made_by) != (_FORMAT, kind):
        raise errors.UserError(
            f"{path} was made by python -m {made_by} (format {form}), and one of python -m {kind} "
            f"(format {_FORMAT}) is wanted."
        )
    here = export.default_export_platform()
    if here not in platforms:
        raise errors.UserError(
            f"{path} was made for {', '.join(platforms)}, and this is {here}: make it with "
            f"--platforms {here}, or set JAX_PLATFORMS to one of those."
        )
    programs, names = {}, [name for name in found if name.startswith(_PROGRAM)]
    try:
        for name in names:
            serialised = bytearray(found.pop(name))
            programs[name.removeprefix(_PROGRAM)] = export.deserialize(serialised)
    except ImportError as error:
        raise errors.UserError(_MISSING) from error
    except Exception as error:  # whatever a later jax may have changed
        raise errors.UserError(
            f"{path} was written by jax {about.get('jax')}, and jax {jax.__version__} cannot read "
            f"it ({error}): take a jax as new as that."
        ) from error
    return Artefact(about, programs, found)
