"""The original SAM-HQ agrees with the default backend and with the fixture."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lyrics.core.contracts import BuildContext
from lyrics.core.errors import SpecError, WeightsError
from lyrics.core.geometry import Box
from lyrics.core.pictures.processor import prepare
from lyrics.core.types import ImageBatch
from lyrics.plugins.sam_hq import SamHqOptions, lyrics_components, segmenter
from lyrics.plugins.sam_hq.segmenter import SamHq
from tests.experts.conftest import needs

needs("segment_anything_hq")

from lyrics.plugins.sam_hq import upstream

RANDOM, PRETRAINED, META = BuildContext("random"), BuildContext("pretrained"), BuildContext("meta")
TEST_OPTIONS = next(dict(c.test_options) for c in lyrics_components() if c.name == "sam-hq-upstream")
# Layers with windows between those without, of which the decoder reads the first only; a decoder that attends twice.
OPTIONS = {**TEST_OPTIONS, "layers": 4, "global_layers": (1, 3), "decoder_layers": 2, "boxes_per_pass": 2}
BOXES = [[Box(0.1, 0.2, 0.6, 0.9), Box(0.0, 0.0, 1.0, 1.0), Box(0.5, 0.5, 0.52, 0.52)], [], [Box(0.4, 0.1, 0.9, 0.5)]]
SIZES = [(80, 60), (64, 64), (50, 100)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in the original code's naming, every tensor random."""
    path = tmp_path_factory.mktemp("original")
    torch.manual_seed(0)
    network = upstream.build(SamHqOptions(**OPTIONS), RANDOM).network
    for name, parameter in network.named_parameters():
        torch.nn.init.normal_(parameter, std=0.1 if name.startswith("image_encoder.blocks") else 0.5)
    save_file(network.state_dict(), path / "model.safetensors")
    return path


def options(folder: Path) -> SamHqOptions:
    return SamHqOptions(**{**OPTIONS, "checkpoint": str(folder)})


def pictures(component: SamHq, sizes: list[tuple[int, int]]) -> ImageBatch:
    noise = [np.random.default_rng(i).integers(0, 256, (h, w, 3), dtype=np.uint8) for i, (w, h) in enumerate(sizes)]
    return prepare([Image.fromarray(array) for array in noise], component.preprocessing)


@torch.no_grad()
def same(ours: SamHq, theirs: SamHq) -> None:
    """Both give the same mask logits and tokens to 1e-4, and the same masks."""
    images = pictures(ours, SIZES)
    boxes_px = torch.tensor([[3.0, 4.0, 50.0, 40.0], [0.0, 0.0, 64.0, 48.0]])
    found, expected = (each.mask_logits(each.embed(images.pixels_BCHW[0]), boxes_px) for each in (ours, theirs))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert (expected[0] - expected[1]).abs().max() > 0.1
    mine, other = ours(images, BOXES), theirs(images, BOXES)
    torch.testing.assert_close(mine.tokens_BKD, other.tokens_BKD, atol=1e-4, rtol=0)
    assert other.tokens_BKD[:, :, :-4].abs().max() > 0.1
    assert torch.equal(mine.mask_BK, other.mask_BK)
    differing = [
        (a.to_array() != b.to_array()).mean()
        for masks, masks_too in zip(mine.masks, other.masks, strict=True)
        for a, b in zip(masks, masks_too, strict=True)
    ]
    assert len(differing) == 4
    assert max(differing) <= 1e-3
    areas = [mask.area_px / (mask.width * mask.height) for masks in other.masks for mask in masks]
    assert any(0.05 < area < 0.95 for area in areas)


def test_both_backends_give_the_same_masks_for_the_same_weights(folder: Path) -> None:
    same(upstream.build(options(folder), PRETRAINED), segmenter.build(options(folder), PRETRAINED))


