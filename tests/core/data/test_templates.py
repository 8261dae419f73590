"""Table 7 of the paper."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lyrics.core.data.templates import TASKS, TEMPLATES, fill, placeholders

PAPER = Path(__file__).parents[3].parent / "shared" / "paper"
ALLOWED = {
    "caption": [set()],
    "vqa": [{"Question"}],
    "text-vqa": [{"Question"}],
    "grounded-caption": [set()],
    "rec": [{"Tag"}, {"Tag", "Bbox"}],
    "referential": [{"Tag & Bbox"}, {"Tag & Bbox", "Question"}],
    "multi-choice": [{"Question", "Option"}],
    "text": [],
}
# Copied from the paper by hand, one line or more of each task.
TRANSCRIBED = {
    "caption": [
        "Look at the image and describe what you see in a simple and clear manner.",
        "Provide a simple and clear description of the image, suitable for all audiences.",
    ],
    "vqa": [
        "{Question}",
        "Based on the image, respond to this question with a short answer: {Question}. Answer:",
        "Use the provided image to answer the question as short as possible: {Question}",
    ],
    "text-vqa": ["Look at the text in the image provided and succinctly answer: {Question}."],
    "grounded-caption": ["Provide a short caption focusing on the highlighted object in this image."],
    "rec": [
        "In the coordinate {Bbox} of the image, can you observe the object {Tag}.",
        "Locate the {Tag} in this image and provide a brief description of its position.",
    ],
    "referential": ["Create a caption that describes the area or object marked as {Tag & Bbox} in the image."],
    "multi-choice": [
        "Question: {Question} Options: {Option}. Answer:",
        "Respond to the question: {Question} among options: {Option}, select your response:",
    ],
}


def test_every_task_of_the_table_is_there_in_number() -> None:
    assert {task: len(templates) for task, templates in TEMPLATES.items()} == {
        "caption": 9,
        "vqa": 9,
        "text-vqa": 6,
        "grounded-caption": 5,
        "rec": 6,
        "referential": 6,
        "multi-choice": 5,
        "text": 0,
    }
    assert tuple(TEMPLATES) == TASKS


@pytest.mark.parametrize("task", TRANSCRIBED)
def test_the_wording_is_the_papers(task: str) -> None:
    assert set(TRANSCRIBED[task]) <= set(TEMPLATES[task])


def test_every_template_is_in_the_paper() -> None:
    """Against the paper's text itself, white space and the markup of its formulas apart."""
    papers = sorted(PAPER.glob("*.txt"))
    if not papers:
        pytest.skip(f"the paper is not in {PAPER}")
    table = (
        papers[0].read_text(encoding="utf-8").split("Task\tInstruction Template")[1].split("Table 7. Instruction")[0]
    )
    for _ in range(2):
        table = re.sub(r"\\text\{([^{}]*)\}", r"\1", table)
    for written, meant in (("\\{", "{"), ("\\}", "}"), ("\\&", "&"), ("\\\\", ""), ("{{Question}}", "{Question}")):
        table = table.replace(written, meant)
    squeezed = re.sub(r"\s+", "", table)
    markers = re.findall(r"<image/?>", squeezed, re.IGNORECASE)
    assert len(markers) == sum(len(templates) for templates in TEMPLATES.values())
    for templates in TEMPLATES.values():
        for template in templates:
            assert re.search(r"<image/?>" + re.escape(re.sub(r"\s+", "", template)), squeezed, re.IGNORECASE), template


@pytest.mark.parametrize("task", TASKS)
def test_placeholders_are_known_and_nothing_is_left_open(task: str) -> None:
    for template in TEMPLATES[task]:
        assert set(placeholders(template)) in ALLOWED[task]
        values = {name: f"value of {name}" for name in placeholders(template)}
        filled = fill(template, values)
        assert not set("{}") & set(filled)
        assert all(value in filled for value in values.values())


def test_a_sentence_of_its_own_keeps_its_end_and_no_second_one() -> None:
    template = "With text, offer a response to: {Question}. Answer:"
    assert fill(template, {"Question": "What is it?"}) == "With text, offer a response to: What is it? Answer:"
    assert fill(template, {"Question": "Name it."}) == "With text, offer a response to: Name it. Answer:"
    assert fill(template, {"Question": "the color"}) == "With text, offer a response to: the color. Answer:"
    assert fill("For {Question}, choose", {"Question": "Is it?"}) == "For Is it?, choose"


@given(st.text(), st.text())
def test_values_are_put_in_as_they_are(question: str, option: str) -> None:
    filled = fill("Q {Question} O {Option} A", {"Question": question, "Option": option})
    assert filled == f"Q {question} O {option} A"


def test_a_placeholder_without_a_value_is_an_error() -> None:
    with pytest.raises(KeyError, match="Question"):
        fill("{Question}", {"Tag": "x"})
