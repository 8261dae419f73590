"""A model under other people's evaluation toolkits.

Their requests become questions, and answers take the form that their metrics read.

Nothing here imports a toolkit; ``lyrics.integrations`` and ``examples/vlmevalkit`` do. The metrics of toolkits read
answers in three ways:

- words: boxes are taken out of the text, and each thing's name stays in its place;
- the letter of an option, where the prompt asks for one: "(b) yellow" becomes "B". An answer that chooses nothing
  that can be told stays as it is, since a toolkit (or its judge) may read more into it; so does a longer one in which
  another option's capital letter stands, too, which MMMU's parser weighs;
- yes or no, where the prompt asks for a single word or for one of the two, and the answer begins with it: "Yes, there
  is." becomes "Yes" (POPE's task compares the whole answer);
- a box as ``[x1, y1, x2, y2]``, shares of the image, where the prompt asks for bounding box coordinates between 0
  and 1 (RefCOCO's tasks of lmms-eval): that of the answer's first object.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from lyrics.core.answers import Answer
from lyrics.core.errors import LyricsError
from lyrics.core.evaluation.benchmark import Answerer
from lyrics.core.evaluation.metrics.exact import plain
from lyrics.core.evaluation.metrics.options import chosen_option

_ASKS_FOR_LETTER = re.compile(
    r"option['\u2019]?s? letters?|letter of the|letters? (?:from|of) the (?:given |correct )?(?:choice|option)"
    r"|(?:select|choose) the correct (?:answer|option) from the options"
    r"|\u9009\u9879\u5b57\u6bcd|\u6b63\u786e\u7684\u9009\u9879",  # "option letter", "the correct option" in Chinese
    re.IGNORECASE,
)
_OPTION = re.compile(r"^\s*(?:\(([A-Z])\)|([A-Z])[.):])\s*(\S.*?)\s*$", re.MULTILINE)
_ASKS_FOR_BOX = re.compile(r"bounding box coordinate", re.IGNORECASE)
_ASKS_FOR_A_WORD = re.compile(r"single word|\byes or no\b", re.IGNORECASE)
_YES_OR_NO = re.compile(r"\s*(yes|no)\s*(?:[,.;:!]|$)", re.IGNORECASE)
_BETWEEN_0_AND_1 = re.compile(r"between 0 and 1", re.IGNORECASE)
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_IMAGE_MARK = re.compile(r"<image>\s*")


# --- answers
# -----------------------------------------------------------------------------------------------------------


def rewritten(answer: Answer, prompt: str) -> str:
    """Return the answer in the form that the prompt asks for (see above)."""
    if _ASKS_FOR_BOX.search(prompt) and _BETWEEN_0_AND_1.search(prompt):
        if not answer.objects:
            return answer.plain_text
        return "[" + ", ".join(f"{value:.4f}" for value in answer.objects[0].box_norm.as_tuple()) + "]"
    text = answer.plain_text
    if _ASKS_FOR_LETTER.search(prompt) and (options := options_in(prompt)):
        return _letter(text, options) or text
    if _ASKS_FOR_A_WORD.search(prompt) and (said := _YES_OR_NO.match(text)):
        return said[1]
    return text


def _letter(text: str, options: Sequence[str]) -> str | None:
    """The letter of the option that an answer chooses, where no parser would read another one."""
    number = chosen_option(text, options)
    if number is None:
        return None
    letter, option = _LETTERS[number], options[number]
    words = re.sub(rf"^\s*\(?{letter}\)?[.:,)]?(?!\w)", "", text, count=1, flags=re.IGNORECASE)
    if plain(words) in ("", plain(option)) or plain(text) == plain(option):
        return letter
    seen = f"{text} "  # as MMMU's parser finds letters
    others = (other for other in _LETTERS[: len(options)] if other != letter)
    return (
        None if any(f"({other})" in seen or f"{other} " in seen or f"{other}." in seen for other in others) else letter
    )


def options_in(prompt: str) -> list[str]:
    """Return the options that stand in a prompt on lines of their own.

    They are "A. blue", "(A) blue" or "A) blue", from A on without a gap.

    Where the letters begin anew, the last list counts: examples come before the question. Empty where there are fewer
    than two.
    """
    options: list[str] = []
    for found in _OPTION.finditer(prompt):
        letter = found[1] or found[2]
        if letter == "A":
            options = []
        if letter == _LETTERS[len(options)]:
            options.append(found[3])
    return options if len(options) > 1 else []


def until(text: str, stops: Sequence[str]) -> str:
    """Return the text before the first of the stops that it contains; an empty stop stops nothing."""
    ends = [place for stop in stops if stop and (place := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


# --- requests
# ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Generation:
    """What a toolkit's keyword arguments of generation come to."""

    max_new_tokens: int
    stops: tuple[str, ...] = ()

    @classmethod
    def of(cls, asked: Mapping[str, Any], *, most: int) -> Generation:
        """Answers are greedy and at most ``most`` tokens long.

        What asks for something else is warned of (once for each wording).

        Raises ``LyricsError`` for stops that are no texts, or a number of tokens that is none.
        """
        stops = asked.get("until") or ()
        stops = (stops,) if isinstance(stops, str) else tuple(stops)
        if not all(isinstance(stop, str) for stop in stops):
            raise LyricsError(f"until={asked['until']!r}: is a text or a list of texts.")
        tokens = asked.get("max_new_tokens", asked.get("max_gen_toks", most))
        if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
            raise LyricsError(f"max_new_tokens={tokens!r}: is a number from 1 on.")
        if tokens > most:
            _warn(
                f"max_new_tokens={tokens} is cut to {most}; give the model the argument max_new_tokens={tokens} to "
                "have it."
            )
        if asked.get("do_sample") or float(asked.get("temperature") or 0) > 0:
            _warn("the task asks for samples (do_sample or a temperature); answers are greedy all the same.")
        if int(asked.get("num_beams") or 1) > 1:
            _warn(f"the task asks for num_beams={asked['num_beams']}; answers are greedy all the same.")
        if unknown := sorted(asked.keys() - _READ):
            _warn(f"the task's {', '.join(unknown)} {'is' if len(unknown) == 1 else 'are'} not used.")
        return cls(min(tokens, most), stops)


