"""What is said of scenes is true, by an oracle of its own."""

from __future__ import annotations

from collections import Counter

import pytest

from lyrics.core.data.conversation import converse
from lyrics.core.types import Sample, Turn
from lyrics.plugins.scenes import ScenesOptions
from lyrics.plugins.scenes.dataset import Scenes
from lyrics.plugins.scenes.names import SCENE_TASKS, WORDS
from tests.plugins.scenes import oracle

SPLIT_ROWS = [("train", 700), ("held-out", 250)]


def samples(task: str, split: str, rows: int) -> list[Sample]:
    data = Scenes(ScenesOptions(task=task, split=split, attributes="plain"))
    return [data[index] for index in range(rows)]


def target_of(sample: Sample) -> oracle.Thing:
    """The ground truth of the sample's first object."""
    box = sample.objects[0].box_norm.as_tuple()
    (thing,) = (thing for thing in sample.extra["things"] if thing["box_norm"] == box)
    return thing


def agrees(turn: Turn, expected: str | list[oracle.Thing], sample: Sample) -> bool:
    """A list of things is answered by their boxes."""
    if isinstance(expected, str):
        return turn.answer == expected
    things = list(sample.extra["things"])
    if not expected:
        return turn.answer == "None."
    named = oracle.boxed(turn.answer, things)
    return len(named) == len(expected) and all(any(one is other for other in expected) for one in named)


@pytest.mark.parametrize(("split", "rows"), SPLIT_ROWS)
@pytest.mark.parametrize("task", ["vqa", "text-vqa", "dialogue", "multi-choice"])
def test_every_answer_is_right(task: str, split: str, rows: int) -> None:
    for sample in samples(task, split, rows):
        assert len(sample.turns) == (3 if task == "dialogue" else 1)
        assert sample.extra["answers"] == tuple(turn.answer for turn in sample.turns)
        for turn in sample.turns:
            assert agrees(turn, oracle.answer(turn.instruction, sample), sample), (sample.source, turn)


@pytest.mark.parametrize(("split", "rows"), SPLIT_ROWS)
def test_every_answer_about_a_pointed_thing_is_right(split: str, rows: int) -> None:
    captions = 0
    for sample in samples("referential", split, rows):
        target = target_of(sample)
        captions += bool(sample.captions)
        assert bool(sample.captions) != bool(sample.turns)
        for turn in sample.turns:
            assert agrees(turn, oracle.answer_about(turn.instruction, target, sample), sample), (sample.source, turn)
        for caption in sample.captions:
            assert_describes(caption, target)
    assert 0.15 < captions / rows < 0.35


def assert_describes(caption: str, thing: oracle.Thing) -> None:
    article, size, colour, shape, *rest = caption.split()
    assert (article, size, colour, shape) == ("a", thing["size"], thing["colour"], thing["shape"])
    if rest:
        assert " ".join(rest[2:]) == oracle.place(thing["box_norm"]), caption


@pytest.mark.parametrize(("split", "rows"), SPLIT_ROWS)
def test_captions_are_true(split: str, rows: int) -> None:
    forms: Counter[int] = Counter()
    for sample in samples("caption", split, rows):
        forms[len(sample.captions)] += 1
        assert not sample.turns
        for caption in sample.captions:
            assert oracle.caption_is_true(caption, sample), (sample.source, caption, sample.extra["things"])
        words = sample.extra["words"]
        assert any(words[0]["text"] in caption for caption in sample.captions) if words else True
    assert max(forms) == 5


@pytest.mark.parametrize(("split", "rows"), SPLIT_ROWS)
def test_captions_of_one_thing_are_about_it(split: str, rows: int) -> None:
    for sample in samples("grounded-caption", split, rows):
        for caption in sample.captions:
            assert_describes(caption, target_of(sample))


@pytest.mark.parametrize(("split", "rows"), SPLIT_ROWS)
def test_a_referring_expression_means_one_thing(split: str, rows: int) -> None:
    kinds: Counter[str] = Counter()
    for sample in samples("rec", split, rows):
        things = list(sample.extra["things"])
        if absent := sample.extra.get("absent"):
            kinds["absent"] += 1
            assert not oracle.like(things, absent)
            continue
        expression = sample.objects[0].tag
        assert oracle.referents(things, expression) == [target_of(sample)], (sample.source, expression)
        kinds["relation" if " the " in expression else "extreme" if "most" in expression else "name"] += 1
    assert 0.1 < kinds["absent"] / rows < 0.3
    assert min(kinds["relation"], kinds["extreme"], kinds["name"]) > 0.05 * rows, kinds


def test_answers_cannot_be_guessed() -> None:
    """Yes and no are as frequent; every kind of question comes; numbers and colours vary; choices hide the answer
    anywhere.
    """
    asked = [(sample, sample.turns[0]) for sample in samples("vqa", "train", 2_500)]
    types = Counter(sample.extra["question_types"][0] for sample, _ in asked)
    assert set(types) == {"count", "color", "shape", "size", "existence", "absent", "relation", "position"}
    assert min(types.values()) > 0.04 * len(asked), types
    for kind in ("existence", "relation"):
        answers = Counter(turn.answer for sample, turn in asked if sample.extra["question_types"] == (kind,))
        assert set(answers) == {"yes", "no"}
        assert 0.4 < answers["yes"] / answers.total() < 0.6, (kind, answers)
    counts = Counter(turn.answer for sample, turn in asked if sample.extra["question_types"] == ("count",))
    assert len(counts) > 6
    assert counts.most_common(1)[0][1] < 0.5 * counts.total()
    places = Counter()
    for sample in samples("multi-choice", "train", 800):
        options = sample.extra["options"]
        assert len(set(options)) == 4
        places[options.index(sample.turns[0].answer)] += 1
    assert min(places.values()) > 0.2 * places.total()


def test_words_are_asked_for_and_sometimes_there_is_none() -> None:
    answers = Counter(sample.turns[0].answer for sample in samples("text-vqa", "train", 800))
    assert answers["There is no word."] > 150
    assert sum(count for answer, count in answers.items() if answer in WORDS) > 150
    assert answers["yes"] > 50
    assert answers["no"] > 50


@pytest.mark.parametrize("task", SCENE_TASKS)
def test_every_task_makes_a_conversation(task: str) -> None:
    for position, sample in enumerate(samples(task, "validation", 60)):
        turns = converse(sample, seed=0, position=position)
        assert turns
        assert all(turn.instruction and turn.answer for turn in turns)


def test_a_conversation_is_of_several_tasks_about_what_is_in_its_picture() -> None:
    found = samples("conversation", "train", 200)
    assert {len(sample.turns) for sample in found} == {6}
    assert {sample.image for sample in found} == {f"train/{row}" for row in range(200)}
    instructions = [turn.instruction for sample in found for turn in sample.turns]
    for piece in ("Options: (a)", "<Bbox>(", "image", "color", "How many"):
        assert sum(piece in one for one in instructions) > 10, piece
    assert any(turn.answer == "Not found." for sample in found for turn in sample.turns)


def test_mixed_has_all_tasks() -> None:
    tasks = Counter(sample.extra["task"] for sample in samples("mixed", "train", 400))
    assert set(tasks) == {
        "caption",
        "vqa",
        "text-vqa",
        "grounded-caption",
        "rec",
        "referential",
        "multi-choice",
        "text",
    }
    assert min(tasks.values()) > 25
