"""Chat templates written in Jinja, as tokenizers bring them.

A template is rendered with marks in the place of what users and data sets say, so that it sees none of their words:
what stands between the marks is the template's own, and may hold special tokens; the words come in afterwards, and are
encoded as words (``lyrics.core.language.prompts``). transformers renders in a sandbox.

The template of a model that looks at images writes their token by itself where a message has some: it is given messages
in parts, as transformers' processors give them, and an image comes in the place of each such token. Before any other
template's instruction stand its images.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

from lyrics.core.errors import PromptError
from lyrics.core.language.prompts import BOS, EOS, Dialogue, Exchange, Picture, Segment, Special, Words

# What templates call the switch of thinking: answers are to begin with the answer.
_THINKING_OFF: Mapping[str, bool] = {"enable_thinking": False, "thinking": False}
# Templates may tell the model what day it is; the same question is to have the same prompt on every day.
_DAY = "26 Jul 2024"
_ONE_DAY = f"{{% macro strftime_now(form) %}}{_DAY}{{% endmacro +%}}"
# Private-use characters, which no template has, with white space that shows whether a template trims what is said.
_OPEN, _CLOSE = "\u2003\ue000", "\ue001\u2003"
_MARK = re.compile("(\u2003?)\ue000([ua])([0-9]+)\ue001(\u2003?)")


@dataclass(frozen=True)
class _Said:
    """The place of an instruction or an answer (``role`` u or a), and at which ends it is trimmed."""

    role: str
    turn: int
    left: bool
    right: bool

    def trimmed(self, text: str, *, left: bool = True) -> str:
        if self.left and left:
            text = text.lstrip()
        return text.rstrip() if self.right else text


@dataclass(frozen=True)
class _Written:
    """What the template writes itself; ``learned`` where the model is to write it, in front of its answer."""

    text: str
    learned: bool = False


_Skeleton = tuple[_Written | _Said, ...]
#: Tokenizer -> what its templates look like, by template, images of each turn, and whether the last is answered.
_skeletons: WeakKeyDictionary[Any, dict[tuple[str, tuple[int, ...], bool], _Skeleton]] = WeakKeyDictionary()
#: Tokenizer -> whether its templates write the token of an image.
_shows: WeakKeyDictionary[Any, dict[str, bool]] = WeakKeyDictionary()


def own_template(tokenizer: Any) -> str | None:
    """Return the chat template that a tokenizer brings, in Jinja; None where it brings none.

    Of several the one that is called ``default`` is taken. Raises ``PromptError`` where none is.
    """
    found = getattr(tokenizer, "chat_template", None)
    if not found:
        return None
    if isinstance(found, Mapping):
        if "default" not in found:
            raise PromptError(
                f"the language model's tokenizer has the chat templates {', '.join(found)}, and none is called default;"
                " set language_model.options.chat_template to a named one."
            )
        found = found["default"]
    return str(found)


@dataclass(frozen=True, eq=False)
class JinjaTemplate:
    """A chat template in Jinja, as transformers reads it.

    Thinking is off where the template has a switch for it, and the day is always the same one.

    Args:
        source: the template.
        tokenizer: the language model's, whose special tokens the template may write.
    """

    source: str
    tokenizer: Any

    def segments(self, dialogue: Dialogue, image_text: Callable[[int], str]) -> list[tuple[Segment, bool]]:
        """Return a conversation as segments (``lyrics.core.language.chat_templates.WritesPrompts``).

        Learned is every answer with what follows it, up to the first special token, which ends it.

        Raises ``PromptError`` where the template cannot be rendered, or does not write each thing that is said once.
        """
        turns = _until_unanswered(dialogue)
        answered = turns[-1].answer is not None
        shows = self.shows_images
        skeleton = self._skeleton(tuple(len(turn.images) if shows else 0 for turn in turns), answered)
        images = iter([picture for turn in turns for picture in turn.images] if shows else [])
        found: list[tuple[Segment, bool]] = []
        for number, piece in enumerate(skeleton):
            if isinstance(piece, _Said):
                system = turns[0].system if piece.turn == 0 else ""
                found += _filled(piece, turns[piece.turn], image_text, system, shows)
                continue
            segments = self._with_images(_split(piece.text, self.tokenizer), images)
            before = skeleton[number - 1] if number else None
            if isinstance(before, _Said) and before.role == "a":
                last = answered and number == len(skeleton) - 1
                found += _after_an_answer(segments, last)
            else:
                found += [(segment, piece.learned) for segment in segments]
        if next(images, None) is not None:
            raise PromptError(_NOT_ONCE.format("image"))
        return self._as_one_text(found)

    @property
    def ends(self) -> tuple[str, ...]:
        """The special token that follows an answer."""
        dialogue = (Exchange("", ""),)
        after = [one for one, learned in self.segments(dialogue, lambda picture: "") if learned]
        return tuple(one.token for one in after if isinstance(one, Special))

    @property
    def shows_images(self) -> bool:
        """Whether the template writes the tokenizer's token of an image where a message in parts has one."""
        known = _shows.setdefault(self.tokenizer, {})
        if self.source not in known:
            known[self.source] = self._writes_image_token()
        return known[self.source]

    def _writes_image_token(self) -> bool:
        token = _image_token(self.tokenizer)
        if token is None:
            return False
        try:
            text = self._rendered(_messages((1,), parts=True)[:1], True)
        except PromptError:  # it reads messages of text alone
            return False
        return text.count(token) == 1 and len(_MARK.findall(text)) == 1

    def _with_images(self, segments: Sequence[Segment], images: Iterator[int]) -> list[Segment]:
        """What a template wrote, with images in the place of their tokens."""
        if not self.shows_images:
            return list(segments)
        found: list[Segment] = []
        for one in segments:
            if isinstance(one, Special) and one.token == _image_token(self.tokenizer):
                picture = next(images, None)
                if picture is None:
                    raise PromptError(_NOT_ONCE.format("image"))
                found.append(Picture(picture))
            else:
                found.append(one)
        return found

    def _as_one_text(self, found: Sequence[tuple[Segment, bool]]) -> list[tuple[Segment, bool]]:
        """Segments as transformers encodes the text of them: all but the first words stand within it.

        Processors of images leave it to the tokenizer to begin it.
        """
        begun = False
        if self.shows_images and found and found[0][0] != Special(str(self.tokenizer.bos_token)):
            begun = self.tokenizer.bos_token_id in self.tokenizer("a")["input_ids"][:1]
        inside = [
            (replace(one, inside=True) if number and isinstance(one, Words) else one, learned)
            for number, (one, learned) in enumerate(found)
        ]
        return [(BOS, False), *inside] if begun else inside

    def _skeleton(self, images: tuple[int, ...], answered: bool) -> _Skeleton:
        known = _skeletons.setdefault(self.tokenizer, {})
        key = (self.source, images, answered)
        if key not in known:
            known[key] = self._made(images, answered)
        return known[key]

    def _made(self, images: tuple[int, ...], answered: bool) -> _Skeleton:
        """The template of a conversation whose instructions bring so many images, all but perhaps the last of them
        answered.
        """
        turns = len(images)
        messages = _messages(images, parts=self.shows_images)
        # What the model sees when it is to answer each of them.
        asked = [self._rendered(messages[: 2 * turn + 1], True) for turn in range(turns)]
        if not answered:
            return _parsed(asked[-1], asked[:-1], False)
        whole = self._rendered(messages, False)
        last = list(_MARK.finditer(whole))[-1:]
        if last and not whole[: last[0].start()].startswith(asked[-1]):
            # Whatever the template writes before an answer that is known, it is learned as it will be asked for.
            whole = asked[-1] + whole[last[0].start() :]
        return _parsed(whole, asked, True)

    def _rendered(self, messages: Sequence[Mapping[str, Any]], asks: bool) -> str:
        """Raises ``PromptError`` that says what the template finds wrong."""
        problem: Exception | None = None
        source = _ONE_DAY + self.source if "strftime_now" in self.source else self.source
        for switches in (_THINKING_OFF, {}):  # some refuse a switch that their model does not have
            try:
                return str(
                    self.tokenizer.apply_chat_template(
                        list(messages),
                        chat_template=source,
                        tokenize=False,
                        add_generation_prompt=asks,
                        date_string=_DAY,
                        **switches,
                    )
                )
            except Exception as error:  # a template may raise anything
                problem = error
        said = str(problem).strip().splitlines() or [type(problem).__name__]
        raise PromptError(
            f"the chat template of the language model's tokenizer cannot be rendered: {said[0].rstrip('.')}. "
            "Set language_model.options.chat_template to a named one."
        ) from problem


