"""Counts XLA compilations, so that a loop that recompiles is seen; and cheap ones."""

from collections.abc import Callable
from typing import Any

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"


class CompileCounter:
    """`with CompileCounter() as compiles: ...`; `compiles.count` and `compiles.seconds` so far."""

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0

    def __enter__(self) -> "CompileCounter":
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, seconds: float, **_: object) -> None:
        if event == _EVENT:
            self.count += 1
            self.seconds += seconds


def jit_once(fn: Callable, **options: Any) -> Callable:
    """`jax.jit` for a program that runs once: on a CPU compiling it is what takes the time."""
    quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(fn, compiler_options=quick, **options)
