"""The language model: every architecture, every adaptation, and a checkpoint that must match the spec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lyrics.core.contracts import BuildContext
from lyrics.core.errors import MissingRequirementError, SpecError, UnknownNameError, WeightsError
from lyrics.core.loading import build_model
from lyrics.core.model import LyricsModel
from lyrics.core.spec import validate
from lyrics.plugins.causal_lm import CausalLMOptions, lyrics_components
from lyrics.plugins.causal_lm.build import build
from lyrics.plugins.causal_lm.model import CausalLM
from tests.core.small import small

SMALL = dict(next(iter(lyrics_components())).test_options)


def make(weights: str = "random", **changes: Any) -> CausalLM:
    options = validate({**SMALL, **changes}, CausalLMOptions)
    torch.manual_seed(0)
    return build(options, BuildContext(weights)).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "opt", "lfm2"])
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


CONVOLUTIONS = {"architecture": "lfm2", "layer_types": ["conv", "full_attention"]}


def test_convolutions_look_back_and_pass_over_padding(caplog: pytest.LogCaptureFixture) -> None:
    model = make(**CONVOLUTIONS, adaptation="frozen")
    assert [type(layer).__name__ for layer in model.model.model.layers] == ["Lfm2DecoderLayer"] * 2  # type: ignore[union-attr]
    ids = torch.tensor([[1, 40, 50, 60]])
    alone = torch.ones_like(ids)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], dim=1)
    mask = torch.cat([torch.zeros(1, 3, dtype=torch.long), alone], dim=1)
    expected = model(model.embed(ids), alone)
    torch.testing.assert_close(model(model.embed(padded), mask)[:, 3:], expected, rtol=1e-4, atol=1e-5)
    new = model.generate(model.embed(padded), mask, max_new_tokens=4)
    assert torch.equal(new, model.generate(model.embed(ids), alone, max_new_tokens=4))
    for step in range(new.shape[1]):
        so_far = torch.cat([ids, new[:, :step]], dim=1)
        logits = model(model.embed(so_far), torch.ones_like(so_far))
        assert int(logits[0, -1].argmax()) == int(new[0, step])
    assert "causal_conv1d" not in caplog.text


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_a_convolution_reaches_as_far_back_as_its_kernel(kernel: int) -> None:
    model = make(architecture="lfm2", layer_types=["conv"], num_layers=1, conv_kernel=kernel, adaptation="frozen")
    embeddings = model.embed(torch.tensor([[40, 41, 42, 43, 44, 45, 46]])).detach().requires_grad_()
    model(embeddings, torch.ones(1, 7, dtype=torch.long))[0, -1].sum().backward()
    assert embeddings.grad is not None
    read = embeddings.grad[0].abs().sum(dim=1) > 0
    assert read.tolist() == [False] * (7 - kernel) + [True] * kernel


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"layer_types": ["conv", "conv"]}, r"options\.layer_types: the configuration of llama has no such number"),
        ({"architecture": "lfm2", "layer_types": ["conv"]}, "names 1 layers, but num_layers is 2"),
        ({"conv_kernel": 12}, r"options\.conv_kernel: the configuration of llama has no such number"),
    ],
)
def test_convolutions_must_fit(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(SpecError, match=complaint):
        make(**changes)


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
    with pytest.raises(WeightsError, match=r"num_layers is 3, the checkpoint has 2\. Leave these options out"):
        make("pretrained", num_layers=3, checkpoint=str(tmp_path))


def test_a_checkpoint_is_read_in_the_caller_s_type_and_not_in_its_own(tmp_path: Path) -> None:
    saved = make(adaptation="frozen")
    saved.model.to(torch.bfloat16).save_pretrained(tmp_path)  # type: ignore[operator]
    saved.tokenizer.save_pretrained(tmp_path)
    loaded = make("pretrained", adaptation="frozen", checkpoint=str(tmp_path))
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_without_a_checkpoint_pretrained_is_random_and_says_so() -> None:
    with pytest.warns(UserWarning, match="random weights, and until it is trained its answers mean nothing"):
        found = make("pretrained", checkpoint=None)
    expected = make()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name


def test_a_missing_checkpoint_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"there is no file or folder .*Give .* or build with weights='random'"):
        make("pretrained", checkpoint=str(tmp_path / "nothing"))


def test_a_packaged_checkpoint_shows_no_progress_bar(capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging as library

    shown = library.is_progress_bar_enabled()
    build_model("lyrics-tiny", overrides={"refiner": None}, weights="pretrained")
    assert "Loading weights" not in capfd.readouterr().err
    assert library.is_progress_bar_enabled() == shown


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


def test_gradient_checkpointing_and_compilation_change_nothing_but_cost() -> None:
    plain, checkpointed = make(), make(gradient_checkpointing=True)
    checkpointed.load_state_dict(plain.state_dict())
    ids = torch.tensor([[1, 9, 8, 7]])
    gradients = []
    for model in (plain, checkpointed):
        model.train()
        torch.manual_seed(0)
        model(model.embed(ids).requires_grad_(), torch.ones_like(ids)).square().mean().backward()
        gradients.append({name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)
    inner = checkpointed.model.get_base_model()
    assert inner.is_gradient_checkpointing if hasattr(inner, "is_gradient_checkpointing") else True


@pytest.mark.slow
def test_compiled_forward_is_the_same() -> None:
    plain, compiled = make(), make(compile=True)
    compiled.load_state_dict(plain.state_dict())
    for length in (4, 7):
        ids = torch.arange(length)[None] + 5
        mask = torch.ones_like(ids)
        torch.testing.assert_close(compiled(compiled.embed(ids), mask), plain(plain.embed(ids), mask))


def test_chatml_ends_an_answer_at_the_end_of_its_turn() -> None:
    from lyrics.core.language.tokenizers import byte_tokenizer

    model = make(chat_template="chatml", adaptation="frozen")
    assert model.ends == [model.tokenizer.eos_token_id]
    model.tokenizer = byte_tokenizer(("<pad>", "<s>", "</s>", "<|im_end|>"))
    assert model.ends == [2, 3]


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_quantization_needs_bitsandbytes_and_pretrained_weights(
    bits: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    with pytest.raises(WeightsError, match="random weights are not quantized"):
        make(quantization=bits)
    with pytest.raises(SpecError, match="cannot be trained with adaptation full"):
        make(quantization=bits, adaptation="full")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    with pytest.raises(MissingRequirementError, match=r"Run: pip install 'lyrics-vl\[quant\]'"):
        make("pretrained", quantization=bits, checkpoint=str(tmp_path))


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_quantized_weights_answer_nearly_the_same(bits: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="the extra quant is not installed")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_heads": 4}
    whole = make(adaptation="frozen", **sizes)
    whole.model.save_pretrained(tmp_path)
    whole.tokenizer.save_pretrained(tmp_path)
    small = make("pretrained", quantization=bits, checkpoint=str(tmp_path), **sizes)
    assert any("bitsandbytes" in type(module).__module__ for module in small.modules())
    ids = torch.tensor([[1, 9, 8, 7]])
    near, exact = (model(model.embed(ids), torch.ones_like(ids)) for model in (small, whole))
    assert torch.nn.functional.cosine_similarity(near.flatten(), exact.flatten(), dim=0) > 0.98
    trained = [name for name, one in small.named_parameters() if one.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    small.generate(small.embed(ids), torch.ones_like(ids), max_new_tokens=1)
    embeddings = small.embed(ids).detach().requires_grad_()
    small(embeddings, torch.ones_like(ids)).square().sum().backward()
    assert embeddings.grad is not None, "no gradient passes the weights after an answer"
    gradients = [one.grad for name, one in small.named_parameters() if "lora_B" in name]
    assert all(one is not None and float(one.abs().sum()) > 0 for one in gradients)


CHAT = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>a: {% endif %}"
)


def test_the_tokenizer_s_template_is_taken_where_it_brings_one(tmp_path: Path) -> None:
    model = make(adaptation="frozen")
    assert model.chat_template == "plain"
    model.model.save_pretrained(tmp_path)  # type: ignore[operator]
    model.tokenizer.chat_template = CHAT
    assert model.chat_template == "tokenizer"
    model.tokenizer.save_pretrained(tmp_path)
    loaded = make("pretrained", adaptation="frozen", checkpoint=str(tmp_path))
    assert loaded.chat_template == "tokenizer"
    assert loaded.tokenizer.chat_template == CHAT
    assert make("pretrained", checkpoint=str(tmp_path), chat_template="plain").chat_template == "plain"
    with pytest.raises(UnknownNameError, match=r"no chat template 'palin'\. Did you mean 'plain'\?"):
        make(chat_template="palin")


def test_a_saved_model_asks_in_the_same_form(tmp_path: Path) -> None:
    """Without the checkpoint that its tokenizer came from."""
    source = make(adaptation="frozen")
    source.model.save_pretrained(tmp_path / "checkpoint")  # type: ignore[operator]
    source.tokenizer.chat_template = CHAT
    source.tokenizer.save_pretrained(tmp_path / "checkpoint")
    options = {"checkpoint": str(tmp_path / "checkpoint"), "adaptation": "frozen"}
    spec = small(refiner=None, image_encoder="tiny-vit", language_model={"use": "causal-lm", "options": options})
    model = build_model(spec.with_overrides({"query_transformer.options.tokenizer": None}))
    expected = model.generate([None], ["why?"], max_new_tokens=8)[0].text
    model.save_pretrained(tmp_path / "saved")
    (tmp_path / "checkpoint").rename(tmp_path / "gone")
    again = LyricsModel.from_pretrained(tmp_path / "saved")
    assert again.language_model.chat_template == "tokenizer"
    assert again.generate([None], ["why?"], max_new_tokens=8)[0].text == expected
