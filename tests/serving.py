"""A server as a user's, in a thread of the test's process, and clients of it."""

import contextlib
import threading
import time
from collections.abc import Iterator

from common.serve import running
from common.serve import settings as serve_settings


@contextlib.contextmanager
def served(application, settings: serve_settings.Settings) -> Iterator[str]:
    """Its address, as http://127.0.0.1:PORT/."""
    with contextlib.closing(running.listen("127.0.0.1", 0)) as listening:
        server = running.server(application, settings.limits)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            until = time.monotonic() + 60
            while not server.started:
                assert thread.is_alive(), "the server did not start"
                assert time.monotonic() < until, "the server did not start in time"
                time.sleep(0.01)
            yield running.url(listening)
        finally:
            server.should_exit = True
            thread.join()
