"""Malformed requests of forty kinds from many clients at once, with clients beside them that behave well.

``LYRICS_REQUESTS``, ``LYRICS_CLIENTS`` and ``LYRICS_HANGUPS`` say how many; those of the figures in
docs/serving.md stand there.
"""

from __future__ import annotations

import asyncio
import copy
import gc
import http.client
import json
import os
import random
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from lyrics.workflows.serve.app import ROUTES, Serving, build_app
from lyrics.workflows.serve.limits import Limits
from lyrics.workflows.serve.worker import Worker
from tests.core.small import drawn
from tests.core.test_model_steps import made
from tests.workflows.serve.helpers import Client, data_url, served, until
from tests.workflows.serve.test_fetching import URLS

CHAT = "/v1/chat/completions"
REQUESTS, THREADS = int(os.environ.get("LYRICS_REQUESTS", "480")), int(os.environ.get("LYRICS_CLIENTS", "16"))
HANGUPS = int(os.environ.get("LYRICS_HANGUPS", "64"))
PIXELS = data_url(drawn())
LIMITS = Limits(body_bytes=400_000, image_pixels=1_000_000, body_seconds=5.0, seconds=60.0, tokens=400)
#: In place of a status: the client hung up on purpose, or the server did.
HUNG_UP, CUT_OFF = -1, 0
#: What no response may hold: where files are, how Python speaks, and where it keeps things.
TELLTALE = re.compile(r"Traceback|File \"|/root|/home|/tmp|/work|/usr|site-packages| at 0x[0-9a-f]{6}|\.py\b")
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**70), 1e308, -1e308, 0.1, "", " ", "x", "\x00", "\ud800", "0",
    "null", "../../etc/passwd", "{{7*7}}", "${jndi:ldap://x}", "<script>", "%n%s", "a" * 5000, "\U0001f600" * 50,
    "<br><T>", "</s>",
    [], [[]], [None], ["x"] * 300, {}, {"": ""}, {"type": "text"}, {"$ref": "#"}, {"__class__": "x"},
)  # fmt: skip


@pytest.fixture(scope="module")
def worker() -> Worker:
    return Worker(made(), LIMITS)


@pytest.fixture(scope="module")
def client(worker: Worker) -> Iterator[Client]:
    with served(build_app(Serving(worker, "small", LIMITS))) as one:
        yield one


def good(draw: random.Random) -> dict[str, Any]:
    parts = [{"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": {"url": PIXELS}}]
    body = {
        "messages": [{"role": "user", "content": parts}],
        "max_tokens": draw.randint(1, 4),
        "seed": 3,
        "stop": ["x"],
    }
    return {**body, "temperature": 0.5, "stream": draw.random() < 0.3, "response_format": {"type": "text"}}


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a body, as what holds it and its key there."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in list(items):
        yield value, key
        yield from places(one)


def changed(draw: random.Random) -> bytes:
    """A good body with something odd in one to three places."""
    body: Any = good(draw)
    for _ in range(draw.randint(1, 3)):
        holder, key = draw.choice(list(places(body)))
        turn = draw.randrange(4)
        if turn == 0:
            del holder[key]
        elif turn == 1 and isinstance(holder, dict):
            key = draw.choice(["extra", "tools", "n", "logprobs", "model", "", "messages", "image"])
            holder[key] = copy.deepcopy(draw.choice(ODD))
        else:
            holder[key] = copy.deepcopy(draw.choice(ODD))
    return json.dumps(body).encode()


def torn(draw: random.Random) -> bytes:
    """A good body with bytes cut off, doubled or exchanged."""
    data = bytearray(json.dumps(good(draw)).encode())
    for _ in range(draw.randint(1, 6)):
        place = draw.randrange(len(data))
        turn = draw.randrange(3)
        if turn == 0:
            data = data[:place] or bytearray(b"{")
        elif turn == 1:
            data[place] = draw.randrange(256)
        else:
            data[place:place] = data[place : place + draw.randrange(30)]
    return bytes(data)


def with_url(draw: random.Random) -> bytes:
    body: Any = good(draw)
    heads = ("data:image/png;base64,", "data:image/gif;base64,", "data:", "data:image/png,", "data:text/html;base64,")
    bodies = ("", "AAAA", "A", "====", "R0lGODlh", "iVBORw0KGgo=", PIXELS[22:200], PIXELS[22:-40], "\u00e9")
    url = draw.choice(URLS) if draw.random() < 0.5 else draw.choice(heads) + draw.choice(bodies)
    body["messages"][0]["content"][1]["image_url"]["url"] = url
    return json.dumps(body).encode()


def deep(draw: random.Random) -> bytes:
    depth = draw.choice([10, 500, 5_000, 100_000])
    return draw.choice([b"[" * depth, b'{"a":' * depth, b"[" * depth + b"]" * depth])


def number(draw: random.Random) -> bytes:
    text = draw.choice(
        ["NaN", "Infinity", "-Infinity", "1e400", "9" * 5000, "1e-400", "0x10", "01", "1_000", "-0", "1."]
    )
    key = draw.choice(["temperature", "top_p", "seed", "max_tokens", "n", "min_p", "top_k"])
    return b'{"messages": [{"role": "user", "content": "q"}], "max_tokens": 2, "%s": %s}' % (
        key.encode(),
        text.encode(),
    )


