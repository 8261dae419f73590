"""Public checkpoints: both namings load, every tensor accounted for; parity with the original code."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lyrics.core.contracts import BuildContext
from lyrics.core.errors import WeightsError
from lyrics.core.geometry import Frame
from lyrics.core.types import ImageBatch
from lyrics.plugins.sam_hq import SamHqOptions
from lyrics.plugins.sam_hq.decoder import box_prompts, decode, embed
from lyrics.plugins.sam_hq.segmenter import build
from lyrics.plugins.sam_hq.weights import from_original, is_original, to_original


class Original:
    """The fixture: the original code's weights, inputs and outputs (small, random)."""

    def __init__(self, path):
        with safe_open(path, "pt") as file:
            self.config = json.loads(file.metadata()["config"])
        self.tensors = load_file(path)
        self.state = {key[6:]: tensor for key, tensor in self.tensors.items() if key.startswith("state.")}

    def __getitem__(self, key):
        return self.tensors[key]

    def build(self, folder, state=None, **options):
        save_file(state or self.state, folder / "model.safetensors")
        config = self.config
        sizes = {
            "image_size": config["img"], "patch_size": config["patch_size"], "width": config["dim"],
            "layers": config["depth"],
            "heads": config["heads"], "mlp_ratio": config["mlp_ratio"], "window": config["window"],
            "global_layers": tuple(config["global"]), "prompt_width": config["prompt_dim"], "decoder_layers": 2,
            "decoder_heads": config["dec_heads"], "decoder_ffn": config["mlp"],
        }  # fmt: skip
        return build(SamHqOptions(checkpoint=str(folder), **{**sizes, **options}), BuildContext("pretrained"))

    def frame(self, row):
        height, width = self[f"in.{row}.original_size"].tolist()
        _, canvas_height, canvas_width = self[f"in.{row}.image"].shape
        return Frame.of(width, height).resize(canvas_width, canvas_height)


@pytest.fixture
def original(parity):
    return Original(parity("sam_hq_upstream.safetensors"))


def same(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_parity_of_embeddings_prompts_and_mask_logits(original, tmp_path):
    network = original.build(tmp_path).network
    images, layers = network.get_image_embeddings(original["preprocessed"])
    same(images, original["image_embeddings"])
    for layer, tensor in enumerate(layers):
        same(tensor, original[f"interm_embeddings.{layer}"])
    same(network.get_image_wide_positional_embeddings()[None][0], original["dense_pe"])
    for row in range(2):
        embedding = embed(network, original["preprocessed"][row])
        same(embedding.image_Dhw, original["image_embeddings"][row])
        prompts = box_prompts(network, original[f"in.{row}.boxes"])
        same(prompts, original[f"boxes.{row}.sparse_embeddings"])
        first, quality = decode(network, embedding, prompts)
        same(first + quality, original[f"single_hq_sum.{row}.low_res_logits"][:, 0])
        same(quality, original[f"single_hq_only.{row}.low_res_logits"][:, 0])


@torch.no_grad()
def test_parity_of_point_prompts(original, tmp_path):
    network = original.build(tmp_path).network
    for row in range(2):
        points, labels = original[f"in.{row}.point_coords"][None], original[f"in.{row}.point_labels"][None]
        prompts = network.get_prompt_embeddings(input_points=points, input_labels=labels)[0][0]
        same(prompts, original[f"points.{row}.sparse_embeddings"])
        first, quality = decode(network, embed(network, original["preprocessed"][row]), prompts)
        same(first + quality, original[f"points.{row}.low_res_logits"][:, 0])


@torch.no_grad()
def test_parity_of_the_component_in_original_pixels(original, tmp_path):
    component = original.build(tmp_path, boxes_per_pass=2)
    frames = tuple(original.frame(row) for row in range(2))
    boxes = [[frames[row].box_from_canvas(box) for box in original[f"in.{row}.boxes"].tolist()] for row in range(2)]
    found = component(ImageBatch(original["preprocessed"], frames), boxes)
    for row in range(2):
        theirs = original[f"single_hq_sum.{row}.masks"][:, 0].numpy() > 0
        for ours, mask in zip(found.masks[row], theirs, strict=True):
            assert (ours.to_array() != mask).mean() <= 1e-3
            assert 0.1 < mask.mean() < 0.9


@torch.no_grad()
def test_preprocessing_is_the_original_codes(original, tmp_path):
    component = original.build(tmp_path)
    mean, std = (
        torch.tensor(numbers)[:, None, None] for numbers in (component.preprocessing.mean, component.preprocessing.std)
    )
    for row in range(2):
        height, width = original[f"in.{row}.image"].shape[1:]
        ours = (original[f"in.{row}.image"] / 255 - mean) / std
        same(ours, original["preprocessed"][row, :, :height, :width])
        padding = original["preprocessed"][row].clone()
        padding[:, :height, :width] = 0
        assert not padding.any()


@torch.no_grad()
def test_transformers_naming_loads_and_equals_what_was_saved(original, tmp_path):
    component = original.build(tmp_path)
    saved = tmp_path / "hub"
    component.network.save_pretrained(saved)
    state = load_file(saved / "model.safetensors")
    assert not is_original(state)
    again = original.build(saved, state)
    ours, theirs = component.network.state_dict(), again.network.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_every_tensor_is_translated_once(original):
    names = from_original(original.state)
    assert len(names) == len(original.state)
    assert is_original(original.state)


@pytest.mark.parametrize("key", ["mask_decoder.hf_mlp.layers.3.weight", "image_encoder.neck.4.bias", "foo"])
def test_an_unknown_tensor_is_an_error(original, key):
    with pytest.raises(WeightsError, match=f"'{key}' .* is no tensor of SAM-HQ"):
        from_original({**original.state, key: torch.zeros(2)})


@pytest.mark.parametrize(
    "key", ["image_encoder.pos_embed", "mask_decoder.hf_token.weight", "prompt_encoder.point_embeddings.3.weight"]
)
def test_a_missing_tensor_is_an_error(original, tmp_path, key):
    state = {name: tensor for name, tensor in original.state.items() if name != key}
    with pytest.raises(WeightsError, match="is missing"):
        original.build(tmp_path, state)


def test_options_of_another_size_are_an_error(original, tmp_path):
    with pytest.raises(WeightsError, match=r"pos_embed is \[1, 8, 8, 32\], but the options need \[1, 16, 16, 32\]"):
        original.build(tmp_path, image_size=256)


def test_to_original_is_the_inverse(original):
    theirs = from_original(original.state)
    names = to_original(theirs, original.state)
    assert names.keys() == original.state.keys()
    assert all(names[key] is tensor for key, tensor in original.state.items())
    more = {"x": torch.zeros(1), "prompt_encoder.shared_embedding.positional_embedding": torch.zeros(1)}
    assert to_original({**theirs, **more}, original.state).keys() == {"x", *original.state}
