"""A websocket: a header in JSON, then frames, and an end with a reason that both sides see."""

import asyncio
import collections
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import fastapi

from common.serve import guard, measures
from common.serve import settings as serve_settings

log = logging.getLogger(__name__)

BAD_REQUEST, NO_TOKEN, UNKNOWN, TOO_SLOW, TOO_MUCH, BUSY = 4400, 4401, 4404, 4408, 4413, 4429
_FAILED = 1011
_REASON_BYTES = 123  # of a close frame


class Refused(Exception):
    """Ends a websocket: `code` for programs, a message for people, `reason` for the count."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason = code, reason


class Socket:
    """One websocket, within its limits."""

    def __init__(self, socket: fastapi.WebSocket, settings: serve_settings.Settings) -> None:
        self._socket, self._limits = socket, settings.limits
        self._admits = settings.admits

    async def header(self) -> dict[str, Any]:
        """The first frame: an object in JSON, with the token where one is needed."""
        text = await self.receive()
        try:
            found = json.loads(text) if isinstance(text, str) else None
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise Refused(BAD_REQUEST, "header", "the first frame has to be an object in JSON")
        token = found.pop("token", guard.bearer(self._socket.headers.get("authorization", "")))
        if not self._admits(str(token)):
            raise Refused(NO_TOKEN, "token", 'a token is needed: "token" in the first frame')
        return found

    async def receive(self) -> bytes | str:
        """The next frame. Raises WebSocketDisconnect."""
        seconds = self._limits.idle_seconds
        try:
            async with asyncio.timeout(seconds):
                message = await self._socket.receive()
        except TimeoutError:
            raise Refused(TOO_SLOW, "idle", f"nothing came for {seconds:g} s") from None
        if message["type"] == "websocket.disconnect":
            raise fastapi.WebSocketDisconnect(message["code"], message.get("reason"))
        data = message.get("bytes")
        return message["text"] if data is None else data

    async def send(self, frame: bytes | dict[str, Any]) -> None:
        """Waits while the client does not read, up to a limit: then it is too slow."""
        seconds = self._limits.send_seconds
        try:
            async with asyncio.timeout(seconds):
                if isinstance(frame, bytes):
                    await self._socket.send_bytes(frame)
                else:
                    await self._socket.send_text(json.dumps(frame))
        except TimeoutError:
            reason = f"too slow: nothing was read for {seconds:g} s"
            raise Refused(TOO_SLOW, "slow", reason) from None


@contextlib.asynccontextmanager
async def serving(
    socket: fastapi.WebSocket, settings: serve_settings.Settings, measured: measures.Measures
) -> AsyncIterator[Socket]:
    """Accepts a websocket and closes it, whatever the block raises; counts how it ended.

    An error is sent as {"error": message} before the close frame, whose reason is shorter.
    """
    try:
        await socket.accept()
        yield Socket(socket, settings)
        code, message, reason = 1000, "", "done"
    except Refused as refused:
        code, message, reason = refused.code, str(refused), refused.reason
    except (fastapi.WebSocketDisconnect, ConnectionError):
        code, message, reason = 0, "", "gone"
    except Exception:
        log.exception("A stream failed.")
        code, message, reason = _FAILED, "this server failed; its log says more", "failed"
    measured.streams_ended.labels(reason).inc()
    if code:
        await _close(socket, settings, code, message)


async def _close(
    socket: fastapi.WebSocket, settings: serve_settings.Settings, code: int, message: str
) -> None:
    short = message.encode()[:_REASON_BYTES].decode(errors="ignore")
    # A client that does not read is not waited for, and one that left has said so itself.
    with contextlib.suppress(RuntimeError, OSError, fastapi.WebSocketDisconnect, TimeoutError):
        async with asyncio.timeout(1.0):
            if message and code != TOO_SLOW:
                await socket.send_text(json.dumps({"error": message}))
            await socket.close(code, short)


async def together(*work: Any) -> None:
    """Runs coroutines until all are done or one raises; then the others are cancelled."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        collections.deque((task.cancelled() or task.exception() for task in tasks), maxlen=0)
