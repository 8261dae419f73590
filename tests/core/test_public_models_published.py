"""Public models at their published sizes, on the meta device: every name and shape is that of transformers' own.

``published_configs.json`` holds what their ``config.json`` says, and where that is written. Values are not needed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    BertTokenizer,
    Blip2ForConditionalGeneration,
    CLIPImageProcessorPil,
    InstructBlipForConditionalGeneration,
    LlamaTokenizer,
    LlavaForConditionalGeneration,
)

from lyrics.core.errors import WeightsError
from lyrics.core.model import LyricsModel
from lyrics.core.public_models import find_public, outline_public
from lyrics.core.weights.tensors import stored_tensors
from tests.commands import Run

PUBLISHED: Mapping[str, Mapping[str, Any]] = json.loads(
    (Path(__file__).parent / "published_configs.json").read_text(encoding="utf-8")
)
CLASSES = {
    "llava": LlavaForConditionalGeneration,
    "blip-2": Blip2ForConditionalGeneration,
    "instructblip": InstructBlipForConditionalGeneration,
}
_LAST_LAYER = r"model\.vision_tower\.(encoder\.layers\.23|post_layernorm)\..*"
_NO_TEXT = r"query_transformer\.((word|position)_embeddings\.|layers\.\d+\.text_ffn\.|token_head\.).*"
_NO_HEAD = r"query_transformer\.token_head\..*"
#: Parameters of transformers' model and of ours; names of theirs that are not read, and of ours that nothing fills.
EXPECTED = {
    "llava-hf/llava-1.5-7b-hf": (7_063_427_072, 7_050_828_800, _LAST_LAYER, ""),
    "llava-hf/llava-1.5-13b-hf": (13_351_494_656, 13_338_896_384, _LAST_LAYER, ""),
    "Salesforce/blip2-opt-2.7b": (3_744_761_856, 3_802_680_896, "", _NO_TEXT),
    "Salesforce/blip2-opt-6.7b": (7_752_869_376, 7_810_788_416, "", _NO_TEXT),
    "Salesforce/instructblip-vicuna-7b": (7_913_726_720, 7_914_353_216, "", _NO_HEAD),
}


def saved(folder: Path, config: Mapping[str, Any]) -> Path:
    """The small files of a checkpoint; its tokenizers have the published sizes, and words of no meaning."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    if config["model_type"] == "llava":
        CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}).save_pretrained(
            folder
        )
        words = ("<unk>", "<s>", "</s>", *(f"w{number}" for number in range(31_997)))
        vocabulary = {word: index for index, word in enumerate(words)}
        tokenizer = LlamaTokenizer(vocab=vocabulary, merges=[], extra_special_tokens={"image_token": "<image>"})
        assert tokenizer.convert_tokens_to_ids("<image>") == config["image_token_index"]
        tokenizer.chat_template = "{{ 'ASSISTANT:' }}"
        tokenizer.save_pretrained(folder)
    if config["model_type"] == "instructblip":
        words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(30_517)))
        bert = BertTokenizer(vocab={word: index for index, word in enumerate(words)})
        bert.add_special_tokens({"bos_token": "[DEC]"})
        bert.save_pretrained(folder / "qformer_tokenizer")
    return folder


def transformers_own(folder: Path) -> Any:
    """Transformers' own model of that configuration, on the meta device."""
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        return CLASSES[config.model_type](config)


def count(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


@pytest.mark.parametrize("name", EXPECTED)
def test_names_shapes_and_parameters_are_transformers_own(tmp_path: Path, name: str, run: Run) -> None:
    their_count, our_count, unread, unfilled = EXPECTED[name]
    folder = saved(tmp_path / "public", PUBLISHED[name]["config"])
    found = find_public(str(folder))
    assert found is not None
    model = transformers_own(folder)
    theirs = stored_tensors(model)
    ours, _ = outline_public(LyricsModel, found, theirs)  # raises where a name or a shape differs
    assert count(model.parameters()) == their_count
    assert count(ours.parameters()) == our_count
    pieces = found.plan().pieces(ours, theirs)
    left = set(theirs) - {key for piece in pieces.values() for key in piece.keys}
    assert left == {key for key in theirs if re.fullmatch(unread, key)}
    own = stored_tensors(ours)
    new = set(own) - set(pieces)
    assert new == {key for key in own if re.fullmatch(unfilled, key)}
    filled = [(own[key], piece.keys) for key, piece in pieces.items() if key in own]
    padding = sum(tensor.numel() - count(theirs[key] for key in keys) for tensor, keys in filled)
    assert our_count == their_count - count(theirs[key] for key in left) + count(own[key] for key in new) + padding
    done = run("check", str(folder), "--json")
    assert done.data["parameters"] == our_count
    assert 0 <= done.data["bytes"] - 2 * our_count < 100_000, "buffers count as bytes, too"


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("llava-hf/llava-1.5-7b-hf", "model.multi_modal_projector.linear_1.weight"),
        ("llava-hf/llava-1.5-7b-hf", "model.language_model.layers.31.mlp.down_proj.weight"),
        ("Salesforce/blip2-opt-2.7b", "qformer.encoder.layer.11.intermediate_query.dense.weight"),
        ("Salesforce/instructblip-vicuna-7b", "vision_model.encoder.layers.38.self_attn.qkv.weight"),
    ],
)
def test_one_tensor_less_or_of_another_shape_is_found(tmp_path: Path, name: str, key: str) -> None:
    folder = saved(tmp_path / "public", PUBLISHED[name]["config"])
    found = find_public(str(folder))
    assert found is not None
    theirs = stored_tensors(transformers_own(folder))
    with pytest.raises(WeightsError, match=r"is missing, which becomes|nothing in it becomes"):
        outline_public(LyricsModel, found, {one: tensor for one, tensor in theirs.items() if one != key})
    other = torch.empty(theirs[key].shape[0] + 64, *theirs[key].shape[1:], device="meta")
    with pytest.raises(WeightsError, match=re.escape(key)):
        outline_public(LyricsModel, found, {**theirs, key: other})
