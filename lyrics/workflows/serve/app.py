"""The routes of the server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from PIL import Image
from starlette.exceptions import HTTPException

from lyrics import __version__
from lyrics.core.chat import with_boxes
from lyrics.core.json_reading import parse_json
from lyrics.core.language.generation import decoding
from lyrics.core.language.prompts import Exchange
from lyrics.workflows.serve.failures import Refusal, failure
from lyrics.workflows.serve.fetching import Fetcher
from lyrics.workflows.serve.guard import Guard
from lyrics.workflows.serve.images import data_of, is_data_url, read_image
from lyrics.workflows.serve.jobs import Answered, AskJob, Event, Failed, Job, Refined, RefineJob, TextPiece
from lyrics.workflows.serve.limits import Budget, Limits, TooLargeError
from lyrics.workflows.serve.replies import ChatReply, RefineReply, Reply
from lyrics.workflows.serve.requests import (
    DEFAULT_TOKENS,
    AskedTurns,
    ChatRequest,
    RefineRequest,
    RequestError,
    conversation,
    read_body,
)
from lyrics.workflows.serve.schema import described
from lyrics.workflows.serve.worker import Worker

CHAT, REFINE, MODELS, HEALTH, METRICS = "/v1/chat/completions", "/v1/refine", "/v1/models", "/health", "/metrics"
ROUTES = frozenset({CHAT, REFINE, MODELS, HEALTH, METRICS, "/openapi.json"})
#: Images of all requests that are decoded or fetched at the same time.
_READERS = 4
#: The status of a response that nobody reads, for counting.
_GONE = 499


@dataclass(frozen=True)
class Serving:
    """What a server is set up with.

    Args:
        worker: owns the model.
        name: what clients call it.
        limits: what a request may ask for.
        fetcher: gets images of allowed hosts.
        api_key, hosts: see ``Guard``.
    """

    worker: Worker
    name: str
    limits: Limits = field(default_factory=Limits)
    fetcher: Fetcher = field(default_factory=Fetcher)
    api_key: str | None = None
    hosts: frozenset[str] | None = None


def build_app(serving: Serving) -> Guard:
    """The server as an ASGI application; its lifespan starts and ends the worker."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        serving.worker.start()
        try:
            yield
        finally:
            await asyncio.to_thread(serving.worker.stop)

    app = FastAPI(
        title="lyrics", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    budget = Budget(serving.limits.memory_bytes)
    routes = _Routes(serving, budget)
    app.add_api_route(CHAT, routes.chat, methods=["POST"], **described(ChatRequest, ChatReply))
    app.add_api_route(REFINE, routes.refine, methods=["POST"], **described(RefineRequest, RefineReply))
    app.add_api_route(MODELS, routes.models, methods=["GET"], response_class=JSONResponse)
    app.add_api_route(f"{MODELS}/{{name:path}}", routes.one_model, methods=["GET"], response_class=JSONResponse)
    app.add_api_route(HEALTH, routes.health, methods=["GET"], response_class=JSONResponse)
    app.add_api_route(METRICS, routes.metrics, methods=["GET"], response_class=PlainTextResponse)
    app.add_exception_handler(HTTPException, _http_error)
    return Guard(
        app,
        routes=ROUTES,
        limits=serving.limits,
        budget=budget,
        metrics=serving.worker.metrics,
        api_key=serving.api_key,
        hosts=serving.hosts,
    )


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    texts = {404: "there is nothing at this path.", 405: "this path takes another method."}
    message = texts.get(error.status_code, "the request cannot be met.")
    return _failed(Refusal(error.status_code, message, "no_such_route", headers=error.headers or {}))


def _failed(found: Refusal) -> Response:
    return JSONResponse(found.body, found.status, headers=dict(found.headers))


class _Routes:
    def __init__(self, serving: Serving, budget: Budget) -> None:
        self.serving, self.budget = serving, budget
        self.worker, self.limits = serving.worker, serving.limits
        self.began = int(time.time())
        self._readers: asyncio.Semaphore | None = None

    # --- routes ------------------------------------------------------------------------------------------------------

    async def chat(self, request: Request) -> Response:
        """Answer a conversation about images."""
        return await self._met(self._chat(request))

    async def refine(self, request: Request) -> Response:
        """Tags, boxes and masks of an image."""
        return await self._met(self._refine(request))

    async def models(self) -> Response:
        """The model that is served."""
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def one_model(self, name: str) -> Response:
        """The model of that name."""
        try:
            self._check_model(name)
        except RequestError as error:
            return _failed(failure(error))
        return JSONResponse(self._model())

    async def health(self) -> Response:
        """Whether the worker lives: 200, or 503."""
        alive = self.worker.alive
        return JSONResponse({"status": "ok" if alive else "stopping"}, 200 if alive else 503)

    async def metrics(self) -> Response:
        """Counters in the text format of Prometheus."""
        now = {
            "waiting_requests": self.worker.waiting,
            "running_answers": self.worker.writing,
            "held_bytes": self.budget.used,
        }
        return PlainTextResponse(self.worker.metrics.text(now), media_type="text/plain; version=0.0.4")

    async def _met(self, answer: Awaitable[Response]) -> Response:
        try:
            return await answer
        except ClientGoneError:
            self.worker.metrics.gave_up()
            return Response(status_code=_GONE)
        except Exception as error:
            return _failed(failure(error))

    async def _chat(self, request: Request) -> Response:
        came = time.monotonic()
        asked = read_body(ChatRequest, await _json(request))
        self._check_model(asked.model)
        talk = conversation(asked, self.limits)
        as_json = asked.response_format is not None and asked.response_format.type == "json_object"
        with_usage = asked.stream_options is not None and bool(asked.stream_options.include_usage)
        if asked.stream_options is not None and not asked.stream:
            raise RequestError("stream_options: are for stream=true.", "stream_options")
        reply = Reply(self.serving.name, as_json=as_json, with_usage=with_usage)
        self.worker.check_room()
        images, held = await self._images([(image.url, turn.where) for turn in talk.turns for image in turn.images])
        waiter = _Waiter(self.worker, request, lambda: self.budget.give(held))
        try:
            job = self._ask_job(asked, talk, images, waiter, follow=bool(asked.stream) and not as_json)
            waiter.submit(job)
            first = await waiter.next()
        except BaseException:
            waiter.close()
            raise
        self.worker.metrics.began(time.monotonic() - came)
        if asked.stream:
            return _Stream(reply, first, waiter, as_json=as_json)
        try:
            event = first
            while isinstance(event, TextPiece):
                event = await waiter.next()
        finally:
            waiter.close()
        assert isinstance(event, Answered)
        self.worker.metrics.answered(event.prompt_tokens, event.answer_tokens)
        return JSONResponse(reply.whole(event))

    async def _refine(self, request: Request) -> Response:
        asked = read_body(RefineRequest, await _json(request))
        phrases = asked.phrases
        if phrases is not None:
            if not all(phrase.strip() for phrase in phrases):
                raise RequestError("phrases: one of them is empty.", "phrases")
            if len(phrases) > self.limits.phrases or sum(map(len, phrases)) > self.limits.text_chars:
                raise TooLargeError(
                    f"phrases: at most {self.limits.phrases}, of {self.limits.text_chars:,} characters in all."
                )
        if self.worker.model.refiner is None:
            raise RequestError("this model has no refiner, so there is nothing that finds objects.", "image")
        self.worker.check_room()
        images, held = await self._images([(asked.image, "image")])
        waiter = _Waiter(self.worker, request, lambda: self.budget.give(held))
        try:
            job = RefineJob(images, waiter.tell, seconds=self.limits.seconds, phrases=phrases)
            waiter.submit(job)
            event = await waiter.next()
        finally:
            waiter.close()
        assert isinstance(event, Refined)
        data = event.refinement.to_json()
        del data["image"]
        if asked.masks is False:
            for found in data["objects"]:
                found["mask"] = None
        return JSONResponse(data)

    # --- what they share ---------------------------------------------------------------------------------------------

    def _model(self) -> dict[str, Any]:
        parts = {path: slot.use for path, _, slot in self.worker.model.spec.slots()}
        about = {"parts": parts, "max_positions": int(self.worker.model.language_model.max_positions)}
        return {
            "id": self.serving.name,
            "object": "model",
            "created": self.began,
            "owned_by": "lyrics",
            "lyrics": about,
        }

    def _check_model(self, name: str | None) -> None:
        if name is not None and name != self.serving.name:
            raise RequestError(
                f"model: there is only {self.serving.name!r} here.", "model", code="model_not_found", status=404
            )

    async def _images(self, urls: list[tuple[str, str]]) -> tuple[list[Image.Image], int]:
        """Images, read and decoded, and how much of the budget they hold."""
        if self._readers is None:
            self._readers = asyncio.Semaphore(_READERS)
        found: list[Image.Image] = []
        held = 0
        try:
            for number, (url, where) in enumerate(urls, 1):
                name = where if where == "image" else f"{where}.content, image {number}"
                async with self._readers:
                    image, own = await asyncio.to_thread(self._read, url, name)
                found.append(image)
                held += own
        except BaseException:
            self.budget.give(held)
            raise
        return found, held

    def _read(self, url: str, name: str) -> tuple[Image.Image, int]:
        data = data_of(url, name) if is_data_url(url) else self.serving.fetcher(url, name)
        return read_image(data, name, self.limits, self.budget)

    def _ask_job(
        self, asked: ChatRequest, talk: AskedTurns, images: list[Image.Image], waiter: _Waiter, *, follow: bool
    ) -> AskJob:
        codec = self.worker.model.spec.codec
        exchanges: list[Exchange] = []
        questions: list[str] = []
        for turn in talk.turns:
            numbers = tuple(range(len(questions), len(questions) + len(turn.images)))
            questions += [turn.question] * len(turn.images)
            shown = images[len(questions) - 1].size if questions else None
            system = "" if exchanges else talk.system
            question = with_boxes(turn.question, shown, codec)
            exchanges.append(Exchange(question, turn.answer, numbers, system))
        how = decoding(
            asked.sampling,
            max_new_tokens=asked.longest or min(DEFAULT_TOKENS, self.limits.tokens),
            seed=asked.seed if asked.sampling else None,
        )
        return AskJob(
            images,
            waiter.tell,
            seconds=self.limits.seconds,
            exchanges=exchanges,
            questions=questions,
            how=how,
            stop=asked.stops,
            follow=follow,
        )


async def _json(request: Request) -> Any:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # A page of another site can send other kinds without asking this server first.
        raise RequestError("the body is to be JSON: Content-Type: application/json.")
    return parse_json(await request.body(), "the body", RequestError)


class _Waiter:
    """Waits in the event loop for what the worker tells of a job, and for the client to go away."""

    def __init__(self, worker: Worker, request: Request, after: Callable[[], None]) -> None:
        self.worker, self.after = worker, after
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._job: Job | None = None
        self._gone = asyncio.ensure_future(self._watch(request))
        self._closed = self._ended = False

    def tell(self, event: Event) -> None:
        """From the worker's thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def submit(self, job: Job) -> None:
        self._job = job
        self.worker.submit(job)

    async def _watch(self, request: Request) -> None:
        while True:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                return

    async def next(self) -> Event:
        """The next event. Raises what the job failed with, ``ClientGoneError``, and ``LateError`` where the worker is
        busy with something else when the job's time is over.
        """
        assert self._job is not None
        event = asyncio.ensure_future(self._events.get())
        try:
            await asyncio.wait(
                {event, self._gone}, timeout=max(0.0, self._job.left), return_when=asyncio.FIRST_COMPLETED
            )
            if self._gone.done():
                raise ClientGoneError
            if not event.done():
                raise self._job.lateness()
        finally:
            event.cancel()
        found = event.result()
        self._ended = not isinstance(found, TextPiece)
        if isinstance(found, Failed):
            raise found.error
        return found

    def close(self) -> None:
        """Nobody waits any more; what the job holds is given back."""
        if self._closed:
            return
        self._closed = True
        self._gone.cancel()
        if self._job is not None and not self._ended:
            self.worker.cancel(self._job)
        self.after()


class ClientGoneError(Exception):
    """The client went away: there is nobody to answer."""


class _Stream(Response):
    """An answer as server-sent events, told as they are written."""

    def __init__(self, reply: Reply, first: Event, waiter: _Waiter, *, as_json: bool) -> None:
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        del self.headers["content-length"]
        self.reply, self.event, self.waiter, self.as_json = reply, first, waiter, as_json

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        async def write(text: str) -> None:
            data = f"data: {text}\n\n".encode()
            await send({"type": "http.response.body", "body": data, "more_body": True})

        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await write(json.dumps(self.reply.first()))
            try:
                while isinstance(self.event, TextPiece):
                    await write(json.dumps(self.reply.piece(self.event.text)))
                    self.event = await self.waiter.next()
                assert isinstance(self.event, Answered)
                self.waiter.worker.metrics.answered(self.event.prompt_tokens, self.event.answer_tokens)
                if self.as_json:
                    whole = self.reply.whole(self.event)["choices"][0]["message"]["content"]
                    await write(json.dumps(self.reply.piece(whole)))
                for chunk in self.reply.last(self.event):
                    await write(json.dumps(chunk))
            except ClientGoneError:
                self.waiter.worker.metrics.gave_up()
                return
            except Exception as error:
                await write(json.dumps(failure(error).body))
            await write("[DONE]")
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self.waiter.close()
