"""Locks between processes, of one machine or of several that share a disk."""

import contextlib
import errno
import logging
import os
import pathlib
import platform
import time
from collections.abc import Callable, Iterator
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

log = logging.getLogger(__name__)

# What flock gives where the file system (or its server) has no locks.
_UNSUPPORTED = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
_without: set[pathlib.Path] = set()  # folders without locks: said once a process


class Busy(Exception):
    """Another process holds the lock. `owner`: "pid 12 on host", as far as it is known."""

    def __init__(self, owner: str) -> None:
        super().__init__(owner)
        self.owner = owner


class Lock:
    """An exclusive lock: a file `path` that is there only while it is held or waited for.

    The operating system frees it when the process ends in any way; a file that is left then hinders
    nobody. Where the file system has no locks, one warning a process says so and the work goes on
    without: a lock made of the mere presence of a file would outlive a killed process, and stop all
    later ones until somebody deletes it.

    `acquire` raises Busy after `seconds`, and OSError where the file cannot be made.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def acquire(self, seconds: float | int = 0, on_wait: Callable[[], None] | None = None) -> bool:
        """Waits for the lock; `on_wait` is called once if it is not free.

        False where there are no locks: another may be at work.
        """
        end, pause = time.monotonic() + seconds, 0.02
        while True:
            with contextlib.ExitStack() as stack:
                file = stack.enter_context(self._path.open("a+", encoding="utf-8"))
                free = _flock(file, self._path.parent)
                if free is None:
                    self._path.unlink(missing_ok=True)
                    return False
                if free and self._same(file):
                    with contextlib.suppress(OSError):  # left by another user, who has done it
                        # Who may write in the folder may lock.
                        self._path.chmod(self._path.parent.stat().st_mode & 0o666)
                    file.truncate(0)
                    file.write(f"pid {os.getpid()} on {platform.node()}")
                    file.flush()
                    self._file = file
                    stack.pop_all()
                    return True
                if free:  # for nothing: at once again
                    continue
                owner = file.seek(0) or file.read().strip() or "unknown"
            if on_wait is not None:
                on_wait()
                on_wait = None
            if time.monotonic() >= end:
                raise Busy(owner)
            time.sleep(pause)
            pause = min(2 * pause, 0.5)

    def release(self) -> None:
        """Gives the lock back."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # a file that stays hinders nobody
                self._path.unlink()  # while it is ours
            self._file.close()
            self._file = None

    @contextlib.contextmanager
    def held(
        self, seconds: float | int = 0, on_wait: Callable[[], None] | None = None
    ) -> Iterator[bool]:
        """`acquire` for the length of a block."""
        alone = self.acquire(seconds, on_wait)
        try:
            yield alone
        finally:
            self.release()

    def _same(self, file: IO[str]) -> bool:
        """Whether `file` still has its name: the holder before deleted it, and others make anew."""
        try:
            # Opened anew, because NFS may answer a stat from its cache.
            with self._path.open(encoding="utf-8") as now:
                return os.path.samestat(os.fstat(file.fileno()), os.fstat(now.fileno()))
        except FileNotFoundError:
            return False


def _flock(file: IO[str], folder: pathlib.Path) -> bool | None:
    """False where another process holds it, None (after a warning) where there are no locks."""
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, "this Python has no fcntl")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        if not _without:
            log.warning(
                "The file system of %s has no file locks (%s): the work goes on without. Do not "
                "start two commands at once that write there.",
                folder,
                error.strerror,
            )
        _without.add(folder)
        return None
    return True
