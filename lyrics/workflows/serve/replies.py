"""The bodies of responses: what a model said and saw, as JSON."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field

from lyrics import __version__
from lyrics.core.answers import Answer
from lyrics.workflows.serve.jobs import Answered


class PointedObject(BaseModel):
    """An object that an answer points at."""

    tag: str = Field(description="What the answer calls it; empty for a box alone.")
    box_px: tuple[float, float, float, float] = Field(
        description="Left, top, right, bottom in pixels of the original image."
    )
    supported: bool = Field(description="Whether the refiner saw something there, whatever it calls it.")
    score: float | None = Field(description="The refiner's score of that; null where it saw nothing.")
    iou: float = Field(description="Overlap with what the refiner saw, 0 to 1.")
    detected_as: str | None = Field(description="What the refiner calls it; null where it saw nothing.")


class Sureness(BaseModel):
    """How sure the language model was, as natural logarithms of probabilities."""

    mean_log_prob: float
    min_log_prob: float


class Evidence(BaseModel):
    """What stands behind an answer."""

    objects: list[PointedObject] = Field(description="In order of mention. Boxes are of the last image.")
    plain_text: str = Field(description="The answer without its box markup.")
    seen: bool | None = Field(description="Whether the refiner saw any of the objects; null where there are none.")
    problems: list[str] = Field(description="Box text that could not be read.")
    confidence: Sureness | None


class Usage(BaseModel):
    """Tokens. Those of an image are counted in the prompt."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ReplyMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str


class Choice(BaseModel):
    """The one answer that there is."""

    index: Literal[0] = 0
    message: ReplyMessage
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class ChatReply(BaseModel):
    """The response of ``POST /v1/chat/completions``."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage
    lyrics: Evidence


class RefinedTag(BaseModel):
    """A word for what is in the image."""

    name: str
    score: float


class RefinedObject(BaseModel):
    """Something that the refiner found."""

    tag: str
    score: float
    box_px: tuple[float, float, float, float] = Field(
        description="Left, top, right, bottom in pixels of the original image."
    )
    mask: dict[str, Any] | None = Field(description="COCO's compressed runs: size [height, width], counts.")


class RefineReply(BaseModel):
    """The response of ``POST /v1/refine``: what ``lyrics refine`` writes as a line of objects.jsonl."""

    width: int
    height: int
    tags: list[RefinedTag]
    objects: list[RefinedObject]


def evidence(answer: Answer) -> dict[str, Any]:
    """What stands behind an answer, as ``Evidence``."""
    data = answer.to_json()
    return {name: data[name] for name in Evidence.model_fields}


def content(answer: Answer, as_json: bool) -> str:
    """The text of an answer; or, as JSON, its plain text and its objects."""
    if not as_json:
        return answer.text
    data = answer.to_json()
    return json.dumps({"text": answer.plain_text, "objects": data["objects"]}, ensure_ascii=False)


def usage(done: Answered) -> dict[str, int]:
    total = done.prompt_tokens + done.answer_tokens
    return {"prompt_tokens": done.prompt_tokens, "completion_tokens": done.answer_tokens, "total_tokens": total}


class Reply:
    """The responses to one request for an answer: whole, or in pieces.

    Args:
        model: the name that the server gives its model.
        as_json: whether the content is JSON.
        with_usage: whether a stream ends with a piece that counts tokens.
    """

    def __init__(self, model: str, *, as_json: bool = False, with_usage: bool = False) -> None:
        self.as_json, self.with_usage = as_json, with_usage
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": f"lyrics-{__version__}",
        }

    def whole(self, done: Answered) -> dict[str, Any]:
        """As ``ChatReply``."""
        message = {"role": "assistant", "content": content(done.answer, self.as_json)}
        choice = {"index": 0, "message": message, "finish_reason": done.finish, "logprobs": None}
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [choice],
            "usage": usage(done),
            "lyrics": evidence(done.answer),
        }

    def first(self) -> dict[str, Any]:
        """The first piece of a stream: who speaks."""
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, text: str) -> dict[str, Any]:
        return self._chunk({"content": text})

    def last(self, done: Answered) -> list[dict[str, Any]]:
        """The pieces that end a stream: why it ended, with what stands behind the answer; and what it took."""
        end = {**self._chunk({}, done.finish), "lyrics": evidence(done.answer)}
        if not self.with_usage:
            return [end]
        return [end, {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage(done)}]

    def _chunk(self, delta: Mapping[str, str], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": dict(delta), "finish_reason": finish, "logprobs": None}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}
