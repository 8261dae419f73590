"""The server over HTTP, with plain requests and with OpenAI's own client: answers, streams, errors, limits."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

import lyrics
from lyrics.core.answers import Answer
from lyrics.core.model import LyricsModel
from lyrics.plugins.causal_lm.model import CausalLM
from lyrics.workflows.serve import app
from lyrics.workflows.serve.app import Serving, build_app
from lyrics.workflows.serve.limits import Limits
from lyrics.workflows.serve.seen import SeenImages
from lyrics.workflows.serve.worker import Worker
from tests.core.small import drawn
from tests.fresh import ROOT
from tests.workflows.serve.helpers import Client, data_url, served, until

CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "how many?"}], "max_tokens": 8}


@pytest.fixture(scope="module")
def model() -> LyricsModel:
    return lyrics.load_model("lyrics-tiny")


@pytest.fixture(scope="module")
def scene() -> Any:
    data: Any = lyrics.build_dataset("lyrics-vl/scenes", {"split": "test", "scenes": 1, "task": "dialogue"})
    return data.picture(data[0])


@pytest.fixture(scope="module")
def worker(model: LyricsModel) -> Worker:
    return Worker(model, Limits(waiting=8))


@pytest.fixture(scope="module")
def client(worker: Worker) -> Iterator[Client]:
    serving = Serving(worker, "lyrics-tiny", Limits(body_bytes=200_000, seconds=60.0))
    with served(build_app(serving)) as found:
        yield found


@pytest.fixture(scope="module")
def wanted(model: LyricsModel, client: Client, scene: Any) -> dict[str, Answer]:
    """What the model answers by itself, before it belongs to the worker: ``client`` asks nothing by itself."""
    questions = ("Where is the diamond?", "What color is the diamond?", "What is at <box 34 23 59 48>?")
    found = {question: model.chat(scene).ask(question, max_new_tokens=16) for question in questions}
    found["two"] = model.chat(scene, drawn()).ask("Where is the diamond?", max_new_tokens=16)
    talk = model.chat(scene)
    talk.ask("Where is the diamond?", max_new_tokens=16)
    found["turns"] = talk.ask("Is there a ring?", max_new_tokens=16)
    found["sampled"] = model.chat(scene).ask("Is there a ring?", temperature=3.0, top_p=0.9, seed=7, max_new_tokens=16)
    return found


def failed(found: tuple[int, Any, Any], status: int, says: str = "") -> None:
    assert (found[0], set(found[1]), set(found[1]["error"])) == (
        status,
        {"error"},
        {"message", "type", "param", "code"},
    )
    assert says in found[1]["error"]["message"]


# --- answers ---


def test_an_answer_points_at_what_the_refiner_saw(client: Client, scene: Any, wanted: dict[str, Answer]) -> None:
    answer = wanted["Where is the diamond?"]
    status, data, _ = client.ask(scene, "Where is the diamond?", model="lyrics-tiny")
    assert status == 200
    (choice,) = data["choices"]
    assert choice["message"] == {"role": "assistant", "content": answer.text}
    assert (choice["finish_reason"], data["object"], data["model"]) == ("stop", "chat.completion", "lyrics-tiny")
    (found,) = data["lyrics"]["objects"]
    assert (found["tag"], found["supported"], found["detected_as"]) == ("diamond", True, "diamond")
    assert found["score"] > 0.5
    assert found["box_px"] == answer.to_json()["objects"][0]["box_px"]
    assert data["lyrics"]["plain_text"] == "diamond"
    assert data["lyrics"]["seen"] is True
    assert data["usage"]["total_tokens"] == data["usage"]["prompt_tokens"] + data["usage"]["completion_tokens"]
    assert data["usage"]["prompt_tokens"] > 32


def test_a_box_in_the_question_and_an_answer_without_objects(
    client: Client, scene: Any, wanted: dict[str, Answer]
) -> None:
    for question in ("What color is the diamond?", "What is at <box 34 23 59 48>?"):
        status, data, _ = client.ask(scene, question)
        assert (status, data["choices"][0]["message"]["content"]) == (200, wanted[question].text)
        assert (data["lyrics"]["objects"], data["lyrics"]["seen"]) == ([], None)


def test_boxes_are_of_the_last_image(client: Client, scene: Any, wanted: dict[str, Answer]) -> None:
    status, data, _ = client.ask(scene, drawn(), "Where is the diamond?")
    assert (status, data["choices"][0]["message"]["content"]) == (200, wanted["two"].text)


def test_the_content_as_json(client: Client, scene: Any) -> None:
    for stream in (False, True):
        form = {"type": "json_object"}
        found = client.ask(scene, "Where is the diamond?", response_format=form, stream=stream)
        text = "".join(pieces(found[1])) if stream else found[1]["choices"][0]["message"]["content"]
        data = json.loads(text)
        assert data["text"] == "diamond"
        assert data["objects"][0]["tag"] == "diamond"
        assert len(data["objects"][0]["box_px"]) == 4


def pieces(stream: str) -> list[str]:
    """The text of a stream of events."""
    lines = [line.removeprefix("data: ") for line in stream.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    chunks = [json.loads(line) for line in lines]
    assert len({chunk["id"] for chunk in chunks}) == 1
    return [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"]]


def test_a_stream_is_the_answer_in_pieces(client: Client, scene: Any, wanted: dict[str, Answer]) -> None:
    status, text, headers = client.ask(scene, "Where is the diamond?", stream=True)
    assert (status, headers["content-type"].partition(";")[0]) == (200, "text/event-stream")
    assert "".join(pieces(text)) == wanted["Where is the diamond?"].text
    assert len(pieces(text)) > 3
    last = json.loads(text.split("\n\n")[-3].removeprefix("data: "))
    assert last["choices"][0]["finish_reason"] == "stop"
    assert last["lyrics"]["objects"][0]["supported"] is True


def test_refining(client: Client, model: LyricsModel, scene: Any) -> None:
    status, data, _ = client("POST", "/v1/refine", {"image": data_url(scene)})
    assert status == 200
    assert {tag["name"] for tag in data["tags"]} == {"diamond"}
    assert (data["width"], data["height"], len(data["objects"])) == (128, 96, 1)
    assert data["objects"][0]["mask"]["size"] == [96, 128]
    status, data, _ = client("POST", "/v1/refine", {"image": data_url(scene), "phrases": ["diamond"], "masks": False})
    assert [found["tag"] for found in data["objects"]] == ["diamond"]
    assert data["objects"][0]["mask"] is None


def test_what_it_is_and_how_it_does(client: Client) -> None:
    status, data, _ = client("GET", "/v1/models")
    assert (status, data["data"][0]["id"]) == (200, "lyrics-tiny")
    assert data["data"][0]["lyrics"]["parts"]["refiner.detector"] == "tiny-detector"
    assert client("GET", "/v1/models/lyrics-tiny")[1] == data["data"][0]
    failed(client("GET", "/v1/models/gpt"), 404, "there is only 'lyrics-tiny'")
    assert client("GET", "/health")[:2] == (200, {"status": "ok"})
    client("POST", CHAT, HELLO)
    status, text, headers = client("GET", "/metrics")
    assert headers["content-type"].startswith("text/plain")
    assert 'lyrics_requests_total{route="/v1/chat/completions",status="200"}' in text
    assert "\nlyrics_held_bytes 0\n" in text
    for line in text.splitlines():
        assert line.startswith("# ") or (len(line.rsplit(" ", 1)) == 2 and float(line.rsplit(" ", 1)[1]) >= 0), line


def test_the_description_says_what_bodies_hold(client: Client) -> None:
    data = client("GET", "/openapi.json")[1]
    chat = data["paths"][CHAT]["post"]
    assert "messages" in chat["requestBody"]["content"]["application/json"]["schema"]["required"]
    assert "lyrics" in chat["responses"]["200"]["content"]["application/json"]["schema"]["properties"]
    assert set(chat["responses"]) >= {"400", "413", "429"}
    assert "$ref" not in json.dumps(data["paths"][CHAT])


# --- OpenAI's own client ---


@pytest.fixture
def openai(client: Client) -> Any:
    package = pytest.importorskip("openai")
    return package.OpenAI(base_url=f"http://127.0.0.1:{client.port}/v1", api_key="any", max_retries=0)


def shown(image: Any, text: str) -> Any:
    parts = [{"type": "image_url", "image_url": {"url": data_url(image)}}, {"type": "text", "text": text}]
    return {"role": "user", "content": parts}


def test_openais_client(openai: Any, scene: Any, wanted: dict[str, Answer]) -> None:
    """Plain, a second turn with the answer as it came, streamed with counts, sampled with a seed, stopped, refused."""
    assert [one.id for one in openai.models.list()] == ["lyrics-tiny"]
    first = [shown(scene, "Where is the diamond?")]
    create = openai.chat.completions.create
    reply = create(model="lyrics-tiny", messages=first, max_tokens=16)
    assert reply.choices[0].message.content == wanted["Where is the diamond?"].text
    assert reply.lyrics["objects"][0]["supported"] is True
    second = [*first, reply.choices[0].message, {"role": "user", "content": "Is there a ring?"}]
    again = create(model="lyrics-tiny", messages=second, max_completion_tokens=16)
    assert again.choices[0].message.content == wanted["turns"].text
    options = {"include_usage": True}
    chunks = list(create(model="lyrics-tiny", messages=first, max_tokens=16, stream=True, stream_options=options))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == reply.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == reply.usage.completion_tokens
    assert chunks[-2].lyrics == reply.lyrics
    for _ in range(2):
        sampled = create(
            model="lyrics-tiny",
            messages=[shown(scene, "Is there a ring?")],
            temperature=3.0,
            top_p=0.9,
            seed=7,
            max_tokens=16,
        )
        assert sampled.choices[0].message.content == wanted["sampled"].text
    stopped = create(model="lyrics-tiny", messages=first, stop=["</T>", "zzz"], max_tokens=16)
    assert stopped.choices[0].message.content == reply.choices[0].message.content.partition("</T>")[0]
    assert stopped.choices[0].finish_reason == "stop"
    cut = create(model="lyrics-tiny", messages=first, max_tokens=2)
    assert (cut.choices[0].finish_reason, cut.usage.completion_tokens) == ("length", 2)
    package = pytest.importorskip("openai")
    with pytest.raises(package.BadRequestError, match="max_tokens"):
        create(model="lyrics-tiny", messages=first, max_tokens=10**6)
    with pytest.raises(package.NotFoundError):
        create(model="gpt-4o", messages=first)


def test_openais_client_asks_many_things_at_once(openai: Any, scene: Any, wanted: dict[str, Answer]) -> None:
    questions = ("Where is the diamond?", "What color is the diamond?", "What is at <box 34 23 59 48>?")

    def ask(number: int) -> bool:
        question = questions[number % 3]
        reply = openai.chat.completions.create(
            model="lyrics-tiny", messages=[shown(scene, question)], max_tokens=16, stream=number % 2 == 0
        )
        if number % 2:
            return bool(reply.choices[0].message.content == wanted[question].text)
        return "".join(chunk.choices[0].delta.content or "" for chunk in reply) == wanted[question].text

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(24)))


def test_the_example_runs(client: Client, scene: Any, tmp_path: Path) -> None:
    """``examples/serving/client.py``."""
    pytest.importorskip("openai")
    scene.save(tmp_path / "scene.png")
    program = ROOT / "examples" / "serving" / "client.py"
    done = subprocess.run(
        [
            sys.executable,
            str(program),
            "scene.png",
            "Where is the diamond?",
            f"http://127.0.0.1:{client.port}",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "diamond"
    assert second.startswith("diamond [")
    assert "score 0.9" in second


# --- what is refused ---


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"", 400, "the body"),
        (b"{", 400, "the body"),
        (b"\xff\xfe", 400, "the body"),
        (b'{"messages": "\xc3"}', 400, "the body"),
        (b"[" * 100_000, 400, "the body"),
        (b'{"a":' * 20_000, 400, "the body"),
        (b'{"messages": [], "temperature": NaN}', 400, ""),
        (b'{"messages": [{"role": "user", "content": "q"}], "temperature": 1e400}', 400, "temperature"),
        (b'{"messages": [{"role": "user", "content": "q"}], "seed": ' + b"9" * 5000 + b"}", 400, ""),
        (b"null", 400, "the body"),
        (json.dumps({**HELLO, "n": 10**9}).encode(), 400, "n: input should be 1"),
        (b" " * 300_000, 413, "200,000 bytes"),
    ],
    ids=range(12),
)
def test_bodies_that_are_no_requests(client: Client, body: bytes, status: int, says: str) -> None:
    failed(client("POST", CHAT, body), status, says)
    failed(client("POST", "/v1/refine", body), status)


@pytest.mark.parametrize(
    ("url", "status", "says"),
    [
        ("data:image/png;base64,AAAA", 400, "is not an image"),
        ("data:image/png;base64,!", 400, "not valid base64"),
        ("data:text/html;base64,AAAA", 400, "no image's"),
        ("https://images.example.org/a.png", 400, "this server fetches nothing"),
        ("http://169.254.169.254/latest/meta-data/", 400, "this server fetches nothing"),
        ("file:///etc/passwd", 400, "this server fetches nothing"),
        ("/etc/passwd", 400, "this server fetches nothing"),
    ],
)
def test_images_that_are_none(client: Client, url: str, status: int, says: str) -> None:
    part = {"type": "image_url", "image_url": {"url": url}}
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}, part]}]}
    failed(client("POST", CHAT, body), status, says)
    failed(client("POST", "/v1/refine", {"image": url}), status, says)


def test_boxes_that_lie_in_no_image(client: Client, scene: Any) -> None:
    failed(
        client.ask(scene, "What is at <box 0 0 500 500>?"), 400, "does not lie in the image, which is 128 x 96 pixels"
    )
    failed(client.ask("What is at <box 0 0 5 5>?"), 400, "there is no image")


def test_a_conversation_that_the_model_has_no_room_for(client: Client) -> None:
    failed(client.ask("word " * 2000), 400, "the language model reads 1,024")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", CHAT, 405),
        ("PUT", CHAT, 405),
        ("POST", "/v1/models", 405),
        ("GET", "/v1/chat/completions/", 404),
        ("GET", "/docs", 404),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/v1/models/..%2f..%2fetc%2fpasswd", 404),
        ("GET", "/static/%2e%2e/%2e%2e/etc/passwd", 404),
        ("DELETE", "/v1/models/lyrics-tiny", 405),
    ],
)
def test_paths_that_are_none(client: Client, method: str, path: str, status: int) -> None:
    failed(client(method, path), status)


def test_other_kinds_of_content_are_not_read(client: Client) -> None:
    """A page of another site could send these without asking."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        failed(client("POST", CHAT, json.dumps(HELLO).encode(), {"Content-Type": kind}), 400, "Content-Type")


