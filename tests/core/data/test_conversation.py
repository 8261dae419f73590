"""Samples as conversations: templates drawn, boxes written, and read back."""

from __future__ import annotations

from collections import Counter

import pytest

from lyrics.core.data.conversation import converse, recoded
from lyrics.core.data.templates import TEMPLATES, fill, placeholders
from lyrics.core.errors import SampleError
from lyrics.core.geometry import Box
from lyrics.core.language.codecs import CODECS, SpatialObject, format_box, format_objects, parse
from lyrics.core.types import DetectedObject, Sample, Turn

DOG = DetectedObject("dog", Box(0.1, 0.2, 0.3, 0.4), 1.0)
CAT = DetectedObject("cat", Box(0.6, 0.2, 0.9, 0.8), 1.0)
MARKUP = format_objects([SpatialObject("dog", DOG.box_norm)])


def told(sample: Sample, count: int = 300, **options: object) -> list[Turn]:
    return [turn for position in range(count) for turn in converse(sample, seed=0, position=position, **options)]


def of_task(task: str, **parts: object) -> Sample:
    extra = {"task": task, **parts.pop("extra", {})}
    return Sample("x.jpg", source="test 7", extra=extra, **parts)


def test_captions_use_every_template_and_every_caption() -> None:
    turns = told(of_task("caption", captions=("one", "two")))
    assert {turn.instruction for turn in turns} == set(TEMPLATES["caption"])
    assert Counter(turn.answer for turn in turns).keys() == {"one", "two"}


@pytest.mark.parametrize("task", ["vqa", "text-vqa"])
def test_questions_stand_in_every_template(task: str) -> None:
    sample = of_task(task, turns=(Turn("What is it?", "a dog"), Turn("Why?", "so")))
    turns = told(sample)
    asked = {
        fill(template, {"Question": question}) for template in TEMPLATES[task] for question in ("What is it?", "Why?")
    }
    assert {turn.instruction for turn in turns} == asked
    assert [turn.answer for turn in turns[:4]] == ["a dog", "so"] * 2


def test_a_grounded_caption_says_which_object_it_is_about() -> None:
    turns = told(of_task("grounded-caption", objects=(DOG, CAT), captions=("a small dog",)))
    assert {turn.instruction.rpartition(" ")[0] for turn in turns} == set(TEMPLATES["grounded-caption"])
    assert {turn.instruction.rpartition(" ")[2] for turn in turns} == {format_box(DOG.box_norm)}
    assert {turn.answer for turn in turns} == {"a small dog"}


def test_a_referring_expression_is_answered_by_its_box_or_confirmed() -> None:
    turns = told(of_task("rec", objects=(DOG, CAT)))
    kinds: Counter[str] = Counter()
    for turn in turns:
        boxes = parse(turn.instruction).objects
        if boxes:
            right = boxes[0].box.iou(DOG.box_norm) > 0.9
            assert turn.answer == ("Yes." if right else "No.")
            assert right or boxes[0].box.iou(CAT.box_norm) > 0.9
            kinds[turn.answer] += 1
        else:
            assert turn.answer == MARKUP
            kinds["box"] += 1
        assert "dog" in turn.instruction
        assert " cat" not in turn.instruction
    assert kinds["box"] / 300 == pytest.approx(4 / 6, abs=0.1)
    assert kinds["Yes."] > 25
    assert kinds["No."] > 25


def test_without_another_box_nothing_is_confirmed() -> None:
    near = DetectedObject("cat", Box(0.1, 0.2, 0.31, 0.4), 1.0)
    for objects in ((DOG,), (DOG, near)):
        assert {turn.answer for turn in told(of_task("rec", objects=objects), 100)} == {MARKUP}


def test_an_expression_that_nothing_matches_is_not_found() -> None:
    turns = told(of_task("rec", objects=(DOG,), extra={"absent": "red bicycle"}), 20)
    assert {turn.instruction for turn in turns} == {
        "Search for red bicycle in the image and give its coordinates if found."
    }
    assert {turn.answer for turn in turns} == {"Not found."}


def test_referential_dialogue_mentions_tag_and_box_on_both_sides() -> None:
    turns = told(of_task("referential", objects=(DOG, CAT), turns=(Turn("How old is it?", "young"),)))
    asking = [template for template in TEMPLATES["referential"] if "Question" in placeholders(template)]
    expected = {fill(template, {"Tag & Bbox": MARKUP, "Question": "How old is it?"}) for template in asking}
    assert {turn.instruction for turn in turns} == expected
    assert {turn.answer for turn in turns} == {f"{MARKUP} young"}
    describing = told(of_task("referential", objects=(DOG,), captions=("a young dog",)))
    assert len({turn.instruction for turn in describing}) == 3
    assert {turn.answer for turn in describing} == {f"{MARKUP} a young dog"}


