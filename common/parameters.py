"""The table of parameters printed at the start of a run."""

import math
from typing import Any

from flax import traverse_util


def count(tree: Any) -> int:
    """Number of scalars in a tree of arrays (or of shapes)."""
    return sum(math.prod(leaf.shape) for leaf in traverse_util.flatten_dict(tree).values())


def table(params: Any) -> str:
    """One line a submodule of a submodule: name, number of parameters, share; and the total."""
    groups: dict[str, int] = {}
    for path, leaf in traverse_util.flatten_dict(params).items():
        name = "/".join(path[: min(2, max(1, len(path) - 1))])
        groups[name] = groups.get(name, 0) + math.prod(leaf.shape)
    total = sum(groups.values())
    width = max(map(len, groups), default=0)
    lines = [f"  {n:<{width}}  {c:>12,}  {100 * c / total:5.1f} %" for n, c in groups.items()]
    return "\n".join([*lines, f"  {'total':<{width}}  {total:>12,}"])
