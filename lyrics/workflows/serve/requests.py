"""What clients may ask: the bodies of requests, checked, and as conversations.

Unknown keys and numbers out of range are refused by name, so that nothing a client sets is ignored without a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lyrics.core.errors import PromptError
from lyrics.workflows.serve.limits import Limits, TooLargeError

Body = TypeVar("Body", bound=BaseModel)
#: What an answer is given where a request does not say how long it may be.
DEFAULT_TOKENS = 256


class RequestError(PromptError):
    """A request is not one that can be met.

    ``param`` names what is wrong in it (``messages.0.content``); ``status`` is the response's.
    """

    def __init__(
        self, message: str, param: str | None = None, *, code: str = "invalid_request", status: int = 400
    ) -> None:
        super().__init__(message)
        self.param, self.code, self.status = param, code, status


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Lenient(BaseModel):
    # Clients send answers back as they got them, with keys that say nothing here.
    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class TextPart(_Strict):
    """Text in a message."""

    type: Literal["text"]
    text: str


class ImageUrl(_Strict):
    """Where an image is."""

    url: str = Field(description="data:image/png;base64,... or, where the server allows its host, https://...")
    detail: Literal["auto", "low", "high"] | None = Field(None, description="Has no effect: there is one detail.")


class ImagePart(_Strict):
    """An image in a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class InstructionMessage(_Lenient):
    """How the conversation is to be answered; before all other messages."""

    role: Literal["system", "developer"]
    content: str | list[TextPart]


class UserMessage(_Lenient):
    """What is asked, with the images that it brings in."""

    role: Literal["user"]
    content: str | list[Part]


class AssistantMessage(_Lenient):
    """What was answered."""

    role: Literal["assistant"]
    content: str | list[TextPart] | None = None


Message = Annotated[InstructionMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


class ResponseFormat(_Strict):
    """The form of an answer's content."""

    type: Literal["text", "json_object"] = Field(
        description='json_object: {"text": ..., "objects": [...]} in place of the text.'
    )


class StreamOptions(_Strict):
    """What a stream holds beside the answer."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = Field(None, description="Has no effect: nothing is added to a stream.")


class ChatRequest(_Strict):
    """The body of ``POST /v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1)
    model: str | None = Field(None, description="The name that /v1/models gives, or left out.")
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=100, description="0 or left out: greedy.")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=1_000_000)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    n: Literal[1] | None = None
    presence_penalty: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None
    logprobs: Literal[False] | None = None
    user: str | None = Field(None, description="Has no effect: nothing is kept of who asked.")

    @property
    def stops(self) -> list[str]:
        """Texts that end the answer."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @property
    def longest(self) -> int | None:
        """Tokens of the answer at most, if anything is said of it."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def sampling(self) -> dict[str, Any]:
        """Options of ``lyrics.core.language.generation``; empty for greedy decoding."""
        top_p = None if self.top_p == 1 else self.top_p
        given = {"temperature": self.temperature, "top_p": top_p, "top_k": self.top_k, "min_p": self.min_p}
        return {} if self.temperature == 0 else {name: value for name, value in given.items() if value is not None}


class RefineRequest(_Strict):
    """The body of ``POST /v1/refine``."""

    image: str = Field(description="data:image/png;base64,... or, where the server allows its host, https://...")
    phrases: list[str] | None = Field(None, description="What to look for; left out: what the tagger sees.")
    masks: bool | None = Field(None, description="false leaves the masks out.")


@dataclass(frozen=True)
class AskedTurn:
    """An exchange of a conversation, its images not yet read."""

    question: str
    answer: str | None
    images: tuple[ImageUrl, ...]
    where: str


@dataclass(frozen=True)
class AskedTurns:
    """What a request's messages say, in exchanges; the last one has no answer."""

    system: str
    turns: tuple[AskedTurn, ...] = field(default=())

    @property
    def images(self) -> int:
        return sum(len(turn.images) for turn in self.turns)


