"""Stops a run at a step boundary on SIGTERM or SIGINT, on all processes at the same step."""

import os
import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

# That of a command whose run was stopped: it is not done, and the same command goes on with it.
EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h; 1 is a user's error, 2 one of the command line


class Preemption:
    """`with Preemption() as stop: ... if stop.requested(step): save and leave`.

    One process: Python's handlers set a flag; a second SIGINT interrupts at once. Several: JAX's
    own SIGTERM notifier, installed by `jax.distributed.initialize`, agrees on a step between all
    processes; SIGINT is turned into SIGTERM.
    """

    def __init__(self) -> None:
        self._name: str | None = None
        self._old: dict[int, Any] = {}

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread():
            signals = (
                [signal.SIGINT] if jax.process_count() > 1 else [signal.SIGINT, signal.SIGTERM]
            )
            self._old = {number: signal.signal(number, self._handle) for number in signals}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._name = signal.Signals(number).name
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def requested(self, step: int) -> str | None:
        """The signal's name when the run has to stop at this step (the same on all processes)."""
        if jax.process_count() > 1:
            reached = multihost_utils.reached_preemption_sync_point(step)
            return (self._name or "SIGTERM") if reached else None
        return self._name
