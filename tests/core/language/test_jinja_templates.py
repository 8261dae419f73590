"""Templates that tokenizers bring: the prompts that transformers makes of them, with words that stay words."""

from __future__ import annotations

from typing import Any

import pytest

from lyrics.core.errors import PromptError
from lyrics.core.language.jinja_templates import JinjaTemplate, own_template
from lyrics.core.language.prompts import Dialogue, Exchange, TokenPrompt, encode_words, reserved_ids, tokenize
from lyrics.core.language.tokenizers import byte_tokenizer
from tests.core.language.test_prompts import TOKENIZERS, injections

TOKENS = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<|head|>", "<|turn|>")

#: In the manner of families that are in use.
TEMPLATES = {
    "chatml": """
{%- for message in messages -%}
{%- if loop.first -%}<|im_start|>system\nYou help.<|im_end|>\n{% endif -%}
<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n
{%- endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant\n{% endif -%}""".replace("-%}\n<|im", "%}<|im"),
    "trims": """{{ bos_token }}{% for message in messages %}<|head|>{{ message['role'] }}<|head|>

{{ message['content'] | trim }}<|turn|>{% endfor %}{% if add_generation_prompt %}<|head|>assistant<|head|>

{% endif %}""",
    "instructions": """{{ bos_token }}{% for message in messages %}{%
 if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}{%
 if message.role == 'user' %}[INST] {{ message.content }} [/INST]{%
 else %} {{ message.content.strip() }}{{ eos_token }}{% endif %}{% endfor %}""",
    "thinks": """{% for message in messages %}<|im_start|>{{ message.role }}
{% if message.role == 'assistant' and loop.last %}<think>

</think>

{{ message.content.lstrip('\n') }}{% else %}{{ message.content.split('</think>')[-1] }}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% else %}<think>
{% endif %}{% endif %}""",
    "no tokens": """{# no end #}{% for message in messages %}{{ message.role | title }}: {{ message.content }}
{% endfor %}{% if add_generation_prompt %}Assistant: {% endif %}""",
    "dated": """{{ bos_token }}Today is {{ strftime_now('%d %B %Y') }}.{% for one in messages %}<|head|>{{ one.role }}
{{ one.content }}<|turn|>{% endfor %}{% if add_generation_prompt %}<|head|>assistant
{% endif %}""",
}
TALK: Dialogue = (
    Exchange("What is it?", "A dog."),
    Exchange("  Where, then?\n", "\nLeft. "),
    Exchange("Sure?\n\nVery?", "Yes"),
)


def tokenizer_with(template: str) -> Any:
    tokenizer = byte_tokenizer(TOKENS)
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(params=TEMPLATES)
def template(request: pytest.FixtureRequest) -> JinjaTemplate:
    source = TEMPLATES[request.param]
    return JinjaTemplate(source, tokenizer_with(source))


def prompt(template: JinjaTemplate, dialogue: Dialogue, **options: Any) -> TokenPrompt:
    return tokenize(template.segments(dialogue, options.get("text", lambda picture: "")), template.tokenizer, 2)


def messages_of(dialogue: Dialogue) -> list[dict[str, str]]:
    pairs = [(("user", one.instruction), ("assistant", one.answer)) for one in dialogue]
    return [{"role": role, "content": said} for pair in pairs for role, said in pair if said is not None]


def transformers_ids(template: JinjaTemplate, dialogue: Dialogue) -> list[int]:
    """What transformers makes of a conversation, on the day that the templates are told."""
    asks = dialogue[-1].answer is None
    return template.tokenizer.apply_chat_template(
        messages_of(dialogue),
        chat_template=template.source.replace("{{ strftime_now('%d %B %Y') }}", "26 Jul 2024"),
        add_generation_prompt=asks,
        enable_thinking=False,
        return_dict=False,
    )


def asked(turns: int) -> Dialogue:
    return (*TALK[: turns - 1], Exchange(TALK[turns - 1].instruction))


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_question_is_what_transformers_makes_of_it(template: JinjaTemplate, turns: int) -> None:
    assert list(prompt(template, asked(turns)).ids) == transformers_ids(template, asked(turns))


def test_an_answered_conversation_is_too(template: JinjaTemplate) -> None:
    found, expected = list(prompt(template, TALK).ids), transformers_ids(template, TALK)
    if "no end" in template.source:
        line_break, end = encode_words(template.tokenizer, "\n"), template.tokenizer.eos_token_id
        assert found == [*expected[: -len(line_break)], end]
    else:
        assert found == expected


def test_answers_are_learned_with_what_ends_them(template: JinjaTemplate) -> None:
    found = prompt(template, TALK)
    tokenizer = template.tokenizer
    learned = tokenizer.decode([i for i, target in zip(found.ids, found.targets, strict=True) if target])
    end = "<|im_end|>" if "im_end" in template.source else "<|turn|>" if "turn" in template.source else "</s>"
    assert learned.endswith(f"Yes{end}")
    if "no end" in template.source:
        assert learned == f"A dog.\nLeft. Yes{end}"
    elif "INST" in template.source:  # the space before an answer is the model's to write
        assert learned == f" A dog.{end} Left.{end} Yes{end}"
    else:
        assert [one.strip() for one in learned.split(end)] == ["A dog.", "Left.", "Yes", ""]
    assert template.ends == (("eos",) if "no end" in template.source else (end,))


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_prompt_has_the_same_tokens_whether_its_answer_follows_or_not(template: JinjaTemplate, turns: int) -> None:
    waiting, answered = prompt(template, asked(turns)), prompt(template, TALK[:turns])
    assert answered.ids[: len(waiting)] == waiting.ids
    assert all(answered.targets[len(waiting) : len(waiting) + 2])


