"""Archives read in place: ZIP and TAR, also those that were published in parts."""

import contextlib
import io
import os
import pathlib
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence

from common import errors

_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_WHOLE = r"(.+\.(?:zip|tar|tar\.gz|tgz))"
# vox2_dev_mp4_partaa; as split -d, and as split without a suffix of its own, name parts.
_PARTS = tuple(
    map(re.compile, (r"(.+)_part([a-z]{2})", rf"{_WHOLE}\.(\d+)", rf"{_WHOLE}\.?([a-z]{{2}})"))
)


class ArchiveError(errors.UserError):
    """An archive that cannot be read; the message names it."""


class _Joined(io.RawIOBase):
    """Files that are one when put end to end, without a copy of them."""

    def __init__(self, paths: Sequence[pathlib.Path]) -> None:
        self._ends, self._files, end = [], [], 0
        for path in paths:
            self._files.append(path.open("rb"))
            end += path.stat().st_size
            self._ends.append(end)
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._ends[-1]}[whence]
        if start + offset < 0:
            raise OSError(22, "Invalid argument")
        self._place = start + offset
        return self._place

    def readinto(self, buffer) -> int:
        for number, end in enumerate(self._ends):
            if self._place < end:
                file = self._files[number]
                file.seek(self._place - (self._ends[number - 1] if number else 0))
                count = file.readinto(memoryview(buffer)[: end - self._place])
                self._place += count
                return count
        return 0

    def close(self) -> None:
        for file in self._files:
            file.close()
        super().close()


class Archive:
    """One ZIP or TAR: a file, or all its parts in their order."""

    def __init__(self, name: str, parts: Sequence[pathlib.Path]) -> None:
        self.name, self.parts = name, tuple(parts)

    @property
    def size(self) -> int:
        """Of all parts, in bytes."""
        return sum(path.stat().st_size for path in self.parts)

    def members(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
        """(name, content) of the files in it that are wanted, in its order.

        Others are not unpacked. Raises ArchiveError for a damaged archive, or one with a part
        missing, when it comes to that place.
        """
        damage = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError)
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(_Joined(self.parts))
                buffered = stack.enter_context(io.BufferedReader(file, 1 << 20))
                if zipfile.is_zipfile(buffered):
                    buffered.seek(0)
                    yield from _of_zip(stack.enter_context(zipfile.ZipFile(buffered)), wanted)
                else:
                    buffered.seek(0)
                    tar = stack.enter_context(tarfile.open(fileobj=buffered, mode="r:*"))
                    yield from _of_tar(tar, wanted)
            except damage as error:
                said = str(error).partition(":\n")[0]  # tarfile goes on with a line a compression
                parts = f" ({len(self.parts)} parts)" if len(self.parts) > 1 else ""
                raise ArchiveError(
                    f"{self.name}{parts}: no ZIP or TAR, damaged, or a part is missing ({said}). "
                    "Fetch it again; what was extracted before stays."
                ) from error


def _of_zip(archive: zipfile.ZipFile, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    for info in archive.infolist():
        if not info.is_dir() and wanted(info.filename):
            yield info.filename, archive.read(info)


def _of_tar(archive: tarfile.TarFile, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    for info in archive:
        if info.isfile() and wanted(info.name):
            yield info.name, archive.extractfile(info).read()
        archive.members = []  # it would keep a million of them


def find(folder: pathlib.Path) -> list[Archive]:
    """The archives of a folder, in the order of their names. Raises ArchiveError."""
    if not folder.is_dir():
        raise ArchiveError(f"There is no folder {folder} of archives.")
    found: dict[str, list[pathlib.Path]] = {}
    for path in sorted(folder.iterdir()):
        name = path.name
        if path.is_file() and name[0] != ".":
            part = next((m for p in _PARTS if (m := p.fullmatch(name))), None)
            if part is not None:
                found.setdefault(part[1], []).append(path)
            elif name.lower().endswith((".zip", *_TARS)):
                found.setdefault(name, []).append(path)
    if not found:
        raise ArchiveError(f"{folder} holds no .zip, .tar, .tar.gz, or parts of them (..._partaa).")
    return [Archive(name, parts) for name, parts in found.items()]
