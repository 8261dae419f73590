"""``scene-texts``: all that answers need stands in the text, and nothing else decides a row."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import get_args

import pytest

from lyrics.core.data.build import build_dataset
from lyrics.core.data.templates import TEMPLATES, fill
from lyrics.core.errors import SpecError
from lyrics.core.geometry import Box
from lyrics.core.language.chat_templates import segments_of, template_named
from lyrics.core.language.codecs import SpatialObject, parse
from lyrics.core.language.prompts import Exchange, tokenize
from lyrics.core.language.tokenizers import builtin_tokenizer
from lyrics.plugins.scenes import ScenesOptions
from lyrics.plugins.scenes.dataset import Scenes
from lyrics.plugins.scenes.language import RELATIONS
from lyrics.plugins.scenes.names import QuestionType
from tests.plugins.scenes import oracle
from tests.plugins.scenes.test_scenes_said import agrees

TEXTS = build_dataset("scene-texts", {"split": "validation", "scenes": 60})


def test_the_first_instruction_begins_with_everything_that_is_in_the_scene() -> None:
    scenes = Scenes(ScenesOptions(split="validation", scenes=60, attributes="plain"))
    for row in range(60):
        written, _, instruction = TEXTS[row].turns[0].instruction.partition("\n")
        found = sorted(
            (one.tag, tuple(round(999 * edge) for edge in one.box.as_tuple())) for one in parse(written).objects
        )
        scene = scenes.scene(row)
        named = [(thing.tag, thing.box) for thing in scene.things]
        named += [(f'word "{word.text}"', word.box) for word in scene.words]
        assert found == sorted((tag, tuple(round(999 * edge) for edge in box.as_tuple())) for tag, box in named)
        assert instruction
        again = parse(TEXTS[row].turns[0].answer).objects
        assert sorted((one.tag, one.box.as_tuple()) for one in again) == sorted(
            (one.tag, one.box.as_tuple()) for one in parse(written).objects
        )


def test_every_box_that_is_answered_can_be_copied() -> None:
    answered = 0
    for row in range(60):
        turns = TEXTS[row].turns
        written = {one.box for one in parse(turns[0].instruction.partition("\n")[0]).objects}
        for turn in turns:
            for one in parse(turn.answer).objects:
                answered += 1
                assert one.box in written, (row, turn)
    assert answered > 60


def test_rows_are_functions_of_their_number() -> None:
    more = build_dataset("scene-texts", {"split": "validation", "scenes": 1000})
    assert more[7] == TEXTS[7] != TEXTS[8]
    other = build_dataset("scene-texts", {"split": "train", "scenes": 60})
    assert other[7] != TEXTS[7]
    assert build_dataset("scene-texts", {"split": "validation", "scenes": 60, "seed": 1})[7] != TEXTS[7]


def test_there_is_no_picture_and_as_many_turns_as_asked_for() -> None:
    assert all(TEXTS.picture(TEXTS[row]) is TEXTS[row].image is None for row in range(5))
    assert {len(TEXTS[row].turns) for row in range(60)} == {13}
    few = build_dataset("scene-texts", {"split": "validation", "scenes": 60, "turns": 3})
    assert few[4].turns == TEXTS[4].turns[:3]
    with pytest.raises(IndexError):
        TEXTS[60]


@pytest.mark.parametrize("plain", [False, True])
def test_without_the_repetition_the_objects_stand_before_the_first_question(plain: bool) -> None:
    whole, bare = (build_dataset("scene-texts", {"plain": plain, "repeat": repeat}) for repeat in (True, False))
    for row in range(30):
        written, _, question = bare[row].turns[0].instruction.partition("\n")
        assert sorted(one.tag for one in parse(written).objects) == sorted(
            one.tag for one in parse(whole[row].turns[0].answer).objects
        )
        assert question != whole[row].turns[0].instruction.partition("\n")[2]
        assert bare[row].turns[0].answer
        assert len(bare[row].turns) <= 13
    one = build_dataset("scene-texts", {"plain": plain, "repeat": False, "turns": 1, "scenes": 300})
    assert {len(one[row].turns) for row in range(300)} == {1}


def test_scenes_may_have_fewer_objects() -> None:
    alone = build_dataset("scene-texts", {"split": "validation", "scenes": 40, "max_objects": 1})
    counts = [len(parse(alone[row].turns[0].answer).objects) for row in range(40)]
    assert set(counts) == {1, 2}  # a word may stand beside it


def test_conversations_fit_into_the_tiny_language_model() -> None:
    tokenizer = builtin_tokenizer("words", ("<pad>", "<s>", "</s>"))
    for row in range(60):
        dialogue = [Exchange(turn.instruction, turn.answer) for turn in TEXTS[row].turns]
        assert len(tokenize(segments_of(dialogue, template_named("plain")), tokenizer, 32)) < 1024


def test_plain_questions_differ_and_their_answers_are_right() -> None:
    texts = build_dataset("scene-texts", {"split": "test", "plain": True})
    scenes = Scenes(ScenesOptions(split="test", attributes="plain"))
    counts = []
    for row in range(150):
        sample, turns = scenes[row], texts[row].turns[1:]
        assert len({turn.instruction for turn in turns}) == len(turns) <= 12
        counts.append(len(turns))
        for turn in turns:
            assert agrees(turn, oracle.answer(turn.instruction, sample), sample), (row, turn)
    assert counts.count(12) > 100


def test_plain_questions_may_be_of_some_types_alone() -> None:
    def types(names: tuple[str, ...], **options: int) -> Counter[str]:
        texts = build_dataset("scene-texts", {"plain": True, "types": names, "repeat": False, **options})
        return Counter(name for row in range(100) for name in texts[row].extra["question_types"])

    for name in get_args(QuestionType):
        found = types((name,))
        # Where there is nothing to ask, such as of relations with one object, it is how many there are.
        assert set(found) <= {name, "count"}, name
        assert found[name] > 50, name
    assert set(types(("relation",), max_objects=1)) == {"count"}
    one = types(("size", "size", "size", "position"), turns=1)
    assert one["size"] > 2 * one["position"] > 0
    with pytest.raises(SpecError, match="set plain=true"):
        build_dataset("scene-texts", {"types": ("size",)})
    with pytest.raises(SpecError, match="types"):
        build_dataset("scene-texts", {"plain": True, "types": ("weight",)})


def test_sides_are_true_and_each_as_frequent_as_its_opposite() -> None:
    texts = build_dataset("scene-texts", {"split": "test", "plain": True, "types": ("side",), "repeat": False})
    scenes = Scenes(ScenesOptions(split="test", attributes="plain"))
    said = Counter[str]()
    for row in range(200):
        for turn, kind in zip(texts[row].turns, texts[row].extra["question_types"], strict=True):
            if kind == "side":
                question = turn.instruction.splitlines()[-1]
                assert turn.answer == oracle.answer(question, scenes[row]), (row, turn)
                said[turn.answer] += 1
    assert set(said) == {"left", "right", "above", "below"}
    assert min(said.values()) > 0.7 * max(said.values())


def found_by(row: int, kind: str) -> Iterator[tuple[str, SpatialObject]]:
    """Expressions of a scene of ``test`` that the plain questions of a type ask for, and what is answered: always the
    thing meant.
    """
    options = {"split": "test", "plain": True, "types": (kind,), "repeat": False}
    sample = build_dataset("scene-texts", options)[row]
    things = list(Scenes(ScenesOptions(split="test", attributes="plain"))[row].extra["things"])
    for turn, given in zip(sample.turns, sample.extra["question_types"], strict=True):
        if given != kind:  # nothing has a rival
            continue
        found = re.search(r"Search for (.+) in the image and give its coordinates if found\.", turn.instruction)
        assert found
        (named,) = parse(turn.answer).objects
        assert named.tag == found[1]
        meant = oracle.referents(things, found[1])
        assert [max(things, key=lambda one: Box(*one["box_norm"]).iou(named.box))] == meant, (row, turn)
        yield found[1], named


@pytest.mark.parametrize(
    ("kind", "words"),
    [("extreme", {"leftmost", "rightmost", "topmost", "lowest"}), ("height", {"topmost", "lowest"})],
)
def test_an_extreme_is_of_its_kind_and_each_is_asked_for(kind: str, words: set[str]) -> None:
    said = Counter(expression.split()[0] for row in range(100) for expression, _ in found_by(row, kind))
    assert set(said) == words
    assert min(said.values()) > 0.6 * max(said.values())


def test_what_lies_beside_another_thing_is_the_one_that_is_meant() -> None:
    said = Counter(
        way
        for row in range(150)
        for expression, _ in found_by(row, "beside")
        for way in RELATIONS
        if f" {way} the " in expression
    )
    assert set(said) == set(RELATIONS)
    assert min(said.values()) > 0.6 * max(said.values())


def test_worded_questions_are_the_plain_ones_in_the_templates_of_the_task() -> None:
    options = {"split": "test", "plain": True, "types": ("count", "amount", "relation", "search"), "repeat": False}
    plain, worded = (build_dataset("scene-texts", {**options, "worded": given}) for given in (False, True))
    used = Counter[str]()
    for row in range(40):
        kinds = plain[row].extra["question_types"]
        assert worded[row].extra["question_types"] == kinds
        for one, other, kind in zip(plain[row].turns, worded[row].turns, kinds, strict=True):
            assert one.answer == other.answer
            (head, asked), (same, said) = (turn.instruction.rpartition("\n")[::2] for turn in (one, other))
            assert head == same
            if kind == "search":
                assert asked == said
            else:
                (template,) = (text for text in TEMPLATES["vqa"] if fill(text, {"Question": asked}) == said)
                used[template] += 1
    assert set(used) == set(TEMPLATES["vqa"])
    with pytest.raises(SpecError, match="set plain=true"):
        build_dataset("scene-texts", {"worded": True})


def test_an_amount_is_of_a_colour_with_a_shape_that_is_mostly_there() -> None:
    # No question is asked twice, and there are more pairs to deny than things: so only one for each scene.
    options = {"split": "test", "plain": True, "types": ("amount",), "repeat": False, "turns": 1}
    texts = build_dataset("scene-texts", options)
    scenes = Scenes(ScenesOptions(split="test", attributes="plain"))
    said = Counter[str]()
    for row in range(300):
        for turn in texts[row].turns:
            question = turn.instruction.splitlines()[-1]
            assert re.fullmatch(r"How many \w+ \w+ are there\?", question)
            assert turn.answer == oracle.answer(question, scenes[row]), (row, turn)
            said[turn.answer] += 1
    assert 0.15 < said["0"] / said.total() < 0.35
    assert said["2"] > 5


def test_what_is_told_by_its_size_has_another_like_it_of_another_size() -> None:
    texts = build_dataset("scene-texts", {"split": "test", "plain": True, "types": ("sized",), "repeat": False})
    scenes = Scenes(ScenesOptions(split="test", attributes="plain"))
    said = Counter[str]()
    for row in range(100):
        things = list(scenes[row].extra["things"])
        for turn, kind in zip(texts[row].turns, texts[row].extra["question_types"], strict=True):
            if kind != "sized":  # no two things are alike but for their size
                continue
            question = turn.instruction.splitlines()[-1]
            found = re.fullmatch(r"What (color|shape) is the (small|medium|large) (\w+)( object)?\?", question)
            assert found
            assert turn.answer == oracle.answer(question, scenes[row]), (row, turn)
            alike = [one for one in things if found[3] in (one["colour"], one["shape"])]
            assert [one["size"] for one in alike].count(found[2]) == 1 < len(alike)
            said[found[1]] += 1
    assert min(said["color"], said["shape"]) > 0.5 * max(said.values())


@pytest.mark.parametrize(
    ("chosen", "asks"),
    [("choice", ""), ("place-choice", "Where in the picture"), ("word-choice", "What word is written")],
)
def test_a_choice_has_its_answer_among_four_options_each_letter_as_often_as_the_others(chosen: str, asks: str) -> None:
    texts = build_dataset("scene-texts", {"split": "test", "plain": True, "types": (chosen,), "repeat": False})
    scenes = Scenes(ScenesOptions(split="test", attributes="plain"))
    letters = Counter[str]()
    for row in range(150):
        for turn, kind in zip(texts[row].turns, texts[row].extra["question_types"], strict=True):
            if kind != chosen:
                continue
            asked = re.search(r"Question: (.+\?) Options: (.+)\. Answer:$", turn.instruction)
            assert asked
            assert asked[1].startswith(asks)
            options = dict(re.findall(r"\((\w)\) (.+?)(?= \(|$)", asked[2]))
            assert list(options) == list("abcd")
            letter, answer = re.fullmatch(r"\((\w)\) (.+)", turn.answer).groups()
            assert options[letter] == answer == oracle.answer(asked[1], scenes[row]), (row, turn)
            letters[letter] += 1
    assert set(letters) == set("abcd")
    assert min(letters.values()) > 0.7 * max(letters.values())


def test_what_is_searched_for_is_there_as_often_as_not_under_a_name_of_two_words() -> None:
    texts = build_dataset("scene-texts", {"split": "test", "plain": True, "types": ("search",), "repeat": False})
    scenes = Scenes(ScenesOptions(split="test", attributes="plain"))
    there, absent, longer = 0, 0, 0
    for row in range(150):
        things = list(scenes[row].extra["things"])
        for turn, kind in zip(texts[row].turns, texts[row].extra["question_types"], strict=True):
            if kind != "search":
                continue
            found = re.search(r"Search for (.+) in the image and give its coordinates if found\.", turn.instruction)
            assert found
            meant = oracle.referents(things, found[1])
            if turn.answer == "Not found.":
                assert meant == []
                absent += 1
                continue
            (named,) = parse(turn.answer).objects
            assert named.tag == found[1]
            assert [max(things, key=lambda one: Box(*one["box_norm"]).iou(named.box))] == meant, (row, turn)
            bare = (
                re.fullmatch(r"\w+ \w+", found[1])
                and found[1].split()[0] in oracle.COLOURS
                and "object" not in found[1]
            )
            there, longer = there + bool(bare), longer + (not bare)
    assert 0.5 < there / absent < 2
    assert longer > 0.5 * there


def test_a_detectors_error_is_small_and_answers_have_the_boxes_that_are_listed() -> None:
    exact, texts = (build_dataset("scene-texts", {"plain": True, "box_error": error}) for error in (0.0, 0.1))
    answered, numbers = 0, set()
    for row in range(150):
        first, *others = texts[row].turns
        written, true = (parse(turn.instruction).objects for turn in (first, exact[row].turns[0]))
        assert len(written) == len(true)
        for one in written:
            assert 0.5 < max(one.box.iou(other.box) for other in true if other.tag == one.tag) <= 1
            numbers |= {round(999 * edge) for edge in one.box.as_tuple()}
        for turn in others:
            for one in parse(turn.answer).objects:
                answered += 1
                assert one.box in {other.box for other in written}, (row, turn)
    assert answered > 100
    # The edges of scenes are whole pixels of 128; those of a detector are not.
    assert len(numbers) > 600
