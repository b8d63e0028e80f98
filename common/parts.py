"""Parts of nested dicts of arrays, named by paths as in "encoder/block_0"."""

from collections.abc import Mapping, Sequence
from typing import Any

from flax import traverse_util

Tree = dict[str, Any]


def select(tree: Mapping[str, Any], paths: Sequence[str]) -> Tree:
    """The leaves under any of `paths` at their places in the tree; all of it if none is named."""
    if not paths:
        return dict(tree)
    ends = tuple(f"{path}/" for path in paths)
    flat = traverse_util.flatten_dict(dict(tree), sep="/")
    chosen = {name: leaf for name, leaf in flat.items() if f"{name}/".startswith(ends)}
    return traverse_util.unflatten_dict(chosen, sep="/")


def like(tree: Any, part: Any) -> Any:
    """The leaves of `tree` that stand at the places of `part`, whose own leaves do not matter."""
    if not isinstance(part, Mapping):
        return tree
    return {name: like(tree[name], below) for name, below in part.items()}


def replace(tree: Any, part: Any) -> Any:
    """`tree` with the leaves of `part` at their places; the others stay as they are."""
    if not isinstance(part, Mapping):
        return part
    below = {name: replace(tree.get(name, {}), new) for name, new in part.items()}
    return {**tree, **below}
