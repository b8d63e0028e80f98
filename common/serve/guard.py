"""What every request passes first: who may ask, how much, and for how long (ASGI)."""

import asyncio
import collections
import contextlib
from typing import Any

import fastapi.responses
from starlette import requests

from common.serve import measures
from common.serve import settings as serve_settings

# What a page needs before it can ask for the token, and what shows that the server is alive.
_OPEN = ("/", "/health", "/docs", "/openapi.json")
_OPEN_BELOW = ("/page/", "/shared/")
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


def answer(
    status: int, message: str, headers: dict[str, str] | None = None
) -> fastapi.responses.JSONResponse:
    """{"detail": message}, the form of every refusal."""
    return fastapi.responses.JSONResponse({"detail": message}, status, headers=headers)


class Guard:
    """Refuses before a body is read: other sites' pages, missing tokens, too much at once.

    While it is read: bodies that are too large or stop coming. A websocket's token is in its first
    frame (`sockets`), since browsers cannot send it sooner.
    """

    def __init__(
        self, app: Any, *, settings: serve_settings.Settings, measured: measures.Measures
    ) -> None:
        self._app, self._settings, self._measured = app, settings, measured
        self._bodies = 0  # that are being read or worked on

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        headers = collections.defaultdict(str)
        headers.update(
            (key.decode("latin-1"), value.decode("latin-1")) for key, value in scope["headers"]
        )
        refusal = self._stranger(headers)
        if scope["type"] == "websocket":
            if refusal:  # before it is accepted: the answer is 403
                return await send({"type": "websocket.close", "code": 1008, "reason": refusal})
            return await self._app(scope, receive, send)
        return await self._request(scope, receive, send, headers, refusal)

    async def _request(
        self, scope: Any, receive: Any, send: Any, headers: Any, stranger: str
    ) -> None:
        limits = self._settings.limits
        has_body = scope["method"] in ("POST", "PUT", "PATCH")
        body = _Body(receive, limits)
        status = 0

        async def count(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        async def pass_on(message: Any) -> None:
            # The application has an answer of its own to a body that was broken off.
            if body.refusal is None:
                await count(message)

        self._bodies += has_body
        try:
            refusal = self._refusal(scope["path"], headers, stranger)
            if refusal is None and has_body and self._bodies > limits.requests:
                refusal = answer(503, "too many requests at once; try again", {"Retry-After": "1"})
            if refusal is None:
                with contextlib.suppress(requests.ClientDisconnect):
                    await self._app(scope, body.receive, pass_on)
                refusal = body.refusal
            if refusal is not None and not status:
                await refusal(scope, receive, count)
        except Exception:
            status = 500  # is what surrounds this will say
            raise
        finally:
            self._bodies -= has_body
            route = getattr(scope.get("route"), "path", "other")
            self._measured.requests.labels(route, status).inc()

    def _refusal(
        self, path: str, headers: Any, stranger: str
    ) -> fastapi.responses.JSONResponse | None:
        stated = headers["content-length"]
        if stranger:
            return answer(403, stranger)
        is_open = path in _OPEN or path.startswith(_OPEN_BELOW)
        if not is_open and not self._settings.admits(bearer(headers["authorization"])):
            message = "a token is needed: Authorization: Bearer TOKEN"
            return answer(401, message, {"WWW-Authenticate": "Bearer"})
        if stated.isdecimal() and int(stated) > self._settings.limits.upload_bytes:
            return _too_large(self._settings.limits)
        return None

    def _stranger(self, headers: Any) -> str:
        """Why this comes from a page that is not ours, or by a name that is not ours; or ""."""
        host, origin = headers["host"].lower(), headers["origin"].lower()
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if not self._settings.token and name not in _LOOPBACK:
            return "without a token this server is for its own machine only: ask for localhost"
        if origin and origin.partition("://")[2] != host:
            return "pages of other sites may not ask this server"
        return ""


class _Body:
    """`receive` of one request, which is broken off beyond the limits; `refusal` says why."""

    def __init__(self, receive: Any, limits: serve_settings.Limits) -> None:
        self._receive, self._limits = receive, limits
        self._size = 0
        self._is_over = False
        self.refusal: fastapi.responses.JSONResponse | None = None

    async def receive(self) -> Any:
        if self._is_over:  # what comes now is the end of the connection, and may take its time
            return await self._receive()
        idle = self._limits.idle_seconds
        try:
            async with asyncio.timeout(idle):
                message = await self._receive()
        except TimeoutError:
            self.refusal = answer(408, f"nothing came for {idle:g} s", {"Connection": "close"})
            return {"type": "http.disconnect"}
        if message["type"] != "http.request":
            return message
        self._size += len(message.get("body", b""))
        self._is_over = not message.get("more_body", False)
        if self._size > self._limits.upload_bytes:
            self.refusal = _too_large(self._limits)
            return {"type": "http.disconnect"}
        return message


def _too_large(limits: serve_settings.Limits) -> fastapi.responses.JSONResponse:
    message = f"more than {limits.upload_bytes} bytes, the limit of an upload"
    return answer(413, message, {"Connection": "close"})


def bearer(authorization: str) -> str:
    """The token of this header, or nothing."""
    kind, _, token = authorization.partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""
