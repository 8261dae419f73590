"""Chat templates by name: built-in ones, the tokenizer's own, and those of plugins."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest

from lyrics import Registry, Template, hookimpl
from lyrics.core.errors import PluginError, PromptError, UnknownNameError
from lyrics.core.language.chat_templates import TEMPLATES, check_template_name, end_ids, segments_of, template_named
from lyrics.core.language.jinja_templates import JinjaTemplate
from lyrics.core.language.tokenizers import byte_tokenizer
from lyrics.core.registry.registry import PluginSource
from lyrics.types import ChatTemplate, Exchange, Special, Words

ACME = ChatTemplate((), (Words("Q: "),), (Words("\nA:"),), (Special("<end>"),), answer_prefix=" ")
ACME_JINJA = "{% for m in messages %}{{ m.role }}: {{ m.content }}<end>{% endfor %}"
NO_TEMPLATE = 7


class Plugin:
    @hookimpl
    def lyrics_templates(self) -> Iterable[Template]:
        here = __name__
        yield Template("acme-chat", f"{here}:ACME", "what Acme's models were taught")
        yield Template("acme-jinja", f"{here}:ACME_JINJA")
        yield Template("acme-number", f"{here}:NO_TEMPLATE")
        yield Template("acme-gone", f"{here}:GONE")
        yield Template("Not A Name", f"{here}:ACME")
        yield Template("acme-path", "no path")
        yield Template("acme-chat", f"{here}:ACME_JINJA")


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry([(PluginSource("acme", "1", "acme"), Plugin)])


def text(template: Any) -> str:
    dialogue = (Exchange("why", "so"), Exchange("how"))
    return "".join(getattr(one, "text", getattr(one, "token", "")) for one, _ in segments_of(dialogue, template))


def test_plugins_bring_templates_of_both_forms(registry: Registry) -> None:
    tokenizer = byte_tokenizer(("<pad>", "<s>", "</s>", "<end>"))
    for name in ("acme-chat", "acme/acme-chat"):
        assert template_named(name, tokenizer, registry=registry) is ACME
    assert text(ACME) == "Q: why\nA: so<end>Q: how\nA:"
    found = template_named("acme-jinja", tokenizer, registry=registry)
    assert isinstance(found, JinjaTemplate)
    assert text(found) == "user: why<end>assistant: so<end>user: how<end>"
    assert found.ends == ACME.ends == ("<end>",)


def test_records_that_cannot_be_used_are_failures_of_their_own(registry: Registry) -> None:
    causes = [failure.cause for failure in registry.failures]
    assert any("'Not A Name' is not a chat template name" in cause for cause in causes)
    assert any("chat template 'acme-path': template must be 'package.module:attribute'" in cause for cause in causes)
    assert any("yields the chat template 'acme-chat' twice" in cause for cause in causes)
    with pytest.raises(PluginError, match=r"chat template 'acme-number' of acme.* is a int, not a ChatTemplate"):
        template_named("acme-number", registry=registry)
    with pytest.raises(PluginError, match=r"chat template 'acme-gone' of acme.* failed"):
        check_template_name("acme-gone", registry=registry)


def test_a_name_that_is_none_lists_those_that_are(registry: Registry) -> None:
    complaint = (
        r"no chat template 'acme-chap'\. Did you mean 'acme-chat'\? There are: plain, .*tokenizer, auto, acme-chat"
    )
    with pytest.raises(UnknownNameError, match=complaint):
        check_template_name("acme-chap", registry=registry)
    for name in (*TEMPLATES, "auto", "tokenizer"):
        check_template_name(name, registry=registry)


def test_the_tokenizer_s_own() -> None:
    tokenizer = byte_tokenizer(("<pad>", "<s>", "</s>", "<end>"))
    with pytest.raises(
        PromptError, match=r"chat_template=tokenizer: .*has no chat template of its own; set it to one of"
    ):
        template_named("tokenizer", tokenizer)
    tokenizer.chat_template = ACME_JINJA
    assert end_ids("tokenizer", tokenizer) == {3}
    assert end_ids("plain", tokenizer) == {2}
    assert end_ids("chatml", tokenizer) == set()
    with pytest.raises(PromptError, match="no chat template of its own"):
        template_named("tokenizer", SimpleNamespace())