#: Keyword arguments that are read, or that mean nothing for greedy answers and images of any shape.
_READ = {
    *("until", "max_new_tokens", "max_gen_toks", "do_sample", "temperature", "num_beams"),
    *("top_p", "top_k", "image_aspect_ratio", "image_sizes"),
}


def pictures_of(visuals: Any) -> list[Image.Image | str]:
    """Return what a task shows: PIL images and paths, in lists of any depth, or nothing.

    Raises ``LyricsError`` for what is no image.
    """
    if visuals is None:
        return []
    if isinstance(visuals, list | tuple):
        return [picture for visual in visuals for picture in pictures_of(visual)]
    if isinstance(visuals, Image.Image):
        return [visuals]
    if isinstance(visuals, str) and not visuals.lower().endswith(
        (".mp4", ".avi", ".mkv", ".mov", ".webm", ".wav", ".mp3")
    ):
        return [visuals]
    raise LyricsError(
        f"the task shows {visuals if isinstance(visuals, str) else type(visuals).__name__}: lyrics sees images, no "
        "video and no sound."
    )


def words_of(context: str) -> str:
    """Return a prompt without the marks where other models put images; images come first here.

    Numbered ones ("<image 1>") are words.
    """
    return _IMAGE_MARK.sub("", context).strip()


def generate_until(
    model: Answerer,
    requests: Sequence[Any],
    documents: Mapping[str, Mapping[str, Any]],
    *,
    batch: int,
    most: int,
    done: Callable[[str, Mapping[str, Any], str], None] = lambda context, asked, text: None,
) -> list[str]:
    """Return answers to lmms-eval's requests, in their order.

    Args:
        model: answers; several images to a question or none are fine.
        requests: each has ``args``: (context, generation arguments, document -> visuals, document's id, task, split).
        documents: task -> split -> documents by id.
        batch: questions that are answered together; those of different generation arguments are not.
        most: tokens of an answer at most.
        done: called with each context, its arguments and its answer.

    Raises ``LyricsError`` for a request that cannot be met, naming its task and document; what the model raises passes
    through.
    """
    texts: dict[int, str] = {}
    groups: dict[Generation, list[int]] = {}
    for number, request in enumerate(requests):
        _, asked, _, document, task, _ = request.args
        try:
            generation = Generation.of(asked, most=most)
        except LyricsError as error:
            raise LyricsError(f"{task}, document {document}: {error}") from None
        groups.setdefault(generation, []).append(number)
    for generation, numbers in groups.items():
        for start in range(0, len(numbers), batch):
            chunk = numbers[start : start + batch]
            shown, prompts = [], []
            for number in chunk:
                context, _, visuals, document, task, split = requests[number].args
                try:
                    shown.append(pictures_of(visuals(documents[task][split][document])))
                except LyricsError as error:
                    raise LyricsError(f"{task}, document {document}: {error}") from None
                prompts.append(words_of(context))
            answers = model.generate(shown, prompts, max_new_tokens=generation.max_new_tokens)
            for number, answer, prompt in zip(chunk, answers, prompts, strict=True):
                context, asked, *_ = requests[number].args
                texts[number] = until(rewritten(answer, prompt), generation.stops).strip()
                done(context, asked, texts[number])
    return [texts[number] for number in range(len(requests))]


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=3)
