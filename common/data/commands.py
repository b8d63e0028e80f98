"""Commands of a wav.scp that only decode a file, understood instead of run.

The lines of Kaldi's own recipes: flac (LibriSpeech), sph2pipe (WSJ, Switchboard, SRE), ffmpeg
(VoxCeleb 2), sox without effects (Common Voice), cat. That what is written has 16 bits is not
imitated: the decoded values are kept.
"""

import pathlib
import re
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

_PIECES = re.compile(r"""'[^']*'|"(?:[^"\\]|\\.)*"|\\.|[^'"\\]+""", re.DOTALL)
_SHELL = re.compile(r"[$`;&|<>()*?\[\]{}\n]|(?<!\S)[~#]")
_QUIET = re.compile(r"\s+2>\s*/dev/null\s*$")
_STDOUT = ("-", "pipe:", "pipe:1", "/dev/stdout")
_HEADERLESS = re.compile("raw|[su](8|16|24|32)|[su][bwl]|al|la|ul|lu|f32|f64|gsm|vox")
_PCM = ("pcm_s16le", "pcm_s24le", "pcm_s32le")


class Decoding(NamedTuple):
    """A file and what is taken of it: a channel from 0, or "mean", or None for all of them."""

    path: str
    channel: str | int | None = None


class _Word(NamedTuple):
    """An option of a program, or with an empty `option` one of its other arguments."""

    option: str
    value: str


def parse(command: str, sample_rate_hz: int = 0) -> Decoding:
    """What a command ending in `|` decodes. Raises ValueError with the reason why it is refused.

    A rate that it resamples to has to be `sample_rate_hz` or above: below, the upper part of the
    band, which the command takes away, would be there.
    """
    program, *words = _split(command)
    name = pathlib.PurePosixPath(program).name
    if name not in _PROGRAMS:
        known = ", ".join(sorted(_PROGRAMS))
        raise ValueError(f"{program!r} is none of the programs that are understood: {known}")
    return _PROGRAMS[name](words, sample_rate_hz)


def _split(command: str) -> list[str]:
    """The words, where a shell would find the same ones and do nothing else."""
    line = _QUIET.sub("", command.strip().removesuffix("|"))
    pieces = _PIECES.findall(line)
    if "".join(pieces) != line:
        raise ValueError("a quotation mark or a backslash has nothing behind it")
    for piece in pieces:
        if piece[0] == '"':
            found = re.search(r"[$`]", piece)
        else:
            found = None if piece[0] in "'\\" else _SHELL.search(piece)
        if found:
            raise ValueError(
                f"{found[0]!r} is for a shell; in the name of a file, put the name in single quotes"
            )
    words = shlex.split(line)
    if not words:
        raise ValueError("it names no program")
    return words


def _cat(words: Sequence[str], sample_rate_hz: int) -> Decoding:
    return Decoding(_only_file(_read(words, {})))


def _flac(words: Sequence[str], sample_rate_hz: int) -> Decoding:
    letters = [f"-{x}" for w in words for x in (w[1:] if re.fullmatch("-[cds]+", w) else "")]
    others = [w for w in words if not re.fullmatch("-[cds]+", w)]
    names = ("-c", "-d", "-s", "--stdout", "--decode", "--silent", "--totally-silent")
    found = _read([*letters, *others], dict.fromkeys(names, 0))
    options = {word.option for word in found}
    if not (options & {"-d", "--decode"} and options & {"-c", "--stdout"}):
        raise ValueError("without -c and -d it does not decode to a pipe")
    return Decoding(_only_file(found))


def _sph2pipe(words: Sequence[str], sample_rate_hz: int) -> Decoding:
    found = _read(words, {"-f": 1, "-p": 0, "-c": 1})
    options = dict(word for word in found if word.option)
    if options.get("-f") not in ("wav", "rif"):
        raise ValueError("without -f wav it does not give WAV")
    channel = _choose(_Word("-c", options["-c"]), "12") if "-c" in options else None
    return Decoding(_only_file(found), None if channel is None else int(channel) - 1)


def _ffmpeg(words: Sequence[str], sample_rate_hz: int) -> Decoding:
    harmless = {"-nostdin": 0, "-hide_banner": 0, "-nostats": 0, "-y": 0, "-v": 1, "-loglevel": 1}
    harmless["-threads"] = 1
    codecs = dict.fromkeys(("-acodec", "-codec:a", "-c:a"), 1)
    output = {"-vn": 0, "-sn": 0, "-dn": 0, "-f": 1, "-ar": 1, "-ac": 1, **codecs}
    found = _read(words, {**harmless, **output, "-i": 1})
    inputs = [k for k, word in enumerate(found) if word.option == "-i"]
    if len(inputs) != 1:
        raise ValueError("one -i is expected")
    for word in found[: inputs[0]]:
        if word.option not in harmless:
            raise ValueError(f"{word.option or word.value} stands before -i")
    after, channel, wav = found[inputs[0] + 1 :], None, False
    for word in after:
        if word.option == "-f":
            wav = bool(_choose(word, ("wav",)))
        elif word.option == "-ar":
            _check_rate(word, sample_rate_hz)
        elif word.option == "-ac" and _choose(word, "1"):
            channel = "mean"
        elif word.option in codecs:
            _choose(word, _PCM)
    if not wav or [word.value for word in after if not word.option] not in [[s] for s in _STDOUT]:
        raise ValueError("without -f wav - it does not give WAV to a pipe")
    path = found[inputs[0]].value
    if re.match(r"[\w+.,-]+:", path):
        raise ValueError(f"{path!r} is no name of a file to ffmpeg, but of a protocol")
    return Decoding(_file(path), channel)


