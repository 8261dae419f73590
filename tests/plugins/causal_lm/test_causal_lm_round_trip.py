"""A saved model's language model is the one that was loaded, to the bit, whatever its configuration says beside its
sizes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lyrics.core.errors import SpecError, WeightsError
from lyrics.core.language.tokenizers import byte_tokenizer
from lyrics.core.loading import build_model
from lyrics.core.model import LyricsModel
from tests.core.small import small

SIZES = {
    "vocab_size": 320,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
    "max_position_embeddings": 256,
}
#: Families with numbers that are not the defaults of transformers and stand in no option.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {
        **SIZES,
        "head_dim": 16,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-3,
        "hidden_act": "gelu",
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "qwen2": {**SIZES, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "tie_word_embeddings": True},
    "qwen3": {**SIZES, "head_dim": 24, "rms_norm_eps": 1e-4, "tie_word_embeddings": True},
    "gemma3_text": {
        **SIZES,
        "head_dim": 16,
        "query_pre_attn_scalar": 40,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "mistral": {**SIZES, "head_dim": 20, "sliding_window": 5, "rms_norm_eps": 1e-3},
    "phi3": {**SIZES, "pad_token_id": 0, "rope_parameters": {"rope_type": "default", "rope_theta": 3e4}},
    "smollm3": {**SIZES, "pad_token_id": 0, "no_rope_layers": [1, 0, 1], "tie_word_embeddings": True},
    "granite": {
        **SIZES,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.3,
        "attention_multiplier": 0.1,
        "logits_scaling": 7.0,
    },
    "opt": {
        **{name: SIZES[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")},
        "ffn_dim": 80,
        "max_position_embeddings": 256,
        "word_embed_proj_dim": 32,
        "do_layer_norm_before": False,
        "activation_function": "gelu",
    },
}


def checkpoint(folder: Path, family: str, **changes: Any) -> Any:
    """A random model of a family, saved as a checkpoint with a tokenizer."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer(("<pad>", "<s>", "</s>", "<end>"))
    ends = {"eos_token_id": [2, 3], "bos_token_id": 1}
    config = AutoConfig.for_model(family, **{**FAMILIES[family], **ends, **changes})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for (
            parameter
        ) in model.parameters():  # far from the initialization, so that every number of the configuration matters
            parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval()


def whole(folder: Path, **options: Any) -> LyricsModel:
    given = {"checkpoint": str(folder), "adaptation": "frozen", **options}
    language_model = {"use": "causal-lm", "options": given}
    spec = small(refiner=None, image_encoder="tiny-vit", language_model=language_model)
    return build_model(spec.with_overrides({"query_transformer.options.tokenizer": None}))


def logits(model: LyricsModel) -> torch.Tensor:
    ids = torch.tensor([[1, 60, 70, 80, 90, 100, 110, 61, 62, 63]])
    language_model = model.eval().language_model
    with torch.no_grad():
        return language_model(language_model.embed(ids), torch.ones_like(ids))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_is_the_same_model(tmp_path: Path, family: str) -> None:
    original = checkpoint(tmp_path / "checkpoint", family)
    model = whole(tmp_path / "checkpoint")
    expected = logits(model)
    ids = torch.tensor([[1, 60, 70, 80, 90, 100, 110, 61, 62, 63]])
    with torch.no_grad():
        torch.testing.assert_close(expected, original(ids).logits, rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path / "saved")
    again = LyricsModel.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(again), expected)
    assert again.language_model.ends == model.language_model.ends == [2, 3]
    again.save_pretrained(tmp_path / "twice")
    assert torch.equal(logits(LyricsModel.from_pretrained(tmp_path / "twice")), expected)


@pytest.mark.filterwarnings("ignore")
def test_in_bfloat16_and_with_lora_too(tmp_path: Path) -> None:
    checkpoint(tmp_path / "checkpoint", "llama")
    model = whole(tmp_path / "checkpoint", adaptation="lora").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "saved")
    again = LyricsModel.from_pretrained(tmp_path / "saved", dtype=torch.bfloat16).eval()
    assert torch.equal(logits(again), logits(model.eval()))


@pytest.mark.filterwarnings("ignore")
def test_the_trained_parts_alone_are_held_against_the_checkpoint_s_configuration(tmp_path: Path) -> None:
    checkpoint(tmp_path / "checkpoint", "llama")
    whole(tmp_path / "checkpoint", adaptation="lora").save_pretrained(tmp_path / "saved", trainable_only=True)
    file = tmp_path / "checkpoint" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "rms_norm_eps": 1e-6}))
    with pytest.raises(WeightsError, match=r"parts/language_model/config.json: .*rms_norm_eps was 0\.001 and is 1e-06"):
        LyricsModel.from_pretrained(tmp_path / "saved")


def test_all_disagreements_are_one_error_before_a_tensor_is_read(tmp_path: Path) -> None:
    checkpoint(tmp_path, "llama")
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(WeightsError) as caught:
        whole(tmp_path, architecture="qwen2", num_layers=9, hidden_size=64, num_heads=4)
    message = str(caught.value)
    assert "num_layers is 9, the checkpoint has 3" in message
    assert "hidden_size is 64, the checkpoint has 48" in message
    assert "architecture is 'qwen2', the checkpoint has 'llama'" in message
    assert "num_heads" not in message.partition("Leave")[0]


@pytest.mark.filterwarnings("ignore")
def test_random_weights_of_a_local_checkpoint_have_its_sizes(tmp_path: Path) -> None:
    checkpoint(tmp_path, "qwen3")
    options = {"checkpoint": str(tmp_path), "adaptation": "frozen"}
    spec = small(refiner=None, language_model={"use": "causal-lm", "options": options})
    model = build_model(spec, weights="random")
    assert model.language_model.model.config.model_type == "qwen3"
    assert model.language_model.hidden_size == 48
    wider = spec.with_overrides({"language_model.options.hidden_size": 64})
    assert build_model(wider, weights="random").language_model.hidden_size == 64


def test_random_weights_of_a_hub_checkpoint_need_its_sizes() -> None:
    spec = small(language_model={"use": "causal-lm", "options": {"checkpoint": "owner/name", "hidden_size": 64}})
    with pytest.raises(WeightsError, match=r"'owner/name' is not on this machine.*State vocab_size, num_layers"):
        build_model(spec, weights="meta")


@pytest.mark.filterwarnings("ignore")
def test_lora_of_layers_that_are_not_there_lists_those_that_are(tmp_path: Path) -> None:
    checkpoint(tmp_path, "phi3")
    complaint = (
        r"no linear layer q_proj, v_proj; its linear layers are down_proj, gate_up_proj, o_proj, qkv_proj\. Name"
    )
    with pytest.raises(SpecError, match=complaint):
        whole(tmp_path, adaptation="lora", lora={"target_modules": ["q_proj", "v_proj"]})
    adapted = whole(tmp_path, adaptation="lora", lora={"target_modules": ["qkv_proj"]})
    assert any(parameter.requires_grad for parameter in adapted.language_model.parameters())


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_that_lacks_tensors_is_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path, "llama")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    with pytest.raises(WeightsError, match=r"lacks \d+ tensors of its own config.json: model\.layers\.3"):
        whole(tmp_path)
