"""Counts XLA compilations, so that a loop that recompiles is seen."""

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
