"""A lyrics model as a model of VLMEvalKit (https://github.com/open-compass/VLMEvalKit).

VLMEvalKit asks a model for three things: ``generate(message, dataset)``, ``use_custom_prompt(dataset)`` and
``set_dump_image(function)`` (``vlmeval/inference.py``). It has no entry points, so ``run_lyrics.py`` puts the model
into its table of models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lyrics import load_model
from lyrics.evaluation import rewritten, words_of

#: Questions that OCR-VQA and the like want answered with few words: the template of the paper's Table 7 that
#: ``lyrics evaluate`` uses, too.
SHORT_ANSWER = "With the help of text in the following image, offer a simple, short response to: {question}."
SHORT_ANSWER_SETS = ("OCRVQA_TEST", "OCRVQA_TESTCORE", "TextVQA_VAL")


class LyricsVLM:
    """Args:
    model: a model folder, a preset or a hub id; or anything with a lyrics model's ``generate``.
    device, weights: as for ``lyrics ask``.
    max_new_tokens: of an answer.
    """

    def __init__(
        self,
        model: Any = "lyrics-tiny",
        device: str | None = None,
        weights: str = "pretrained",
        max_new_tokens: int = 512,
    ) -> None:
        self.model = load_model(model, weights=weights, device=device) if isinstance(model, str) else model
        self.max_new_tokens = max_new_tokens
        self.dump_image: Callable[[Any], Any] | None = None

    def set_dump_image(self, dump_image: Callable[[Any], Any]) -> None:
        """VLMEvalKit's way to write a row's images to files, for prompts of our own."""
        self.dump_image = dump_image

    def use_custom_prompt(self, dataset: str) -> bool:
        return dataset in SHORT_ANSWER_SETS

    def build_prompt(self, line: Mapping[str, Any], dataset: str | None = None) -> list[dict[str, str]]:
        """The message of one row of a data set of short answers."""
        assert self.dump_image is not None, "VLMEvalKit calls set_dump_image first"
        paths = self.dump_image(line)
        question = str(line["question"]).strip()
        # As ``lyrics evaluate`` writes it: a question's own mark ends the sentence.
        text = SHORT_ANSWER.format(question=question)
        text = text[:-1] if question.endswith((".", "?", "!")) else text
        paths = [paths] if isinstance(paths, str) else paths
        return [*({"type": "image", "value": path} for path in paths), {"type": "text", "value": text}]

    def generate(self, message: str | Sequence[Mapping[str, str]], dataset: str | None = None) -> str:
        """The answer in the form that the prompt asks for: words without boxes, or the letter of an option.

        ``message`` is a text, or images (paths) and texts in order; images come first here. Raises ``ValueError``
        for a video.
        """
        parts = [{"type": "text", "value": message}] if isinstance(message, str) else message
        pictures = [part["value"] for part in parts if part["type"] == "image"]
        texts = [part["value"] for part in parts if part["type"] == "text"]
        if other := {part["type"] for part in parts} - {"image", "text"}:
            raise ValueError(f"{dataset}: has {', '.join(sorted(other))}; lyrics reads images and texts.")
        prompt = words_of("\n".join(texts))
        (answer,) = self.model.generate([pictures], [prompt], max_new_tokens=self.max_new_tokens)
        return rewritten(answer, prompt)
