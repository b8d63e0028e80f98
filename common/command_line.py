"""The flags of every `<task>/main.py`: from `argv` to a resolved config, or one message.

Flags are parsed into values of their own and not into absl's global ones, so that a process can
parse more than one command line.
"""

import dataclasses
import difflib
import importlib
import importlib.util
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, FrozenConfigDict, config_flags

from common import errors, mode_options, workdir
from common.data import splits
from common.package import Mode, Package

_DASHED = re.compile(r"(?<=^--)\w[\w-]*")  # --host-devices is --host_devices
_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]+)")


@dataclasses.dataclass(frozen=True)
class Options:
    """A parsed command line; None where a flag was not given.

    `overridden` are the settings given one by one, with the values of the base in their place
    before: {"data.root": "/old"}. `of_mode` are the flags of the mode alone (`Mode.options`).
    """

    folder: pathlib.Path
    mode: str
    config: FrozenConfigDict
    overridden: Mapping[str, Any]
    checkpoint: int | None
    multihost: bool
    coordinator: str | None
    processes: int | None
    process: int | None
    host_devices: int | None
    of_mode: Any = None


def _define(modes: Mapping[str, Mode], mode: Mode | None = None) -> flags.FlagValues:
    """The flags of all modes, and of one those that it alone has."""
    values = flags.FlagValues()
    here = {"flag_values": values}
    flags.DEFINE_string("config", None, "experiment, e.g. configs/asr/quickstart.py:debug", **here)
    flags.DEFINE_string("workdir", None, "where the run lives; it resumes if it is there", **here)
    flags.DEFINE_enum("mode", "train", list(modes), "what to do", **here)
    flags.DEFINE_integer("checkpoint", None, "step to use (default: the best)", **here)
    flags.DEFINE_bool("multihost", False, "SLURM, Open MPI, TPU pods, GKE: many hosts", **here)
    flags.DEFINE_string("coordinator", None, "host:port of process 0, without a cluster", **here)
    flags.DEFINE_integer("processes", None, "with --coordinator: how many processes", **here)
    flags.DEFINE_integer("process", None, "with --coordinator: the number of this one", **here)
    flags.DEFINE_integer("host_devices", None, "pretend that the CPU is N devices", **here)
    if mode is not None:
        mode_options.define(mode.options, values)
    return values


def help_text(package: Package, modes: Mapping[str, Mode], named: str = "train") -> str:
    """What --help prints: examples, flags and modes, on one screen; those of one mode beside it."""
    main = f"python -m {package.name}.main"
    values = _define(modes)
    about = importlib.import_module(f"{package.name}.main").__doc__
    lines = [*about.strip().splitlines(), "", "flags:"]
    lines += [f"  --{name:<13} {values[name].help}" for name in sorted(values)]
    lines.append("  --config.a.b=v  one setting; those of data are in common/data/splits.py,")
    lines += [f"                  the others in {package.name}/settings.py", "", "modes:"]
    for name, mode in modes.items():
        more = " (flags: --mode=" + name + " --help)" if mode.options and name != named else ""
        lines += [f"  {name:<15} {mode.says}{more}"]
        lines += mode_options.lines(mode.options) if name == named else []
    return "\n".join([*lines, "", f"What is saved needs only: {main} --workdir=DIR"])


