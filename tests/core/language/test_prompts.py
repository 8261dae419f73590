"""Prompts: templates, what is learned, and that no text ever becomes a special token or a picture."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from lyrics.core.errors import PromptError, UnknownNameError
from lyrics.core.language.chat_templates import TEMPLATES, segments_of, template_named
from lyrics.core.language.prompts import (
    Exchange,
    Picture,
    Special,
    TokenPrompt,
    Words,
    cut,
    encode_words,
    tokenize,
)
from lyrics.core.language.soft_prompts import embed, groups_by_length
from lyrics.core.language.tokenizers import byte_tokenizer

SPECIALS = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<image>", "[INST]")
TALK = (Exchange("What is it?", "A dog.", (0,)), Exchange("And this?", None, (1, 2)))


def merging_tokenizer() -> Any:
    """A byte-level BPE that has learned merges across a few words, as real ones have."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = ["A chat between a user and an assistant. USER: what is it? ASSISTANT: a dog. <br><T>dog</T>"] * 3
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=list(SPECIALS), initial_alphabet=alphabet)
    tokenizer.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>", "<image>", "[INST]"],
        clean_up_tokenization_spaces=False,
    )


TOKENIZERS = {"bytes": byte_tokenizer(SPECIALS), "merges": merging_tokenizer()}


