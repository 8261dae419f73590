"""A real language model goes through everything that the library does with one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lyrics.core.errors import WeightsError
from lyrics.core.loading import build_model
from lyrics.core.model import LyricsModel
from tests.core.small import small

QUESTION, ANSWER = "What is the capital of France?", "The capital of France is Paris."


def built(bert_words: Path, **options: Any) -> LyricsModel:
    """A language model beside small parts, with BERT's words for the query transformer."""
    spec = small(refiner=None, image_encoder="tiny-vit", language_model={"use": "causal-lm", "options": options})
    words = {"query_transformer.options.tokenizer": str(bert_words), "query_transformer.options.vocab_size": 30525}
    return build_model(spec.with_overrides(words)).eval()


@pytest.fixture(scope="module")
def model(smollm2: Path, bert_words: Path) -> LyricsModel:
    """SmolLM2; nothing of the checkpoint is restated, and the chat template is the tokenizer's own."""
    return built(bert_words, checkpoint=str(smollm2))


def logits(model: LyricsModel) -> torch.Tensor:
    tokenizer = model.language_model.tokenizer
    ids = torch.tensor([tokenizer("The capital of France is").input_ids])
    with torch.no_grad():
        return model.language_model(model.language_model.embed(ids), torch.ones_like(ids))


def answer(model: LyricsModel) -> str:
    return model.generate([None], [QUESTION], max_new_tokens=12)[0].text


def test_it_answers_as_its_makers_model_does(model: LyricsModel, smollm2: Path) -> None:
    from transformers import AutoModelForCausalLM

    assert answer(model) == ANSWER
    original = AutoModelForCausalLM.from_pretrained(smollm2).eval()
    ids = torch.tensor([model.language_model.tokenizer("The capital of France is").input_ids])
    with torch.no_grad():
        torch.testing.assert_close(logits(model), original(ids).logits, rtol=1e-4, atol=1e-4)


def test_it_is_asked_through_its_own_chat_template(model: LyricsModel) -> None:
    from lyrics.core.language.chat_templates import segments_of, template_named
    from lyrics.core.language.prompts import Exchange, tokenize

    part = model.language_model
    assert part.chat_template == "tokenizer"
    template = template_named(part.chat_template, part.tokenizer)
    for talk in ((Exchange(QUESTION),), (Exchange(QUESTION, "Paris."), Exchange(" And of Spain?\n"))):
        messages = [
            {"role": role, "content": said}
            for exchange in talk
            for role, said in (("user", exchange.instruction), ("assistant", exchange.answer))
            if said is not None
        ]
        expected = part.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert list(tokenize(segments_of(talk, template), part.tokenizer, 0).ids) == expected
    assert part.ends == [part.tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert model.generate([None], ["Say <|im_end|> and stop."], max_new_tokens=4)[0].text


def test_a_named_template_is_there_too(smollm2: Path, bert_words: Path) -> None:
    found = answer(built(bert_words, checkpoint=str(smollm2), chat_template="chatml"))
    assert "Paris" in found


def test_the_gguf_file_is_the_same_model(
    model: LyricsModel, smollm2_gguf: Path, bert_words: Path, tmp_path: Path
) -> None:
    """Read as it is, saved as safetensors, and loaded without it."""
    unpacked = built(bert_words, checkpoint=str(smollm2_gguf))
    assert torch.equal(logits(unpacked), logits(model))
    assert answer(unpacked) == ANSWER
    unpacked.save_pretrained(tmp_path)
    again = LyricsModel.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again), logits(model))
    assert answer(again) == ANSWER
    with pytest.raises(WeightsError, match="num_layers is 12, the checkpoint has 30"):
        built(bert_words, checkpoint=str(smollm2_gguf.parent), num_layers=12)
    with pytest.raises(WeightsError, match="the weights of a GGUF file are quantized already"):
        built(bert_words, checkpoint=str(smollm2_gguf), quantization="4bit")


def test_its_numbers_are_the_checkpoint_s(model: LyricsModel) -> None:
    config = model.language_model.model.config
    assert model.language_model.hidden_size == 576
    assert model.language_model.max_positions == 8192
    assert config.num_key_value_heads == 3
    assert config.rope_parameters["rope_theta"] == 100_000
    assert config.tie_word_embeddings


def test_it_answers_the_same_after_save_and_load(model: LyricsModel, tmp_path: Path) -> None:
    expected = logits(model)
    model.save_pretrained(tmp_path / "whole")
    again = LyricsModel.from_pretrained(tmp_path / "whole").eval()
    assert torch.equal(logits(again), expected)
    assert answer(again) == ANSWER


def test_the_trained_parts_alone_come_back_onto_it(model: LyricsModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, trainable_only=True)
    again = LyricsModel.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again), logits(model))
    assert (tmp_path / "model.safetensors").stat().st_size < 50e6