def parse(package: Package, modes: Mapping[str, Mode], argv: Sequence[str]) -> Options:
    """The command line `argv` (its first word is the program). Raises UserError, SystemExit(0).

    The base of the config is the file of --config, or else the config.json of the work directory;
    the settings on the command line are put into it.
    """
    rest = list(argv[1:])
    if {"--help", "-help", "-h", "--helpfull", "--helpshort"} & set(rest):
        print(help_text(package, modes, _mode_named(rest)))
        sys.exit(0)
    overrides, rest = _separate(rest)
    rest = [_DASHED.sub(lambda found: found[0].replace("-", "_"), word) for word in rest]
    asked = modes.get(_mode_named(rest))
    own = asked.options if asked else None
    values = _define(modes, asked)
    try:
        extra = values([argv[0], *rest])[1:]
    except flags.UnrecognizedFlagError as error:
        if of := " or ".join(mode_options.owners(error.flagname, modes)):
            raise errors.UserError(f"--{error.flagname} is a flag of --mode={of} alone.") from error
        raise errors.UserError(f"{error} Flags are listed by --help.") from error
    except flags.Error as error:
        raise errors.UserError(f"{error} Flags are listed by --help.") from error
    if extra and not mode_options.takes_words(own):
        raise errors.UserError(
            f"What is {extra[0]!r}? Options start with -- and have their value behind a =."
        )
    if not values.workdir:
        raise errors.UserError("--workdir is missing: name the folder in which the run lives.")
    folder = pathlib.Path(values.workdir).expanduser().resolve()
    mode = modes[values.mode]
    _check_use(values, mode)
    base = _base(package, folder, values, mode)
    config, before = _override(base, overrides)
    config = package.completed(config)
    unfit = [name for name in before if not (mode.trains or package.may_change(name))]
    if unfit:
        raise errors.UserError(
            f"--mode={values.mode} cannot change config.{unfit[0]}: it is of the training alone. "
            "What it can change: "
            f"{', '.join(f'config.{name}' for name in package.changeable)}"
            + (f", without {', '.join(package.fixed)}." if package.fixed else ".")
        )
    elsewhere = ("config", "workdir", "mode", *mode_options.names(own))
    given = {name: values[name].value for name in values if name not in elsewhere}
    given["of_mode"] = mode_options.collect(own, values, extra)
    return Options(folder, values.mode, config, before, **given)


def _mode_named(words: Sequence[str]) -> str:
    """The mode of a command line; whether there is such a one is not its matter."""
    found = "train"
    for word, following in zip(words, [*words[1:], ""]):
        name, given, value = word.partition("=")
        if name in ("--mode", "-mode"):
            found = value if given else following
    return found


def read_config(base: str | ConfigDict, words: Sequence[str]) -> FrozenConfigDict:
    """A config, or that of a file, with the settings `words` (--config.a.b=v) put into it.

    For small command lines, which do not know what is left over. Raises UserError.
    """
    overrides, others = _separate(words)
    if others:
        raise errors.UserError(f"What is {others[0]!r}? Options are listed by --help.")
    return _override(_read_file(base) if isinstance(base, str) else base, overrides)[0]


