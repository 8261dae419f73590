"""Which checkpoints are language models, told by their configuration, and the numbers of random ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, CLIPConfig, PreTrainedConfig

from lyrics.core.contracts import BuildContext
from lyrics.core.errors import SpecError, WeightsError
from lyrics.core.language.tokenizers import byte_tokenizer
from lyrics.core.spec import validate
from lyrics.plugins.causal_lm import CausalLMOptions
from lyrics.plugins.causal_lm.build import SPECIAL_TOKENS, build
from lyrics.plugins.causal_lm.model import CausalLM

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 4,
    "intermediate_size": 64,
    "max_positions": 128,
}
TEXT: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
}
VISION = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
#: Models that also see, with the language model in them.
WHOLE: dict[str, dict[str, Any]] = {
    "gemma3": {"text_config": TEXT, "vision_config": {**VISION, "image_size": 28, "patch_size": 14}},
    "qwen3_5": {
        "text_config": {**TEXT, **LINEAR},
        "vision_config": {
            "hidden_size": 16,
            "depth": 1,
            "num_heads": 2,
            "intermediate_size": 16,
            "out_hidden_size": 32,
        },
    },
}


def make(weights: str = "random", **options: Any) -> CausalLM:
    torch.manual_seed(0)
    return build(validate({"adaptation": "frozen", **options}, CausalLMOptions), BuildContext(weights)).eval()  # type: ignore[arg-type]


def configuration(folder: Path, config: PreTrainedConfig) -> str:
    """A checkpoint whose tensors cannot be read, so that it is told by its configuration or not at all."""
    config.save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"no tensors")
    return str(folder)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (CLIPConfig(), r"is a model of the type 'clip', which has no causal language-model head"),
        (AutoConfig.for_model("dinov2"), r"of the type 'dinov2', which has no causal"),
        (AutoConfig.for_model("siglip"), r"of the type 'siglip', which has no causal"),
        (AutoConfig.for_model("t5"), r"of the type 't5', which has no causal"),
        (AutoConfig.for_model("bart"), r"is an encoder-decoder \('bart'\)"),
        (AutoConfig.for_model("bert"), r"is an encoder \('bert'\): every token sees those behind it"),
        (AutoConfig.for_model("bert-generation"), r"is an encoder \('bert-generation'\)"),
        (AutoConfig.for_model("ctrl"), r"of the family 'ctrl', which transformers lets write from token ids alone"),
        (AutoConfig.for_model("gemma3n_text"), r"looks up each token id in every layer, while images have none"),
    ],
    ids=lambda value: value.model_type if isinstance(value, PreTrainedConfig) else "",
)
@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_what_is_no_language_model_is_told_before_a_tensor_is_read(
    tmp_path: Path, config: PreTrainedConfig, complaint: str, weights: str
) -> None:
    checkpoint = configuration(tmp_path, config)
    with pytest.raises(WeightsError, match=complaint) as caught:
        make(weights, checkpoint=checkpoint)
    assert checkpoint in str(caught.value)
    assert "Name another language model" in str(caught.value)


def test_a_hub_id_is_judged_by_its_configuration_before_its_tensors_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    CLIPConfig().save_pretrained(tmp_path)
    asked = []

    def fetch(checkpoint: str, allow_patterns: list[str], **options: Any) -> str:
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    with pytest.raises(WeightsError, match="'owner/clip' is a model of the type 'clip'"):
        make("pretrained", checkpoint="owner/clip")
    assert asked == [["config.json", "generation_config.json"]]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (
            {"architecture": "qwen33"},
            r"architecture: transformers knows no model_type 'qwen33'\. Did you mean 'qwen3'\?",
        ),
        ({"architecture": "clip"}, r"architecture: it is a model of the type 'clip'"),
        (
            {"architecture": "mamba", "num_heads": 4},
            r"options\.num_heads: the configuration of mamba has no such number",
        ),
        ({"config": {"sliding": 4}, "architecture": "mistral"}, r"config\.sliding: .*Did you mean 'sliding_window'\?"),
        ({"config": {"hidden_size": 4}}, r"config\.hidden_size: state it as language_model\.options\.hidden_size"),
        ({"config": {"auto_map": {}}}, r"config\.auto_map: is no number of a model"),
        ({"architecture": "falcon_h1"}, r"which transformers lets write from token ids alone"),
        ({"architecture": "mamba2", "config": {"head_dim": 7}}, r"transformers refuses these numbers for 'mamba2'"),
    ],
)
def test_numbers_that_no_family_has_are_refused(options: dict[str, Any], complaint: str) -> None:
    sizes = SIZES if options.get("architecture", "llama") in ("llama", "mistral") else {"vocab_size": 300}
    with pytest.raises((SpecError, WeightsError), match=complaint):
        make(**{**sizes, "checkpoint": None, **options})


def test_a_few_numbers_are_enough_and_the_rest_is_the_family_s() -> None:
    model = make(checkpoint=None, architecture="qwen3", vocab_size=300, hidden_size=32, num_layers=1, num_heads=4)
    config = model.model.config
    assert (config.model_type, config.num_key_value_heads) == ("qwen3", 4)
    assert config.intermediate_size == AutoConfig.for_model("qwen3").intermediate_size
    assert config.head_dim == AutoConfig.for_model("qwen3").head_dim


@pytest.mark.parametrize("file", [False, True], ids=["folder", "file"])
def test_a_configuration_alone_makes_random_weights(tmp_path: Path, file: bool) -> None:
    AutoConfig.for_model("gemma2", **TEXT, sliding_window=3).save_pretrained(tmp_path)
    checkpoint = str(tmp_path / "config.json" if file else tmp_path)
    config = make(checkpoint=checkpoint).model.config
    assert (config.model_type, config.hidden_size, config.sliding_window) == ("gemma2", 32, 3)
    fewer = make(checkpoint=checkpoint, num_layers=2, architecture="auto", config={"sliding_window": 5}).model.config
    assert (fewer.num_hidden_layers, len(fewer.layer_types), fewer.sliding_window) == (2, 2, 5)
    with pytest.raises(WeightsError, match="config" if file else "safetensors"):
        make("pretrained", checkpoint=checkpoint)


def test_a_checkpoint_must_agree_with_entries_of_its_configuration_too(tmp_path: Path) -> None:
    checkpoint = configuration(tmp_path, AutoConfig.for_model("gemma2", **TEXT, sliding_window=3))
    with pytest.raises(
        WeightsError, match=r"config\.sliding_window is 4, the checkpoint has 3; architecture is 'qwen3'"
    ):
        make("pretrained", checkpoint=checkpoint, architecture="qwen3", config={"sliding_window": 4, "head_dim": 8})


@pytest.mark.parametrize("family", WHOLE)
def test_of_a_model_that_also_sees_the_language_model_is_taken(
    tmp_path: Path, family: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    whole = AutoModelForImageTextToText.from_config(AutoConfig.for_model(family, **WHOLE[family])).eval()
    whole.save_pretrained(tmp_path / "checkpoint")
    byte_tokenizer(SPECIAL_TOKENS).save_pretrained(tmp_path / "checkpoint")
    capfd.readouterr()
    model = make("pretrained", checkpoint=str(tmp_path / "checkpoint"), architecture=family)
    assert "UNEXPECTED" not in capfd.readouterr().err + caplog.text
    ids = torch.tensor([[1, 40, 50, 60, 70]])
    expected = whole(input_ids=ids).logits
    torch.testing.assert_close(model(model.embed(ids), torch.ones_like(ids)), expected)
    assert not any("vision" in name for name, _ in model.named_parameters())
    (tmp_path / "part").mkdir()
    model.save_files(tmp_path / "part")
    context = BuildContext("random", files=tmp_path / "part")
    again = build(validate({"adaptation": "frozen", "architecture": family}, CausalLMOptions), context).eval()
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again(again.embed(ids), torch.ones_like(ids)), expected)


def test_lora_names_its_layers_or_finds_them() -> None:
    def trained(**lora: Any) -> set[str]:
        model = make(**{**SIZES, "checkpoint": None, "adaptation": "lora", "lora": {"rank": 2, **lora}})
        return {
            name.split(".lora_")[0].rpartition(".")[2] for name, one in model.named_parameters() if one.requires_grad
        }

    assert trained() == trained(target_modules="auto") == {"q_proj", "v_proj"}
    every = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert trained(target_modules="all-linear") == every
    assert trained(target_modules=["self_attn.o_proj"]) == {"o_proj"}
    with pytest.raises(
        SpecError, match=r"no linear layer w1; its linear layers are down_proj, gate_proj, .*all-linear"
    ):
        trained(target_modules=["q_proj", "w1"])
    with pytest.raises(SpecError, match="target_modules"):
        trained(target_modules="q_proj")
