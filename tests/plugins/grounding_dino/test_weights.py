"""Public checkpoints: both namings load, every tensor accounted for; parity with the original code."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lyrics.core.contracts import BuildContext
from lyrics.core.errors import WeightsError
from lyrics.plugins.grounding_dino import GroundingDinoOptions
from lyrics.plugins.grounding_dino.detector import build
from lyrics.plugins.grounding_dino.weights import UNUSED, from_original, is_original, to_original


class Original:
    """The fixture: the original code's weights, inputs and outputs (small, random)."""

    def __init__(self, path):
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        self.tensors = load_file(path)
        self.state = {key[6:]: tensor.float() for key, tensor in self.tensors.items() if key.startswith("state.")}
        aliases = json.loads(metadata["aliases"])
        self.state |= {alias: self.state[key].clone() for alias, key in aliases.items()}
        self.vocabulary = json.loads(metadata["vocab"])

    def __getitem__(self, key):
        return self.tensors[key]

    def write(self, folder, state=None, prefix=""):
        save_file({prefix + key: tensor for key, tensor in (state or self.state).items()}, folder / "model.safetensors")
        (folder / "vocab.txt").write_text("\n".join(self.vocabulary), encoding="utf-8")
        return folder

    def build(self, folder, **options):
        sizes = {
            "swin_width": 12, "swin_depths": (1, 1, 2, 1), "swin_heads": (1, 2, 3, 4), "swin_window": 4,
            "text_width": 64, "text_layers": 2, "text_heads": 2, "text_ffn": 128, "text_vocabulary": 16,
            "text_positions": 32, "max_text_tokens": 32,
            "shortest_side": 64, "width": 256, "queries": 20, "encoder_layers": 1, "decoder_layers": 2, "heads": 4,
            "ffn": 64,
        }  # fmt: skip
        return build(GroundingDinoOptions(checkpoint=str(folder), **{**sizes, **options}), BuildContext("pretrained"))


@pytest.fixture
def original(parity):
    return Original(parity("grounding_dino_upstream.safetensors"))


def head_major_masks(layer, args, kwargs):
    """The original code repeats the text masks head by head where attention counts sample by sample
    (``repeat(nhead, 1, 1)``).

    So in a batch a head of one picture's text uses another picture's mask. The fixture's batch of two has that in it;
    we do not.
    """
    mask_BTT, heads = kwargs["attention_masks"], layer.num_heads
    mixed_BHTT = mask_BTT.repeat(heads, 1, 1).unflatten(0, (len(mask_BTT), heads))
    return args, {**kwargs, "attention_masks": (~mixed_BHTT).float() * torch.finfo(torch.float32).min}


def same(ours, theirs, atol=3e-5):
    finite = theirs.isfinite()
    assert torch.equal(ours.isfinite(), finite)
    torch.testing.assert_close(ours[finite], theirs[finite], rtol=1e-5, atol=atol)


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["", "module."])
def test_parity_with_the_original_code(original, tmp_path, prefix):
    component = original.build(original.write(tmp_path, prefix=prefix))
    prompts = [
        component.writer.prompts(component.writer.tokens(names)) for names in (["dog", "red car", "person"], ["tree"])
    ]
    for row, (prompt,) in enumerate(prompts):
        assert list(prompt.input_ids) == original["in.input_ids"][row, : len(prompt.input_ids)].tolist()
    for layer in component.network.model.encoder.layers:
        layer.text_enhancer_layer.register_forward_pre_hook(head_major_masks, with_kwargs=True)
    output = component.network(
        pixel_values=original["in.image_padded"],
        pixel_mask=original["in.image_mask"] == 0,
        input_ids=original["in.input_ids"],
        attention_mask=original["in.attention_mask"],
        return_dict=True,
    )
    same(output.encoder_last_hidden_state_vision, original["encoder.memory"])
    same(output.encoder_last_hidden_state_text, original["encoder.memory_text"])
    same(output.init_reference_points, original["decoder.reference_points.0"])
    for layer in range(2):
        same(output.intermediate_hidden_states[:, layer], original[f"decoder.hidden_states.{layer}"])
        same(output.intermediate_reference_points[:, layer], original[f"decoder.reference_points.{layer + 1}"])
    same(output.logits[..., :9], original["pred_logits"])
    same(output.pred_boxes, original["pred_boxes"])


@torch.no_grad()
def test_hub_naming_loads_and_equals_what_was_saved(small, pictures, original, tmp_path):
    component = original.build(original.write(tmp_path))
    saved = tmp_path / "hub"
    component.network.save_pretrained(saved)
    (saved / "vocab.txt").write_text("\n".join(original.vocabulary), encoding="utf-8")
    keys = load_file(saved / "model.safetensors").keys()
    assert not is_original(dict.fromkeys(keys))
    assert "model.backbone.conv_encoder.model.encoder.layers.0.blocks.0.attention.self.query.weight" in keys
    again = original.build(saved)
    ours, theirs = component.network.state_dict(), again.network.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    images = pictures(component, (64, 64))
    torch.testing.assert_close(component(images, [["dog"]]).tokens_BMD, again(images, [["dog"]]).tokens_BMD)


