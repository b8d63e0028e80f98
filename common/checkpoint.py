"""Saving and restoring; the only file that knows Orbax.

`DIR/checkpoints/<step>/state` is a plain Orbax tree, `meta` JSON: the position in the stream of
data, which is the same on all hosts, and a fingerprint of every array among others. Orbax renames a
checkpoint into place when all of it is written, so a killed process never leaves half of one under
its final name. Orbax does not notice flipped bytes (they come back as other weights); the
fingerprint does.
"""

import contextlib
import errno
import functools
import itertools
import json
import logging
import math
import pathlib
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import serialization, traverse_util
from jax.sharding import Mesh

from common import errors, fingerprint, hosts, parallel, parts, state

log = logging.getLogger(__name__)


class CheckpointError(errors.UserError):
    """A save or a restore that cannot go on; the message says what to do."""


class NotFinite(CheckpointError):
    """A state that is not saved; `arrays` are the names of those that hold NaN or infinity."""

    def __init__(self, message: str, arrays: Sequence[str]) -> None:
        super().__init__(message)
        self.arrays = arrays


class Damaged(CheckpointError):
    """What lies on the disk is not what was written there."""


# What tensorstore says of damage, for which it has no types of exceptions. Where the system refuses
# (open files, memory, permissions, a disk that does not answer) the first word is another.
_DAMAGE = re.compile(
    r"^(DATA_LOSS|NOT_FOUND|OUT_OF_RANGE): Error (opening|reading) "
    r"|^(FAILED_PRECONDITION: )?Error (opening|reading) .*([Cc]orrupt|decoding|Invalid|Truncated)",
    re.MULTILINE,
)


