"""The command: a process that serves, meets what has come when it is told to stop, and hangs up on those who dawdle."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from lyrics.workflows.serve import server
from lyrics.workflows.serve.app import Serving, build_app
from lyrics.workflows.serve.guard import LOOPBACK
from lyrics.workflows.serve.limits import Limits
from lyrics.workflows.serve.worker import Worker
from tests.core.test_model_steps import made
from tests.fresh import ROOT
from tests.workflows.serve.helpers import Client, served

HELLO = {"messages": [{"role": "user", "content": "how many?"}], "max_tokens": 8}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def guarded() -> Iterator[Client]:
    limits = Limits(body_bytes=100_000, body_seconds=0.7, memory_bytes=400_000)
    with served(build_app(Serving(Worker(made(), limits), "small", limits, api_key="sesame", hosts=LOOPBACK))) as one:
        yield one


OPEN = {"Authorization": "Bearer sesame"}


@pytest.mark.parametrize(
    "given",
    [
        None, "", "Bearer", "Bearer ", "Bearer sesam", "Bearer sesame2", "bearer sesame", "Basic sesame", "sesame",
        "Bearer Sesame", "Bearer sesame, Bearer x", "Bearer \u00fcber",
    ],
)  # fmt: skip
def test_a_key_is_asked_for(guarded: Client, given: str | None) -> None:
    headers = {} if given is None else {"Authorization": given}
    for method, path in (("POST", CHAT), ("GET", "/metrics"), ("GET", "/v1/models"), ("GET", "/openapi.json")):
        status, data, found = guarded(method, path, HELLO if method == "POST" else None, headers)
        assert (status, data["error"]["code"], found["www-authenticate"]) == (401, "invalid_api_key", "Bearer")
        assert "sesame" not in json.dumps(data)
    assert guarded("GET", "/health", None, headers)[0] == 200


def test_the_key_opens(guarded: Client) -> None:
    assert guarded("POST", CHAT, HELLO, OPEN)[0] == 200
    assert guarded("GET", "/metrics", None, OPEN)[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.org", "evil.org:8000", "localhost.evil.org", "", "127.0.0.1.evil.org:80", "[::2]"]
)
def test_a_name_that_is_pointed_here_is_not_answered(guarded: Client, host: str) -> None:
    status, data, _ = guarded("POST", CHAT, HELLO, {**OPEN, "Host": host})
    assert (status, data["error"]["code"]) == (403, "wrong_host")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:99", "127.0.0.1", "127.0.0.1:8000", "[::1]", "[::1]:8000"])
def test_the_names_of_this_machine(guarded: Client, host: str) -> None:
    assert guarded("POST", CHAT, HELLO, {**OPEN, "Host": host})[0] == 200


def test_a_body_that_does_not_come(guarded: Client) -> None:
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", guarded.port), timeout=30) as one:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer sesame\r\nContent-Length: 50\r\n\r\n"
        one.sendall(head.encode() + b"{")
        answer = b""
        while piece := one.recv(65536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"connection: close" in answer
    assert time.monotonic() - began < 20


def test_bodies_hold_memory_until_they_are_met(guarded: Client) -> None:
    """More than there is for all of them at once is refused for now, and there is room again."""
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer sesame\r\nContent-Length: 99000\r\n\r\n"
    waiting = [socket.create_connection(("127.0.0.1", guarded.port), timeout=30) for _ in range(4)]
    try:
        for one in waiting:
            one.sendall(head.encode())
        time.sleep(0.2)
        found = guarded("POST", CHAT, b" " * 99_000, OPEN)
        assert found[0] in (400, 429)  # those before may have been given up by now
    finally:
        for one in waiting:
            one.close()
    assert guarded("POST", CHAT, HELLO, OPEN)[0] == 200


def test_a_head_that_does_not_come(guarded: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing, or a byte at a time; and a second request on a connection."""
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.6)
    whole = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for before in (b"", whole):
        with socket.create_connection(("127.0.0.1", guarded.port), timeout=30) as one:
            if before:
                one.sendall(before)
                answer = b""
                while b'"ok"' not in answer:
                    answer += one.recv(65536)
            began, left = time.monotonic(), b"GET /health HTTP/1.1\r\n" + b"x" * 1000
            one.settimeout(0.1)
            while time.monotonic() - began < 20:
                try:
                    one.sendall(left[:1])
                    left = left[1:]
                    if one.recv(100) == b"":
                        break
                except TimeoutError:
                    continue
                except ConnectionError:
                    break
            assert 0.3 < time.monotonic() - began < 15


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("small-model")
    made().save_pretrained(path)
    return str(path)


def started(*arguments: str) -> tuple[subprocess.Popen[str], Client, str]:
    """The command as a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-c", "from lyrics.cli import main; main()", "serve", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"serving (\S+) on http://127\.0\.0\.1:(\d+)", line)
    if not found:
        process.kill()
        raise AssertionError(line + str(process.communicate()))
    return process, Client(int(found[2])), found[1]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM")
def test_a_process_that_is_told_to_stop_meets_what_has_come(folder: str) -> None:
    """Answers that are being written are written to their end, then it ends with 0; of a path the name is told."""
    process, client, name = started("--model", folder)
    try:
        assert name == os.path.basename(folder)
        assert client("GET", "/v1/models")[1]["data"][0]["id"] == name
        found: list[Any] = []
        threads = [
            threading.Thread(target=lambda: found.append(client("POST", CHAT, {**HELLO, "max_tokens": 200})))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        while "lyrics_running_answers 3" not in client("GET", "/metrics")[1] and not found:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(120)
        out, err = process.communicate(timeout=120)
        assert [one[0] for one in found] == [200] * 3
        assert (process.returncode, out) == (0, "")
        assert "Traceback" not in err
        with pytest.raises(OSError):
            client("GET", "/health")
    finally:
        process.kill()
        process.wait()
