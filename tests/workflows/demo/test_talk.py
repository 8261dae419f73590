"""A visitor's conversation, and parts that are exchanged while the model runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

import lyrics
from lyrics.core.errors import ImageError, LyricsError, PromptError
from lyrics.core.model import LyricsModel
from lyrics.workflows.demo.parts import Parts
from lyrics.workflows.demo.scenes import scenes
from lyrics.workflows.demo.talk import Talk, ask, look
from lyrics.workflows.serve.limits import Limits
from lyrics.workflows.serve.worker import Worker
from tests.core.small import drawn

OWN = {"tagger": "tiny-tagger", "detector": "tiny-detector", "segmenter": "tiny-segmenter"}


@pytest.fixture(scope="module")
def model() -> LyricsModel:
    return lyrics.load_model("lyrics-tiny")


@pytest.fixture
def worker(model: LyricsModel) -> Iterator[Worker]:
    found = Worker(model, Limits(image_pixels=1_000_000))
    found.start()
    yield found
    found.stop()


def last(talk: Talk, worker: Worker, question: str) -> tuple[Any, Talk, list[str]]:
    told = list(ask(worker, talk, question))
    assert [answer for _, answer, _ in told[:-1]] == [None] * (len(told) - 1)
    _, answer, after = told[-1]
    return answer, after, [text for text, _, _ in told]


def test_a_conversation_is_that_of_chat(worker: Worker, model: LyricsModel) -> None:
    image = scenes(1)[0]
    talk = look(worker, image)
    assert {found.tag for found in talk.seen.objects} >= {"diamond"}
    chat = model.chat(image)
    box = " ".join(str(round(value)) for value in talk.seen.objects[0].box_norm.to_px(image.size))
    questions = ("Where is the diamond?", f"What is at <box {box}>?", "Is there a ring?")
    wanted = [chat.ask(question, max_new_tokens=128) for question in questions]
    for question, right in zip(questions, wanted, strict=True):
        answer, talk, told = last(talk, worker, question)
        assert answer.to_json() == right.to_json()
        assert told[-1] == right.plain_text
        assert all("<" not in text for text in told)
    assert talk.questions == questions
    assert talk.exchanges == tuple(chat.history)


def test_what_cannot_be_asked(worker: Worker) -> None:
    talk = look(worker, drawn())
    for question in ("", "  ", "What is at <box 1 2 3>?", "What is at <box 0 0 900 900>?"):
        with pytest.raises(PromptError):
            list(ask(worker, talk, question))
    with pytest.raises(ImageError, match="at most 1,000,000"):
        look(worker, drawn(2000, 2000))


def test_an_answer_that_nobody_reads_is_given_up(worker: Worker) -> None:
    answer = ask(worker, look(worker, drawn()), "Where is the red circle?")
    next(answer)
    answer.close()
    last(look(worker, drawn()), worker, "How many?")
    assert worker.writing == 0


def test_parts_are_exchanged_while_it_runs(worker: Worker, model: LyricsModel) -> None:
    loaded: list[dict[str, Any]] = []

    def load(overrides: Mapping[str, Any]) -> LyricsModel:
        loaded.append(dict(overrides))
        return lyrics.load_model("lyrics-tiny", overrides=overrides) if overrides else model

    parts = Parts(worker, load, {"segmenter": ("nothing-of-that-name",)})
    assert parts.choices == {
        "detector": ("tiny-detector", "none"),
        "segmenter": ("tiny-segmenter", "nothing-of-that-name", "none"),
    }
    assert parts.now == OWN
    image = scenes(1)[0]
    assert all(found.mask is not None for found in look(worker, image).seen.objects)
    parts.choose("tiny-detector", "none")
    assert parts.now == {**OWN, "segmenter": None}
    talk = look(worker, image)
    assert talk.seen.objects
    assert all(found.mask is None for found in talk.seen.objects)
    last(talk, worker, "Where is the diamond?")
    parts.choose("none", "tiny-segmenter")
    assert parts.now == {**OWN, "detector": None, "segmenter": None}
    talk = look(worker, image)
    assert (talk.seen.objects, bool(talk.seen.tags)) == ((), True)
    with pytest.raises(LyricsError, match="nothing-of-that-name"):
        parts.choose("tiny-detector", "nothing-of-that-name")
    assert parts.now == {**OWN, "detector": None, "segmenter": None}
    parts.choose("tiny-detector", "tiny-segmenter")
    parts.choose("tiny-detector", "tiny-segmenter")
    assert parts.now == OWN
    assert [len(one) for one in loaded] == [1, 2, 1, 0]
