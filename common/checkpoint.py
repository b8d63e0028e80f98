"""Saving and restoring; the only file that knows Orbax.

`DIR/checkpoints/<step>/state` is a plain Orbax tree, `data` the grain iterator's position, `meta`
JSON: a fingerprint of every array among others. Orbax renames a checkpoint into place when all of
it is written, so a killed process never leaves half of one under its final name. Orbax does not
notice flipped bytes (they come back as other weights); the fingerprint does.
"""

import errno
import logging
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import grain.python as grain
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import serialization, traverse_util
from jax.sharding import Mesh

from common import errors, parallel, parts, state

log = logging.getLogger(__name__)


class CheckpointError(errors.UserError):
    """A save or a restore that cannot go on; the message says what to do."""


def _bits(leaf: jax.Array) -> jax.Array:
    """A 32-bit sum over the leaf's bytes in which each element has its own odd weight."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if leaf.dtype == jnp.bool_:
        leaf = leaf.astype(jnp.uint8)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[leaf.dtype.itemsize]
    words = jax.lax.bitcast_convert_type(leaf, unsigned).reshape(-1).astype(jnp.uint32)
    weights = 2 * jnp.arange(words.size, dtype=jnp.uint32) + 1
    return jnp.sum(words * weights, dtype=jnp.uint32)


@jax.jit
def _fingerprints(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([_bits(leaf) for leaf in leaves])


def fingerprint(tree: Any) -> dict[str, int]:
    """Path -> 32-bit fingerprint of each array; a flipped bit anywhere in it changes it."""
    flat = traverse_util.flatten_dict(tree, sep="/")
    flat = {name: leaf for name, leaf in flat.items() if leaf is not None}
    values = _fingerprints(list(flat.values()))
    return dict(zip(flat, [int(value) for value in values]))


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
    """One line for each array that is not the same in the checkpoint and in the config's model."""

    def shape(leaf: Any) -> str:
        return f"{jnp.dtype(leaf.dtype).name}{list(leaf.shape)}"

    lines = []
    for name in sorted({*saved, *wanted}):
        have = shape(saved[name]) if name in saved else "absent"
        want = shape(wanted[name]) if name in wanted else "absent"
        if have != want:
            lines.append(f"  {name}: checkpoint {have}, config {want}")
    return lines


