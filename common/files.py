"""Files that appear whole or not at all."""

import contextlib
import os
import pathlib
import secrets
from collections.abc import Iterator

from common import errors


@contextlib.contextmanager
def replacing(
    path: pathlib.Path | str, *, error: type[errors.UserError] = errors.UserError
) -> Iterator[pathlib.Path]:
    """A temporary name beside `path`, renamed to it when the block ends without an exception.

    The folder is made if it is not there, and what was written is on the disk before the name is.
    Names are drawn at random: processes of several machines may share a disk and a number. After an
    exception `path` is as it was. OSErrors come as `error`, with a message for the user.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as refused:
        raise error(
            f"{path} cannot be written ({refused.strerror or refused}). Free space or choose "
            "another place."
        ) from refused


def write_text(path: pathlib.Path | str, text: str) -> None:
    """Writes a text file in UTF-8. Raises UserError where the system refuses."""
    with replacing(path) as temporary:
        temporary.write_text(text, "utf-8")


def check_output(path: pathlib.Path) -> None:
    """Raises UserError where no file `path` can be written; to be called before hours of work."""
    place = next(p for p in path.absolute().parents if p.exists())
    if path.is_dir():
        raise errors.UserError(f"{path} is a folder: name a file.")
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        reason = "may not be written to" if place.is_dir() else "is no folder"
        raise errors.UserError(f"{path} cannot be written: {place} {reason}. Name another place.")
