"""The process of a server: its place and its end."""

import errno
import ipaddress
import logging
import signal
import socket
from typing import Any

import uvicorn

from common import errors
from common.serve import settings as serve_settings

log = logging.getLogger(__name__)

_STOP_SECONDS = 10  # that requests get to end in
_SEND_BUFFER = 1 << 18  # of the system, for each client: one that does not read is noticed


def listen(host: str, port: int) -> socket.socket:
    """A socket at a place that is free. Raises UserError where it is not."""
    if not 0 <= port <= 65535:
        raise errors.UserError(f"--port={port} lies outside 0 to 65535.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
            listening.bind(address)
            listening.listen(128)
        except BaseException:
            listening.close()
            raise
    except OSError as refused:
        reason = refused.strerror or refused
        if refused.errno == errno.EADDRINUSE:
            reason = "it is in use: stop what uses it, or name another --port; 0 takes any"
        raise errors.UserError(f"{host}:{port} cannot be listened at: {reason}.") from refused
    return listening


def server(application: Any, limits: serve_settings.Limits) -> uvicorn.Server:
    """uvicorn with these limits; `run(sockets=[...])` serves until `should_exit`."""
    return uvicorn.Server(
        uvicorn.Config(
            application,
            ws="websockets-sansio",
            ws_max_size=limits.frame_bytes,
            log_config=None,
            access_log=False,
            ws_per_message_deflate=False,  # samples do not become smaller by it
            timeout_graceful_shutdown=_STOP_SECONDS,
        )
    )


def run(application: Any, listening: socket.socket, limits: serve_settings.Limits) -> None:
    """Serves until SIGTERM or Ctrl-C: then no one is let in, and requests may end."""
    # uvicorn raises a signal once more when all is done: there is nothing left to stop then.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server(application, limits).run(sockets=[listening])
    log.info("Stopped.")


def url(listening: socket.socket) -> str:
    """Where a browser of this machine finds it."""
    host, port = listening.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "localhost"
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
