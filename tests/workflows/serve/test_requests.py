"""Bodies of requests: what is read, what is refused, and by what name."""

from __future__ import annotations

from typing import Any

import pytest

from lyrics.workflows.serve.limits import Limits, TooLargeError
from lyrics.workflows.serve.requests import ChatRequest, RefineRequest, RequestError, conversation, read_body

PNG = "data:image/png;base64,AAAA"


def image(url: str = PNG) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content[0] if isinstance(content[0], str) else list(content)}


def talk(*messages: Any, **more: Any) -> Any:
    return conversation(read_body(ChatRequest, {"messages": list(messages), **more}), Limits())


def test_messages_become_exchanges() -> None:
    found = talk(
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [text("Be kind.")]},
        user(image("data:1"), text("What"), text("is this?")),
        {"role": "assistant", "content": "A dog.", "refusal": None, "lyrics": {"objects": []}, "annotations": []},
        user("And"),
        user(text("here?"), image("data:2"), image("data:3")),
    )
    assert found.system == "Be brief.\nBe kind."
    first, second = found.turns
    assert (first.question, first.answer, [one.url for one in first.images]) == ("What\nis this?", "A dog.", ["data:1"])
    assert (second.question, second.answer) == ("And\nhere?", None)
    assert [one.url for one in second.images] == ["data:2", "data:3"]
    assert (found.images, second.where) == (3, "messages.4")


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([{"role": "assistant", "content": "a"}], "messages.0: an assistant message answers"),
        ([user("q"), {"role": "assistant", "content": "a"}], "the last one is to be of the user"),
        ([{"role": "system", "content": "a"}], "the last one is to be of the user"),
        ([user("q"), {"role": "system", "content": "a"}, user("q")], "messages.1: a system message stands before"),
        ([user(image())], "messages.0.content: has no text"),
        ([user("q"), {"role": "assistant", "content": "a"}, user(" \n")], "messages.2.content: has no text"),
        ([{"role": "tool", "content": "a"}], "messages.0: input tag 'tool'"),
        ([{"role": "user"}], "messages.0.content: field required"),
        ([{"role": "system", "content": [image()]}, user("q")], "messages.0.content"),
        ([user({"type": "input_audio", "input_audio": {}})], "messages.0.content.0"),
        ([user({"type": "image_url", "image_url": "data:"})], "messages.0.content.0.image_url"),
        ([user(text("a"), {"type": "image_url", "image_url": {"url": "x", "size": 3}})], "there is no such parameter"),
    ],
)
def test_conversations_that_are_none(messages: list[Any], says: str) -> None:
    with pytest.raises(RequestError) as caught:
        talk(*messages)
    assert says in str(caught.value)
    assert (caught.value.param or "").startswith("messages")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", -0.1), ("temperature", "1"), ("temperature", float("nan")), ("temperature", float("inf")),
        ("temperature", True), ("top_p", 0), ("top_p", 1.5), ("top_k", -1), ("top_k", 10**9), ("min_p", 2),
        ("seed", -1), ("seed", 2**63), ("seed", 1.5), ("max_tokens", 0), ("max_tokens", "9"), ("max_tokens", 2**70),
        ("max_tokens", 1025), ("max_completion_tokens", -3), ("n", 2), ("n", 10**9), ("stop", ""), ("stop", ["a"] * 5),
        ("stop", ["x" * 101]), ("stop", 3), ("stream", "yes"), ("stream", 1), ("logprobs", True),
        ("presence_penalty", 0.5), ("frequency_penalty", 1), ("response_format", {"type": "json_schema"}),
        ("response_format", "json_object"), ("stream_options", {"usage": True}), ("tools", []), ("functions", []),
        ("chat_template", "x"), ("logit_bias", {}), ("guided_regex", "("), ("model", 3), ("best_of", 2),
    ],
)  # fmt: skip
def test_options_that_cannot_be_met_are_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(RequestError) as caught:
        talk(user("q"), **{key: value})
    assert (caught.value.param or "").split(".")[0] in (key, "max_tokens")
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {}),
        ({"temperature": 0, "top_p": 0.5, "top_k": 3}, {}),
        ({"top_p": 1}, {}),
        ({"temperature": 0.7}, {"temperature": 0.7}),
        ({"temperature": 1, "top_p": 1.0}, {"temperature": 1.0}),
        ({"top_p": 0.5}, {"top_p": 0.5}),
        ({"top_k": 5, "min_p": 0.1}, {"top_k": 5, "min_p": 0.1}),
    ],
)
def test_decoding_is_greedy_unless_something_asks_for_samples(
    options: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert read_body(ChatRequest, {"messages": [user("q")], **options}).sampling == expected


def test_what_says_nothing_may_be_said() -> None:
    """Clients write null for what they leave out, and options that are met anyway."""
    keys = (name for name in ChatRequest.model_fields if name != "messages")
    assert talk(user("q"), **dict.fromkeys(keys)).turns[0].question == "q"
    met = {"n": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "logprobs": False, "user": "me"}
    assert talk(user("q"), **met).turns[0].question == "q"


def test_the_newer_name_for_the_length_comes_first() -> None:
    asked = read_body(ChatRequest, {"messages": [user("q")], "max_tokens": 5, "max_completion_tokens": 7})
    assert asked.longest == 7


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([user("q")] * 257, "257 of them; at most 256"),
        ([user("q" * 100_001)], "100,001 characters"),
        ([{"role": "system", "content": "s" * 60_000}, user("q" * 60_000)], "120,000 characters"),
        ([user(*[image()] * 9, text("q"))], "9 images; at most 8"),
        ([user(*[image()] * 5, text("q")), user(*[image()] * 5, text("q"))], "10 images"),
    ],
)
def test_more_than_is_read(messages: list[Any], says: str) -> None:
    with pytest.raises(TooLargeError, match=says):
        talk(*messages)


@pytest.mark.parametrize("data", [None, 3, "x", [], [{}], True])
@pytest.mark.parametrize("kind", [ChatRequest, RefineRequest])
def test_a_body_that_is_no_object(kind: type, data: Any) -> None:
    with pytest.raises(RequestError, match=r"the body: input should be"):
        read_body(kind, data)


def test_requests_to_refine() -> None:
    asked = read_body(RefineRequest, {"image": PNG, "phrases": ["dog"], "masks": False})
    assert (asked.image, asked.phrases, asked.masks) == (PNG, ["dog"], False)
    for data in ({}, {"image": 3}, {"image": PNG, "phrases": "dog"}, {"image": PNG, "threshold": 0.5}):
        with pytest.raises(RequestError):
            read_body(RefineRequest, data)