_NOT_ONCE = (
    "the chat template of the language model's tokenizer does not write every {} once and in order; set "
    "language_model.options.chat_template to a named one."
)


def _image_token(tokenizer: Any) -> str | None:
    """The token that stands for an image in the prompts of a model that looks at some, if it has one."""
    found = getattr(tokenizer, "image_token", None)
    return found if isinstance(found, str) and found else None


def _messages(images: tuple[int, ...], *, parts: bool) -> list[dict[str, Any]]:
    """Marks as messages: an instruction and an answer for each turn, which brings so many images."""
    found: list[dict[str, Any]] = []
    for turn, count in enumerate(images):
        for role in ("user", "assistant"):
            text = f"{_OPEN}{role[0]}{turn}{_CLOSE}"
            shown = [{"type": "image"}] * (count if role == "user" else 0)
            content = [*shown, {"type": "text", "text": text}]
            found.append({"role": role, "content": content if parts else text})
    return found


def _filled(
    place: _Said, turn: Exchange, image_text: Callable[[int], str], system: str, shown: bool
) -> list[tuple[Segment, bool]]:
    """What stands at a place; ``system`` comes before an instruction, as not every template has a place for it.

    ``shown``: the template has written the images.
    """
    if place.role == "a":
        return [(Words(place.trimmed(turn.answer or "")), True)]
    found: list[tuple[Segment, bool]] = []
    for picture in turn.images:
        if not shown:
            found.append((Picture(picture), False))
        if words := image_text(picture):
            found.append((Words(f"{words}\n"), False))
    if system:
        found.append((Words(f"{system}\n"), False))
    return [*found, (Words(place.trimmed(turn.instruction, left=not found)), False)]


