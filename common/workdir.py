"""The work directory of a run: its config, its lock, and what lies where."""

import json
import logging
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import ml_collections

from common import errors, files, locks

log = logging.getLogger(__name__)

Loaded = TypeVar("Loaded")


class WorkdirError(errors.UserError):
    """A work directory that cannot be used as asked."""


class DamagedConfigError(WorkdirError):
    """A config.json that cannot be read as one; training writes it anew."""


def _plain(value: Any) -> Any:
    """JSON types only; tuples become lists."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else key)
    else:
        yield name, value


def freeze(config: Any) -> ml_collections.FrozenConfigDict:
    """The resolved config as all code sees it: it cannot be edited any more."""
    return ml_collections.FrozenConfigDict(ml_collections.ConfigDict(config).to_dict())


def load_config(
    workdir: pathlib.Path, task: str, default: ml_collections.ConfigDict
) -> ml_collections.FrozenConfigDict:
    """The config that the work directory was made with, checked to be of `task`.

    Settings that came later have their values in `default`; what is filled in, or known no longer,
    is logged.
    """
    owner, config = read_config(workdir)
    _check_task(workdir, owner, task)
    return freeze(_filled(config, default, workdir))


def read_config(workdir: pathlib.Path) -> tuple[str, dict[str, Any]]:
    """The task of a work directory and its config as it was saved. Raises WorkdirError."""
    path = pathlib.Path(workdir) / "config.json"
    if not path.is_file():
        raise WorkdirError(
            f"{workdir} is no work directory: it has no config.json. Name the --workdir of a "
            "training run."
        )
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        return saved["task"], dict(saved["config"])
    except OSError as error:
        raise WorkdirError(f"{path} cannot be read ({error.strerror}).") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedConfigError(
            f"{path} is damaged ({error}). Start the training command again on this directory: it "
            "writes the file anew."
        ) from error


def _filled(
    config: dict[str, Any], default: ml_collections.ConfigDict, workdir: pathlib.Path
) -> dict[str, Any]:
    """The saved settings that are still known, and the others of `default`."""
    known, found = dict(_flat(_plain(default.to_dict()))), dict(_flat(config))
    lacking = {key: value for key, value in known.items() if key not in found}
    unknown = [key for key in found if key not in known]
    for key, value in lacking.items():
        log.info("config.%s came after %s was made: it is %r, as before.", key, workdir, value)
    for key in unknown:
        log.warning(
            "config.%s=%r of %s is no setting any more: left out.", key, found[key], workdir
        )
    merged = default.to_dict()
    for key, value in found.items():
        if key in known:
            *sections, last = key.split(".")
            place = merged
            for name in sections:
                place = place[name]
            is_whole = isinstance(value, int) and isinstance(place[last], float)
            place[last] = float(value) if is_whole else _tuples(value)
    return merged


def _tuples(value: Any) -> Any:
    """The inverse of `_plain` for values: settings are tuples where JSON has lists."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def of_setting(
    setting: str, folder: str, task: str, load: Callable[[pathlib.Path], Loaded]
) -> Loaded:
    """`load` of the work directory that a setting names. A UserError says which setting it was."""
    path, named = pathlib.Path(folder).expanduser(), f"{setting}={folder}"
    try:
        owner, _ = read_config(path)
        if owner == task:
            return load(path)
    except errors.UserError as error:
        raise errors.UserError(f"{named}: {error}") from error
    raise errors.UserError(
        f"{named} is a work directory of {owner!r}: name one that {task}.main has trained."
    )


def has_checkpoints(workdir: pathlib.Path) -> bool:
    """Whether a run has saved any."""
    return any((workdir / "checkpoints").glob("[0-9]*"))


def check_owner(workdir: pathlib.Path, task: str) -> None:
    """Raises WorkdirError if the directory belongs to another task; a damaged config is passed."""
    if (workdir / "config.json").is_file():
        try:
            owner, _ = read_config(workdir)
        except DamagedConfigError:
            return
        _check_task(workdir, owner, task)


def _check_task(workdir: pathlib.Path, owner: str, task: str) -> None:
    if owner != task:
        raise WorkdirError(
            f"{workdir} belongs to the task {owner!r}, not to {task!r}. Use python -m "
            f"{owner}.main, or another --workdir."
        )


def save_config(workdir: pathlib.Path, task: str, config: Any) -> None:
    """Writes config.json; logs each key that differs from the one that lies there."""
    path = pathlib.Path(workdir) / "config.json"
    new = _plain(config.to_dict())
    if path.is_file():
        try:
            old = dict(_flat(read_config(workdir)[1]))
        except DamagedConfigError as error:
            log.warning("%s", error)
            old = dict(_flat(new))
        for key, value in _flat(new):
            if key in old and old[key] != value:
                log.warning(
                    "config.%s was %r when this directory was last used and is %r now.",
                    *(key, old[key], value),
                )
    files.write_text(path, json.dumps({"task": task, "config": new}, indent=2) + "\n")


class Lock:
    """Held while a process writes to a work directory; a second one is turned away.

    The operating system frees it when the process ends in any way, so it never has to be removed.
    """

    def __init__(self, workdir: pathlib.Path) -> None:
        self._workdir = workdir
        self._lock = locks.Lock(workdir / ".lock")

    def __enter__(self) -> "Lock":
        try:
            self._workdir.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except locks.Busy as busy:
            raise WorkdirError(
                f"Another process ({busy.owner}) is working in {self._workdir}. Wait for it, stop "
                "it, or choose another --workdir."
            ) from None
        except OSError as error:
            raise WorkdirError(
                f"Cannot write to the work directory {self._workdir}: {error.strerror}. Choose "
                "another --workdir."
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()
