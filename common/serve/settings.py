"""What a server may do for whom, and its flags. Imports nothing that is optional."""

import argparse
import dataclasses
import hmac
import importlib.util
import ipaddress
import os

from common import errors

TOKEN_VARIABLE = "SPEECH_TOKEN"
# Packages that only servers need, by the name of their import.
PACKAGES = {
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "websockets": "websockets",
    "python_multipart": "python-multipart",
    "prometheus_client": "prometheus-client",
}


@dataclasses.dataclass(frozen=True)
class Limits:
    """Beyond these a client gets a message that names the limit."""

    upload_bytes: int = 50 << 20  # of the body of a request
    upload_seconds: float = 600.0  # of one recording
    requests: int = 16  # with a body, at once
    streams: int = 32  # at once
    stream_seconds: float = 4 * 3600.0  # of audio in one stream
    frame_bytes: int = 1 << 20  # of a frame of a websocket
    idle_seconds: float = 30.0  # without a byte from a client that has something to send
    send_seconds: float = 10.0  # that a client may take to read what it is sent
    stored: int = 1000  # of what clients leave; what was not used for longest goes first

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(f"{field.name}={getattr(self, field.name)} has to be above 0")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Without a token everybody on this machine may ask, and nobody else."""

    token: str = ""
    limits: Limits = Limits()

    def admits(self, token: str) -> bool:
        """Whether this is the token, compared in constant time."""
        given = token.encode("utf-8", "surrogatepass")
        return not self.token or hmac.compare_digest(given, self.token.encode())


def check_packages() -> None:
    """Raises UserError where a package is missing."""
    missing = [wheel for name, wheel in PACKAGES.items() if importlib.util.find_spec(name) is None]
    if missing:
        raise errors.UserError(
            f"A server needs {', '.join(missing)}: pip install {' '.join(missing)}"
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--host, --port, --token and the limits that depend on the machine."""
    limits = Limits()
    parser.add_argument("--host", default="127.0.0.1", help="default: this machine only")
    parser.add_argument("--port", type=int, default=8000, help="default: %(default)s; 0: any")
    parser.add_argument(
        "--token",
        default=os.environ.get(TOKEN_VARIABLE, ""),
        help=f"that clients have to send; default: ${TOKEN_VARIABLE}, which other users cannot see",
    )
    parser.add_argument("--max-streams", type=int, default=limits.streams, metavar="N")
    parser.add_argument(
        "--max-seconds", type=float, default=limits.upload_seconds, help="of an upload"
    )
    parser.add_argument(
        "--max-megabytes", type=int, default=limits.upload_bytes >> 20, help="of an upload"
    )


def read(args: argparse.Namespace) -> Settings:
    """What the flags say. Raises UserError: a server for the network without a token."""
    if not args.token and not _is_loopback(args.host):
        raise errors.UserError(
            f"--host={args.host} lets others in: give --token (or ${TOKEN_VARIABLE}), or leave "
            "--host out."
        )
    try:
        limits = Limits(
            upload_bytes=args.max_megabytes << 20,
            upload_seconds=args.max_seconds,
            streams=args.max_streams,
        )
    except ValueError as error:
        raise errors.UserError(f"--max-...: {error}.") from error
    return Settings(args.token, limits)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
