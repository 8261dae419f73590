"""Stand-ins for the places where files are published: a hub on this machine, and addresses that give local files."""

from __future__ import annotations

import contextlib
import hashlib
import io
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Files by ``owner/name/file``, served as the hub serves them. What was asked for is kept."""

    def __init__(self, files: Mapping[str, bytes], damaged: frozenset[str]) -> None:
        self.files, self.damaged = dict(files), damaged
        self.asked: list[str] = []

    def answer(self, handler: BaseHTTPRequestHandler, with_body: bool) -> None:
        if "/resolve/" in handler.path:
            self.asked.append(handler.path)
        repository, _, rest = handler.path.lstrip("/").partition("/resolve/")
        file = rest.partition("/")[2]
        body = self.files.get(f"{repository}/{file}")
        if body is None:
            handler.send_response(404)
            handler.send_header("X-Error-Code", "EntryNotFound")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        handler.send_response(200)
        handler.send_header("X-Repo-Commit", COMMIT)
        handler.send_header("X-Linked-Etag", f'"{hashlib.sha256(body).hexdigest()}"')
        handler.send_header("X-Linked-Size", str(len(body)))
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if with_body:
            handler.wfile.write(body[:-1] + b"?" if file in self.damaged else body)


@contextlib.contextmanager
def hub(
    monkeypatch: pytest.MonkeyPatch, cache: Path, files: Mapping[str, bytes], damaged: frozenset[str] = frozenset()
) -> Iterator[Hub]:
    """huggingface_hub asks a server on this machine, and keeps what it gives in ``cache``."""
    found = Hub(files, damaged)

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            found.answer(self, with_body=False)

        def do_GET(self) -> None:
            found.answer(self, with_body=True)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    try:
        yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Answer(io.BytesIO):
    def __init__(self, address: str, body: bytes, length: int) -> None:
        super().__init__(body)
        self.address = address
        self.headers = Message()
        self.headers["Content-Length"] = str(length)

    def geturl(self) -> str:
        return self.address


def addresses(monkeypatch: pytest.MonkeyPatch, cache: Path, files: Mapping[str, bytes]) -> list[str]:
    """``urlopen`` gives these files by their addresses; returns the list of those that were asked for.

    One whose address ends in ``cut`` is cut short, one that ends in ``moved`` leads to http.
    """
    asked: list[str] = []

    def urlopen(request: urllib.request.Request, timeout: float) -> _Answer:
        address = request.full_url
        asked.append(address)
        if address not in files:
            raise urllib.error.HTTPError(address, 404, "Not Found", Message(), None)
        body = files[address]
        shown = body[:-1] if address.endswith("cut") else body
        return _Answer(address.replace("https:", "http:") if address.endswith("moved") else address, shown, len(body))

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return asked