def read_body(kind: type[Body], data: Any) -> Body:
    """Return a body as what it should be. Raises ``RequestError`` that names the first thing that is wrong with it."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        # Of what may be a text or a list, both complaints come; the one that goes further in means something.
        found = error.errors(include_url=False, include_input=False, include_context=False)
        first = max(found, key=lambda one: len(one["loc"]))
        param = _path(first["loc"])[:200] or None
        if first["type"] == "extra_forbidden":
            message = f"{param}: there is no such parameter here."
        else:
            message = f"{param or 'the body'}: {first['msg'][0].lower()}{first['msg'][1:]}."
        raise RequestError(message, param) from None


_TAGS = frozenset({"system", "developer", "user", "assistant", "text", "image_url"})


def _path(location: Sequence[str | int]) -> str:
    """Where in a body something is, without what pydantic puts among the keys: which member of a union it tried."""
    path: list[str] = []
    for before, one in zip([None, *location], location, strict=False):
        tag = isinstance(before, int) and one in _TAGS
        if not tag and one != "str" and "[" not in str(one):
            path.append(str(one))
    return ".".join(path)


def conversation(request: ChatRequest, limits: Limits) -> AskedTurns:
    """Bring a request's messages into exchanges. Raises ``RequestError`` and ``TooLargeError``."""
    if len(request.messages) > limits.messages:
        raise TooLargeError(f"messages: {len(request.messages)} of them; at most {limits.messages} are read.")
    if (longest := request.longest) is not None and longest > limits.tokens:
        raise RequestError(f"max_tokens: {longest}; this server writes at most {limits.tokens}.", "max_tokens")
    stops = request.stops
    if len(stops) > 4 or not all(0 < len(one) <= 100 for one in stops):
        raise RequestError("stop: give up to 4 texts of 1 to 100 characters.", "stop")
    system: list[str] = []
    turns: list[AskedTurn] = []
    for number, message in enumerate(request.messages):
        where = f"messages.{number}"
        if isinstance(message, InstructionMessage):
            if turns:
                raise RequestError(
                    f"{where}: a {message.role} message stands before all others; put it there, or into the question.",
                    where,
                )
            system.append(_text(message.content))
        elif isinstance(message, AssistantMessage):
            if not turns or turns[-1].answer is not None:
                raise RequestError(f"{where}: an assistant message answers the user message before it.", where)
            last = turns[-1]
            turns[-1] = AskedTurn(last.question, _text(message.content or ""), last.images, last.where)
        else:
            images = () if isinstance(message.content, str) else _images(message.content)
            turn = AskedTurn(_text(message.content), None, images, where)
            if turns and turns[-1].answer is None:
                last = turns.pop()
                joined = "\n".join(text for text in (last.question, turn.question) if text)
                turn = AskedTurn(joined, None, last.images + turn.images, last.where)
            turns.append(turn)
    if not turns or turns[-1].answer is not None:
        raise RequestError("messages: the last one is to be of the user, with a question.", "messages")
    for turn in turns:
        if not turn.question.strip():
            raise RequestError(f"{turn.where}.content: has no text; ask something.", f"{turn.where}.content")
    found = AskedTurns("\n".join(system), tuple(turns))
    length = len(found.system) + sum(len(turn.question) + len(turn.answer or "") for turn in turns)
    if length > limits.text_chars:
        raise TooLargeError(f"messages: {length:,} characters of text; at most {limits.text_chars:,} are read.")
    if found.images > limits.images:
        raise TooLargeError(f"messages: {found.images} images; at most {limits.images} are read.")
    return found


def _text(content: str | Sequence[TextPart | ImagePart]) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part.text for part in content if isinstance(part, TextPart))


def _images(content: Sequence[TextPart | ImagePart]) -> tuple[ImageUrl, ...]:
    return tuple(part.image_url for part in content if isinstance(part, ImagePart))
