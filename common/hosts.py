"""What the processes of one run tell each other before they go on.

A process that raises alone leaves the others waiting in their next collective operation for ever.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Shaped

from common import errors

Result = TypeVar("Result")


def gather(values: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "process ..."]:
    """The array of every process (all of one shape, at most 32 bits an element), on every one."""
    if jax.process_count() == 1:
        return values[None]
    return np.asarray(multihost_utils.process_allgather(values))


def together(work: Callable[[], Result], mild: type[errors.UserError], name: str) -> Result:
    """The result of `work`, if it succeeds on all processes; otherwise all of them raise.

    The worst error counts: any other is worse than `mild`. A process that has not met it itself
    raises `mild` or UserError with the numbers of those that have. `name` is what `work` does.
    """
    result, error = None, None
    try:
        result = work()
    except Exception as caught:
        error = caught
    grade = 0 if error is None else 1 if isinstance(error, mild) else 2
    grades = gather(np.array(grade, np.int32))
    worst = int(grades.max())
    if error is not None and grade == worst:
        raise error
    if worst:
        raise (mild if worst == 1 else errors.UserError)(
            f"{name} failed on {_processes(grades == worst)}, whose own message says why."
        )
    return result


def check_same(said: Mapping[str, str], advice: str) -> None:
    """Raises UserError on all processes if one of them says something else than process 0."""
    digests = [hashlib.sha256(text.encode()).digest() for text in said.values()]
    everyone = gather(np.frombuffer(b"".join(digests), np.uint32).reshape(len(said), -1))
    differs = (everyone != everyone[0]).any(axis=2)
    if differs.any():
        lines = [
            f"{name} on {_processes(differs[:, i])}"
            for i, name in enumerate(said)
            if differs[:, i].any()
        ]
        raise errors.UserError(
            f"The processes of this run do not agree. Other than process 0's: {'; '.join(lines)}. "
            f"{advice}"
        )


def _processes(chosen: Any) -> str:
    numbers = [str(i) for i in np.flatnonzero(chosen)]
    return f"process{'es' if len(numbers) > 1 else ''} {', '.join(numbers)}"
