"""Marks on a network's way from sound to loss, for tools that take its parts apart."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import flax.linen as nn


class Outputs(nn.Module):
    """The identity, on any tree of arrays; has no parameters.

    A model calls it once, on what its loss is a function of: logits, or where these are never held
    as a whole (a transducer's), the factors of them.
    """

    @nn.compact
    def __call__(self, tree: Any) -> Any:
        return tree


class Features(nn.Module):
    """The identity on what a front end gives that no parameters change."""

    @nn.compact
    def __call__(self, tree: Any) -> Any:
        return tree


@contextmanager
def captured(mark: type[nn.Module]) -> Iterator[list[Any]]:
    """Within it, what passes the mark is put into the list. One trace: no scan may lie between."""
    found: list[Any] = []

    def keep(following: Callable, args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, mark) and context.method_name == "__call__":
            found.append(args[0])
        return following(*args, **kwargs)

    with nn.intercept_methods(keep):
        yield found


@contextmanager
def given(mark: type[nn.Module], trees: list[Any]) -> Iterator[None]:
    """Within it, the mark gives these, in their order, in place of what it is called with."""
    left = iter(trees)

    def put(following: Callable, args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, mark) and context.method_name == "__call__":
            return next(left)
        return following(*args, **kwargs)

    with nn.intercept_methods(put):
        yield
