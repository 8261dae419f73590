"""``hf-image-encoder`` against transformers' own models, on small checkpoints of each family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, ViTConfig, ViTForImageClassification

from lyrics.core.contracts import BuildContext
from lyrics.core.errors import ContractError, SpecError, WeightsError
from lyrics.plugins.hf import HfImageEncoderOptions
from lyrics.plugins.hf.encoder import HfImageEncoder, build
from tests.plugins.hf.families import ENCODERS, VIT, checkpoint

RANDOM, PRETRAINED, META = BuildContext("random"), BuildContext("pretrained"), BuildContext("meta")
PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def read(folder: Path, **options: Any) -> HfImageEncoder:
    return build(HfImageEncoderOptions(checkpoint=str(folder), **options), PRETRAINED)


def tower_of(model: Any) -> Any:
    return getattr(model, "vision_model", model)


@pytest.mark.parametrize("model_type", ENCODERS)
@torch.no_grad()
def test_tokens_are_those_of_transformers(model_type: str, tmp_path: Path) -> None:
    model = checkpoint(AutoModel, model_type, ENCODERS[model_type], tmp_path)
    expected = tower_of(model)(pixel_values=PIXELS, output_hidden_states=True)
    encoder = read(tmp_path)
    torch.testing.assert_close(encoder(PIXELS), expected.last_hidden_state, rtol=1e-5, atol=1e-5)
    assert encoder.feature_dim == 16
    assert encoder.num_tokens == expected.last_hidden_state.shape[1]
    assert encoder(PIXELS[:0]).shape == (0, *expected.last_hidden_state.shape[1:])
    earlier = read(tmp_path, skip_layers=1)
    torch.testing.assert_close(earlier(PIXELS), expected.hidden_states[-2], rtol=1e-5, atol=1e-5)
    assert len(list(earlier.parameters())) < len(list(encoder.parameters()))


@pytest.mark.parametrize("skip_layers", [0, 1])
@pytest.mark.parametrize("model_type", ENCODERS)
def test_nothing_is_kept_that_the_tokens_do_not_need(model_type: str, skip_layers: int) -> None:
    """So that it can be trained: every parameter has a gradient."""
    options = HfImageEncoderOptions(config={"model_type": model_type, **ENCODERS[model_type]}, skip_layers=skip_layers)
    encoder = build(options, RANDOM)
    (encoder(PIXELS) * torch.randn(16)).sum().backward()
    assert [name for name, parameter in encoder.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("skip_layers", [0, 1])
@pytest.mark.parametrize("model_type", ENCODERS)
@torch.no_grad()
def test_what_was_saved_is_rebuilt(model_type: str, skip_layers: int, tmp_path: Path) -> None:
    checkpoint(AutoModel, model_type, ENCODERS[model_type], tmp_path)
    side = 32 if model_type == "aimv2" else 48
    encoder = read(tmp_path, skip_layers=skip_layers, preprocessor={"size": {"height": side, "width": side}})
    files = tmp_path / "files"
    files.mkdir()
    encoder.save_files(files)
    options = HfImageEncoderOptions(checkpoint="owner/name", skip_layers=skip_layers)
    again = build(options, BuildContext("random", files=files))
    again.load_state_dict(encoder.state_dict())
    again.load_files(files)
    assert again.preprocessing == encoder.preprocessing
    pixels = torch.randn(1, 3, side, side)
    torch.testing.assert_close(again(pixels), encoder(pixels), rtol=0, atol=0)


def test_the_checkpoint_says_how_images_are_prepared(tmp_path: Path) -> None:
    entries = {"image_processor_type": "BitImageProcessor", "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4] * 3}
    entries |= {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}
    checkpoint(AutoModel, "dinov2", ENCODERS["dinov2"], tmp_path, **entries)
    prepared = read(tmp_path).preprocessing
    assert (prepared.resize, prepared.size, prepared.crop, prepared.resampling) == ("shortest", 40, 32, "bicubic")
    assert prepared.mean == pytest.approx((0.1, 0.2, 0.3))
    assert read(tmp_path, preprocessor={"crop_size": 40}).preprocessing.crop == 40


@torch.no_grad()
def test_the_tower_of_a_classifier_is_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(**VIT)).eval()
    model.save_pretrained(tmp_path)
    expected = model.vit(pixel_values=PIXELS).last_hidden_state
    torch.testing.assert_close(read(tmp_path)(PIXELS), expected, rtol=1e-5, atol=1e-5)


def test_meta_and_random_need_a_configuration() -> None:
    options = HfImageEncoderOptions(config={"model_type": "dinov2", **ENCODERS["dinov2"]})
    with torch.device("meta"):
        encoder = build(options, META)
    assert all(parameter.is_meta for parameter in encoder.parameters())
    assert options.feature_dim == encoder.feature_dim == 16
    with pytest.raises(SpecError, match=r"random weights download nothing.*option config"):
        build(HfImageEncoderOptions(checkpoint="owner/name"), RANDOM)
    with pytest.raises(SpecError, match="names no checkpoint"):
        build(HfImageEncoderOptions(), PRETRAINED)


def test_a_model_of_another_kind_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"'bert', of which no vision tower can be taken"):
        build(HfImageEncoderOptions(config={"model_type": "bert"}), RANDOM)
    with pytest.raises(SpecError, match=r"model_type 'dinov9' is none that transformers knows"):
        build(HfImageEncoderOptions(config={"model_type": "dinov9"}), RANDOM)
    with pytest.raises(SpecError, match=r"a 'dinov2' has no hidden_sise"):
        build(HfImageEncoderOptions(config={"model_type": "dinov2", "hidden_sise": 3}), RANDOM)
    with pytest.raises(SpecError, match="skip_layers 3 leaves nothing of the 3 layers"):
        build(HfImageEncoderOptions(config={"model_type": "dinov2", **ENCODERS["dinov2"]}, skip_layers=3), RANDOM)


def test_what_the_options_state_otherwise_is_one_error(tmp_path: Path) -> None:
    checkpoint(AutoModel, "dinov2", ENCODERS["dinov2"], tmp_path)
    with pytest.raises(WeightsError, match=r"hidden_size is 20, the checkpoint has 16; patch_size is 4.*has 8"):
        read(tmp_path, config={"model_type": "dinov2", "hidden_size": 20, "patch_size": 4})


def test_code_and_other_checkpoints_are_refused() -> None:
    for entry in ({"auto_map": {"AutoModel": "x.Y"}}, {"backbone_config": {"use_pretrained_backbone": True}}):
        with pytest.raises(SpecError, match="not allowed"):
            build(HfImageEncoderOptions(config={"model_type": "dinov2", **entry}), RANDOM)


def test_a_size_that_the_tower_cannot_read_is_refused() -> None:
    config = {"model_type": "aimv2", **ENCODERS["aimv2"]}
    with pytest.raises(SpecError, match="reads images of 32 pixels only, and is to be given 48"):
        build(HfImageEncoderOptions(config=config, preprocessor={"size": {"height": 48, "width": 48}}), RANDOM)


def test_images_of_another_size_are_refused() -> None:
    encoder = build(HfImageEncoderOptions(config={"model_type": "dinov2", **ENCODERS["dinov2"]}), RANDOM)
    with pytest.raises(ContractError, match=r"\[B, 3, 32, 32\], not \[1, 3, 32, 48\]"):
        encoder(torch.zeros(1, 3, 32, 48))


@pytest.mark.parametrize("model_type", ["siglip2", "siglip2_vision_model"])
def test_naflex_is_refused_in_words(model_type: str) -> None:
    with pytest.raises(
        WeightsError, match=rf"is SigLIP 2 in its NaFlex form \(model type '{model_type}'\).*fixed size"
    ):
        build(HfImageEncoderOptions(config={"model_type": model_type}), BuildContext("random"))