def _after_an_answer(segments: Sequence[Segment], last: bool) -> list[tuple[Segment, bool]]:
    """What follows an answer is learned up to the first special token, which ends it.

    A template may leave it to the reader where the last answer ends.
    """
    end = next((number for number, one in enumerate(segments) if isinstance(one, Special)), -1)
    if last and end < 0:
        return [(EOS, True)]
    return [(segment, number <= end) for number, segment in enumerate(segments)]


def _until_unanswered(dialogue: Dialogue) -> Dialogue:
    """The exchanges up to the first that waits for its answer."""
    first = next((n for n, exchange in enumerate(dialogue) if exchange.answer is None), len(dialogue) - 1)
    return dialogue[: first + 1]


def _parsed(text: str, asked: Sequence[str], answered: bool) -> _Skeleton:
    """What a template wrote, with the places of what is said.

    ``asked`` is what it writes when it asks for each of the answers; what stands between that and the answer in
    ``text``, the model is to write.
    """
    pieces: list[_Written | _Said] = []
    said = []
    end = 0
    for found in _MARK.finditer(text):
        before, role, number, after = found.groups()
        turn, start = int(number), found.start()
        shown = start
        if role == "a" and turn < len(asked) and text[:start].startswith(asked[turn]):
            shown = max(end, len(asked[turn]))
        pieces += [
            _Written(text[end:shown]),
            _Written(text[shown:start], True),
            _Said(role, turn, not before, not after),
        ]
        said.append((turn, role))
        end = found.end()
    pieces.append(_Written(text[end:]))
    turns = len(asked) + (not answered)
    if said != [(turn, role) for turn in range(turns) for role in "ua"][: None if answered else -1]:
        raise PromptError(_NOT_ONCE.format("instruction and every answer"))
    last = pieces[-1]
    return tuple(piece for piece in pieces if isinstance(piece, _Said) or piece.text or (answered and piece is last))


def _split(text: str, tokenizer: Any) -> list[Segment]:
    """What a template wrote, as words and the tokenizer's special tokens."""
    tokens = {token.content: token for token in tokenizer.added_tokens_decoder.values() if token.content}
    if not tokens:
        return [Words(text)]
    longest_first = sorted(tokens, key=len, reverse=True)
    segments: list[Segment] = []
    for number, piece in enumerate(re.split(f"({'|'.join(map(re.escape, longest_first))})", text)):
        if number % 2 == 0:
            if piece:
                segments.append(Words(piece))
            continue
        # Some tokens take the white space around them in.
        if tokens[piece].lstrip and segments and isinstance(segments[-1], Words):
            segments[-1] = Words(segments[-1].text.rstrip())
        segments.append(Special(piece))
    return [
        Words(segment.text.lstrip())
        if isinstance(segment, Words) and isinstance(before, Special) and tokens[before.token].rstrip
        else segment
        for before, segment in zip([None, *segments[:-1]], segments, strict=True)
    ]
