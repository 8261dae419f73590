"""Conversations: history, pictures seen once, streaming, boxes in questions, and what happens when something goes
wrong.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from lyrics.core.abstaining import ABSTENTION, Abstaining
from lyrics.core.chat import with_boxes
from lyrics.core.errors import ImageError, PromptError, SpecError
from lyrics.core.language.prompts import Exchange
from lyrics.core.model import LyricsModel
from tests.core.small import drawn
from tests.core.test_model_steps import made


@pytest.fixture(scope="module")
def model() -> LyricsModel:
    return made()


def test_every_answer_is_part_of_what_is_asked_next(model: LyricsModel) -> None:
    chat = model.chat(drawn(), max_new_tokens=6)
    first = chat.ask("what is this?")
    second = chat.ask("and its color?")
    assert chat.history == [
        Exchange("what is this?", first.text, (0,)),
        Exchange("and its color?", second.text, ()),
    ]
    encoded = model.look([drawn()], ["what is this?"])
    asked = [chat.history[0], Exchange("and its color?")]
    assert model.answer([asked], encoded, max_new_tokens=6)[0] == second


def test_pictures_are_looked_at_once(model: LyricsModel) -> None:
    calls: Counter[str] = Counter()
    parts = {"encoder": model.encoder, "detector": model.refiner.detector, "queries": model.query_transformer}  # type: ignore[union-attr]
    hooks = [part.register_forward_hook(lambda *_, name=name: calls.update([name])) for name, part in parts.items()]
    try:
        chat = model.chat(drawn(), max_new_tokens=3)
        for question in ("one", "two", "three"):
            chat.ask(question)
        assert calls == {"encoder": 1, "detector": 1, "queries": 1}
        chat.ask("four", drawn(30, 30))
        chat.show(drawn(50, 20))
        chat.ask("five")
        assert calls == {"encoder": 3, "detector": 3, "queries": 3}
    finally:
        for hook in hooks:
            hook.remove()
    assert [exchange.images for exchange in chat.history] == [(0,), (), (), (1,), (2,)]
    assert chat.encoded is not None
    assert [found.size_px for found in chat.encoded.refinements] == [(96, 64), (30, 30), (50, 20)]


def test_a_turn_reads_what_is_new_and_answers_the_same(model: LyricsModel) -> None:
    read: list[int] = []

    def count(module: Any, arguments: Any, named: dict[str, Any]) -> None:
        if named.get("inputs_embeds") is not None:
            read.append(named["inputs_embeds"].shape[1])

    network: Any = model.language_model.model  # type: ignore[attr-defined]
    hook = network.get_base_model().register_forward_pre_hook(count, with_kwargs=True)
    try:
        chat = model.chat(drawn(), max_new_tokens=4)
        said = [chat.ask(question).text for question in ("what is this?", "and where is it?")]
        said.append(chat.ask("what of this one?", drawn(30, 30)).text)
    finally:
        hook.remove()
    assert chat.encoded is not None
    longest = len(model._prompt([*chat.history[:-1], Exchange("what of this one?", None, (1,))], chat.encoded, 10**6))
    assert sum(read) < longest + 3 * 4, "each place is read once"
    alone = [
        model.answer([[*chat.history[:turn], exchange]], chat.encoded, max_new_tokens=4)[0].text
        for turn, exchange in enumerate(
            [
                Exchange("what is this?", None, (0,)),
                Exchange("and where is it?"),
                Exchange("what of this one?", None, (1,)),
            ]
        )
    ]
    assert said == alone


def test_what_is_kept_is_dropped_when_something_is_raised(model: LyricsModel) -> None:
    chat = model.chat(drawn(), max_new_tokens=3)
    chat.ask("one")
    assert chat._past.keys

    def stop(piece: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chat.ask("two", on_text=stop, max_new_tokens=30)
    assert not chat._past.keys
    assert len(chat.history) == 1
    assert chat.ask("three") == model.answer([[chat.history[0], Exchange("three")]], chat.encoded, max_new_tokens=3)[0]  # type: ignore[arg-type]


def test_an_answer_streams_as_it_is_written(model: LyricsModel) -> None:
    pieces: list[str] = []
    answer = model.chat(drawn(), max_new_tokens=20).ask("what?", on_text=pieces.append)
    assert "".join(pieces).strip().rstrip("\N{REPLACEMENT CHARACTER}") == answer.text.rstrip(
        "\N{REPLACEMENT CHARACTER}"
    )
    assert answer == model.chat(drawn(), max_new_tokens=20).ask("what?")
    with pytest.raises(ValueError, match="on_text follows one conversation, not 2"):
        model.answer([[Exchange("a")], [Exchange("b")]], model.look([], []), on_text=print)


def test_letters_of_several_bytes_are_not_torn() -> None:
    from lyrics.core.language.text_stream import TextStream
    from lyrics.core.language.tokenizers import byte_tokenizer

    tokenizer = byte_tokenizer(("<pad>", "<s>", "</s>"))
    pieces: list[str] = []
    stream = TextStream(tokenizer, pieces.append)
    for token in [*tokenizer("a\u00e9\u6f22\U0001f600b").input_ids, tokenizer.eos_token_id]:
        stream(token)
    assert pieces == ["a", "\u00e9", "\u6f22", "\U0001f600", "b"]


@pytest.mark.parametrize("fault", ["interrupt", "picture", "long"])
def test_what_goes_wrong_is_no_part_of_the_conversation(fault: str, model: LyricsModel) -> None:
    chat = model.chat(drawn(), max_new_tokens=4)
    chat.ask("what?")
    before = list(chat.history)

    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    arguments: Any = {
        "interrupt": (("again?",), {"on_text": interrupt, "max_new_tokens": 30}, KeyboardInterrupt),
        "picture": (("again?", "nowhere.png"), {}, ImageError),
        "long": (("x" * 5000, drawn(20, 20)), {}, PromptError),
    }[fault]
    with pytest.raises(arguments[2]):
        chat.ask(*arguments[0], **arguments[1])
    assert chat.history == before
    assert chat.encoded is not None
    assert len(chat.encoded.refinements) == 1
    fresh = model.chat(drawn(), max_new_tokens=4)
    fresh.ask("what?")
    assert chat.ask("and now?") == fresh.ask("and now?")


def test_talk_without_a_picture(model: LyricsModel) -> None:
    chat = model.chat(max_new_tokens=4)
    assert chat.ask("hello").objects == ()
    assert chat.ask("again", drawn()).text is not None
    assert [exchange.images for exchange in chat.history] == [(), (0,)]
    with pytest.raises(PromptError, match="the prompt is empty"):
        chat.ask(" ")


def test_boxes_in_a_question() -> None:
    assert with_boxes("what is in <box 64 96 320 288>?", (640, 480), "lyrics") == (
        "what is in <Bbox>(100,200),(500,599)</Bbox>?"
    )
    assert with_boxes("<BOX 0, 0, 640, 480> and <box 1.5 2 3 4>", (640, 480), "shikra").count("[") == 2
    assert with_boxes("a <b> c", None, "lyrics") == "a <b> c"
    for text, complaint in (
        ("<box 1 2 3>", "four numbers in pixels"),
        ("<box a b c d>", "four numbers in pixels"),
        ("<box 1 2 3 4 5>", "four numbers in pixels"),
        ("<box 5 5 5 9>", "left < right"),
        ("<box 9 5 5 9>", "left < right"),
        ("<box -1 0 5 9>", "which is 640 x 480 pixels"),
        ("<box 1 2 641 9>", "which is 640 x 480 pixels"),
    ):
        with pytest.raises(PromptError, match=complaint):
            with_boxes(text, (640, 480), "lyrics")
    with pytest.raises(PromptError, match="no image that this box could lie in"):
        with_boxes("<box 1 2 3 4>", None, "lyrics")


def test_merged_lora_answers_the_same_and_comes_apart_again() -> None:
    model = made()
    ids = torch.tensor([[1, 5, 6, 9]])
    mask = torch.ones_like(ids)
    language_model = model.language_model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = language_model(language_model.embed(ids), mask)
    model.merge_lora()
    assert language_model.lora_merged
    torch.testing.assert_close(language_model(language_model.embed(ids), mask), expected, atol=1e-5, rtol=1e-5)
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed
    assert all(".q_proj." in name or ".v_proj." in name for name in changed)
    model.unmerge_lora()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], atol=1e-5, rtol=0)


def test_an_abstention_is_what_the_conversation_goes_on_with(model: LyricsModel) -> None:
    chat = model.chat(drawn(), max_new_tokens=4)
    said = model.chat(drawn(), max_new_tokens=4).ask("what?")
    assert said.confidence is not None
    sure = Abstaining(said.confidence.mean_log_prob)
    assert chat.ask("what?", abstaining=sure) == said
    other = model.chat(drawn(), max_new_tokens=4)
    answer = other.ask("what?", abstaining=Abstaining(0.0))
    assert (answer.text, answer.withheld, answer.confidence) == (ABSTENTION, said.text, said.confidence)
    assert other.history == [Exchange("what?", ABSTENTION, (0,))]
    with pytest.raises(
        SpecError, match=r"abstaining: whether an answer is withheld is known at its end.*leave out on_text"
    ):
        other.ask("what?", abstaining=sure, on_text=print)
    assert len(other.history) == 1


def test_a_confidence_does_not_depend_on_what_was_read_before(model: LyricsModel) -> None:
    """A chat reads only what is new of a conversation; its answers are as sure as those of the whole conversation."""
    chat = model.chat(drawn(), max_new_tokens=5)
    answers = [chat.ask(question) for question in ("one", "two", "three")]
    encoded = model.look([drawn()], ["one"])
    for number, answer in enumerate(answers):
        asked = [*chat.history[:number], replace(chat.history[number], answer=None)]
        (whole,) = model.answer([asked], encoded, max_new_tokens=5)
        assert whole == answer
        assert whole.confidence is not None
        assert answer.confidence is not None
        assert answer.confidence.mean_log_prob == pytest.approx(whole.confidence.mean_log_prob, abs=1e-4)