def test_an_answer_that_names_boxes_itself_stays_and_ready_dialogues_too() -> None:
    other = format_objects([SpatialObject("cat", CAT.box_norm)])
    (turn,) = converse(of_task("referential", objects=(DOG,), turns=(Turn("Which?", other),)), seed=0, position=0)
    assert turn.answer == other
    ready = of_task(
        "referential", objects=(DOG,), turns=(Turn(f"What is {MARKUP}?", "a dog"),), extra={"boxes_in_text": True}
    )
    assert converse(ready, seed=0, position=0) == ready.turns


def test_options_are_lettered_as_in_the_paper() -> None:
    sample = of_task(
        "multi-choice",
        turns=(Turn("What color is it?", "pink"),),
        extra={"options": ("blue", "yellow", "pink", "black")},
    )
    turns = told(sample)
    options = "(a) blue (b) yellow (c) pink (d) black"
    asked = {fill(t, {"Question": "What color is it?", "Option": options}) for t in TEMPLATES["multi-choice"]}
    assert {turn.instruction for turn in turns} == asked
    assert {turn.answer for turn in turns} == {"(c) pink"}


def test_text_alone_and_brought_formats_stay_as_they_are() -> None:
    turns = (Turn("Sum 2 and 2.", "4"), Turn("{Question} [SEP]", "x < y"))
    for sample in (Sample(None, turns=turns), of_task("text", turns=turns)):
        assert converse(sample, seed=0, position=5) == turns


@pytest.mark.parametrize("codec", CODECS)
def test_boxes_come_in_any_codec(codec: str) -> None:
    size = (640, 480)
    sample = of_task("referential", objects=(DOG,), turns=(Turn(f"Is it near {format_box(CAT.box_norm)}?", "no"),))
    for turn in told(sample, 10, codec=codec, size=size):
        asked, answered = (parse(text, codec, size) for text in (turn.instruction, turn.answer))
        assert len(asked.objects) == 2
        ours = min(asked.objects, key=lambda one: -one.box.iou(DOG.box_norm))
        theirs = max(asked.objects, key=lambda one: one.box.iou(CAT.box_norm))
        assert ours.box.as_tuple() == pytest.approx(DOG.box_norm.as_tuple(), abs=0.003)
        assert theirs.box.as_tuple() == pytest.approx(CAT.box_norm.as_tuple(), abs=0.003)
        assert len(answered.objects) == 1


def test_texts_without_boxes_are_not_touched_by_a_codec() -> None:
    for text in ("a < b <T> and </br>", "dog [ 0.1 0.2 0.3 0.4 ]", ""):
        assert recoded(text, "qwen") == text
    assert recoded(f"see {MARKUP}!", "shikra").startswith("see dog[0.1")


def test_a_conversation_is_a_function_of_seed_and_position() -> None:
    sample = of_task("caption", captions=tuple("abcdefgh"))
    some = [converse(sample, seed=seed, position=position) for seed in (0, 1) for position in range(50)]
    assert some == [converse(sample, seed=seed, position=position) for seed in (0, 1) for position in range(50)]
    assert some[:50] != some[50:]


@pytest.mark.parametrize("task", ["caption", "vqa", "grounded-caption", "rec", "referential", "text"])
def test_what_was_cut_off_gives_no_turn(task: str) -> None:
    assert converse(of_task(task), seed=0, position=0) == ()


@pytest.mark.parametrize(
    ("sample", "complaint"),
    [
        (of_task("vqas"), r"test 7: there is no task 'vqas'.*Did you mean 'vqa'"),
        (of_task("multi-choice", turns=(Turn("?", "a"),)), "test 7: .* with 0 options"),
        (
            of_task("multi-choice", turns=(Turn("?", "a"),), extra={"options": ("b", "c")}),
            r"test 7: the answer 'a' is none of the options \('b', 'c'\)",
        ),
    ],
)
def test_a_sample_that_does_not_fit_its_task_is_named(sample: Sample, complaint: str) -> None:
    with pytest.raises(SampleError, match=complaint):
        converse(sample, seed=0, position=0)
