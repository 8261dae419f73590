"""What is said of fine scenes by task: twins are asked in the same words, and no words tell what only the pixels do."""

from __future__ import annotations

from collections import Counter

import pytest

from lyrics.core.data.conversation import NOT_FOUND, converse
from lyrics.plugins.scenes import ScenesOptions
from lyrics.plugins.scenes.dataset import Scenes
from lyrics.plugins.scenes.names import SINGLE_TASKS
from tests.plugins.scenes import fine_oracle

QUESTIONS = ("L",) * 12 + ("G",) * 3 + ("T",) * 3 + ("LT",) * 2


def rows(task: str, scenes: int = 300, **options: object):
    data = Scenes(ScenesOptions(attributes="fine", task=task, **options))
    return [data[row] for row in range(scenes)]


def pairs(task: str, scenes: int = 300, **options: object):
    found = rows(task, scenes, **options)
    return list(zip(found[::2], found[1::2], strict=True))


@pytest.mark.parametrize("task", [task for task in SINGLE_TASKS if task != "caption"])
def test_every_task_has_something_to_train_on(task: str) -> None:
    for sample in rows(task, 100):
        assert sample.extra["task"] in (task, "text")
        turns = converse(sample, seed=0, position=0)
        assert turns
        assert all(turn.instruction and turn.answer for turn in turns)
        assert len(sample.extra["groups"]) in (len(sample.turns), 1)


def test_twins_are_talked_with_in_the_same_words() -> None:
    same = 0
    for one, other in pairs("conversation", 400):
        assert len(one.turns) == len(other.turns)
        for ours, theirs in zip(one.turns, other.turns, strict=True):
            assert ours.instruction == theirs.instruction
            same += ours.answer == theirs.answer
    assert same / (6 * 200) < 0.4  # what text tells


def test_a_conversation_has_six_different_questions_or_fewer() -> None:
    counts = Counter()
    for sample in rows("conversation", 300):
        counts[len(sample.turns)] += 1
        assert len({turn.instruction for turn in sample.turns}) == len(sample.turns)
    assert counts[6] > 280


def test_a_conversation_asks_what_is_wanted_of_it() -> None:
    """By the words of the questions alone."""
    said = [turn.instruction for sample in rows("conversation", 300, questions=("G",)) for turn in sample.turns]
    grounds = sum("Is the ground" in text for text in said)
    assert grounds > 400


def test_a_description_comes_last_and_tells_nothing_that_is_asked_later() -> None:
    described = 0
    for sample in rows("conversation", 200):
        *asked, last = sample.turns
        assert not any(" and a" in turn.answer for turn in asked)
        described += " ground" in last.answer and " on a " in last.answer
    assert 25 < described < 100


def test_no_words_tell_whether_what_is_looked_for_is_there() -> None:
    """Instructions to look for something by its looks have the same words where it is there and where it is not."""
    there, gone = Counter[str](), Counter[str]()
    for one, other in pairs("conversation", 1_000, questions=("L which",)):
        for ours, theirs in zip(one.turns, other.turns, strict=True):
            denied = [turn.answer == NOT_FOUND or turn.answer.startswith("There is no") for turn in (ours, theirs)]
            if denied[0] == denied[1]:
                continue
            words = " ".join(ours.instruction.split()[:2])
            (gone if denied[0] else there)[words] += 1
    for words in {*there, *gone}:
        total = there[words] + gone[words]
        assert total < 60 or abs(there[words] / total - 0.5) < 0.2, (words, there[words], gone[words])


def test_an_expression_means_one_thing_or_nothing() -> None:
    by_group = Counter()
    for sample in rows("rec", 600):
        things = [dict(one, color=one["colour"]) for one in sample.extra["things"]]
        absent = sample.extra.get("absent")
        by_group[sample.extra["groups"][0], bool(absent)] += 1
        if absent:
            assert fine_oracle.like(things, absent) == []
            continue
        (meant,) = fine_oracle.like(things, sample.objects[0].tag)
        assert meant["box_norm"] == sample.objects[0].box_norm.as_tuple()
    assert by_group["T", True] > 20
    assert min(by_group["T", False], by_group["L", False], by_group["L", True]) > 30


@pytest.mark.parametrize(("questions", "group"), [(("T",), "T"), (("L",), "L"), (("L which",), "L")])
def test_expressions_are_of_the_group_that_is_asked_for(questions, group) -> None:
    groups = Counter(sample.extra["groups"][0] for sample in rows("rec", 200, questions=questions))
    assert groups[group] >= 190


def test_options_hold_both_twins_answers() -> None:
    for one, other in pairs("multi-choice", 600):
        assert one.extra["options"] == other.extra["options"]
        assert len(set(one.extra["options"])) == len(one.extra["options"]) in (3, 4)
        assert {one.turns[0].answer, other.turns[0].answer} <= {*one.extra["options"]}


def test_captions_of_everything_name_every_thing_by_its_looks() -> None:
    seen = 0
    for sample in rows("conversation", 300):
        answer = sample.turns[-1].answer
        if " ground" not in answer or "<" in answer or not answer.startswith(("a", "an")):
            continue
        things = sorted(
            (dict(one, color=one["colour"]) for one in sample.extra["things"]), key=lambda one: one["box_norm"][:2]
        )
        listed, _, ground = answer.rpartition(", on ")
        if not ground:
            continue
        assert sample.extra["ground"] in ground
        named = listed.replace(" and a", ", a").split(", ")
        assert len(named) == len(things)
        for words, thing in zip(named, things, strict=True):
            assert fine_oracle.has(thing, words.partition(" ")[2]), (words, thing)
        seen += 1
    assert seen > 40


def test_one_thing_is_described_in_every_detail() -> None:
    for sample in rows("grounded-caption", 100):
        first = sample.objects[0]
        thing = next(one for one in sample.extra["things"] if one["box_norm"] == first.box_norm.as_tuple())
        for caption in sample.captions:
            assert fine_oracle.has(dict(thing, color=thing["colour"]), _looks(caption))
            assert thing["colour"] in caption
            assert thing["fill"] in caption
            assert "outline" in caption


def _looks(caption: str) -> str:
    """Without its article and its place."""
    return caption.partition(" ")[2].partition(" on the ")[0].partition(" at the ")[0].partition(" in the ")[0]


def test_it_is_what_was_spoken_of() -> None:
    for one, other in pairs("referential", 300):
        if not one.turns:
            continue
        assert one.objects[0].box_norm == other.objects[0].box_norm
        assert one.turns[0].instruction == other.turns[0].instruction
        assert one.turns[0].answer != other.turns[0].answer


def test_captions_of_stage_1_do_not_depend_on_questions() -> None:
    plain = rows("caption", 20)
    asked = rows("caption", 20, questions=QUESTIONS)
    assert [one.captions for one in plain] == [one.captions for one in asked]
