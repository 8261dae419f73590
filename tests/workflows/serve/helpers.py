"""A worker, what is asked of it, and a server that runs in a thread; for the tests of this folder."""

from __future__ import annotations

import base64
import http.client
import io
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image

from lyrics.core.language.generation import Decoding
from lyrics.core.language.prompts import Exchange
from lyrics.workflows.serve.jobs import AskJob, Event, TextPiece
from lyrics.workflows.serve.worker import Worker


def data_url(image: Image.Image) -> str:
    out = io.BytesIO()
    image.save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def job(question: str, *images: Image.Image, tell: Callable[[Event], None], **more: Any) -> AskJob:
    """One question about images."""
    exchange = Exchange(question, None, tuple(range(len(images))))
    how = more.pop("how", None) or Decoding(16)
    return AskJob(images, tell, exchanges=[exchange], questions=[question] * len(images), how=how, **more)


def submitted(worker: Worker, question: str, *images: Image.Image, **more: Any) -> tuple[AskJob, queue.Queue[Event]]:
    events: queue.Queue[Event] = queue.Queue()
    one = job(question, *images, tell=events.put, **more)
    worker.submit(one)
    return one, events


def last(events: queue.Queue[Event]) -> tuple[Event, str]:
    """The event that ends a job, and what was told before it."""
    text = ""
    while True:
        event = events.get(timeout=600)
        if not isinstance(event, TextPiece):
            return event, text
        text += event.text


@contextmanager
def working(worker: Worker) -> Iterator[Worker]:
    worker.start()
    try:
        yield worker
    finally:
        worker.stop()


def until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for something that comes true soon."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.01)


class Client:
    """Plain HTTP to a server on this machine."""

    def __init__(self, port: int) -> None:
        self.port = port

    def __call__(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, body (as JSON where it is), headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        try:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            given = {"Content-Type": "application/json"} if body is not None else {}
            connection.request(method, path, data, {**given, **(headers or {})})
            response = connection.getresponse()
            text = response.read()
            found = {name.lower(): value for name, value in response.getheaders()}
            is_json = found.get("content-type", "").startswith("application/json")
            return response.status, json.loads(text) if is_json else text.decode(), found
        finally:
            connection.close()

    def ask(self, *content: Any, **more: Any) -> tuple[int, Any, dict[str, str]]:
        parts = [
            {"type": "text", "text": one}
            if isinstance(one, str)
            else {"type": "image_url", "image_url": {"url": data_url(one)}}
            for one in content
        ]
        return self(
            "POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": parts}], "max_tokens": 16, **more}
        )


@contextmanager
def served(app: Any) -> Iterator[Client]:
    """An application behind uvicorn, in a thread of this process."""
    import uvicorn

    from lyrics.workflows.serve.server import PatientProtocol

    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, http=PatientProtocol, ws="none", log_level="warning", lifespan="on"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield Client(server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()
