"""Files: named safely, written whole or not at all, changed by one process at a time."""

import contextlib
import hashlib
import os
import pathlib
import re
import secrets
import unicodedata
from collections.abc import Iterable, Iterator

from common import errors, locks

_MAX_BYTES = 100  # of a safe name; file systems take 255, less what is put round it


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


@contextlib.contextmanager
def locked(path: pathlib.Path | str, seconds: float | int = 60) -> Iterator[None]:
    """Keeps other processes from changing `path` while it is read, changed and replaced.

    The lock is `.NAME.lock` beside it. Everybody has to ask for it: it hinders no other reader or
    writer. Its time goes with the file alone: compute before. Not to be nested for one path.

    Raises UserError if another process holds it for more than `seconds`, and where the system
    refuses.
    """
    path = pathlib.Path(path)
    lock = locks.Lock(path.with_name(f".{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(seconds)
    except locks.Busy as busy:
        raise errors.UserError(
            f"{path} is being changed by another process ({busy.owner}) since more than "
            f"{seconds:g} s. Wait for it or stop it, then start this command again."
        ) from None
    except OSError as refused:
        raise errors.UserError(
            f"{path} cannot be written ({refused.strerror or refused}). Free space or choose "
            "another place."
        ) from refused
    try:
        yield
    finally:
        lock.release()


def safe_name(name: str) -> str:
    """A file's name for what a user named: it names no other folder, and other names differ.

    Letters and digits of any script, `_`, `.` and `-` stay, others become `_`. A name that had to
    change gets a part of its hash, before its suffix: "/corpus/dev" is "corpus_dev~7f533d50". At
    most 100 bytes long; bytes that are not UTF-8 are taken.
    """
    plain = re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", name))
    if plain == name and re.match(r"\w", name) and name[-1] != "." and _size(name) <= _MAX_BYTES:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    stem = plain.strip("._-")
    suffix = pathlib.PurePath(stem).suffix
    suffix = suffix if _size(suffix) <= 10 else ""
    stem = stem.removesuffix(suffix)
    room = _MAX_BYTES - len(digest) - 1 - _size(suffix)
    # `~` stands in no name that is taken as it is: none of those can be mistaken for this one.
    return f"{stem.encode()[:room].decode(errors='ignore')}~{digest}{suffix}"


def _size(text: str) -> int:
    return len(text.encode())


def check_kept(path: pathlib.Path, inputs: Iterable[pathlib.Path | str]) -> None:
    """Raises UserError where `path` is one of the files that it is to be made from."""
    if path.exists():
        for name in map(pathlib.Path, inputs):
            if name.exists() and path.samefile(name):
                raise errors.UserError(
                    f"{path} would be replaced by what is made of it: name another place."
                )


def check_output(path: pathlib.Path) -> None:
    """Raises UserError where no file `path` can be written; to be called before hours of work."""
    place = next(p for p in path.absolute().parents if p.exists())
    if path.is_dir():
        raise errors.UserError(f"{path} is a folder: name a file.")
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        reason = "may not be written to" if place.is_dir() else "is no folder"
        raise errors.UserError(f"{path} cannot be written: {place} {reason}. Name another place.")
