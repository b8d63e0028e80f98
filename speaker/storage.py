"""Small models as npz files of named arrays, written whole or not at all."""

import pathlib
import zipfile
from collections.abc import Mapping, Sequence

import numpy as np

from common import errors, files


class ModelFileError(errors.UserError, ValueError):
    """A model file is missing, damaged, of another kind or cannot be written."""


def save_arrays(path: pathlib.Path | str, arrays: Mapping[str, object]) -> None:
    """Writes arrays (or numbers). Raises ModelFileError where the system refuses."""
    # A file object: np.savez would append .npz to a name.
    with files.replacing(path, error=ModelFileError) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def load_arrays(
    path: pathlib.Path | str, names: Sequence[str], *, kind: str
) -> dict[str, np.ndarray]:
    """The arrays `names` of a file; `kind` says in messages what was expected, "PLDA model".

    Raises ModelFileError: no such file, not an npz file, damaged, or without one of the names.
    """
    try:
        # Opened here: np.load leaves a damaged file open.
        with pathlib.Path(path).open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in names}
    except FileNotFoundError:
        raise ModelFileError(
            f"{path}: no such file. Make the {kind} first, or correct the path."
        ) from None
    # np.load gives a bare array for .npy files, which is no context manager: TypeError.
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        # NumPy takes any other file for a pickle, and says how to read one.
        reason = "another kind of file" if "pickle" in str(error) else error
        raise ModelFileError(
            f"{path} is no {kind} ({reason}): an npz file with {', '.join(names)} is expected. "
            "Make it again."
        ) from error
