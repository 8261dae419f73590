"""Every family of language models goes through everything, at toy size, with random weights from a few numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from lyrics.core.contracts import BuildContext
from lyrics.core.spec import validate
from lyrics.plugins.causal_lm import CausalLMOptions
from lyrics.plugins.causal_lm.build import build
from lyrics.plugins.causal_lm.model import CausalLM

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 4,
    "intermediate_size": 64,
    "max_positions": 128,
}
NO_LIMIT = {name: value for name, value in SIZES.items() if name != "max_positions"}
RECURRENT = {name: SIZES[name] for name in ("vocab_size", "hidden_size", "num_layers")}
FEW_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def of(
    sizes: Mapping[str, Any] = SIZES, *, without: tuple[str, ...] = (), layers: int = 2, **config: Any
) -> dict[str, Any]:
    """Options of a family: sizes, and entries of its configuration that are large by default."""
    kept = {name: value for name, value in sizes.items() if name not in without}
    return {**kept, "num_layers": layers, "config": config}


FAMILIES: dict[str, dict[str, Any]] = {
    "apertus": of(),
    "bloom": of(NO_LIMIT, without=("intermediate_size",)),
    "cohere2": of(),
    "deepseek_v3": of(
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        moe_intermediate_size=16,
        q_lora_rank=16,
        kv_lora_rank=8,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=8,
        first_k_dense_replace=1,
    ),
    "ernie4_5": of(head_dim=8),
    "exaone4": of(),
    "falcon": of(),
    "gemma2": of(head_dim=8),
    "gemma3_text": of(head_dim=8, sliding_window=4),
    "gemma4_text": of(head_dim=8, hidden_size_per_layer_input=0),
    "glm4": of(head_dim=8),
    "gpt2": of(),
    "gpt_neox": of(),
    "gpt_oss": of(head_dim=8, num_local_experts=4, num_experts_per_tok=2),
    "granite": of(),
    "lfm2": of(),
    "llama": of(),
    "mamba": of(RECURRENT, state_size=4),
    "mamba2": of(RECURRENT, state_size=4, num_heads=8, head_dim=8, n_groups=1),
    "ministral3": of(head_dim=8),
    "mistral": of(),
    "modernbert-decoder": of(),
    "nanochat": of(),
    "nemotron": of(),
    "olmo": of(),
    "olmo2": of(),
    "olmo3": of(layers=4, sliding_window=4),
    "opt": of(),
    "phi": of(),
    "phi3": of(),
    "qwen2": of(),
    "qwen3": of(head_dim=8),
    "qwen3_moe": of(head_dim=8, **FEW_EXPERTS),
    "qwen3_next": of(
        layers=4,
        head_dim=8,
        shared_expert_intermediate_size=16,
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        **FEW_EXPERTS,
    ),
    "seed_oss": of(head_dim=8),
    "smollm3": of(),
    "stablelm": of(),
    "starcoder2": of(),
}
#: Token ids are padded in front as prompts are: a row that is padded, and one that is not.
IDS = [[1, 40, 50, 60], [1, 70, 80, 90, 100, 110, 120]]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def made(family: str, **changes: Any) -> CausalLM:
    options = {"architecture": family, "lora": {"rank": 2}, **FAMILIES[family], **changes}
    torch.manual_seed(0)
    return build(validate(options, CausalLMOptions), BuildContext("random")).eval()


@pytest.fixture(scope="module")
def model(family: str) -> CausalLM:
    """With weights that are far from their initialization, so that every number of the configuration matters."""
    model = made(family)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def logits_of(model: CausalLM, ids: list[int]) -> torch.Tensor:
    row = torch.tensor([ids])
    with torch.no_grad():
        return model(model.embed(row), torch.ones_like(row))[0]


def test_logits_from_embeddings_are_those_from_ids(model: CausalLM) -> None:
    for ids in IDS:
        row = torch.tensor([ids])
        with torch.no_grad():
            expected = model._network()(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False).logits[0]
        found = logits_of(model, ids)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert float(found.std()) > 1e-3


def test_tokens_see_nothing_behind_them(model: CausalLM) -> None:
    found, shorter = logits_of(model, IDS[1]), logits_of(model, IDS[1][:4])
    torch.testing.assert_close(found[:4], shorter, rtol=1e-4, atol=1e-5)


def test_padded_prompts_are_answered_as_each_alone(model: CausalLM) -> None:
    longest = max(map(len, IDS))
    padded = torch.tensor([[0] * (longest - len(ids)) + ids for ids in IDS])
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in IDS])
    together = model.generate(model.embed(padded), mask, max_new_tokens=4)
    for row, ids in zip(together.tolist(), IDS, strict=True):
        so_far = list(ids)
        for token in row:
            if token == model.tokenizer.pad_token_id:
                break
            assert int(logits_of(model, so_far)[-1].argmax()) == token
            so_far.append(token)
        assert len(so_far) > len(ids)


def test_its_numbers_are_those_that_are_asked_for(model: CausalLM, family: str) -> None:
    options = FAMILIES[family]
    assert model.hidden_size == options["hidden_size"]
    assert model.max_positions == options.get("max_positions", 1_000_000)
    row = torch.tensor([IDS[0][:3]])  # no longer than any window
    with torch.no_grad():
        cache = getattr(model._network()(input_ids=row, use_cache=True), "past_key_values", None)
    layers = [layer for layer in getattr(cache, "layers", ()) if getattr(layer, "keys", None) is not None]
    kept = sum(layer.keys.numel() + layer.values.numel() for layer in layers)
    assert model.cache_numbers_per_token * 3 == kept


def test_a_step_trains_the_updates_and_nothing_else(model: CausalLM) -> None:
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    optimizer = torch.optim.SGD(trained.values(), lr=0.01)
    row = torch.tensor([IDS[1]])
    embeddings = model.embed(row).detach().requires_grad_()
    losses = []
    for _ in range(2):
        logits = model(embeddings, torch.ones_like(row))[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, row[0, 1:])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert embeddings.grad is not None
    assert float(embeddings.grad.abs().sum()) > 0
    assert all(one.grad is not None for one in trained.values())
    assert losses[1] < losses[0]
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed
    assert changed <= trained.keys()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(before[name])


def test_a_checkpoint_and_a_model_folder_bring_it_back(model: CausalLM, tmp_path: Path) -> None:
    """The checkpoint without one number restated, the folder from its configuration alone."""
    expected = logits_of(model, IDS[1])
    plain = made(model._network().config.model_type, adaptation="frozen")
    names = {name.replace("model.base_model.model.", "model."): one for name, one in model.state_dict().items()}
    plain.load_state_dict({name.replace(".base_layer", ""): one for name, one in names.items() if "lora_" not in name})
    plain.model.save_pretrained(tmp_path / "checkpoint")
    plain.tokenizer.save_pretrained(tmp_path / "checkpoint")
    options = validate({"checkpoint": str(tmp_path / "checkpoint"), "adaptation": "frozen"}, CausalLMOptions)
    loaded = build(options, BuildContext("pretrained")).eval()
    torch.testing.assert_close(logits_of(loaded, IDS[1]), logits_of(plain.eval(), IDS[1]))
    assert loaded.max_positions == model.max_positions
    (tmp_path / "part").mkdir()
    model.save_files(tmp_path / "part")
    again = build(validate({"lora": {"rank": 2}}, CausalLMOptions), BuildContext("random", files=tmp_path / "part"))
    again.load_state_dict(model.state_dict())
    assert torch.equal(logits_of(again.eval(), IDS[1]), expected)
