"""Text that describes data: manifests, transcripts, lists and Kaldi's tables."""

import codecs
import os
import pathlib

from common import errors
from common.data import records

_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(path: str | os.PathLike, error: type[errors.UserError] = records.DataError) -> str:
    """A file in UTF-8, with or without a byte-order mark, or in UTF-16 with one; lines end by \\n.

    Raises `error`, which names the file, the line and what to do: other encodings are not guessed.
    """
    try:
        data = pathlib.Path(path).read_bytes()
    except OSError as refused:
        raise error(
            f"{path} cannot be read ({refused.strerror}). Check the path and the permissions."
        ) from refused
    encoding = "utf-16" if data.startswith(_WIDE) else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as wrong:
        line = data.count(b"\n", 0, wrong.start) + 1
        raise error(
            f"{path}, line {line}: it is not UTF-8 text ({wrong.reason}, byte "
            f"0x{data[wrong.start]:02x}). Convert the file from what it is, for instance by "
            f"`iconv -f latin1 -t utf-8 {path} > NEW`."
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise error(
            f"{path}, line {line}: it holds a zero byte, so it is not UTF-8 text (UTF-16 without "
            "a byte-order mark?). Convert the file to UTF-8."
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(
    path: str | os.PathLike, error: type[errors.UserError] = records.DataError
) -> list[str]:
    """The lines of such a file, without an empty one at its end."""
    lines = read_text(path, error).split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def read_pairs(
    path: str | os.PathLike,
    what: str,
    error: type[errors.UserError] = records.DataError,
    *,
    needs_value: bool = True,
) -> tuple[dict[str, str], dict[str, int]]:
    """A table of Kaldi: the first word of every line -> the rest of it, which is a `what`.

    Also the ids that have several and differing lines -> the last of these; the first counts.
    Raises `error`: not readable, empty, or a line without a value.
    """
    found: dict[str, str] = {}
    differing: dict[str, int] = {}
    for number, line in enumerate(read_lines(path, error), start=1):
        fields = line.split(maxsplit=1)
        if not fields or (needs_value and len(fields) < 2):
            raise error(
                f"{path}, line {number}: {line[:100]!r} is not an id and a {what}. Repair the line."
            )
        value = fields[1].strip() if len(fields) > 1 else ""
        if found.setdefault(fields[0], value) != value:
            differing[fields[0]] = number
    if not found:
        raise error(f"{path} is empty. Write lines of an id and a {what}.")
    return found, differing


def line_of(path: str | os.PathLike, key: str) -> int:
    """Where a table speaks of an id, for a message: the file is read again."""
    words = (line.split(maxsplit=1)[:1] for line in read_lines(path))
    return next(number for number, word in enumerate(words, start=1) if word == [key])
