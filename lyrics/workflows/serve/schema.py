"""What the OpenAPI description says of bodies, which are read by ``requests`` and not by FastAPI."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}
_FAILURES = {
    "400": "The request is not valid; the message says what is wrong.",
    "401": "An API key is missing or wrong.",
    "403": "The Host header is another machine's.",
    "404": "There is no such model.",
    "408": "The request, or its answer, took too long.",
    "413": "Something is larger than a limit.",
    "429": "The queue is full; Retry-After says when to come again.",
    "500": "The server failed; its log says more.",
    "503": "The server is stopping.",
}


def described(body: type[BaseModel], reply: type[BaseModel]) -> dict[str, Any]:
    """Arguments for a route whose body is ``body`` and whose response is ``reply``."""
    request = {"required": True, "content": {"application/json": {"schema": _inlined(body)}}}
    answer = {"description": "The answer.", "content": {"application/json": {"schema": _inlined(reply)}}}
    failures = {
        status: {"description": text, "content": {"application/json": {"schema": _ERROR}}}
        for status, text in _FAILURES.items()
    }
    return {"openapi_extra": {"requestBody": request, "responses": {"200": answer, **failures}}, "response_model": None}


def _inlined(model: type[BaseModel]) -> dict[str, Any]:
    """A schema without references, which would have to stand elsewhere in the description."""
    schema = model.model_json_schema()
    shared = schema.pop("$defs", {})

    def put_in(value: Any) -> Any:
        if isinstance(value, dict):
            if "$ref" in value:
                return put_in(shared[value["$ref"].rpartition("/")[2]])
            return {key: put_in(one) for key, one in value.items() if key != "discriminator"}
        return [put_in(one) for one in value] if isinstance(value, list) else value

    return put_in(schema)  # type: ignore[no-any-return]