def large(draw: random.Random) -> bytes:
    body: Any = good(draw)
    turn = draw.randrange(4)
    if turn == 0:
        body["messages"] *= draw.choice([9, 300])
    elif turn == 1:
        body["messages"][0]["content"] += [body["messages"][0]["content"][1]] * draw.choice([8, 100])
    elif turn == 2:
        body["messages"][0]["content"][0]["text"] = "word " * draw.choice([300, 50_000])
    else:
        return b" " * 500_000
    return json.dumps(body).encode()


KINDS: tuple[Callable[[random.Random], bytes], ...] = (changed, changed, changed, torn, with_url, deep, number, large)


def send(client: Client, draw: random.Random) -> tuple[int, str]:
    """One malformed request: of a kind above, or one whose HTTP is odd, too."""
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=600)
    try:
        body = draw.choice(KINDS)(draw)
        path = draw.choice([CHAT] * 6 + ["/v1/refine", "/v1/models/x", "/nothing", "/../etc/passwd", "/openapi.json"])
        method = draw.choice(["POST"] * 9 + ["PUT", "GET", "OPTIONS", "PATCH"])
        kind = draw.choice(["application/json"] * 9 + ["text/plain", "application/json; charset=latin-1", ""])
        connection.request(method, path, body, {"Content-Type": kind})
        response = connection.getresponse()
        return response.status, response.read().decode() + str(response.getheaders())
    finally:
        connection.close()


def hang_up(client: Client, draw: random.Random) -> None:
    """A request that is broken off somewhere."""
    body = json.dumps(good(draw)).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    data = head.encode() + body
    with socket.create_connection(("127.0.0.1", client.port), timeout=60) as one:
        one.sendall(data[: draw.choice([10, len(head) + 5, len(data) - 1, len(data)])])
        if draw.random() < 0.5:
            time.sleep(draw.random() / 10)


def test_nothing_that_is_sent_harms_the_server(client: Client, record_property: Any) -> None:
    """Only answers and refusals come back, nothing tells where it runs, and who asks well is answered rightly."""
    statuses: list[int] = []  # to which threads may append
    wrong: list[str] = []
    done = threading.Event()
    wanted = client.ask("what is this?", drawn())[1]["choices"][0]["message"]["content"]

    def bad(first: int) -> None:
        for number_ in range(first, REQUESTS, THREADS):
            draw = random.Random(number_)
            try:
                if number_ % 9 == 0:
                    hang_up(client, draw)
                    statuses.append(HUNG_UP)
                    continue
                status, text = send(client, draw)
            except (ConnectionError, http.client.HTTPException):
                statuses.append(CUT_OFF)  # hung up before it had heard all
                continue
            statuses.append(status)
            if TELLTALE.search(text) or status not in (200, 400, 404, 405, 408, 413, 429, 503):
                wrong.append(f"{number_}: {status} {text[:300]}")

    def well() -> None:
        while not done.is_set():
            status, data, _ = client.ask("what is this?", drawn())
            if status != 429 and (status, data["choices"][0]["message"]["content"]) != (200, wanted):
                wrong.append(f"well-behaved: {status} {data}")

    threads = [threading.Thread(target=bad, args=(number_,)) for number_ in range(THREADS)]
    beside = [threading.Thread(target=well) for _ in range(2)]
    for thread in (*threads, *beside):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    for thread in beside:
        thread.join()
    assert wrong == []
    found = Counter(statuses)
    assert found.total() == REQUESTS, "some were not sent"
    assert found[400] > REQUESTS / 4, found
    assert found[CUT_OFF] < REQUESTS / 20, found
    record_property("statuses", dict(found))
    assert {200, 404, 405, 413} <= found.keys()
    assert client("GET", "/health")[0] == 200
    end = time.monotonic() + 30
    while "\nlyrics_held_bytes 0\n" not in (text := client("GET", "/metrics")[1]):
        assert time.monotonic() < end, text
        time.sleep(0.05)
    assert "\nlyrics_waiting_requests 0\n" in text
    assert set(re.findall(r'route="([^"]*)"', text)) <= {*ROUTES, "other"}


def tasks() -> int:
    """Tasks of event loops that are not done."""
    return sum(isinstance(one, asyncio.Task) and not one.done() for one in gc.get_objects())


def test_clients_that_hang_up_leave_nothing_behind(
    client: Client, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the midst of an answer that would go on for long: its place, its memory and its tasks are free soon."""
    assert worker._running is not None
    monkeypatch.setattr(worker._running, "ends", frozenset())
    until(lambda: worker.writing == worker.waiting == 0)
    before = tasks()
    body = {"messages": [{"role": "user", "content": "what is this?"}], "max_tokens": 400, "stream": True}
    data = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    heard: Counter[str] = Counter()

    def hang_up_often(first: int) -> None:
        for _ in range(first, HANGUPS, THREADS):
            with socket.create_connection(("127.0.0.1", client.port), timeout=600) as one:
                one.sendall(head.encode() + data)
                heard[one.recv(400).split()[1].decode()] += 1

    threads = [threading.Thread(target=hang_up_often, args=(number_,)) for number_ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until(lambda: worker.writing == worker.waiting == 0, 30)
    until(lambda: tasks() <= before + 2, 30)
    assert sum(heard.values()) == HANGUPS
    assert heard["200"] >= HANGUPS / 2, heard
    assert set(heard) <= {"200", "429", "503"}
    monkeypatch.undo()
    assert "\nlyrics_held_bytes 0\n" in client("GET", "/metrics")[1]
    assert client("POST", CHAT, {"messages": [{"role": "user", "content": "what?"}], "max_tokens": 2})[0] == 200
