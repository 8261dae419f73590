"""Chat templates: what stands around instructions and answers, by name, by the tokenizer, or by a plugin."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

from lyrics.core.errors import PluginError, PromptError, UnknownNameError, did_you_mean
from lyrics.core.language.jinja_templates import JinjaTemplate, own_template
from lyrics.core.language.prompts import BOS, EOS, Dialogue, Picture, Segment, Special, Words, special_id
from lyrics.core.registry.registry import PluginSource, Registry, default_registry

#: What ``chat_template`` may be beside a name: the tokenizer's own template, or that where it has one and ``plain``
#: where it has none.
TOKENIZER, AUTO = "tokenizer", "auto"


class WritesPrompts(Protocol):
    """What makes segments of a conversation."""

    def segments(self, dialogue: Dialogue, image_text: Callable[[int], str]) -> list[tuple[Segment, bool]]:
        """Return a conversation, which has an exchange at least, as segments, each with whether it is learned."""
        ...

    @property
    def ends(self) -> tuple[str, ...]:
        """Special tokens that end an answer, as ``Special`` spells them."""
        ...


@dataclass(frozen=True)
class ChatTemplate:
    """What stands around instructions and answers.

    A conversation is ``begin``, then for every exchange ``before``, its content, ``between``, its answer, ``after``.
    ``images_first`` puts the images of the first exchange in front of everything, as the released code does.
    ``system`` is the text in ``begin`` that a system turn replaces; empty where there is no such turn.
    """

    begin: tuple[Segment, ...]
    before: tuple[Segment, ...]
    between: tuple[Segment, ...]
    after: tuple[Segment, ...]
    answer_prefix: str = ""
    images_first: bool = False
    system: str = ""

    def beginning(self, system: str) -> tuple[Segment, ...]:
        """``begin`` with these words in place of the template's own, where it has any."""
        if not (system and self.system):
            return self.begin
        return tuple(
            Words(one.text.replace(self.system, system)) if isinstance(one, Words) else one for one in self.begin
        )

    def segments(self, dialogue: Dialogue, image_text: Callable[[int], str]) -> list[tuple[Segment, bool]]:
        """Return a conversation as segments (``WritesPrompts``)."""
        found: list[tuple[Segment, bool]] = []

        def add(*segments: Segment, learned: bool = False) -> None:
            found.extend((segment, learned) for segment in segments)

        if self.images_first:
            add(*(Picture(picture) for picture in dialogue[0].images))
        system = dialogue[0].system
        add(*self.beginning(system))
        for number, exchange in enumerate(dialogue):
            add(*self.before)
            for picture in exchange.images:
                if number or not self.images_first:
                    add(Picture(picture))
                if words := image_text(picture):
                    add(Words(f"{words}\n"))
            if system and not number and not self.system:
                add(Words(f"{system}\n"))
            add(Words(exchange.instruction), *self.between)
            if exchange.answer is None:
                break
            add(Words(f"{self.answer_prefix}{exchange.answer}"), *self.after, learned=True)
        return found

    @property
    def ends(self) -> tuple[str, ...]:
        """Special tokens that end an answer."""
        return tuple(segment.token for segment in self.after if isinstance(segment, Special))


_VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
_QWEN = "You are a helpful assistant."
#: By the name that a language model's option ``chat_template`` gives.
TEMPLATES: Mapping[str, ChatTemplate] = MappingProxyType(
    {
        "plain": ChatTemplate((BOS,), (), (Words("\n"),), (EOS,)),
        "vicuna-v1.1": ChatTemplate(
            (BOS, Words(f"{_VICUNA} ")),
            (Words("USER: "),),
            (Words(" ASSISTANT:"),),
            (EOS,),
            answer_prefix=" ",
            system=_VICUNA,
        ),
        "chatml": ChatTemplate(
            (
                Special("<|im_start|>"),
                Words(f"system\n{_QWEN}"),
                Special("<|im_end|>"),
                Words("\n"),
            ),
            (Special("<|im_start|>"), Words("user\n")),
            (Special("<|im_end|>"), Words("\n"), Special("<|im_start|>"), Words("assistant\n")),
            (Special("<|im_end|>"),),
            system=_QWEN,
        ),
        "released": ChatTemplate((BOS,), (), (), (EOS,), images_first=True),
    }
)
#: One line on each of them.
SUMMARIES: Mapping[str, str] = MappingProxyType(
    {
        "plain": "nothing but line breaks, for models that were never taught a chat form",
        "vicuna-v1.1": "FastChat's conversation template vicuna_v1.1",
        "chatml": "Qwen's, without a system message of its own",
        "released": "the authors' stage 2: soft tokens, <s>, the question, the answer, </s>, no words around them",
    }
)


def template_named(name: str, tokenizer: Any = None, *, registry: Registry | None = None) -> WritesPrompts:
    """Return the chat template of a name: a built-in one, the tokenizer's own, or one that a plugin brings.

    Args:
        name: of ``TEMPLATES``, ``tokenizer``, or of a plugin's template, bare or as ``distribution/name``.
        tokenizer: what a template in Jinja is rendered for.
        registry: the plugins; None: those that are installed.

    Raises:
        UnknownNameError: there is no such template; the message lists those that there are.
        PluginError: the plugin that brings it is broken.
        PromptError: the tokenizer has no template of its own.
    """
    if name == TOKENIZER:
        source = own_template(tokenizer)
        if source is None:
            raise PromptError(
                "language_model.options.chat_template=tokenizer: the language model's tokenizer has no chat template "
                f"of its own; set it to one of {', '.join(TEMPLATES)}."
            )
        return JinjaTemplate(source, tokenizer)
    if name in TEMPLATES:
        return TEMPLATES[name]
    found, owner = _of_plugin(name, registry or default_registry())
    if isinstance(found, str):
        return JinjaTemplate(found, tokenizer)
    if not isinstance(found, ChatTemplate):
        raise PluginError(
            f"chat template {name!r} of {owner} is a {type(found).__name__}, not a ChatTemplate or a text in Jinja."
        )
    return found


def check_template_name(name: str, *, registry: Registry | None = None) -> None:
    """Raise as ``template_named`` unless there is a template of that name, or it is left to the tokenizer."""
    if name not in (AUTO, TOKENIZER, *TEMPLATES):
        template_named(name, registry=registry)


def end_ids(name: str, tokenizer: Any) -> set[int]:
    """Return the tokens with which an answer ends in a chat template, of those that the tokenizer has.

    Raises as ``template_named``.
    """
    found = set()
    for token in template_named(name, tokenizer).ends:
        with contextlib.suppress(PromptError):
            if (index := special_id(tokenizer, token)) is not None:
                found.add(index)
    return found


def _of_plugin(name: str, registry: Registry) -> tuple[Any, PluginSource]:
    """What a plugin names as the template ``name``, and who that is."""
    try:
        return registry.template(name)
    except UnknownNameError:
        names = (*TEMPLATES, TOKENIZER, AUTO, *(record.name for record, _ in registry.templates))
        broken = ", ".join(dict.fromkeys(str(failure.source) for failure in registry.failures))
        raise UnknownNameError(
            f"there is no chat template {name!r}.{did_you_mean(name, names)} There are: {', '.join(names)}."
            f"{f' Failed to load: {broken}; see lyrics doctor.' if broken else ''}"
        ) from None


def segments_of(
    dialogue: Dialogue, template: WritesPrompts, image_text: Callable[[int], str] = lambda picture: ""
) -> list[tuple[Segment, bool]]:
    """Return a conversation as segments, each with whether it is learned. It ends where the first missing answer would
    begin.

    ``image_text`` gives the words that follow an image, such as its spatial representation.
    """
    if not dialogue:
        raise PromptError("a conversation needs at least one instruction.")
    return template.segments(dialogue, image_text)