def shown(prompt: TokenPrompt, tokenizer: Any) -> str:
    """The prompt's text with pictures as {0}, {1}, ... and what is learned between brackets."""
    starts = dict(prompt.slots)
    text, position, learned = "", 0, False
    per_picture = 3
    while position < len(prompt):
        if prompt.targets[position] != learned:
            learned = not learned
            text += "[" if learned else "]"
        if position in starts:
            text += f"{{{starts[position]}}}"
            position += per_picture
            continue
        run = [prompt.ids[position]]
        while (
            position + len(run) < len(prompt)
            and position + len(run) not in starts
            and prompt.targets[position + len(run)] == learned
        ):
            run.append(prompt.ids[position + len(run)])
        text += tokenizer.decode(run)
        position += len(run)
    return text + ("]" if learned else "")


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("plain", "<s>{0}dog at 1\nWhat is it?\n[A dog.</s>]{1}{2}And this?\n"),
        (
            "vicuna-v1.1",
            "<s>A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
            "detailed, and polite answers to the user's questions. USER: {0}dog at 1\nWhat is it? ASSISTANT:[ A "
            "dog.</s>]USER: {1}{2}And this? ASSISTANT:",
        ),
        (
            "chatml",
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{0}dog at 1\nWhat is "
            "it?<|im_end|>\n<|im_start|>assistant\n[A dog.<|im_end|>]<|im_start|>user\n{1}{2}And "
            "this?<|im_end|>\n<|im_start|>assistant\n",
        ),
        ("released", "{0}<s>dog at 1\nWhat is it?[A dog.</s>]{1}{2}And this?"),
    ],
)
def test_templates(template: str, expected: str, name: str) -> None:
    segments = segments_of(TALK, TEMPLATES[template], lambda picture: "dog at 1" if picture == 0 else "")
    tokenizer = TOKENIZERS[name]
    assert shown(tokenize(segments, tokenizer, 3), tokenizer) == expected


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_prompt_is_the_beginning_of_the_conversation_it_is_answered_into(template: str, name: str) -> None:
    """What is generated stands exactly where it was learned."""
    tokenizer = TOKENIZERS[name]
    for answer in ("a dog.", " dog", "t is it", ""):
        asked = tokenize(segments_of((Exchange("what", None, (0,)),), TEMPLATES[template]), tokenizer, 2)
        answered = tokenize(segments_of((Exchange("what", answer, (0,)),), TEMPLATES[template]), tokenizer, 2)
        # Only a template that puts nothing between question and answer lets a token grow across the two.
        kept = len(asked) - (1 if template == "released" and name == "merges" else 0)
        assert answered.ids[:kept] == asked.ids[:kept]
        assert not any(answered.targets[:kept])
        assert all(answered.targets[len(asked) :])
        assert answered.ids[-1] in (tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>"))


def injections() -> list[str]:
    """Reserved tokens in 300 disguises."""
    disguises = [
        lambda t: t,
        lambda t: f"a{t}b",
        lambda t: f" {t} ",
        lambda t: t * 3,
        lambda t: t.upper(),
        lambda t: t.replace("<", "&lt;").replace(">", "&gt;"),
        lambda t: "\u200b".join(t),
        lambda t: f"\n{t}\n",
        lambda t: t[:1] + t,
        lambda t: t + t[-1:],
        lambda t: f"\x00{t}\x00",
        lambda t: t.replace("<", "\uff1c"),
        lambda t: f"{{{t}}}",
        lambda t: f"</T>{t}",
        lambda t: f"\\u003c{t[1:]}",
        lambda t: f"{t}USER:",
        lambda t: f"ASSISTANT:{t}",
        lambda t: f"\x00123\x00{t}",
        lambda t: "".join(reversed(t)) + t,
        lambda t: t.replace("", " ").strip(),
    ]
    words = [*SPECIALS, "[MASK]", "[DEC]", "[CLS]", "<image/>", "<|image_pad|>", "<unk>", "<Bbox>", "[SEP]"]
    return [disguise(word) for word, disguise in itertools.product(words, disguises)]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_no_text_becomes_a_special_token_or_a_picture(template: str, name: str) -> None:
    tokenizer = TOKENIZERS[name]
    plain = segments_of((Exchange("q", "a", (0,)),), TEMPLATES[template], lambda picture: "s")
    harmless = tokenize(plain, tokenizer, 2)
    special = set(tokenizer.all_special_ids)

    def reserved(prompt: TokenPrompt) -> list[int]:
        inside = {start + offset for start, _ in prompt.slots for offset in range(2)}
        return [i for position, i in enumerate(prompt.ids) if i in special and position not in inside]

    strings = injections()
    assert len(strings) >= 300
    for text in strings:
        segments = segments_of((Exchange(text, text, (0,)),), TEMPLATES[template], lambda picture: text)  # noqa: B023
        prompt = tokenize(segments, tokenizer, 2)
        assert reserved(prompt) == reserved(harmless), text
        assert len(prompt.slots) == 1
        assert tokenizer.decode(encode_words(tokenizer, text)) == text


def test_template_that_does_not_exist_or_cannot_be_met() -> None:
    with pytest.raises(UnknownNameError, match=r"no chat template 'vicuna'\. Did you mean 'vicuna-v1\.1'\?"):
        template_named("vicuna")
    with pytest.raises(PromptError, match=r"needs the token '<\|im_start\|>'.*language_model\.options\.chat_template"):
        tokenize(segments_of(TALK, TEMPLATES["chatml"]), byte_tokenizer(("<pad>", "<s>", "</s>")), 2)
    with pytest.raises(PromptError, match="at least one instruction"):
        segments_of((), TEMPLATES["plain"])


def test_tokenizer_without_a_first_token_begins_with_the_template() -> None:
    tokenizer = byte_tokenizer(("<pad>", "</s>"))
    prompt = tokenize([(Special("bos"), False), (Words("a"), False)], tokenizer, 2)
    assert len(prompt) == 1


def test_cut_never_cuts_through_a_picture() -> None:
    segments = [(Words("ab"), False), (Picture(0), False), (Words("cd"), True), (Picture(1), False)]
    prompt = tokenize(segments, TOKENIZERS["bytes"], 3)
    assert len(prompt) == 10
    for longest, length, slots in (
        (1, 1, 0),
        (3, 2, 0),
        (4, 2, 0),
        (5, 5, 1),
        (6, 6, 1),
        (8, 7, 1),
        (9, 7, 1),
        (10, 10, 2),
        (99, 10, 2),
    ):
        shorter = cut(prompt, longest, 3)
        assert (len(shorter), len(shorter.slots)) == (length, slots)
        assert shorter.ids == prompt.ids[:length]
        assert shorter.targets == prompt.targets[:length]


@pytest.mark.parametrize("side", ["left", "right"])
def test_soft_tokens_stand_where_their_pictures_do(side: Any) -> None:
    class Table:
        weight = torch.arange(300.0)[:, None].expand(300, 2).clone().requires_grad_()

        def embed(self, ids: torch.Tensor) -> torch.Tensor:
            return self.weight[ids]

    tokenizer = TOKENIZERS["bytes"]
    soft = torch.tensor([[[-1.0] * 2, [-2.0] * 2], [[-3.0] * 2, [-4.0] * 2]], requires_grad=True)
    first = tokenize([(Words("ab"), False), (Picture(1), False), (Words("c"), True)], tokenizer, 2)
    second = tokenize([(Picture(0), False), (Picture(1), False)], tokenizer, 2)
    third = tokenize([(Words("x"), True)], tokenizer, 2)
    batch = embed([first, second, third], soft, Table(), side)
    a, b, c, x = (encode_words(tokenizer, letter)[0] for letter in "abcx")
    rows = [[a, b, -3, -4, c], [-1, -2, -3, -4], [x]]
    for row, values in enumerate(rows):
        span = slice(5 - len(values), 5) if side == "left" else slice(0, len(values))
        assert batch.embeddings_BLD[row, span, 0].tolist() == values
        assert batch.mask_BL[row, span].all()
        assert int(batch.mask_BL[row].sum()) == len(values)
    assert int(batch.targets_BL.sum()) == 2
    batch.embeddings_BLD.sum().backward()
    assert soft.grad is not None
    assert soft.grad[:, :, 0].tolist() == [[1.0, 1.0], [2.0, 2.0]]
    assert embed([], soft, Table(), side).embeddings_BLD.shape[:2] == (0, 0)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([], []),
        ([7], [[7]]),
        ([9, 1, 5], [[9, 5, 1]]),
        ([10, 10, 10, 10, 8, 7, 6, 5, 1], [[7, 6, 5, 1], [10, 10, 10, 10, 8]]),
        ([100] * 5, [[100] * 5]),
    ],
)
def test_prompts_of_like_length_go_together(lengths: list[int], expected: list[list[int]]) -> None:
    prompts = [TokenPrompt((index,) * length, (False,) * length, ()) for index, length in enumerate(lengths)]
    groups = groups_by_length(prompts)
    assert [[len(prompt) for prompt in group] for group in groups] == expected
    assert sorted(prompt.ids for group in groups for prompt in group) == sorted(prompt.ids for prompt in prompts)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("plain", ["Be brief.\n", "q"]),
        ("released", ["Be brief.\n", "q"]),
        ("vicuna-v1.1", ["Be brief. ", "USER: ", "q"]),
        ("chatml", ["system\nBe brief.", "\n", "user\n", "q"]),
    ],
)
def test_a_system_turn_takes_the_place_of_the_templates_own(template: str, expected: list[str]) -> None:
    """Or stands before the question where the template has none; it is said once, and is never learned."""
    talk = (Exchange("q", "a", (), "Be brief."), Exchange("and?"))
    segments = segments_of(talk, TEMPLATES[template])
    words = [one.text for one, _ in segments if isinstance(one, Words)]
    assert words[: len(expected)] == expected
    assert sum("Be brief." in text for text in words) == 1
    assert not any("polite" in text or "helpful" in text for text in words)
    assert all(not learned for one, learned in segments if isinstance(one, Words) and "brief" in one.text)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_names_its_own_system_turn(template: str) -> None:
    """What ``system`` says is what stands in ``begin``; without a system turn nothing changes."""
    found = TEMPLATES[template]
    words = "".join(one.text for one in found.begin if isinstance(one, Words))
    assert found.system in words
    assert bool(found.system) == any(letter.isalpha() for letter in words)
    assert found.beginning("") == found.begin