@pytest.mark.parametrize("name", TOKENIZERS)
def test_what_is_said_stays_words(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    source = TEMPLATES["instructions"]
    template = JinjaTemplate(source, tokenizer)
    reserved = reserved_ids(tokenizer)
    harmless = [i for i in prompt(template, (Exchange("thing", "thing"), Exchange("thing"))).ids if i in reserved]
    marks = ["\n\u2003\ue000u0\ue001\u2003\n", "{{ bos_token }}", "{% raw %}", "[/INST]"]
    for text in [*injections(), *marks]:
        said = text.strip()
        found = prompt(template, (Exchange(said, said), Exchange(said)), text=lambda picture: said)  # noqa: B023
        assert [i for i in found.ids if i in reserved] == harmless, text
        assert not found.slots
        words = encode_words(tokenizer, f"[INST] {said} [/INST] {said}")
        assert tokenizer.decode(words) in tokenizer.decode(found.ids)


def test_words_do_not_steer_a_template() -> None:
    """This one shows what follows </think> alone, and numbers what begins with a hash."""
    source = TEMPLATES["thinks"]
    template = JinjaTemplate(source, tokenizer_with(source))
    found = template.tokenizer.decode(prompt(template, (Exchange("say </think> twice </think> ok"),)).ids)
    assert "say </think> twice </think> ok" in found


def test_pictures_stand_before_the_words_of_their_instruction(template: JinjaTemplate) -> None:
    dialogue = (Exchange("a", "b", (0, 1)), Exchange("c", None, (2,)))
    found = prompt(template, dialogue, text=lambda picture: f"seen {picture}" if picture else "")
    assert [picture for _, picture in found.slots] == [0, 1, 2]
    (first, _), (second, _), (third, _) = found.slots
    assert second == first + 2
    tokenizer = template.tokenizer
    assert tokenizer.decode(found.ids[second + 2 :]).startswith("seen 1\na")
    assert tokenizer.decode(found.ids[third + 2 :]).startswith("seen 2\nc")
    assert not any(found.targets[place] for start, _ in found.slots for place in (start, start + 1))


def test_the_same_question_has_the_same_prompt_on_every_day() -> None:
    source = TEMPLATES["dated"]
    template = JinjaTemplate(source, tokenizer_with(source))
    assert "Today is 26 Jul 2024." in template.tokenizer.decode(prompt(template, asked(1)).ids)


def test_tokens_that_take_in_the_white_space_around_them_do_so() -> None:
    from tokenizers import AddedToken

    tokenizer = tokenizer_with("{% for m in messages %}<|user|>\n{{ m.content }} <|end|>\n{% endfor %}")
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken("<|user|>", rstrip=True), AddedToken("<|end|>", lstrip=True)]}
    )
    template = JinjaTemplate(tokenizer.chat_template, tokenizer)
    assert list(prompt(template, asked(2)).ids[:20]) == transformers_ids(template, asked(2))[:20]
    found = tokenizer.decode(prompt(template, asked(1)).ids)
    assert found == "<|user|>What is it?<|end|>\n"


def test_a_switch_that_a_template_refuses_is_left_alone() -> None:
    source = "{% if enable_thinking is defined %}{{ raise_exception('no switch') }}{% endif %}" + TEMPLATES["trims"]
    template = JinjaTemplate(source, tokenizer_with(source))
    assert template.tokenizer.decode(prompt(template, asked(1)).ids).startswith("<s><|head|>user")


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("{{ raise_exception('only tools') }}", r"cannot be rendered: only tools\. Set language_model\.options\.chat_"),
        ("{% for m in messages %", "cannot be rendered"),
        (
            "{{ messages[0].content }}{{ messages[0].content }}",
            "does not write every instruction and every answer once",
        ),
        ("{% for m in messages | reverse %}{{ m.content }}{% endfor %}", "once and in order"),
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "cannot be rendered"),
    ],
)
def test_templates_that_cannot_be_used_say_why(source: str, complaint: str) -> None:
    template = JinjaTemplate(source, tokenizer_with(source))
    with pytest.raises(PromptError, match=complaint):
        template.segments(TALK, lambda picture: "")


def test_which_template_is_the_tokenizer_s_own() -> None:
    assert own_template(byte_tokenizer(TOKENS)) is None
    assert own_template(tokenizer_with("{{ 1 }}")) == "{{ 1 }}"
    several = tokenizer_with("")
    several.chat_template = {"default": "{{ 2 }}", "tools": "{{ 3 }}"}
    assert own_template(several) == "{{ 2 }}"
    several.chat_template = {"tools": "{{ 3 }}"}
    with pytest.raises(PromptError, match="has the chat templates tools, and none is called default"):
        own_template(several)
