"""CLIP's and BLIP-2's vision towers: other implementations' numbers, the contract, checkpoints read to the
last tensor.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModel

from lyrics.core.contracts import BuildContext
from lyrics.core.errors import ContractError, WeightsError
from lyrics.plugins.clip_vit import ClipVitOptions, EvaVitGOptions
from lyrics.plugins.clip_vit.encoder import VitEncoder, build_clip, build_eva

SMALL = {"image_size": 28, "patch_size": 14, "width": 16, "heads": 2, "mlp_width": 32}
RANDOM, PRETRAINED, META = BuildContext("random"), BuildContext("pretrained"), BuildContext("meta")


def small_clip(**options: object) -> VitEncoder:
    torch.manual_seed(0)
    return build_clip(ClipVitOptions(**{**SMALL, "layers": 3, **options}), RANDOM)


def small_eva() -> VitEncoder:
    torch.manual_seed(0)
    return build_eva(EvaVitGOptions(**SMALL, layers=2), RANDOM)


@pytest.fixture(params=[small_clip, small_eva], ids=["clip-vit", "eva-vit-g"])
def encoder(request: pytest.FixtureRequest) -> VitEncoder:
    return request.param()


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def clip() -> CLIPVisionModel:
    """A tiny CLIP vision tower with three layers, whose outputs after every layer are known."""
    torch.manual_seed(3)
    config = CLIPVisionConfig(
        image_size=28, patch_size=14, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32
    )
    return CLIPVisionModel(config).eval()


def folder_of(tensors: dict[str, torch.Tensor], folder: Path) -> str:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return str(folder)


def whole_clip(clip: CLIPVisionModel) -> dict[str, torch.Tensor]:
    """The tower inside a whole CLIP model, as openai/clip-vit-large-patch14 stores it."""
    return {
        **{f"vision_model.{name}": tensor for name, tensor in clip.state_dict().items()},
        "vision_model.embeddings.position_ids": torch.arange(5)[None],
        "text_model.embeddings.position_ids": torch.arange(77)[None],
        "text_model.final_layer_norm.weight": torch.zeros(8),
        "visual_projection.weight": torch.zeros(8, 16),
        "logit_scale": torch.tensor(4.6),
    }


# --- contract


def test_tokens_have_the_declared_shape_and_dtype(encoder: VitEncoder, pixels: torch.Tensor) -> None:
    tokens = encoder(pixels)
    assert tokens.shape == (2, 1 + 4, encoder.feature_dim) == (2, 5, 16)
    assert tokens.dtype == torch.float32
    assert encoder.to(torch.bfloat16)(pixels).dtype == torch.bfloat16
    assert not encoder.training


def test_pictures_do_not_depend_on_their_batch(encoder: VitEncoder, pixels: torch.Tensor) -> None:
    together = encoder(pixels)
    alone = torch.cat([encoder(pixels[:1]), encoder(pixels[1:])])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


def test_an_empty_batch_gives_no_tokens(encoder: VitEncoder) -> None:
    tokens = encoder(torch.zeros(0, 3, 28, 28))
    assert tokens.shape == (0, 5, 16)
    assert encoder.to(torch.bfloat16)(torch.zeros(0, 3, 28, 28)).dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(1, 3, 28, 42), (1, 1, 28, 28), (3, 28, 28)])
def test_pictures_of_another_shape_are_refused(encoder: VitEncoder, shape: tuple[int, ...]) -> None:
    with pytest.raises(ContractError, match=r"\[B, 3, 28, 28\]"):
        encoder(torch.zeros(shape))


def test_preprocessing_says_how_a_picture_becomes_square() -> None:
    squash, crop = small_clip().preprocessing, small_clip(resize="crop").preprocessing
    assert (squash.resize, squash.size, squash.crop) == ("squash", 28, None)
    assert (crop.resize, crop.size, crop.crop, crop.max_size) == ("shortest", 28, 28, None)
    assert small_eva().preprocessing == squash
    for preprocessing in (squash, crop):
        assert preprocessing.mean == (0.48145466, 0.4578275, 0.40821073)
        assert preprocessing.std == (0.26862954, 0.26130258, 0.27577711)
        assert preprocessing.resampling == "bicubic"


# --- parity


def test_eva_gives_the_released_image_embeddings(parity: Callable[[str], Path], tmp_path: Path) -> None:
    fixture = load_file(parity("released_stage1.safetensors"))
    with safe_open(parity("released_stage1.safetensors"), "pt") as file:
        config = json.loads(file.metadata()["vision_config"])
    released = {name.removeprefix("state."): tensor for name, tensor in fixture.items() if name.startswith("state.")}
    assert sum(name.startswith("vision_model.") for name in released) < len(released)  # the whole model, not the tower
    options = EvaVitGOptions(
        checkpoint=folder_of(released, tmp_path),
        image_size=config["image_size"],
        patch_size=config["patch_size"],
        width=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        mlp_width=config["intermediate_size"],
    )
    encoder = build_eva(options, PRETRAINED)
    assert encoder.feature_dim == options.feature_dim == 48
    with torch.no_grad():
        tokens = encoder(fixture["in.image"])
    torch.testing.assert_close(tokens, fixture["out.image_embeds"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("skip_layers", [0, 1, 2])
def test_clip_gives_the_hidden_state_asked_for(
    clip: CLIPVisionModel, pixels: torch.Tensor, tmp_path: Path, skip_layers: int
) -> None:
    checkpoint = folder_of(whole_clip(clip), tmp_path)
    options = ClipVitOptions(**SMALL, layers=3, skip_layers=skip_layers, checkpoint=checkpoint)
    with torch.no_grad():
        hidden_states = clip(pixels, output_hidden_states=True).hidden_states
        tokens = build_clip(options, PRETRAINED)(pixels)
    assert len(hidden_states) == 1 + 3
    torch.testing.assert_close(tokens, hidden_states[3 - skip_layers], rtol=1e-5, atol=1e-6)


def test_the_default_is_the_last_layer_but_one() -> None:
    assert ClipVitOptions().skip_layers == 1
    assert len(small_clip().tower.encoder.layers) == 2


# --- checkpoints


def test_a_tower_saved_by_transformers_is_read(clip: CLIPVisionModel, pixels: torch.Tensor, tmp_path: Path) -> None:
    clip.save_pretrained(tmp_path)
    encoder = build_clip(ClipVitOptions(**SMALL, layers=3, checkpoint=str(tmp_path)), PRETRAINED)
    with torch.no_grad():
        expected = clip(pixels, output_hidden_states=True).hidden_states[-2]
        torch.testing.assert_close(encoder(pixels), expected, rtol=1e-5, atol=1e-6)


def test_shards_are_read(clip: CLIPVisionModel, pixels: torch.Tensor, tmp_path: Path) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in whole_clip(clip).items()}
    names = sorted(tensors)
    for number in (0, 1):
        part = {name: tensors[name] for name in names[number::2]}
        save_file(part, tmp_path / f"model-0000{number + 1}-of-00002.safetensors")
    options = ClipVitOptions(**SMALL, layers=3, checkpoint=str(tmp_path))
    with torch.no_grad():
        expected = clip(pixels, output_hidden_states=True).hidden_states[-2]
        torch.testing.assert_close(build_clip(options, PRETRAINED)(pixels), expected, rtol=1e-5, atol=1e-6)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(WeightsError, match="is missing"):
        build_clip(options, PRETRAINED)


def test_weights_take_the_precision_asked_for(clip: CLIPVisionModel, tmp_path: Path) -> None:
    checkpoint = folder_of({name: tensor.half() for name, tensor in clip.state_dict().items()}, tmp_path)
    options = ClipVitOptions(**SMALL, layers=3, checkpoint=checkpoint)
    for dtype in (torch.float32, torch.bfloat16):
        torch.set_default_dtype(dtype)
        try:
            built = [build_clip(options, PRETRAINED), build_clip(options, RANDOM)]
        finally:
            torch.set_default_dtype(torch.float32)
        assert {parameter.dtype for encoder in built for parameter in encoder.parameters()} == {dtype}


def test_tensors_are_all_accounted_for(clip: CLIPVisionModel, tmp_path: Path) -> None:
    def load(tensors: dict[str, torch.Tensor], **options: object) -> None:
        checkpoint = folder_of(tensors, tmp_path)
        build_clip(ClipVitOptions(**{**SMALL, "layers": 3, "checkpoint": checkpoint, **options}), PRETRAINED)

    complete = whole_clip(clip)
    load(complete)
    name = "encoder.layers.1.mlp.fc1.bias"
    with pytest.raises(WeightsError, match=rf"{name} is missing\. Set"):
        load({key: tensor for key, tensor in complete.items() if key != f"vision_model.{name}"})
    with pytest.raises(WeightsError, match=r"options: adapter\.weight is not part of the model\. Set"):
        load({**complete, "vision_model.adapter.weight": torch.zeros(2)})
    with pytest.raises(WeightsError, match=r"encoder\.layers\.3\.\S+ is missing"):
        load(complete, layers=5)
    with pytest.raises(WeightsError, match=r"encoder\.layers\.2\.\S+ is not part of the model"):
        load(complete, layers=2)
    with pytest.raises(WeightsError, match=r"position_embedding\.weight is \[5, 16\], but the options need \[10, 16\]"):
        load(complete, image_size=42)


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    def load(checkpoint: str) -> None:
        build_eva(EvaVitGOptions(**SMALL, layers=2, checkpoint=checkpoint), PRETRAINED)

    with pytest.raises(WeightsError, match="absent"):
        load(str(tmp_path / "absent"))
    with pytest.raises(WeightsError, match="no safetensors file"):
        load(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04 a pickle")
    with pytest.raises(WeightsError, match="cannot be read as safetensors"):
        load(str(tmp_path))


# --- sizes


def test_full_size_parameters() -> None:
    """Counted by hand from the layers; the towers are the published ones without what nobody reads."""

    def transformer(width: int, mlp: int, layers: int) -> int:
        attention = 4 * (width * width + width)
        return layers * (attention + width * mlp + mlp + mlp * width + width + 2 * 2 * width)

    with torch.device("meta"):
        clip = build_clip(ClipVitOptions(), META)
        eva = build_eva(EvaVitGOptions(), META)
    assert all(parameter.is_meta for parameter in clip.parameters())

    # patches without bias, class token, positions, LayerNorm before the layers; published: 24 layers and a LayerNorm
    # after them
    embedding = 3 * 14 * 14 * 1024 + 1024 + 257 * 1024 + 2 * 1024
    assert sum(p.numel() for p in clip.parameters()) == embedding + transformer(1024, 4096, 23)
    assert (
        embedding + transformer(1024, 4096, 24) + 2 * 1024 == 303_179_776
    )  # CLIPVisionModel of openai/clip-vit-large-patch14

    # patches with bias, class token, positions, LayerNorm after the layers
    embedding = 3 * 14 * 14 * 1408 + 1408 + 1408 + 257 * 1408
    assert sum(p.numel() for p in eva.parameters()) == embedding + transformer(1408, 6144, 39) + 2 * 1408
    assert sum(p.numel() for p in eva.parameters()) == 985_952_256

    assert (clip.feature_dim, clip.num_tokens) == (ClipVitOptions().feature_dim, 257) == (1024, 257)
    assert (eva.feature_dim, eva.num_tokens) == (EvaVitGOptions().feature_dim, 257) == (1408, 257)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"image_size": 30}, "not a multiple of patch_size"),
        ({"heads": 3}, "not a multiple of heads"),
        ({"layers": 2, "skip_layers": 2}, "leaves nothing"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ClipVitOptions(**{**SMALL, "layers": 3, **options})
