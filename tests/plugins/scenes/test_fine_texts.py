"""Fine scenes as text: looks are told in sentences, never in the list, and nothing is asked that the text does not
tell.
"""

from __future__ import annotations

import re
from collections import Counter

import pytest

from lyrics.core.geometry import Box
from lyrics.core.language.codecs import parse
from lyrics.core.language.tokenizers import builtin_tokenizer
from lyrics.plugins.scenes import ScenesOptions, SceneTextsOptions
from lyrics.plugins.scenes.dataset import Scenes
from lyrics.plugins.scenes.names import FINE_QUESTIONS, GROUPS
from lyrics.plugins.scenes.texts import SceneTexts
from tests.plugins.scenes import fine_oracle
from tests.plugins.scenes.test_fine_questions import check

LOOKS = (
    "red|orange|yellow|green|cyan|blue|purple|gray|solid|striped|dotted|upright|leaning|"
    "outline|pale|dark|tinted|sloping|checked"
)


def texts(**options: object) -> SceneTexts:
    return SceneTexts(SceneTextsOptions(attributes="fine", repeat=False, **options))


def parts(sample) -> tuple[str, str, str]:
    """What is told, the list, and the first question."""
    *context, question = sample.turns[0].instruction.split("\n")
    told = "".join(line for line in context if not line.startswith("<br>"))
    return told, "".join(line for line in context if line.startswith("<br>")), question


def truth(data: SceneTexts, row: int) -> dict:
    return data._scenes[row].extra


def test_every_answer_is_what_the_truth_says() -> None:
    data = texts(plain=True)
    types = Counter()
    for row in range(400):
        sample, extra = data[row], truth(data, row)
        _, _, first = parts(sample)
        questions = [first, *(turn.instruction for turn in sample.turns[1:])]
        assert len(set(questions)) == len(questions)
        for question, turn, kind in zip(questions, sample.turns, sample.extra["question_types"], strict=True):
            check(question, turn.answer, extra)
            types[kind] += 1
    assert {kind.split()[0] for kind in types} == set(GROUPS)
    assert len(types) >= len(FINE_QUESTIONS) - len(GROUPS) - 2  # "side" is for training, "written" is an existence


def test_no_look_is_in_the_list_and_what_is_asked_is_told() -> None:
    data = texts(plain=True)
    for row in range(400):
        sample = data[row]
        told, listed, first = parts(sample)
        assert re.search(LOOKS, listed) is None
        questions = [first, *(turn.instruction for turn in sample.turns[1:])]
        for question, turn, kind in zip(questions, sample.turns, sample.extra["question_types"], strict=True):
            group, name = kind.split()
            if group == "T":
                continue
            assert told, (question, turn)
            if name in ("color", "fill", "lean"):
                assert f" {turn.answer}" in told
            if name == "outline":
                assert ("with a dark outline" if turn.answer == "yes" else "with no outline") in told
            if kind == "L word":
                assert f'"{turn.answer}' in told
            if group == "G" and turn.answer != "plain":
                assert f" {turn.answer} " in told[told.rindex(" on a ") :]


def test_the_sentences_are_true_and_name_the_listed_boxes() -> None:
    data = texts(plain=True, told=1.0, listed=1.0, box_error=0.06)
    boxes = 0
    for row in range(300):
        sample, things = data[row], [dict(one, color=one["colour"]) for one in truth(data, row)["things"]]
        told, listed, _ = parts(sample)
        of_list = [one.box for one in parse(listed).objects]
        for words, markup in re.findall(r"an? ([a-z ]+) at (<Bbox>[^<]+</Bbox>)", told):
            (named,) = parse(markup).objects
            assert max(box.iou(named.box) for box in of_list) > 0.98
            best = max(things, key=lambda thing: Box(*thing["box_norm"]).iou(named.box))
            assert fine_oracle.has(best, words), (words, best)
            boxes += 1
    assert boxes > 300


def test_without_the_list_the_sentences_say_where_everything_is() -> None:
    data = texts(plain=True, told=1.0, listed=0.0)
    missing = 0
    for row in range(200):
        told, listed, _ = parts(data[row])
        if not listed:
            missing += 1
            extra = truth(data, row)
            assert told.count("<Bbox>") == len(extra["things"]) + len(extra["words"])
    assert missing > 40


def test_without_told_looks_only_text_is_asked() -> None:
    data = texts(plain=True, told=0.0)
    for row in range(150):
        sample = data[row]
        assert {kind.split()[0] for kind in sample.extra["question_types"]} == {"T"}
        assert not parts(sample)[0]


def test_words_of_the_tasks_and_captions_are_added_unless_plain() -> None:
    data = texts(told=1.0)
    said = " ".join(turn.instruction for row in range(200) for turn in data[row].turns)
    for words in ("Options: (a)", "Question:", "if found.", "description"):
        assert words in said
    kinds = Counter(kind for row in range(200) for kind in data[row].extra["question_types"])
    assert kinds["L whole-caption"] > 10
    assert kinds["L grounded-caption"] > 10


def test_words_are_known_to_the_tokenizer() -> None:
    tokenizer = builtin_tokenizer("words", ["<pad>", "<s>", "</s>"])
    words = Counter()
    for data in (texts(), texts(plain=True)):
        for row in range(150):
            for turn in data[row].turns:
                words.update(re.findall(r"[A-Za-z]{2,}", re.sub(r"<[^>]*>", " ", f"{turn.instruction} {turn.answer}")))
    for task in ("conversation", "rec", "referential", "multi-choice"):
        scenes = Scenes(ScenesOptions(attributes="fine", task=task))
        for row in range(100):
            words.update(re.findall(r"[A-Za-z]{2,}", " ".join(turn.instruction for turn in scenes[row].turns)))
    spelled = {word for word in words if len(tokenizer.encode(f" {word}")) > 1}
    assert spelled <= {"Bbox"}, spelled


def test_options_of_one_world_are_refused_in_the_other() -> None:
    with pytest.raises(ValueError, match="types and worded are of plain scenes"):
        texts(plain=True, types=("color",))
    with pytest.raises(ValueError, match="questions are of fine scenes"):
        SceneTextsOptions(questions=("L",))
    with pytest.raises(ValueError, match="questions are of fine scenes"):
        ScenesOptions(attributes="plain", questions=("L",))
