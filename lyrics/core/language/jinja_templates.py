"""Chat templates written in Jinja, as tokenizers bring them.

A template is rendered with marks in the place of what users and data sets say, so that it sees none of their words:
what stands between the marks is the template's own, and may hold special tokens; the words come in afterwards, and are
encoded as words (``lyrics.core.language.prompts``). transformers renders in a sandbox.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from lyrics.core.errors import PromptError
from lyrics.core.language.prompts import EOS, Dialogue, Exchange, Picture, Segment, Special, Words

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
#: Tokenizer -> what its templates look like, by template, turns of the conversation, and whether it is answered.
_skeletons: WeakKeyDictionary[Any, dict[tuple[str, int, bool], _Skeleton]] = WeakKeyDictionary()


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
        skeleton = self._skeleton(len(turns), answered)
        found: list[tuple[Segment, bool]] = []
        for number, piece in enumerate(skeleton):
            if isinstance(piece, _Said):
                system = turns[0].system if piece.turn == 0 else ""
                found += _filled(piece, turns[piece.turn], image_text, system)
                continue
            segments = _split(piece.text, self.tokenizer)
            before = skeleton[number - 1] if number else None
            if isinstance(before, _Said) and before.role == "a":
                last = answered and number == len(skeleton) - 1
                found += _after_an_answer(segments, last)
            else:
                found += [(segment, piece.learned) for segment in segments]
        return found

    @property
    def ends(self) -> tuple[str, ...]:
        """The special token that follows an answer."""
        dialogue = (Exchange("", ""),)
        after = [one for one, learned in self.segments(dialogue, lambda picture: "") if learned]
        return tuple(one.token for one in after if isinstance(one, Special))

    def _skeleton(self, turns: int, answered: bool) -> _Skeleton:
        known = _skeletons.setdefault(self.tokenizer, {})
        key = (self.source, turns, answered)
        if key not in known:
            known[key] = self._made(turns, answered)
        return known[key]

    def _made(self, turns: int, answered: bool) -> _Skeleton:
        """The template of a conversation with so many instructions, all but perhaps the last of them answered."""
        messages = [
            {"role": role, "content": f"{_OPEN}{role[0]}{turn}{_CLOSE}"}
            for turn in range(turns)
            for role in ("user", "assistant")
        ]
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

    def _rendered(self, messages: Sequence[Mapping[str, str]], asks: bool) -> str:
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


def _filled(place: _Said, turn: Exchange, image_text: Callable[[int], str], system: str) -> list[tuple[Segment, bool]]:
    """What stands at a place; ``system`` comes before an instruction, as not every template has a place for it."""
    if place.role == "a":
        return [(Words(place.trimmed(turn.answer or "")), True)]
    found: list[tuple[Segment, bool]] = []
    for picture in turn.images:
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
        raise PromptError(
            "the chat template of the language model's tokenizer does not write every instruction and every answer "
            "once and in order; set language_model.options.chat_template to a named one."
        )
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
