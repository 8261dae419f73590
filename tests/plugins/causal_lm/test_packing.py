"""Prompts of a batch in rows without padding: the loss and its gradients are those of padded ones."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM as Auto
from transformers import (
    BloomConfig,
    FalconConfig,
    Gemma3TextConfig,
    GPTNeoXConfig,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    OPTConfig,
    PreTrainedConfig,
    Qwen3Config,
)

from lyrics.core.language.prompts import TokenPrompt
from lyrics.core.language.soft_prompts import answer_loss, answer_losses, embed_packed, rows_of
from lyrics.core.language.tokenizers import byte_tokenizer
from lyrics.core.stage1.state import Loss
from lyrics.plugins.causal_lm import CausalLMOptions
from lyrics.plugins.causal_lm.build import SPECIAL_TOKENS
from lyrics.plugins.causal_lm.model import CausalLM
from tests.plugins.causal_lm.test_causal_lm import make

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LAYERS: dict[str, Any] = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
PACKING: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=8),
    "sliding windows": Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=6),
    "gpt_neox": GPTNeoXConfig(**LAYERS, intermediate_size=48),
}
NOT_PACKING: dict[str, PreTrainedConfig] = {
    "convolutions": Lfm2Config(**SIZES, layer_types=["conv", "full_attention"], conv_L_cache=5),
    "recurrent": MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, state_size=4),
    "a mask that sees no positions": OPTConfig(
        vocab_size=300, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32
    ),
    "alibi": BloomConfig(vocab_size=300, hidden_size=32, n_layer=2, n_head=4),
    "alibi of falcon": FalconConfig(**LAYERS, alibi=True),
}
WIDTH, QUERIES = 32, 4


def made(config: PreTrainedConfig) -> CausalLM:
    torch.manual_seed(0)
    model = Auto.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    options = CausalLMOptions(adaptation="full", chat_template="plain")
    return CausalLM(model, byte_tokenizer(SPECIAL_TOKENS), options).eval()


def prompts(*lengths: int, pictures: int = 3) -> list[TokenPrompt]:
    random.seed(1)
    found = []
    for number, length in enumerate(lengths):
        slots = ((1, number % pictures),) if length > QUERIES + 2 else ()
        ids = tuple(random.randrange(3, 290) for _ in range(length))
        targets = tuple(place > length // 2 for place in range(length))
        found.append(TokenPrompt(ids, targets, slots))
    return found


@pytest.mark.parametrize("family", PACKING)
def test_loss_and_gradients_are_those_of_padded_prompts(family: str) -> None:
    language_model = made(PACKING[family])
    assert language_model.packs
    batch = prompts(23, 4, 11, 17, 2, 9, 23, 1, 12)
    results = []
    for packed in (True, False):
        language_model.zero_grad()
        soft_PQD = torch.randn(3, QUERIES, WIDTH, generator=torch.Generator().manual_seed(5), requires_grad=True)
        if packed:
            losses = answer_losses(batch, soft_PQD, language_model)
            assert len(losses) == 3, "two rows at a time"
            loss = Loss(torch.stack([one.sum for one in losses]).sum(), sum(one.count for one in losses))
        else:
            loss = answer_loss(batch, soft_PQD, language_model)
        loss.sum.backward()
        gradients = {name: one.grad.clone() for name, one in language_model.named_parameters() if one.grad is not None}
        results.append((loss, {**gradients, "soft tokens": soft_PQD.grad}))
    (one, gradients), (other, wanted) = results
    assert one.count == other.count == sum(sum(prompt.targets[1:]) for prompt in batch)
    assert one.sum.item() == pytest.approx(other.sum.item(), rel=1e-5)
    assert set(gradients) == set(wanted)
    for name, gradient in wanted.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-4 * float(gradient.abs().max()))


def test_rows_are_filled() -> None:
    language_model = made(PACKING["llama"])
    soft = embed_packed(rows_of(prompts(10, 6, 4, 3, 3, 2)), torch.zeros(3, QUERIES, WIDTH), language_model)
    assert soft.embeddings_BLD.shape == (3, 10, WIDTH)
    assert soft.mask_BL.sum(dim=1).tolist() == [10, 10, 8]
    assert soft.positions_BL.tolist() == [
        [*range(10)],
        [*range(6), *range(4)],
        [0, 1, 2, 0, 1, 2, 0, 1, 0, 1],
    ]


def test_ranks_that_share_the_language_model_run_it_once() -> None:
    language_model = made(PACKING["llama"])
    soft_PQD = torch.zeros(3, QUERIES, WIDTH)
    assert len(answer_losses(prompts(9, 9, 9, 9, 9), soft_PQD, language_model, one_pass=True)) == 1
    assert len(answer_losses(prompts(9, 9, 9, 9, 9), soft_PQD, language_model)) == 3


def test_one_prompt_and_none() -> None:
    language_model = made(PACKING["llama"])
    soft_PQD = torch.randn(3, QUERIES, WIDTH)
    (loss,) = answer_losses(prompts(9), soft_PQD, language_model)
    assert float(loss.sum) == pytest.approx(float(answer_loss(prompts(9), soft_PQD, language_model).sum), rel=1e-5)
    (nothing,) = answer_losses([], soft_PQD, language_model)
    assert (float(nothing.sum), nothing.count) == (0.0, 0)


@pytest.mark.parametrize("family", NOT_PACKING)
def test_families_that_would_mix_prompts_are_padded(family: str) -> None:
    language_model = made(NOT_PACKING[family])
    assert not language_model.packs
    batch = prompts(12, 7, 5)
    soft_PQD = torch.randn(3, QUERIES, WIDTH)
    (loss,) = answer_losses(batch, soft_PQD, language_model)
    assert float(loss.sum) == pytest.approx(float(answer_loss(batch, soft_PQD, language_model).sum), rel=1e-5)


def test_asking_leaves_the_mode_and_the_generators() -> None:
    language_model = made(PACKING["llama"]).train()
    state = torch.get_rng_state()
    assert language_model.packs
    assert language_model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_lora_and_gradient_checkpointing_pack_and_compiled_models_do_not() -> None:
    assert make(adaptation="lora", gradient_checkpointing=True).packs
    assert not make(compile=True).packs