def check_shapes(found: state.Variables, wanted: state.Variables, folder: pathlib.Path) -> None:
    """Raises CheckpointError with a line for each array that differs in shape or type."""
    flat = (traverse_util.flatten_dict(dict(tree), sep="/") for tree in (found, wanted))
    if lines := _differences(*flat):
        raise CheckpointError(
            f"The variables in {folder} do not fit this config; these arrays differ:\n"
            + "\n".join(lines[:20])
            + "\nUse the same model settings, or start without config.init_from."
        )


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
            return values["best"]

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
            ),
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "data": grain.PyGrainCheckpointHandler(),
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
    ) -> None:
        """Starts writing; returns when the state is copied. Raises if an earlier save failed.

        A checkpoint of that step is replaced.

        Without a `data_iterator` the run that starts from here reads its data from the beginning.
        """
        self.wait()  # An error of the save before is that save's, by name.
        tree = _to_tree(train_state)
        # The copy is ours: the next step is given the state's own buffers to overwrite, and on the
        # CPU the writer would read those very buffers.
        tree = jax.tree.map(jnp.copy, tree)
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
        free = shutil.disk_usage(self.directory).free
        if free < needed:  # Found out in the middle of it, it is a hundred lines of tracebacks.
            full = f"the disk is full ({needed >> 20} MiB needed, {free >> 20} MiB free)"
            raise self._save_error(step, OSError(errno.ENOSPC, full))
        data = {}
        if data_iterator is not None:
            data["data"] = grain.PyGrainCheckpointSave(data_iterator)
        meta = {**meta, "step": step, "fingerprint": fingerprint(tree)}
        try:
            if step in self.steps():
                self._manager.delete(step)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(tree), meta=ocp.args.JsonSave(meta), **data
                ),
                metrics=None if best is None else {"best": best, "sign": self._sign},
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

    def _save_error(self, step: int | None, error: Exception) -> CheckpointError:
        text = " ".join(str(error).split())
        reason = text if len(text) < 300 else text[:300] + " ..."
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in text:
            said = str(getattr(error, "strerror", ""))
            reason = said if said.startswith("the disk is full") else "the disk is full"
        good = [s for s in self.steps() if s != step]
        last = (
            f"the last good checkpoint is {self.directory / str(good[-1])}"
            if good
            else ("there is no earlier checkpoint")
        )
        return CheckpointError(
            f"Could not save the checkpoint of step {step} in {self.directory}: {reason}. Nothing "
            f"else was touched: {last}. Free space or mend the folder and start the same command "
            "again; it resumes from there."
        )

    def restore(
        self,
        template: state.TrainState,
        mesh: Mesh,
        data_iterator: Any,
        sharded: Sequence[str] = (),
    ) -> tuple[state.TrainState, dict[str, Any]] | None:
        """The newest sound checkpoint, put back into `data_iterator` too; None if there is none.

        A damaged checkpoint is moved to `damaged/<step>` beside the others, with a warning, and the
        one before is tried. One that is sound but does not fit raises and lists the shapes.
        """
        damaged = 0
        for step in reversed(self.steps()):
            try:
                restored, meta = self._read(step, template, mesh, data_iterator, sharded)
            except errors.UserError:  # The config or the devices do not fit: no fault of the file.
                raise
            except Exception as error:
                self._set_aside(step, error)
                damaged += 1
                continue
            return restored, meta
        if damaged:
            raise CheckpointError(
                f"All {damaged} checkpoints in {self.directory} are damaged (now in "
                f"{self.directory.parent / 'damaged'}). Start the same command again to train from "
                "the beginning, or put a sound copy back."
            )
        return None

    def _read(
        self,
        step: int,
        template: state.TrainState,
        mesh: Mesh,
        data_iterator: Any,
        sharded: Sequence[str],
    ) -> tuple[state.TrainState, dict[str, Any]]:
        wanted = traverse_util.flatten_dict(_to_tree(template), sep="/")
        tree, meta = self._load(step, mesh, wanted, sharded)
        if data_iterator is not None and (self.directory / str(step) / "data").exists():
            self._manager.restore(
                step, args=ocp.args.Composite(data=grain.PyGrainCheckpointRestore(data_iterator))
            )
        return _from_tree(template, tree), meta

    def _load(
        self,
        step: int,
        mesh: Mesh,
        wanted: Mapping[str, Any] | None,
        sharded: Sequence[str] = (),
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The tree of one checkpoint, laid over the mesh and checked bit by bit."""
        metadata = self._manager.item_metadata(step)["state"]
        saved = traverse_util.flatten_dict(dict(metadata.tree), sep="/")
        if wanted is not None and (lines := _differences(saved, wanted)):
            more = [f"  ... and {len(lines) - 20} more"] if len(lines) > 20 else []
            raise CheckpointError(
                f"The config does not fit the checkpoint {self.directory / str(step)}; these "
                "arrays differ:\n" + "\n".join(lines[:20] + more) + "\nUse the config that it was "
                "trained with (config.json beside it) or another --workdir."
            )
        placed = parallel.shardings(saved, mesh, sharded)
        abstract = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed[name])
            for name, leaf in saved.items()
        }
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(traverse_util.unflatten_dict(abstract, sep="/")),
                meta=ocp.args.JsonRestore(),
            ),
        )
        tree, meta = restored["state"], restored["meta"]
        now = fingerprint(tree)
        wrong = [name for name, value in meta["fingerprint"].items() if now.get(name) != value]
        if wrong:
            raise ValueError(f"{len(wrong)} arrays changed on disk, first {wrong[0]}")
        return tree, meta

    def _set_aside(self, step: int, error: Exception) -> None:
        text = " ".join(str(error).split())[:200]
        target = self.directory.parent / "damaged" / str(step)
        log.warning(
            "Checkpoint %s is damaged (%s: %s); moved to %s, trying the one before.",
            self.directory / str(step),
            type(error).__name__,
            text,
            target,
        )
        if jax.process_index() == 0:
            target.parent.mkdir(exist_ok=True)
            if target.exists():
                shutil.rmtree(target)
            shutil.move(self.directory / str(step), target)
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices(f"set aside {step}")
        self._manager.reload()

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
        step = self.best_step() if step is None else step
        if step not in self.steps():
            raise CheckpointError(
                f"There is no checkpoint of step {step} in {self.directory}; there are "
                f"{', '.join(map(str, self.steps()))}."
            )
        try:
            tree, meta = self._load(step, mesh, None)
        except Exception as error:
            raise CheckpointError(
                f"Checkpoint {self.directory / str(step)} is damaged "
                f"({' '.join(str(error).split())[:200]}). Choose another with --checkpoint: "
                f"{', '.join(map(str, self.steps()))}."
            ) from error
        variables = {"params": tree["params"], **tree.get("model_state", {})}
        return parts.replace(variables, tree.get("ema", {})), meta

    def best_step(self) -> int:
        """The step with the best metric among those on disk, or the last."""
        best: tuple[float, int] | None = None
        for step in self.steps():
            values = self._manager.metrics(step)
            if values and "best" in values:
                # The run's own sign: what reads it may be another task (`init_from`).
                candidate = (values.get("sign", self._sign) * values["best"], step)
                best = candidate if best is None or candidate < best else best
        return self.steps()[-1] if best is None else best[1]
