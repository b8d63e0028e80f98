"""Standard output and errors whose reader goes away: `python -m ... | head`."""

import contextlib
import os
import select
import sys
from collections.abc import Iterator
from typing import TextIO

CLOSED = 141  # 128 + SIGPIPE: the exit status that a shell gives of `cat`, `grep` and others


@contextlib.contextmanager
def quiet_end() -> Iterator[None]:
    """Ends the process quietly, with status `CLOSED`, once nobody reads what the block prints.

    What is still in the buffer at the end of the block is written in it. A broken pipe or
    connection of any other kind is raised as it is.
    """
    try:
        yield
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # pythonw
                stream.flush()
    except BrokenPipeError:
        closed = [stream for stream in (sys.stdout, sys.stderr) if _is_closed(stream)]
        if not closed:
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in closed:  # the rest of the buffer, and what is said on the way out
            os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        sys.exit(CLOSED)


def _is_closed(stream: TextIO | None) -> bool:
    """Whether the reader has gone. A second write would not tell: Python may drop the first."""
    try:
        place = stream.fileno()
    except (AttributeError, OSError, ValueError):  # none, not a file (notebooks), or closed
        return False
    poll = select.poll()
    poll.register(place, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