def _sox(words: Sequence[str], sample_rate_hz: int) -> Decoding:
    harmless = dict.fromkeys(("-q", "-D", "--no-dither", "-R", *(f"-V{k}" for k in range(5))), 0)
    harmless["-V"] = 0
    names = {"-t": 1, "--type": 1, "-r": 1, "--rate": 1, "-c": 1, "--channels": 1, "-s": 0}
    names |= {"-b": 1, "--bits": 1, "-e": 1, "--encoding": 1}
    found, rest = [], list(words)
    while rest and sum(not word.option for word in found) < 2:
        take = 2 if names.get(rest[0]) else 1
        found += _read(rest[:take], {**harmless, **names})
        rest = rest[take:]
    effects = rest
    files = [k for k, word in enumerate(found) if not word.option]
    if len(files) < 2 or found[files[1]].value != "-":
        raise ValueError("one file, and - for the pipe, are expected")
    for word in found[: files[0]]:
        if word.option in ("-t", "--type"):
            if _HEADERLESS.fullmatch(word.value):
                raise ValueError(f"{word.option} {word.value} has no header")
        elif word.option not in harmless:
            raise ValueError(f"{word.option} before the file overrides what its header says")
    channel, wav = None, False
    for word in found[files[0] + 1 : files[1]]:
        if word.option in ("-t", "--type"):
            wav = bool(_choose(word, ("wav", "wavpcm")))
        elif word.option in ("-r", "--rate"):
            _check_rate(word, sample_rate_hz)
        elif word.option in ("-c", "--channels") and _choose(word, "1"):
            channel = "mean"
        elif word.option in ("-b", "--bits"):
            _choose(word, ("16", "24", "32"))
        elif word.option in ("-e", "--encoding"):
            _choose(word, ("signed", "signed-integer"))
    if not wav:
        raise ValueError("without -t wav - it does not give WAV to a pipe")
    if len(effects) == 2 and effects[0] == "remix" and effects[1].isdecimal() and effects[1] > "0":
        channel, effects = int(effects[1]) - 1, ()  # choosing a channel changes no sample
    if effects:
        raise ValueError(f"the effect {' '.join(effects)!r} changes the sound")
    return Decoding(_file(found[files[0]].value), channel)


_PROGRAMS: Mapping[str, Callable[[Sequence[str], int], Decoding]] = {
    "cat": _cat,
    "ffmpeg": _ffmpeg,
    "flac": _flac,
    "sox": _sox,
    "sph2pipe": _sph2pipe,
}


def _read(words: Sequence[str], known: Mapping[str, int]) -> list[_Word]:
    """Options with their values (`known`: how many), and other words."""
    found, rest = [], iter(words)
    for word in rest:
        if word in known:
            value = next(rest, None) if known[word] else ""
            if value is None:
                raise ValueError(f"nothing follows {word}")
            found.append(_Word(word, value))
        elif word.startswith("-") and word != "-":
            raise ValueError(f"the option {word} may change the sound, and is not understood")
        else:
            found.append(_Word("", word))
    return found


def _choose(word: _Word, among: Collection[str]) -> str:
    if not word.value or word.value not in among:
        raise ValueError(f"{word.option} {word.value} is not {' or '.join(among)}")
    return word.value


def _check_rate(word: _Word, sample_rate_hz: int) -> None:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(k?)", word.value)
    if not found:
        raise ValueError(f"{word.option} {word.value} is no rate")
    rate = float(found[1]) * (1000 if found[2] else 1)
    if rate < sample_rate_hz:
        raise ValueError(
            f"{word.option} {word.value} is below config.data.sample_rate_hz={sample_rate_hz}; set "
            "that to it, or, if the files have no higher rate, leave the option out"
        )


def _only_file(found: Sequence[_Word]) -> str:
    files = [word.value for word in found if not word.option]
    if len(files) != 1:
        raise ValueError(f"it has {len(files)} files; one is expected")
    return _file(files[0])


def _file(path: str) -> str:
    if path in ("", "-"):
        raise ValueError("it names no file")
    return path
