"""The state that a run starts with: new, or with variables of other runs (`config.init_from`).

`init_from` is one of
  - "": everything is new;
  - a work directory of the same task: `Task.adopt` takes what it can use of all its variables;
  - `PART=DIR[:OTHER]`, several joined by commas, as in `encoder=runs/a,cue=runs/speaker:encoder`:
    PART of this model (a path in its parameters, as in `cue` or `cue/block_0`, and the same one in
    the other collections) is the part OTHER of the run in DIR, whatever its task is. Without OTHER
    it is the part of the same name; `.` is all of that run's model.
"""

import logging
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from common import checkpoint, compiles, errors, parallel, parts, state
from common import workdir as workdir_lib
from common.task import Task

log = logging.getLogger(__name__)

_ADVICE = "Use the same model settings, or start without config.init_from."


def first_state(task: Task, config: Any, mesh: Mesh) -> state.TrainState:
    """The state at step 0, made where it lies. Raises UserError for runs that do not fit."""

    def fresh() -> state.Variables:
        return task.init(state.stream_key(config.seed, "init", 0))

    template = jax.eval_shape(fresh)
    sources, arguments, first = sources_of(config.init_from), (), fresh
    if isinstance(sources, pathlib.Path):
        found, meta, folder = _load(sources, task, mesh, same_task=True)

        def first(found: state.Variables) -> state.Variables:
            return task.adopt(fresh(), found, meta)

        checkpoint.check_shapes(jax.eval_shape(first, found), template, folder, _ADVICE)
        arguments = (found,)
    elif sources:
        loaded = {folder: _load(folder, task, mesh) for folder, _ in sources.values()}
        taken = []
        for part, (folder, other) in sources.items():
            variables, _, checkpoints = loaded[folder]
            taken.append(_part(variables, checkpoints, other, template, part))

        def first(*taken: state.Variables) -> state.Variables:
            variables = fresh()
            for part in taken:
                variables = parts.replace(variables, part)
            return variables

        arguments = tuple(taken)
    # Made where it lies: no device ever holds all of what is sharded.
    placed = jax.eval_shape(task.create_state, template)
    make = compiles.jit_once(
        lambda *found: task.create_state(first(*found)),
        out_shardings=parallel.shardings(placed, mesh, task.sharded),
    )
    return make(*arguments)


def sources_of(init_from: str) -> pathlib.Path | dict[str, tuple[pathlib.Path, str]]:
    """A work directory, or part -> (work directory, the part there); {} for "".

    A folder whose name has `=` or `:` in it is a folder, if there is one.
    """
    if not init_from:
        return {}
    whole = pathlib.Path(init_from).expanduser()
    if whole.is_dir() or not re.match(r"[\w/]+=", init_from):
        return whole
    found = {}
    for item in init_from.split(","):
        part, _, rest = (piece.strip() for piece in item.partition("="))
        if not part or not rest or part in found:
            raise errors.UserError(
                f"config.init_from={init_from!r}: {item.strip()!r} is not understood. Give a work "
                "directory, or PART=DIR or PART=DIR:OTHER, each part once, joined by commas."
            )
        folder, colon, other = rest.rpartition(":")
        if not colon or pathlib.Path(rest).expanduser().is_dir():
            folder, other = rest, part
        found[part] = (pathlib.Path(folder).expanduser(), other)
    return found


def _load(
    folder: pathlib.Path, task: Task, mesh: Mesh, *, same_task: bool = False
) -> tuple[state.Variables, Mapping[str, Any], pathlib.Path]:
    """(variables, meta, where) of the best checkpoint of a run."""
    workdir_lib.read_config(folder)  # raises if it is no work directory
    if same_task:
        workdir_lib.check_owner(folder, task.name)
    checkpoints = folder / "checkpoints"
    loader = checkpoint.Checkpointer(checkpoints, best_mode=task.best_metric[2], read_only=True)
    found, meta = loader.load_variables(mesh)
    loader.close()
    log.info("Starting from step %d of %s.", meta["step"], checkpoints)
    return found, meta, checkpoints


def _part(
    found: state.Variables,
    checkpoints: pathlib.Path,
    other: str,
    template: state.Variables,
    part: str,
) -> state.Variables:
    """The part `other` of another run's variables as the part `part` of this model's."""
    if _at(template["params"], part) is None:
        raise errors.UserError(
            f"config.init_from names the part {part!r}, which this model does not have. It has "
            f"{_names(template['params'])}."
        )
    if _at(found["params"], other) is None:
        raise errors.UserError(
            f"config.init_from: the model in {checkpoints} has no part {other!r}. It has "
            f"{_names(found['params'])}. Name one as in {part}={checkpoints.parent}:"
            f"{min(found['params'])}; a dot in its place is all of that model."
        )
    taken, wanted = {}, {}
    for name in {**template, **found}:
        if (tree := _at(found.get(name, {}), other)) is not None:
            taken[name] = _under(part, tree)
        if (tree := _at(template.get(name, {}), part)) is not None:
            wanted[name] = _under(part, tree)
    checkpoint.check_shapes(taken, wanted, checkpoints, _ADVICE)
    return taken


def _at(tree: Any, path: str) -> Any:
    """What is at a path, None if nothing is."""
    for name in () if path == "." else path.split("/"):
        if not isinstance(tree, Mapping) or name not in tree:
            return None
        tree = tree[name]
    return None if isinstance(tree, Mapping) and not tree else tree


def _under(path: str, tree: Any) -> Any:
    """A tree in which `tree` is at a path."""
    for name in reversed(path.split("/")):
        tree = {name: tree}
    return tree


def _names(tree: Mapping[str, Any]) -> str:
    """The parts of the two upper levels."""
    names = []
    for name, below in tree.items():
        names.append(name)
        names += [f"{name}/{inner}" for inner in below if isinstance(below[inner], Mapping)]
    return ", ".join(names)
