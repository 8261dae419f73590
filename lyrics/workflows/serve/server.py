"""Runs the server with uvicorn, until a signal ends it: what has come is met first."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from lyrics.workflows.serve.app import Serving, build_app

#: For a client to begin a request, and to end its head.
HEAD_SECONDS = 10.0


class PatientProtocol(H11Protocol):  # type: ignore[misc]
    """uvicorn's HTTP, which hangs up on clients that do not come to the end of a request's head."""

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._wait()
        else:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._waiting is None:
            self._waiting = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


class _Server(uvicorn.Server):  # type: ignore[misc]
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()


def run(serving: Serving, listening: socket.socket, *, ready: Callable[[], None]) -> None:
    """Serve on a socket that has its address, until SIGINT or SIGTERM. ``ready`` is called when requests are taken."""
    config = uvicorn.Config(
        build_app(serving),
        http=PatientProtocol,
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=serving.limits.connections,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=int(serving.limits.seconds) + 1,
    )
    # uvicorn raises the signal that ended it once more when all is done.
    before = {one: signal.signal(one, lambda *_: None) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        _Server(config, ready).run([listening])
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