def test_an_error_of_its_own_tells_a_number_and_no_more(
    client: Client, worker: Worker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret in /home/somebody/model.py")

    with monkeypatch.context() as patch:
        patch.setattr(SeenImages, "look", broken)
        status, data, _ = client("POST", CHAT, HELLO)
        assert (status, data["error"]["type"]) == (500, "server_error")
        assert "secret" not in json.dumps(data)
        assert "/home" not in json.dumps(data)
        number = data["error"]["message"].rpartition("under ")[2].rstrip(".")
        assert number in caplog.text
        assert "secret in /home/somebody" in caplog.text
        failed(client("POST", CHAT, {**HELLO, "stream": True}), 500)
    assert client("POST", CHAT, HELLO)[0] == 200


# --- clients that behave badly ---


@pytest.fixture
def held_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A token takes a tenth of a second, until this is set."""
    go = threading.Event()
    embed = CausalLM.embed

    def slowly(self: Any, ids: Any) -> Any:
        if ids.shape[1] == 1 and not go.is_set():
            time.sleep(0.1)
        return embed(self, ids)

    monkeypatch.setattr(CausalLM, "embed", slowly)
    yield go
    go.set()


def stop_ending(model: LyricsModel, monkeypatch: pytest.MonkeyPatch, worker: Worker) -> None:
    """Answers do not end by themselves."""
    assert worker._running is not None
    monkeypatch.setattr(worker._running, "ends", frozenset())


def test_a_full_queue(
    client: Client, worker: Worker, model: LyricsModel, held_up: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_ending(model, monkeypatch, worker)
    monkeypatch.setattr(worker, "limits", replace(worker.limits, waiting=2, batch=1))
    long = {**HELLO, "max_tokens": 30}
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(client, "POST", CHAT, long)
        until(lambda: worker.writing == 1)
        others = [pool.submit(client, "POST", CHAT, long) for _ in range(2)]
        until(lambda: worker.waiting == 2)
        began = time.monotonic()
        found = client("POST", CHAT, long)
        failed(found, 429, "2 requests wait already")
        assert 1 <= int(found[2]["retry-after"]) <= 60
        assert time.monotonic() - began < 5
        failed(client("POST", "/v1/refine", {"image": data_url(drawn())}), 429)
        held_up.set()
        assert [one.result()[0] for one in (first, *others)] == [200] * 3
    assert client("POST", CHAT, HELLO)[0] == 200


@pytest.mark.parametrize("stream", [False, True])
def test_who_hangs_up_frees_their_place(
    client: Client,
    worker: Worker,
    model: LyricsModel,
    held_up: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
    stream: bool,
) -> None:
    """While their answer is written, and while they wait."""
    stop_ending(model, monkeypatch, worker)
    monkeypatch.setattr(worker, "limits", replace(worker.limits, batch=3))
    body = json.dumps({**HELLO, "max_tokens": 500, "stream": stream}).encode()
    sockets = []
    for _ in range(6):
        one = socket.create_connection(("127.0.0.1", client.port))
        head = (
            f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        one.sendall(head.encode() + body)
        sockets.append(one)
    until(lambda: (worker.writing, worker.waiting) == (3, 3))
    for one in sockets:
        one.close()
    until(lambda: worker.writing == worker.waiting == 0, 20)
    held_up.set()
    text = client("GET", "/metrics")[1]
    assert "\nlyrics_held_bytes 0\n" in text
    assert client("POST", CHAT, HELLO)[0] == 200


def test_what_takes_too_long(
    client: Client, worker: Worker, model: LyricsModel, held_up: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_ending(model, monkeypatch, worker)
    ask_job = app.AskJob
    monkeypatch.setattr(app, "AskJob", lambda *given, **more: ask_job(*given, **{**more, "seconds": 0.7}))
    failed(client("POST", CHAT, {**HELLO, "max_tokens": 500}), 408, "longer than the 0.7 seconds")
    status, text, _ = client("POST", CHAT, {**HELLO, "max_tokens": 500, "stream": True})
    if status == 200:  # it began to tell
        lines = text.split("\n\n")
        assert '"code": "too_late"' in lines[-3]
        assert lines[-2] == "data: [DONE]"
    else:
        assert status == 408


@pytest.mark.parametrize("stream", [False, True])
def test_what_waits_for_too_long_is_told_so_in_time(
    client: Client, worker: Worker, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """While the worker looks at something that takes it long; and that it is of no use to ask again at once."""
    ask_job, look = app.AskJob, SeenImages.look
    looking, go = threading.Event(), threading.Event()

    def slowly(*given: Any, **more: Any) -> Any:
        looking.set()
        assert go.wait(60)
        return look(*given, **more)

    monkeypatch.setattr(SeenImages, "look", slowly)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(client, "POST", CHAT, HELLO)
        try:
            assert looking.wait(60)
            with monkeypatch.context() as patch:
                patch.setattr(app, "AskJob", lambda *given, **more: ask_job(*given, **{**more, "seconds": 0.3}))
                found = client("POST", CHAT, {**HELLO, "stream": stream})
            failed(found, 408, "longer than the 0.3 seconds")
            assert found[2]["x-should-retry"] == "false"
            assert worker.waiting == 0
        finally:
            go.set()
        assert first.result()[0] == 200


def test_more_and_more_of_a_body(client: Client) -> None:
    """In chunks, without a length."""
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=60)
    connection.putrequest("POST", CHAT)
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    for _ in range(40):
        connection.send(b"2710\r\n" + b" " * 10_000 + b"\r\n")
    connection.send(b"0\r\n\r\n")
    response = connection.getresponse()
    assert response.status == 413
    assert json.loads(response.read())["error"]["code"] == "too_large"
    connection.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"GARBAGE\r\n\r\n",
        b"POST / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\nbroken\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 30 + b"\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 100_000 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
    ],
    ids=range(9),
)
def test_what_is_no_http(client: Client, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", client.port), timeout=30) as one:
        one.sendall(sent)
        try:
            one.shutdown(socket.SHUT_WR)
            answer = one.recv(65536)
        except ConnectionError:
            answer = b""
    assert b"Traceback" not in answer
    assert not answer or answer.split(b" ")[1][:1] == b"4"
    assert client("GET", "/health")[0] == 200


def test_nothing_is_left_behind(client: Client, worker: Worker) -> None:
    """After all of the above nothing waits, nothing is written, nothing is held."""
    until(lambda: worker.writing == worker.waiting == 0)
    until(lambda: "\nlyrics_held_bytes 0\n" in client("GET", "/metrics")[1])
