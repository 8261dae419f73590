"""SmolLM2 in 8 and 4 bits through bitsandbytes, on a CPU: what it answers, what it weighs, and that LoRA learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lyrics.core.model import LyricsModel
from tests.weights.test_smollm2 import built, logits

QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def whole(smollm2: Path, bert_words: Path) -> LyricsModel:
    pytest.importorskip("bitsandbytes", reason="the extra quant is not installed; run make test-weights")
    return built(bert_words, checkpoint=str(smollm2))


@pytest.fixture(scope="module", params=["8bit", "4bit"])
def quantized(whole: LyricsModel, smollm2: Path, bert_words: Path, request: pytest.FixtureRequest) -> LyricsModel:
    return built(bert_words, checkpoint=str(smollm2), quantization=request.param)


def size(model: LyricsModel) -> int:
    """Bytes of the linear layers, which are what is quantized."""
    modules = model.language_model.named_modules()
    return sum(
        one.weight.numel() * one.weight.element_size()
        for name, one in modules
        if isinstance(one, torch.nn.Linear) and "lora_" not in name and "lm_head" not in name
    )


def test_it_answers_beside_fp32_with_a_fraction_of_the_memory(whole: LyricsModel, quantized: LyricsModel) -> None:
    bits = 8 if quantized.spec.language_model.options["quantization"] == "8bit" else 4
    assert size(quantized) * 32 == size(whole) * bits
    found, expected = logits(quantized)[0, -1].softmax(-1), logits(whole)[0, -1].softmax(-1)
    # The divergence of the distributions over the next word; the words themselves follow.
    assert float((expected * (expected / found).log()).sum()) < (0.05 if bits == 8 else 0.5)
    assert "Paris" in quantized.generate([None], [QUESTION], max_new_tokens=12)[0].text


def test_lora_learns_beside_quantized_weights(quantized: LyricsModel) -> None:
    part = quantized.language_model
    trained = [one for one in part.parameters() if one.requires_grad]
    assert trained
    ids = torch.tensor([part.tokenizer("The capital of France is Rome.").input_ids])
    assert quantized.generate([None], [QUESTION], max_new_tokens=1)  # gradients must pass the weights afterwards, too
    before = [one.detach().clone() for one in part.parameters() if not one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses: list[Any] = []
    for _ in range(5):
        found = part(part.embed(ids), torch.ones_like(ids))[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(found.float(), ids[0, 1:]))
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.9 * losses[0]
    after = [one for one in part.parameters() if not one.requires_grad]
    assert all(torch.equal(one, two) for one, two in zip(after, before, strict=True))