def test_every_tensor_is_translated_once(original):
    names = from_original(original.state)
    unused = [key for key in original.state if "pooler" in key or "relative_position_index" in key]
    stacked = [key for key in original.state if "qkv" in key or "in_proj" in key]
    copies = [key for key in original.state if "bbox_embed" in key and "enc_out" not in key]
    assert len(names) == len(original.state) - len(unused) + 2 * len(stacked) - len(copies) + 6
    assert is_original(original.state)


def test_to_original_is_the_inverse(original):
    names = to_original(from_original(original.state), original.state)
    read = {key: tensor for key, tensor in original.state.items() if not re.fullmatch(UNUSED, key)}
    assert names.keys() == read.keys()
    assert all(torch.equal(names[key], read[key]) for key in read)


def test_to_original_keeps_what_it_does_not_know(original):
    hub = from_original(original.state)
    copy = torch.ones(4)
    more = {"x": copy, "bbox_embed.1.layers.2.bias": copy, "model.decoder.bbox_embed.1.layers.2.bias": copy}
    backbone = "model.backbone.conv_encoder.model"
    unread = {
        f"{backbone}.swin.layernorm.weight": copy,
        f"{backbone}.encoder.layers.0.blocks.0.attention.self.relative_position_index": copy,
        "model.text_backbone.embeddings.position_ids": copy,
        "model.text_backbone.pooler.dense.bias": copy,
    }
    names = to_original({**hub, **more, **unread}, original.state)
    found = {key: tensor for key, tensor in names.items() if tensor is copy}
    assert found.keys() == {"x", "bbox_embed.1.layers.2.bias", "transformer.decoder.bbox_embed.1.layers.2.bias"}
    assert names.keys() == {"x", *to_original(hub, original.state)}


def test_to_original_refuses_half_of_a_stacked_projection(original):
    hub = from_original(original.state)
    del hub["model.decoder.layers.0.self_attn.key.weight"]
    with pytest.raises(WeightsError, match=r"'model.decoder.layers.0.self_attn.key.weight' is missing, but .*query"):
        to_original(hub, original.state)


def test_unused_tensors_of_the_published_file_are_allowed(original, tmp_path):
    extra = {"label_enc.weight": torch.zeros(3, 4), "bert.embeddings.position_ids": torch.zeros(1, 4)}
    original.build(original.write(tmp_path, {**original.state, **extra}))


def test_an_unknown_tensor_is_an_error(original):
    with pytest.raises(WeightsError, match=r"'transformer.encoder.layers.0.norm9.weight' \[2\] is no tensor"):
        from_original({**original.state, "transformer.encoder.layers.0.norm9.weight": torch.zeros(2)})


def test_box_heads_that_differ_are_an_error(original):
    changed = {**original.state, "bbox_embed.1.layers.2.bias": torch.ones(4)}
    with pytest.raises(WeightsError, match="differs from another copy of the box head"):
        from_original(changed)


@pytest.mark.parametrize(
    "missing",
    ["transformer.level_embed", "backbone.0.norm2.weight", "feat_map.bias", "transformer.decoder.norm.weight"],
)
def test_a_missing_tensor_is_an_error(original, tmp_path, missing):
    state = {key: tensor for key, tensor in original.state.items() if key != missing}
    with pytest.raises(WeightsError, match="is missing"):
        original.build(original.write(tmp_path, state))


def test_options_of_another_size_are_an_error(original, tmp_path):
    with pytest.raises(
        WeightsError, match=r"query_position_embeddings.weight is \[20, 256\], but the options need \[30, 256\]"
    ):
        original.build(original.write(tmp_path), queries=30)


def test_a_checkpoint_without_tokenizer_says_what_to_set(original, tmp_path):
    (original.write(tmp_path) / "vocab.txt").unlink()
    with pytest.raises(
        WeightsError, match=r"Set the option tokenizer to the hub id or folder.*google-bert/bert-base-uncased"
    ):
        original.build(tmp_path)
    other = tmp_path / "tokenizer"
    other.mkdir()
    (other / "vocab.txt").write_text("\n".join(original.vocabulary), encoding="utf-8")
    assert original.build(tmp_path, tokenizer=str(other)).writer.delimiters == (2, 3, 5, 6)


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        (["[PAD]", "[CLS]", "[SEP]", "dog"], r"Missing \[UNK\] token"),
        (["[PAD]", "[UNK]", "[CLS]", "[SEP]", "dog"], "is no BERT tokenizer"),
        ([f"w{i}" for i in range(10)], "tokens, but the text encoder only 16"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_an_error(original, tmp_path, vocabulary, message):
    if "only 16" in message:
        vocabulary = [*original.vocabulary, *vocabulary]
    original.write(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    with pytest.raises(WeightsError, match=message):
        original.build(tmp_path)
