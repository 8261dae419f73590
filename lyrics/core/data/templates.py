"""The paper's instruction templates (Table 7), for all eight tasks, in its wording.

What was changed is what the paper's text form had lost, and nothing else: the image marker that begins every template
(printed ``<image/>`` or ``<Image>``) is left out, because the image is a segment of the prompt of its own;
``\\text{...}``, ``\\{`` and ``\\&`` around placeholders are plain ``{Question}``, ``{Tag}``, ``{Bbox}``,
``{Tag & Bbox}`` and ``{Option}``. The paper's punctuation stays, "can you observe the object {Tag}." with its full stop
included.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from string import ascii_lowercase
from types import MappingProxyType
from typing import Literal, get_args

Task = Literal["caption", "vqa", "text-vqa", "grounded-caption", "rec", "referential", "multi-choice", "text"]
TASKS: tuple[Task, ...] = get_args(Task)

#: Tasks whose samples are about their first object: the one that is referred to, described, or asked about.
ABOUT_FIRST_OBJECT = ("grounded-caption", "rec", "referential")

#: Per task. ``text``, pure text and instructions that a data set brings, has none: "we directly utilize the formats
#: originally inherent in the dataset" (appendix A).
TEMPLATES: Mapping[Task, tuple[str, ...]] = MappingProxyType(
    {
        "caption": (
            "Write a short description for the image.",
            "Write a description for the image.",
            "Provide a description of what is presented in the photo.",
            "Briefly describe the content of the image.",
            "Look at the image and describe what you see in a simple and clear manner.",
            "Could you use a few words to describe what you perceive in the photo?",
            "Please provide a short depiction of the picture.",
            "Summarize what this image depicts in a simple and concise manner.",
            "Provide a simple and clear description of the image, suitable for all audiences.",
        ),
        "vqa": (
            "{Question}",
            "Question: {Question}",
            "Question: {Question} Answer:",
            "Given the image, answer the following question: {Question}",
            "With the aid of the following image, offer a straightforward, short response to: {Question}.",
            "Based on the image, respond to this question with a short answer: {Question}. Answer:",
            "Use the provided image to answer the question as short as possible: {Question}",
            "What is the answer to the following question? {Question}",
            "Refer to the information in the image to provide a minimalist answer to: {Question}",
        ),
        "text-vqa": (
            "Question: {Question}",
            "Question: {Question} Answer:",
            "Analyze the textual content in this image and provide a short answer to: {Question}.",
            "Look at the text in the image provided and succinctly answer: {Question}.",
            "With the help of text in the following image, offer a simple, short response to: {Question}.",
            "Refer to the textual data in the image to provide a brief answer to: {Question}.",
        ),
        "grounded-caption": (
            "Write a description for the target object in the image.",
            "Provide a short caption focusing on the highlighted object in this image.",
            "Describe the specific object indicated in the following image, keeping the description brief.",
            "Explain what the object marked in the image is, using a concise description.",
            "Identify and describe the key object in this image, using a short and clear description.",
        ),
        "rec": (
            "In the given image, could you find and tell me the coordinates of {Tag}?",
            "In the coordinate {Bbox} of the image, can you observe the object {Tag}.",
            "Locate the {Tag} in this image and provide a brief description of its position.",
            "Confirm the presence of {Tag} in the bounding box {Bbox} in the image.",
            "Search for {Tag} in the image and give its coordinates if found.",
            "Can you find the spatial location or coordinates of {Tag} in the image shown here?",
        ),
        "referential": (
            "Focus on the object {Tag & Bbox} in the image, and answer the question: {Question}.",
            "Could you provide a descriptive caption for the object {Tag & Bbox} in the image?",
            "Regarding the object specified as {Tag & Bbox}, please respond to: {Question}.",
            "Explain the features or details of the object identified by {Tag & Bbox} in the image.",
            "Create a caption that describes the area or object marked as {Tag & Bbox} in the image.",
            "Refer to the object {Tag & Bbox} in the image, and provide an answer to: {Question}.",
        ),
        "multi-choice": (
            "Question: {Question} Options: {Option}. Answer:",
            "For the question: {Question}, choose the most suitable answer from options: {Option}.",
            "Examine the image and answer the question: {Question}. Your choices are: {Option}.",
            "Respond to the question: {Question} among options: {Option}, select your response:",
            "Consider the question: {Question} and options: {Option}. Please provide your answer:",
        ),
        "text": (),
    }
)

#: Of ``rec``, the one that allows for an expression that nothing matches.
(IF_FOUND,) = (template for template in TEMPLATES["rec"] if "if found" in template)

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}(\.?)")


def placeholders(template: str) -> frozenset[str]:
    """Return names of what a template leaves open."""
    return frozenset(found[1] for found in _PLACEHOLDER.finditer(template))


def lettered(options: Sequence[str]) -> list[str]:
    """Return options as the paper writes them (appendix A), such as "(a) blue", "(b) yellow"; 26 at most."""
    return [f"({letter}) {option}" for letter, option in zip(ascii_lowercase, options, strict=False)]


def fill(template: str, values: Mapping[str, str]) -> str:
    """Return the template with every placeholder filled. Raises ``KeyError`` for one without a value.

    Values are put in as they are: braces in them mean nothing. Where a value ends a sentence of its own ("What is
    it?"), the template's full stop right after it is left out.
    """

    def put(found: re.Match[str]) -> str:
        value = values[found[1]]
        return value if value.endswith((".", "?", "!")) else value + found[2]

    return _PLACEHOLDER.sub(put, template)
