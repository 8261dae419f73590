"""What goes wrong, as what a client is told: a status and a body in OpenAI's form, without paths and tracebacks."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lyrics.core.errors import ImageError, LyricsError, NotFiniteError, PromptError, SpecError
from lyrics.workflows.serve.limits import LateError, QueueFullError, StoppingError, TooLargeError
from lyrics.workflows.serve.requests import RequestError

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refusal:
    """A response that is an error."""

    status: int
    message: str
    code: str
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, Any]:
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def failure(error: BaseException) -> Refusal:
    """What a client is told of an error. One of the server's own is logged, with the number that the client is told."""
    text = str(error)
    if isinstance(error, RequestError):
        return Refusal(error.status, text, error.code, error.param)
    if isinstance(error, TooLargeError):
        return Refusal(413, text, "too_large")
    if isinstance(error, QueueFullError):
        return Refusal(429, text, "queue_full", headers={"Retry-After": str(error.seconds)})
    if isinstance(error, StoppingError):
        return Refusal(503, text, "stopping", headers={"Retry-After": "10"})
    if isinstance(error, LateError):
        # OpenAI's clients send what took too long once more, and again, unless they are told that it is of no use.
        return Refusal(408, text, "too_late", headers={"x-should-retry": "false"})
    if isinstance(error, ImageError):
        return Refusal(413 if error.kind == "large" else 400, text, f"image_{error.kind}")
    if isinstance(error, PromptError | SpecError):
        return Refusal(400, text, "invalid_request")
    number = uuid.uuid4().hex[:12]
    _logger.error("request failed, error %s", number, exc_info=error)
    what = "the model gave values that are not finite" if isinstance(error, NotFiniteError) else "the server failed"
    if isinstance(error, LyricsError) and not isinstance(error, NotFiniteError):
        what = "the server cannot do this"
    return Refusal(500, f"{what}; its log says more, under {number}.", "internal_error")
