"""The language model: every architecture, every adaptation, and a checkpoint that must match the spec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lyrics.core.contracts import BuildContext
from lyrics.core.errors import SpecError, WeightsError
from lyrics.core.spec import validate
from lyrics.plugins.causal_lm import CausalLMOptions, lyrics_components
from lyrics.plugins.causal_lm.model import CausalLM, build

SMALL = dict(next(iter(lyrics_components())).test_options)


def make(weights: str = "random", **changes: Any) -> CausalLM:
    options = validate({**SMALL, **changes}, CausalLMOptions)
    torch.manual_seed(0)
    return build(options, BuildContext(weights)).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "opt"])
def test_embedding_forward_and_generation_agree(architecture: str) -> None:
    """Greedy generation from embeddings picks the arg max of the forward pass, token after token."""
    model = make(architecture=architecture, adaptation="frozen")
    ids = [1, 40, 50, 60]
    embeddings = model.embed(torch.tensor([ids]))
    new = model.generate(embeddings, torch.ones(1, 4, dtype=torch.long), max_new_tokens=4)[0].tolist()
    for step, token in enumerate(new):
        so_far = torch.tensor([ids + new[:step]])
        logits = model(model.embed(so_far), torch.ones_like(so_far))
        assert int(logits[0, -1].argmax()) == token


def test_lora_trains_the_named_projections_only() -> None:
    model = make(lora={"rank": 2, "target_modules": ["q_proj", "v_proj"]})
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * 2 * SMALL["num_layers"]  # A and B, for q and v, in every layer
    assert all("lora_" in name and (".q_proj." in name or ".v_proj." in name) for name in trained)
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert count == SMALL["num_layers"] * 2 * 2 * (SMALL["hidden_size"] * 2)


def test_lora_starts_as_the_identity_and_learns() -> None:
    plain, adapted = make(adaptation="frozen"), make()
    weights = {name.replace("model.base_model.model.", "model."): value for name, value in adapted.state_dict().items()}
    plain.load_state_dict(
        {name.replace(".base_layer", ""): value for name, value in weights.items() if "lora_" not in name}
    )
    ids = torch.tensor([[1, 9, 8]])
    mask = torch.ones_like(ids)
    torch.testing.assert_close(adapted(adapted.embed(ids), mask), plain(plain.embed(ids), mask))
    adapted(adapted.embed(ids), mask).square().mean().backward()
    grads = [p.grad for n, p in adapted.named_parameters() if "lora_B" in n]
    assert any(float(grad.abs().sum()) > 0 for grad in grads if grad is not None)


def test_a_checkpoint_of_other_sizes_is_refused_with_the_override(tmp_path: Path) -> None:
    saved = make(adaptation="frozen")
    saved.model.save_pretrained(tmp_path)  # type: ignore[operator]
    saved.tokenizer.save_pretrained(tmp_path)
    loaded = make("pretrained", adaptation="frozen", checkpoint=str(tmp_path))
    ids = torch.tensor([[1, 9, 8]])
    torch.testing.assert_close(loaded.embed(ids), saved.embed(ids))
    with pytest.raises(WeightsError, match=r"set language_model\.options\.num_layers=2"):
        make("pretrained", num_layers=3, checkpoint=str(tmp_path))


def test_a_missing_checkpoint_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="weights='random'"):
        make("pretrained", checkpoint=str(tmp_path / "nothing"))


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(SpecError, match="not a multiple of num_heads"):
        validate({"hidden_size": 30, "num_heads": 4}, CausalLMOptions)


def test_a_vocabulary_too_small_for_the_stand_in_tokenizer_is_refused() -> None:
    with pytest.raises(WeightsError, match="vocab_size=259"):
        make(vocab_size=100)


def test_text_comes_back_exactly() -> None:
    tokenizer = make(adaptation="frozen").tokenizer
    text = "naïve </s> <s>\n  two  spaces, 東京"
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(tokenizer.all_special_ids)
