"""A real language model goes through everything that the library does with one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lyrics.core.loading import build_model
from lyrics.core.model import LyricsModel
from tests.core.small import small

QUESTION, ANSWER = "What is the capital of France?", "The capital of France is Paris."


@pytest.fixture(scope="module")
def model(smollm2: Path, bert_words: Path) -> LyricsModel:
    """SmolLM2 as the language model, BERT's words for the query transformer; nothing of the checkpoint is restated."""
    language_model = {"use": "causal-lm", "options": {"checkpoint": str(smollm2), "chat_template": "chatml"}}
    spec = small(refiner=None, image_encoder="tiny-vit", language_model=language_model)
    words = {"query_transformer.options.tokenizer": str(bert_words), "query_transformer.options.vocab_size": 30525}
    return build_model(spec.with_overrides(words)).eval()


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
