"""What stands before every request: who may ask, for what host, and how much may be sent in what time.

The body is read here as a whole, within its limits, so that nothing behind it waits for a client.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from lyrics.workflows.serve.failures import Refusal, failure
from lyrics.workflows.serve.limits import Budget, LateError, Limits, QueueFullError, TooLargeError
from lyrics.workflows.serve.metrics import Metrics

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_logger = logging.getLogger(__name__)
#: Names of this machine for itself. A page of another site whose name is pointed here sends that name.
LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
#: What is read of a body that is refused, so that a client that sends before it listens gets to know why.
_DRAINED = 4
_OPEN = frozenset({"/health"})


class _GoneError(Exception):
    """The client went away while it sent its request."""


class Guard:
    """An ASGI application around another one.

    Args:
        app: what answers.
        routes: its paths, for counting.
        limits: of a body and of the time in which it is to come.
        budget: what bodies are counted in.
        metrics: where responses are counted.
        api_key: asked for as ``Authorization: Bearer KEY``, but for ``/health``; None: nothing is.
        hosts: the names in a ``Host`` header that are answered; None: all.
    """

    def __init__(
        self,
        app: App,
        *,
        routes: frozenset[str],
        limits: Limits,
        budget: Budget,
        metrics: Metrics,
        api_key: str | None = None,
        hosts: frozenset[str] | None = None,
    ) -> None:
        self.app, self.routes, self.limits, self.budget, self.metrics = app, routes, limits, budget, metrics
        self.api_key, self.hosts = api_key, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 0

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        held = 0
        try:
            refusal = self._refusal(scope)
            if refusal is not None:
                await respond(refusal, counted, close=True)
                return
            try:
                body, held = await self._body(scope, receive)
            except (TooLargeError, QueueFullError, LateError) as error:
                await respond(failure(error), counted, close=True)
                return
            await self.app(scope, _replayed(body, receive), counted)
        except _GoneError:
            self.metrics.gave_up()
        except Exception as error:
            if status:  # too late to say anything; the connection is closed
                _logger.exception("a response broke off")
                raise
            await respond(failure(error), counted)
        finally:
            self.budget.give(held)
            if status:
                path = scope["path"]
                self.metrics.responded(path if path in self.routes else "other", status, time.monotonic() - began)

    def _refusal(self, scope: Scope) -> Refusal | None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if self.hosts is not None:
            host = headers.get(b"host", b"").decode("latin-1").lower()
            name = host if host.endswith("]") else host.rpartition(":")[0] or host
            if name not in self.hosts:
                return Refusal(403, "the Host header names another machine than this one.", "wrong_host")
        if self.api_key is not None and scope["path"] not in _OPEN:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + self.api_key.encode()):
                return Refusal(
                    401,
                    "this server asks for an API key: Authorization: Bearer KEY.",
                    "invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        return None

    async def _body(self, scope: Scope, receive: Receive) -> tuple[bytes, int]:
        """The whole body, and how much of the budget it holds."""
        stated = dict(scope["headers"]).get(b"content-length", b"")
        size = int(stated[:18]) if stated.isdigit() else None
        most = self.limits.body_bytes
        if size is not None and size > most:
            await self._drain(receive)
            raise self._too_large()
        if size == 0 or scope["method"] in ("GET", "HEAD"):
            return b"", 0
        # Without a length, as much as there may come.
        held = most if size is None else size
        self.budget.take(held)
        try:
            body = await asyncio.wait_for(self._received(receive, most), self.limits.body_seconds)
        except TimeoutError:
            self.budget.give(held)
            raise LateError(
                f"the request did not come within the {self.limits.body_seconds:g} seconds that it may take."
            ) from None
        except BaseException:
            self.budget.give(held)
            raise
        return body, held

    async def _received(self, receive: Receive, most: int) -> bytes:
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _GoneError
            body += message.get("body", b"")
            if len(body) > most:
                await self._drain(receive)
                raise self._too_large()
            if not message.get("more_body", False):
                return bytes(body)

    async def _drain(self, receive: Receive) -> None:
        async def read() -> None:
            left = _DRAINED * self.limits.body_bytes
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return

        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(read(), min(5.0, self.limits.body_seconds))

    def _too_large(self) -> TooLargeError:
        return TooLargeError(f"the request has more than the {self.limits.body_bytes:,} bytes that are read.")


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body as one message, and then what comes after it: that the client is gone."""
    told = False

    async def again() -> Message:
        nonlocal told
        if not told:
            told = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return again


async def respond(found: Refusal, send: Send, *, close: bool = False) -> None:
    """Send an error as a response; ``close``: and take no other request from this connection."""
    import json

    data = json.dumps(found.body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in found.headers.items()]
    if close:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": found.status, "headers": headers})
    await send({"type": "http.response.body", "body": data})