def _separate(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words that set something in the config, each with its value, and the others."""
    overrides, others, awaits_value = [], [], False
    for word in words:
        sets = _OVERRIDE.match(word) is not None
        if sets:
            overrides.append(word)
        elif awaits_value and not word.startswith("-"):  # --config.a.b value
            overrides[-1] += f"={word}"
        else:
            others.append(word)
        awaits_value = sets and "=" not in word
    return overrides, others


def _check_use(values: flags.FlagValues, mode: Mode) -> None:
    """UserError for a flag that the mode, or the other flags, leave without a use."""
    for name, hint in (
        ("config", "It takes the config of the work directory; override single settings by "
         "--config.data.root=... and the like."),
        ("checkpoint", "Training goes on from the newest one; to start from another, use "
         "--config.init_from in a new work directory."),
    ):  # fmt: skip
        if values[name].present and name not in mode.takes:
            raise errors.UserError(f"--{name} has no use with --mode={values.mode}. {hint}")
    for name in ("processes", "process"):
        if values[name].present and values.coordinator is None:
            raise errors.UserError(f"--{name} has no use without --coordinator=host:port.")
    if values.coordinator is not None:
        if values.multihost:
            raise errors.UserError("Give --multihost or --coordinator, not both.")
        if values.processes is None or values.process is None:
            raise errors.UserError("--coordinator needs --processes=N and --process=i beside it.")


def _base(
    package: Package, folder: pathlib.Path, values: flags.FlagValues, mode: Mode
) -> ConfigDict:
    if values.config is None:
        if not (folder / "config.json").is_file() and "config" in mode.takes:
            raise errors.UserError(
                f"--config is missing, e.g. --config=configs/{package.name}/quickstart.py"
            )
        return ConfigDict(workdir.load_config(folder, package.name, package.default_config()))
    return _read_file(values.config)


def _read_file(name: str) -> ConfigDict:
    """What `get_config(argument)` of `path.py:argument` returns. Raises UserError."""
    path, _, argument = name.partition(".py:")
    path = pathlib.Path(f"{path}.py" if argument else name).expanduser()
    if not path.is_file():
        raise errors.UserError(f"--config={name}: there is no file {path}.")
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if spec is None:
        raise errors.UserError(f"--config={name}: {path} is no Python file.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return ConfigDict(module.get_config(*([argument] if argument else [])))
    except Exception as error:  # whatever the file does
        reason = " ".join(str(error).split()) or "no reason given"
        raise errors.UserError(f"--config={name}: {type(error).__name__}: {reason}") from error


def _override(base: ConfigDict, words: Sequence[str]) -> tuple[FrozenConfigDict, Mapping[str, Any]]:
    """The config with the settings on the command line, and what these were before."""
    for word in words:
        _check_name(base, _OVERRIDE.match(word)[1])
    # The last of several counts: ml_collections would join tuples that are given twice.
    words = list({_OVERRIDE.match(word)[1]: word for word in words}.values())
    values, line = flags.FlagValues(), ["", *map(_quoted, words)]
    before = ConfigDict(base).to_dict()
    try:
        flag = config_flags.DEFINE_config_dict("config", base, flag_values=values, sys_argv=line)
        extra = values(line)[1:]
    except (flags.Error, TypeError, ValueError, LookupError, AttributeError) as error:
        raise errors.UserError(" ".join(str(error).split())) from error
    if extra:
        raise errors.UserError(f"What is {extra[0]!r}? A setting has its value behind a =.")
    changed = config_flags.get_override_values(values["config"])
    old = {name: _at(before, name) for name in changed}
    return workdir.freeze(splits.separate_names(flag.value)), old


def _quoted(word: str) -> str:
    """`--config.data.eval=/a.tsv,b` as `--config.data.eval=('/a.tsv,b',)`: names of splits are any
    text, of which ml_collections takes some for numbers and refuses others."""
    setting, _, names = word.partition("=")
    if (
        _OVERRIDE.match(word)[1] not in splits.NAMES
        or "=" not in word
        or names[:1] in tuple("([\"'")
    ):
        return word
    return f"{setting}={(names,)!r}"


def _at(tree: Any, name: str) -> Any:
    for part in name.split("."):
        tree = tree[part]
    return tree


def _check_name(config: ConfigDict, name: str) -> None:
    """UserError for a setting that the config does not have, with the nearest ones."""
    part, walked = config, "config"
    for key in name.split("."):
        key = key.partition("[")[0]  # an element of a tuple
        if not isinstance(part, ConfigDict):
            raise errors.UserError(f"{walked} is a value, not a section: there is no config.{name}")
        if key not in part:
            near = difflib.get_close_matches(key, list(part), 1)
            elsewhere = [path for path in _paths(config) if path.split(".")[-1] == key]
            hint = f"Did you mean {walked}.{near[0]}?" if near else ""
            if not near and elsewhere:
                hint = f"Did you mean config.{elsewhere[0]}?"
            hint = hint or f"{walked} has {', '.join(sorted(part))}."
            raise errors.UserError(f"There is no setting config.{name}. {hint}")
        part, walked = part[key], f"{walked}.{key}"


def _paths(config: ConfigDict, prefix: str = "") -> list[str]:
    found = []
    for key, value in config.items():
        found += _paths(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else []
        found.append(f"{prefix}{key}")
    return found
