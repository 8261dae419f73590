"""Questions about fine scenes: an oracle that knows the truth is right about all of them, one that knows the text is at
chance on looks.
"""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest

from lyrics.core.geometry import Box
from lyrics.core.language.codecs import parse
from lyrics.plugins.scenes import ScenesOptions
from lyrics.plugins.scenes.dataset import Scenes
from lyrics.plugins.scenes.names import FINE_QUESTIONS, GROUPS, HELD_OUT, HELD_OUT_FILLS, FineQuestion
from tests.plugins.scenes import fine_oracle


def asked(*questions: FineQuestion, split: str = "train", task: str = "vqa", scenes: int = 400):
    data = Scenes(ScenesOptions(attributes="fine", task=task, split=split, questions=questions))
    return [data[row] for row in range(scenes)]


def check(question: str, answer: str, extra: dict) -> None:
    right = fine_oracle.answer(question, extra)
    if isinstance(right, str):
        assert answer == right, (question, answer, right)
        return
    (pointed,) = parse(answer).objects
    assert pointed.tag == right[0], (question, answer)
    assert Box(*right[1]["box_norm"]).iou(pointed.box) > 0.95, (question, answer)


@pytest.mark.parametrize("split", ["train", "held-out"])
@pytest.mark.parametrize("question", [name for name in FINE_QUESTIONS if name not in GROUPS])
def test_every_answer_is_what_the_truth_says(question: FineQuestion, split: str) -> None:
    types = Counter()
    for sample in asked(question, split=split, scenes=160):
        (turn,) = sample.turns
        check(turn.instruction, turn.answer, sample.extra)
        types[sample.extra["groups"] + sample.extra["question_types"]] += 1
    kind = "existence" if question == "T written" else question.split()[1]
    wanted = types[question.split()[0], kind]
    # A scene may have no word, nothing absent, or no names; then a color is asked for.
    assert wanted >= 40, types
    assert set(types) <= {(question.split()[0], kind), ("L", "color"), ("T", "count")}


@pytest.mark.parametrize("group", GROUPS)
def test_twins_are_asked_the_same_and_only_text_has_one_answer(group: str) -> None:
    samples = asked(group, scenes=600)
    of_group = 0
    for one, other in zip(samples[::2], samples[1::2], strict=True):
        assert one.turns[0].instruction == other.turns[0].instruction
        assert one.extra["groups"] == other.extra["groups"]
        assert one.extra["question_types"] == other.extra["question_types"]
        same = one.turns[0].answer == other.turns[0].answer
        assert same == (one.extra["groups"] == ("T",)), one.turns
        of_group += one.extra["groups"] == (group,)
    assert of_group > 0.9 * len(samples) / 2


@pytest.mark.parametrize("group", ["L", "G", "LT"])
def test_the_text_does_not_tell_which_twin_it_is(group: str) -> None:
    """Of a text (question and shapes) seen often, no answer belongs to the first twin: an oracle that has learned them
    is at chance.
    """
    firsts: dict[str, Counter[str]] = defaultdict(Counter)
    for row, sample in enumerate(asked(group, scenes=3_000)):
        firsts[sample.turns[0].answer.split("<")[0]][str(row % 2)] += 1
    for answer, rows in firsts.items():
        total = sum(rows.values())
        assert total < 100 or abs(rows["0"] / total - 0.5) < 0.12, (answer, rows)


def test_yes_and_no_are_equally_frequent() -> None:
    for name in ("T existence", "T relation", "L check", "L presence", "L outline"):
        answers = Counter(sample.turns[0].answer for sample in asked(name, scenes=1_000))
        assert 0.4 < answers["yes"] / (answers["yes"] + answers["no"]) < 0.62, (name, answers)


def test_groups_take_turns_and_what_is_named_twice_comes_twice_as_often() -> None:
    def groups(*questions):
        return Counter(sample.extra["groups"][0] for sample in asked(*questions, scenes=2_000))

    even = groups()
    assert set(even) == set(GROUPS)
    assert max(even.values()) < 1.35 * min(even.values())
    weighed = groups("L", "L", "L", "G")
    assert set(weighed) == {"L", "G"}
    assert 2.3 < weighed["L"] / weighed["G"] < 3.9


def test_what_held_out_scenes_keep_is_not_named_elsewhere() -> None:
    """No expression has a color with a shape, or a fill with a color, that only the split held-out has."""
    for sample in asked("L which", "L presence", "LT tally", "T absent", scenes=1_500):
        words = f" {sample.turns[0].instruction} ".replace("?", " ").replace("crosses", "cross")
        for color, shape in HELD_OUT:
            assert f" {color} {shape}" not in words, words
        for color, fill in HELD_OUT_FILLS:
            assert f" {fill} {color} " not in words, words


def test_a_box_is_asked_about_where_no_noun_is_alone() -> None:
    seen = Counter()
    for sample in asked("L color", scenes=400):
        text = sample.turns[0].instruction
        shapes = [thing["shape"] for thing in sample.extra["things"]]
        boxed = "<Bbox>" in text
        seen[boxed] += 1
        assert boxed or shapes.count(text.removeprefix("What color is the ").rstrip("?")) == 1 or len(shapes) == 1
    assert min(seen.values()) > 60
