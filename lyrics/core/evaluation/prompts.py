"""The prompt of a benchmark: one fixed template of the paper's Table 7.

The paper uses its templates "for instruction finetuning and zero-shot inference" (appendix A) and does not say which of
them it evaluated with. Here each task has one, the same for every sample, so that scores can be repeated.
"""

from __future__ import annotations

from collections.abc import Mapping
from string import ascii_lowercase
from types import MappingProxyType

from lyrics.core.data.templates import TEMPLATES, Task, fill, lettered, placeholders
from lyrics.core.errors import SampleError
from lyrics.core.types import Sample

#: Per task; ``rec`` is the one that asks for coordinates and nothing else.
PROMPTS: Mapping[Task, str] = MappingProxyType(
    {
        "caption": "Write a short description for the image.",
        "vqa": "Based on the image, respond to this question with a short answer: {Question}. Answer:",
        "text-vqa": "With the help of text in the following image, offer a simple, short response to: {Question}.",
        "rec": "In the given image, could you find and tell me the coordinates of {Tag}?",
        "multi-choice": "Question: {Question} Options: {Option}. Answer:",
    }
)
assert all(text in TEMPLATES[task] for task, text in PROMPTS.items())


def prompt_of(sample: Sample, template: str) -> str:
    """Return a template with the sample's question, options or expression.

    Raises ``SampleError`` for a sample that lacks what it asks for.
    """
    names, values = placeholders(template), {}
    if "Tag" in names:
        expression = sample.extra.get("absent") or (sample.objects[0].tag if sample.objects else "")
        if not expression:
            raise SampleError(f"{sample.source}: has no expression to look for", "record")
        values["Tag"] = str(expression).strip().rstrip(".?!")
    if "Question" in names:
        if not sample.turns:
            raise SampleError(f"{sample.source}: has no question", "record")
        values["Question"] = sample.turns[0].instruction
    if "Option" in names:
        values["Option"] = _lettered(sample)
        # What a problem says before its question (ScienceQA's hint) is needed to answer it; the template has no place
        # of its own for it.
        if hint := str(sample.extra.get("hint", "")).strip():
            values["Question"] = f"{hint} {values['Question']}"
    return fill(template, values)


def _lettered(sample: Sample) -> str:
    """ "(a) blue (b) yellow", as the paper separates options (appendix A)."""
    options = tuple(sample.extra.get("options", ()))
    if not 1 <= len(options) <= len(ascii_lowercase):
        raise SampleError(f"{sample.source}: a multiple-choice question with {len(options)} options", "record")
    return " ".join(lettered(options))