def test_transformers_naming_gives_the_same_too(folder: Path, tmp_path: Path) -> None:
    default = segmenter.build(options(folder), PRETRAINED)
    default.network.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    assert "vision_encoder.pos_embed" in state
    same(upstream.build(options(tmp_path), PRETRAINED), default)
    # Files of other versions also hold the second name of what is shared.
    shared = state["shared_image_embedding.positional_embedding"]
    state["prompt_encoder.shared_embedding.positional_embedding"] = shared.clone()
    save_file(state, tmp_path / "model.safetensors")
    same(upstream.build(options(tmp_path), PRETRAINED), default)


@torch.no_grad()
def test_the_fixtures_numbers(parity: Callable[[str], Path], tmp_path: Path) -> None:
    tensors = load_file(parity("sam_hq_upstream.safetensors"))
    with safe_open(parity("sam_hq_upstream.safetensors"), "pt") as file:
        config = json.loads(file.metadata()["config"])
    state = {key.removeprefix("state."): tensor for key, tensor in tensors.items() if key.startswith("state.")}
    save_file(state, tmp_path / "model.safetensors")
    sizes = {
        "image_size": config["img"], "patch_size": config["patch_size"], "width": config["dim"],
        "layers": config["depth"],
        "heads": config["heads"], "mlp_ratio": config["mlp_ratio"], "window": config["window"],
        "global_layers": tuple(config["global"]), "prompt_width": config["prompt_dim"], "decoder_layers": 2,
        "decoder_heads": config["dec_heads"], "decoder_ffn": config["mlp"],
    }  # fmt: skip
    component = upstream.build(SamHqOptions(checkpoint=str(tmp_path), **sizes), PRETRAINED)
    for picture in range(2):
        embedding = component.embed(tensors["preprocessed"][picture])
        torch.testing.assert_close(embedding.image_Dhw, tensors["image_embeddings"][picture], rtol=1e-5, atol=1e-5)
        logits = component.mask_logits(embedding, tensors[f"in.{picture}.boxes"])
        expected = tensors[f"single_hq_sum.{picture}.low_res_logits"][:, 0]
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_true_size_on_the_meta_device() -> None:
    with torch.device("meta"):
        component, default = upstream.build(SamHqOptions(), META), segmenter.build(SamHqOptions(), META)
    assert {tensor.device.type for tensor in (*component.parameters(), *component.buffers())} == {"meta"}
    count, expected = (sum(p.numel() for p in module.parameters()) for module in (component, default))
    frequencies = 2 * 128  # a parameter in transformers, a buffer in the original code
    assert count in (expected, expected - frequencies)
    everywhere = [i for i, block in enumerate(component.network.image_encoder.blocks) if block.window_size == 0]
    assert everywhere == [7, 15, 23, 31]


def test_other_precisions_are_refused() -> None:
    component = upstream.build(SamHqOptions(**OPTIONS), RANDOM).to(torch.bfloat16)
    with pytest.raises(SpecError, match=r"runs in float32 only.*bfloat16.*use sam-hq"):
        component(pictures(component, [(80, 60)]), BOXES[:1])


@pytest.mark.parametrize(
    ("lost", "message"),
    [("mask_decoder.hf_token.weight", "is missing"), ("image_encoder.blocks.1.attn.rel_pos_h", "is missing")],
)
def test_a_missing_tensor_is_an_error(folder: Path, tmp_path: Path, lost: str, message: str) -> None:
    state = load_file(folder / "model.safetensors")
    del state[lost]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=f"{lost} {message}"):
        upstream.build(options(tmp_path), PRETRAINED)


def test_options_of_another_size_are_an_error(folder: Path) -> None:
    other = options(folder).model_copy(update={"image_size": 128})
    with pytest.raises(
        WeightsError, match=r"image_encoder.pos_embed is \[1, 8, 8, 32\], but the options need \[1, 16, 16, 32\]"
    ):
        upstream.build(other, PRETRAINED)