def _checksum(meta: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


def _to_tree(train_state: state.TrainState) -> dict[str, Any]:
    """The state as nested dicts with string keys and no empty nodes: plain to any Orbax reader."""
    flat = traverse_util.flatten_dict(serialization.to_state_dict(train_state))
    return traverse_util.unflatten_dict({k: v for k, v in flat.items() if v is not None})


def _from_tree(template: state.TrainState, tree: dict[str, Any]) -> state.TrainState:
    """The inverse of `_to_tree`; empty nodes come from the template."""
    full = traverse_util.flatten_dict(serialization.to_state_dict(template), keep_empty_nodes=True)
    full |= traverse_util.flatten_dict(tree)
    return serialization.from_state_dict(template, traverse_util.unflatten_dict(full))


def _differences(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """A line for each array that is not the same in the checkpoint and in the config's model; of
    more than 20 how many more."""

    def shape(leaf: Any) -> str:
        return f"{jnp.dtype(leaf.dtype).name}{list(leaf.shape)}"

    lines = []
    for name in sorted({*saved, *wanted}):
        have = shape(saved[name]) if name in saved else "absent"
        want = shape(wanted[name]) if name in wanted else "absent"
        if have != want:
            lines.append(f"  {name}: checkpoint {have}, config {want}")
    return [*lines[:20], *([f"  ... and {len(lines) - 20} more"] if len(lines) > 20 else [])]


def check_shapes(
    found: state.Variables, wanted: state.Variables, folder: pathlib.Path, advice: str
) -> None:
    """Raises CheckpointError with a line for each array that differs in shape or type."""
    flat = (traverse_util.flatten_dict(dict(tree), sep="/") for tree in (found, wanted))
    if lines := _differences(*flat):
        raise CheckpointError(
            f"The variables in {folder} do not fit this config; these arrays differ:\n"
            + "\n".join(lines)
            + f"\n{advice}"
        )


@contextlib.contextmanager
def _reading(folder: pathlib.Path) -> Iterator[None]:
    """Errors come as Damaged where the files are at fault, otherwise as another CheckpointError."""
    try:
        yield
    except errors.UserError:  # The config or the devices do not fit, or it is said already.
        raise
    except Exception as error:
        text = _one_line(error)
        if isinstance(error, FileNotFoundError | json.JSONDecodeError | UnicodeDecodeError) or (
            _DAMAGE.search(_said(error))
        ):
            raise Damaged(f"Checkpoint {folder} is damaged ({text}).") from error
        raise CheckpointError(
            f"Checkpoint {folder} could not be read ({type(error).__name__}: {text}). That need "
            "not be its fault: nothing was moved or changed. Mend the cause (memory, open files, "
            "permissions, another version of Orbax) and start again; or move the folder away, and "
            "the run resumes from the one before."
        ) from error


def _said(error: BaseException | None) -> str:
    """What an error and its causes say, a line each, without the names of files."""
    lines = []
    while error is not None:
        text = re.sub(r'"[^"]*"', "", str(error))
        text = re.split(r"See full TensorStore details|\[tensorstore_spec", text)[0]
        lines.append(" ".join(text.split()))
        error = error.__cause__ or error.__context__
    return "\n".join(lines)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) < 300 else text[:300] + " ..."


def _read_meta(folder: pathlib.Path) -> dict[str, Any]:
    meta = json.loads((folder / "meta" / "metadata").read_text("utf-8"))
    # Earlier versions wrote no checksum, and the position in the data into files of grain's own.
    checksum = meta.pop("checksum", None)
    if "fingerprint" not in meta or checksum != (_checksum(meta) if "data" in meta else None):
        raise Damaged(f"Checkpoint {folder} is damaged (its meta changed on disk).")
    if "data" not in meta and (folder / "data").is_dir():
        positions = sorted((folder / "data").glob("process_*.json"))
        if not positions:
            raise Damaged(f"Checkpoint {folder} is damaged (no file in {folder / 'data'}).")
        meta["data"] = json.loads(positions[0].read_text("utf-8"))
    return meta


def _read(
    folder: pathlib.Path,
    mesh: Mesh,
    wanted: Mapping[str, Any] | None,
    sharded: Sequence[str],
    check: Callable[[dict[str, Any]], None] | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tree of one checkpoint, laid over the mesh, and `meta`, which `check` may refuse first.

    Each process reads for itself. Orbax's manager would wait for the others at the end, also for
    one that has failed; its handler does not.
    """
    with _reading(folder):
        meta = _read_meta(folder)
        if check is not None:
            check(meta)
        handler = ocp.StandardCheckpointHandler()
        try:
            metadata = handler.metadata(folder / "state")
        except (KeyError, TypeError, AttributeError) as error:  # JSON, but not Orbax's any more
            raise Damaged(f"Checkpoint {folder} is damaged (its _METADATA: {error}).") from error
        saved = traverse_util.flatten_dict(dict(metadata.tree), sep="/")
        if wanted is not None and (lines := _differences(saved, wanted)):
            raise CheckpointError(
                f"The config does not fit the checkpoint {folder}; these arrays differ:\n"
                + "\n".join(lines)
                + "\nUse the config that it was trained with (config.json beside it), or if it is "
                "that one the version that trained it, or another --workdir."
            )
        placed = parallel.shardings(saved, mesh, sharded)
        abstract = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed[name])
            for name, leaf in saved.items()
        }
        tree = handler.restore(
            folder / "state",
            args=ocp.args.StandardRestore(traverse_util.unflatten_dict(abstract, sep="/")),
        )
    return tree, meta


class Checkpointer:
    """Keeps the last, the best and every n-th checkpoint of a run under `directory`."""

    def __init__(
        self,
        directory: pathlib.Path,
        *,
        keep_last: int = 2,
        keep_best: int = 1,
        best_mode: str = "min",
        keep_every: int = 0,
        read_only: bool = False,
    ) -> None:
        policies = ocp.checkpoint_managers

        def metric(values: Mapping[str, float]) -> float:
            worst = math.inf if best_mode == "min" else -math.inf
            counts = math.isfinite(values["best"]) and self._over in (None, values.get("over", ""))
            return values["best"] if counts else worst

        keep: list[Any] = [policies.LatestN(keep_last)]
        if keep_best:
            keep.append(
                policies.BestN(
                    get_metric_fn=metric,
                    reverse=best_mode == "min",
                    n=keep_best,
                    keep_checkpoints_without_metrics=False,
                )
            )
        if keep_every:
            keep.append(policies.EveryNSteps(keep_every))
        self.directory = pathlib.Path(directory).resolve()
        self._sign = 1.0 if best_mode == "min" else -1.0
        self._over: str | None = None  # what the metric saved last was measured over
        self._set_aside: list[int] = []  # the steps of damaged checkpoints
        if not read_only:
            self._check_scores()
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(keep),
                # Without it Orbax forgets the metrics with the process.
                best_fn=metric,
                best_mode=best_mode,
                create=not read_only,
                read_only=read_only,
                cleanup_tmp_directories=not read_only,
                lightweight_initialize=read_only,  # reads no metrics, which may be damaged
            ),
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(),
            },
        )
        self._started: int | None = None

    def steps(self) -> list[int]:
        """The steps that are on disk, oldest first."""
        return sorted(self._manager.all_steps())

    def save(
        self,
        step: int,
        train_state: state.TrainState,
        data_iterator: Any,
        meta: Mapping[str, Any],
        best: float | None,
        over: str = "",
    ) -> None:
        """Starts writing; returns when the state is copied. Raises if an earlier save failed.

        A checkpoint of that step is replaced. A metric `best` that is not finite counts as none;
        one measured `over` other recordings than the last is not compared with it.
        Raises NotFinite for a state that is not finite, and writes nothing.

        Without a `data_iterator` the run that starts from here reads its data from the beginning.
        """
        self.wait()  # An error of the save before is that save's, by name.
        tree = _to_tree(train_state)
        prints, bad = fingerprint.of_tree(tree)
        if bad:
            raise NotFinite(
                f"The state of step {step} is not saved: it holds NaN or infinity in "
                f"{', '.join(bad)}. Nothing else was touched: {self.last_good(step)}.",
                bad,
            )
        if best is not None and not math.isfinite(best):
            log.warning("Step %d: its metric is %s and never makes it the best.", step, best)
            best = None
        # The copy is ours: the next step is given the state's own buffers to overwrite, and on the
        # CPU the writer would read those very buffers.
        tree = jax.tree.map(jnp.copy, tree)
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
        free = shutil.disk_usage(self.directory).free
        if free < needed:  # Found out in the middle of it, it is a hundred lines of tracebacks.
            full = f"the disk is full ({needed >> 20} MiB needed, {free >> 20} MiB free)"
            raise self._save_error(step, OSError(errno.ENOSPC, full))
        position = None if data_iterator is None else data_iterator.get_state()
        meta = {**meta, "step": step, "fingerprint": prints, "data": position}
        meta = json.loads(json.dumps(meta))  # as it will be read
        meta["checksum"] = _checksum(meta)
        if best is not None:
            self._over = over
        try:
            if step in self.steps():
                self._manager.delete(step)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(tree), meta=ocp.args.JsonSave(meta)
                ),
                metrics=None if best is None else {"best": best, "sign": self._sign, "over": over},
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise self._save_error(step, error) from error
        self._started = step

    def wait(self) -> None:
        """Returns when the last save is on disk; raises CheckpointError if it failed."""
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._save_error(self._started, error) from error

    def close(self) -> None:
        """Waits for the last save and frees the writer's threads."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def last_good(self, without: int | None = None) -> str:
        """Which checkpoint the run resumes from, in words; that of step `without` is not asked."""
        good = [step for step in self.steps() if step != without]
        if not good:
            return "there is no earlier checkpoint"
        return f"the last good checkpoint is {self.directory / str(good[-1])}"

    def _save_error(self, step: int | None, error: Exception) -> CheckpointError:
        reason = _one_line(error)
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            said = str(getattr(error, "strerror", ""))
            reason = said if said.startswith("the disk is full") else "the disk is full"
        return CheckpointError(
            f"Could not save the checkpoint of step {step} in {self.directory}: {reason}. Nothing "
            f"else was touched: {self.last_good(step)}. Free space or mend the folder and start "
            "the same command again; it resumes from there."
        )

    def restore(
        self,
        template: state.TrainState,
        mesh: Mesh,
        data_iterator: Any,
        sharded: Sequence[str] = (),
        *,
        check: Callable[[dict[str, Any]], None] | None = None,
    ) -> tuple[state.TrainState, dict[str, Any]] | None:
        """The newest sound checkpoint, put back into `data_iterator` too; None if there is none.

        `check` is given its `meta` before its arrays are looked at, and may raise a UserError that
        says more than their shapes.
        What one process finds damaged is moved to `damaged/<step>` beside the others, with a
        warning, and the one before is tried. Every other error is raised and touches nothing:
        arrays of other shapes (which are listed), memory, permissions, values that are not finite.
        """
        wanted = traverse_util.flatten_dict(_to_tree(template), sep="/")
        for step in reversed(self.steps()):
            try:
                tree, meta, bad = self._load(step, mesh, wanted, sharded, check)
            except Damaged as error:
                self._move_away(step, error)
                continue
            if bad:
                raise CheckpointError(
                    f"Checkpoint {self.directory / str(step)} holds NaN or infinity in "
                    f"{', '.join(bad)}: an earlier version saved such states. Nothing was changed. "
                    "Move that folder away and start again; the run resumes from the one before."
                )
            if data_iterator is not None and meta.get("data") is not None:
                data_iterator.set_state(meta["data"])
                data_iterator.start_prefetch()
            if self._set_aside:
                self._manager.reload()
            return _from_tree(template, tree), meta
        if self._set_aside:
            raise CheckpointError(
                f"All {len(self._set_aside)} checkpoints in {self.directory} are damaged (now in "
                f"{self.directory.parent / 'damaged'}). Start the same command again to train from "
                "the beginning, or put a sound copy back."
            )
        return None

    def _load(
        self,
        step: int,
        mesh: Mesh,
        wanted: Mapping[str, Any] | None,
        sharded: Sequence[str] = (),
        check: Callable[[dict[str, Any]], None] | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
        """Tree, `meta`, and the arrays that are not finite; checked bit by bit, by all processes.

        Raises Damaged on all of them if one finds damage.
        """
        folder = self.directory / str(step)
        read = functools.partial(_read, folder, mesh, wanted, sharded, check)
        tree, meta = hosts.together(read, Damaged, f"reading {folder}")

        def sound() -> list[str]:
            now, bad = fingerprint.of_tree(tree)
            wrong = [name for name, value in meta["fingerprint"].items() if now.get(name) != value]
            if wrong:
                raise Damaged(
                    f"Checkpoint {folder} is damaged ({len(wrong)} arrays changed on disk, first "
                    f"{wrong[0]})."
                )
            return bad

        return tree, meta, hosts.together(sound, Damaged, f"reading {folder}")

    def _move_away(self, step: int, error: Damaged) -> None:
        """Moves a checkpoint to `damaged/<step>`, or `<step>-1` ... where there is one already."""
        source, folder = self.directory / str(step), self.directory.parent / "damaged"

        def move() -> None:
            if jax.process_index() != 0:
                return
            names = itertools.chain([f"{step}"], (f"{step}-{n}" for n in itertools.count(1)))
            target = next(folder / name for name in names if not (folder / name).exists())
            try:
                folder.mkdir(exist_ok=True)
                source.rename(target)
            except OSError as refused:
                raise CheckpointError(
                    f"{error} It cannot be moved to {target}: {refused.strerror}."
                ) from refused

        hosts.together(move, Damaged, f"moving {source} away")
        log.warning("%s Moved into %s, trying the one before.", str(error), folder)
        self._set_aside.append(step)

    def _score(self, step: int) -> tuple[float, str] | None:
        """The metric that a checkpoint was saved with, if it is a number (the least is the best),
        and what it was measured over."""
        path = self.directory / str(step) / "metrics" / "metrics"
        with _reading(self.directory / str(step)):
            saved = json.loads(path.read_text("utf-8")) if path.exists() else {}
            # The run's own sign: what reads it may be another task (`init_from`).
            value = saved.get("sign", self._sign) * saved.get("best", math.nan)
            return (value, saved.get("over", "")) if math.isfinite(value) else None

    def _check_scores(self) -> None:
        """Moves checkpoints aside whose metric is damaged: Orbax's manager reads them all."""
        steps = sorted(int(path.name) for path in self.directory.glob("*") if path.name.isdigit())
        hosts.check_same(
            {f"the list of checkpoints in {self.directory}": repr(steps)},
            "The work directory has to be one that they share.",
        )
        for step in steps:
            try:
                read = functools.partial(self._score, step)
                hosts.together(read, Damaged, f"reading {self.directory / str(step)}")
            except Damaged as error:
                self._move_away(step, error)

    def load_variables(
        self, mesh: Mesh, *, step: int | None = None
    ) -> tuple[state.Variables, dict[str, Any]]:
        """Variables for inference (averaged ones if the run kept an average) and `meta`.

        Whole on every device, however they lay in training. `step=None` takes the best checkpoint
        by the metric of the run, or the last one if no evaluation was saved.
        """
        if not self.steps():
            raise CheckpointError(
                f"There is no checkpoint in {self.directory}. Train first (python -m <task>.main "
                "--config=... --workdir=...) or name another --workdir."
            )
        there = ", ".join(map(str, self.steps()))
        try:
            step = self.best_step() if step is None else step
            if step not in self.steps():
                raise CheckpointError(
                    f"There is no checkpoint of step {step} in {self.directory}; there are {there}."
                )
            tree, meta, _ = self._load(step, mesh, None)
        except Damaged as error:
            raise CheckpointError(f"{error} Choose another with --checkpoint: {there}.") from error
        variables = {"params": tree["params"], **tree.get("model_state", {})}
        return parts.replace(variables, tree.get("ema", {})), meta

    def best_step(self) -> int:
        """The step with the best metric on disk over the recordings of the newest, or the last."""
        scores = {step: found for step in self.steps() if (found := self._score(step))}
        if not scores:
            return self.steps()[-1]
        _, last = scores[max(scores)]
        return min((value, step) for step, (value, over) in scores.items() if over == last)[1]
