"""The training speakers of a work directory, which are the classes of a network, in their order."""

import hashlib
import pathlib

import numpy as np
from jaxtyping import Int

from common import errors, files
from common import workdir as workdir_lib
from common.data import splits

FILE = "speakers.txt"  # of the work directory: the classes in order


def read(workdir: pathlib.Path) -> tuple[str, ...]:
    """The training speakers in the order of the classes, from DIR/speakers.txt."""
    path = workdir / FILE
    try:
        return tuple(path.read_text("utf-8").rstrip("\n").split("\n"))
    except OSError as error:
        raise errors.UserError(
            f"{path} cannot be read ({error.strerror}): it holds the training speakers. Put "
            "it back beside the checkpoints."
        ) from error


def write(split: splits.Split, workdir: pathlib.Path) -> None:
    """Keeps the speakers of a training split, sorted, in DIR/speakers.txt.

    A directory with checkpoints of other speakers is not touched: UserError with the difference.
    """
    names = tuple(sorted(set(splits.speakers_of(split))))
    if len(names) < 2:
        raise errors.UserError(f"{split.source.name}: training needs two speakers, not {names}.")
    path = workdir / FILE
    if not path.exists() or not workdir_lib.has_checkpoints(workdir):
        files.write_text(path, "\n".join(names) + "\n")
        return
    known = read(workdir)
    if known != names:
        missing, new = sorted(set(known) - set(names)), sorted(set(names) - set(known))
        raise errors.UserError(
            f"{workdir} was trained on other speakers ({path.name}): the data now lack "
            f"{len(missing)} ({', '.join(missing[:3])}) and have {len(new)} new ones "
            f"({', '.join(new[:3])}). Use the data of then, or another --workdir."
        )


def count(names: tuple[str, ...], speeds: tuple[float, ...]) -> int:
    """Every speaker at every speed; UserError for speeds that cannot be."""
    if not speeds or speeds[0] != 1 or min(speeds) <= 0 or len(set(speeds)) < len(speeds):
        raise errors.UserError(
            f"config.augment.speeds={speeds}: the first one is 1.0, the others differ from it and "
            "from each other, e.g. (1.0, 0.9, 1.1)."
        )
    return len(names) * len(speeds)


def digest(names: tuple[str, ...]) -> str:
    """Tells one list of training speakers from another."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def labels(split: splits.Split, names: tuple[str, ...]) -> Int[np.ndarray, "n"]:
    """The class of every usable record."""
    place = {name: i for i, name in enumerate(names)}
    return np.array([place[name] for name in splits.speakers_of(split)], np.int32)
