"""timm's vision transformers as image encoders: its own numbers, its own preprocessing, checkpoints read to the last
tensor.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from lyrics.core.contracts import BuildContext
from lyrics.core.errors import ContractError, SpecError, UnknownNameError, WeightsError, WiringError
from lyrics.core.loading import build_model
from lyrics.core.registry.registry import Registry
from lyrics.plugins import timm_vit
from lyrics.plugins.timm_vit import TimmVitOptions
from tests.experts.conftest import needs

timm = needs("timm")

from lyrics.plugins.timm_vit import encoder as module
from lyrics.plugins.timm_vit.encoder import TimmVit, build

RANDOM, PRETRAINED, META = BuildContext("random"), BuildContext("pretrained"), BuildContext("meta")


def small(**options: object) -> TimmVit:
    torch.manual_seed(0)
    return build(TimmVitOptions(**{"model": "test_vit", **options}), RANDOM)


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def published(tmp_path: Path) -> torch.nn.Module:
    """timm's own model with its classifier, whose weights are in ``tmp_path`` as timm publishes them."""
    torch.manual_seed(2)
    model = timm.create_model("test_vit").eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    return model


@torch.no_grad()
def test_tokens_are_timms(published: torch.nn.Module, tmp_path: Path, pixels: torch.Tensor) -> None:
    component = build(TimmVitOptions(model="test_vit", checkpoint=str(tmp_path)), PRETRAINED)
    tokens = component(pixels)
    torch.testing.assert_close(tokens, published.forward_features(pixels))
    assert tokens.shape == (2, 1 + 100, component.feature_dim) == (2, component.num_tokens, 64)
    assert not component.training
    assert (tokens[0] - tokens[1]).abs().max() > 1e-3
    assert (tokens - small()(pixels)).abs().max() > 1e-3


@torch.no_grad()
def test_an_empty_batch_gives_no_tokens_and_bfloat16_runs(pixels: torch.Tensor) -> None:
    component = small()
    assert component(pixels[:0]).shape == (0, 101, 64)
    low = component.to(torch.bfloat16)
    assert low(pixels).dtype == low(pixels[:0]).dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(1, 3, 160, 128), (1, 1, 160, 160), (3, 160, 160)])
def test_pictures_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ContractError, match=r"\[B, 3, 160, 160\]"):
        small()(torch.zeros(shape))


def test_preprocessing_is_timms() -> None:
    squash, crop = small().preprocessing, small(resize="crop").preprocessing
    assert (squash.resize, squash.size, squash.crop) == ("squash", 160, None)
    assert (crop.resize, crop.size, crop.crop, crop.max_size) == ("shortest", 168, 160, None)  # crop_pct 0.95
    for preprocessing in (squash, crop):
        assert preprocessing.mean == preprocessing.std == (0.5, 0.5, 0.5)
        assert preprocessing.resampling == "bicubic"
    with torch.device("meta"):
        clip = build(TimmVitOptions(), META)
        resnet_like = build(TimmVitOptions(model="vit_base_patch8_224"), META)
    assert clip.preprocessing.mean == (0.48145466, 0.4578275, 0.40821073)
    assert clip.preprocessing.std == (0.26862954, 0.26130258, 0.27577711)
    assert resnet_like.preprocessing.size == 224


def test_a_crop_fills_what_the_model_reads() -> None:
    component = small(resize="crop")
    assert component.image_size == 160
    assert component(torch.zeros(1, 3, 160, 160)).shape == (1, 101, 64)


@pytest.mark.parametrize(
    ("config", "message"),
    [({"input_size": (3, 160, 128)}, "only square RGB"), ({"input_size": (1, 160, 160)}, "only square RGB")],
)
def test_pictures_that_are_not_square_rgb_are_refused(
    monkeypatch: pytest.MonkeyPatch, config: dict[str, object], message: str
) -> None:
    original = module.resolve_model_data_config
    monkeypatch.setattr(module, "resolve_model_data_config", lambda model: {**original(model), **config})
    with pytest.raises(SpecError, match=message):
        small()


@pytest.mark.parametrize(
    ("name", "tokens", "width", "millions"),
    [
        ("vit_large_patch14_clip_224.openai", 257, 1024, 303.2),
        ("vit_small_patch14_reg4_dinov2.lvd142m", 1374, 384, 22.1),
        ("eva02_tiny_patch14_224", 257, 192, 5.5),
        ("vit_base_patch16_siglip_224", 196, 768, 92.9),
    ],
)
def test_models_of_every_make_on_the_meta_device(name: str, tokens: int, width: int, millions: float) -> None:
    with torch.device("meta"):
        component = build(TimmVitOptions(model=name), META)
        side = component.image_size
        with torch.no_grad():
            found = component(torch.zeros(1, 3, side, side))
    assert found.shape == (1, tokens, width) == (1, component.num_tokens, component.feature_dim)
    assert sum(parameter.numel() for parameter in component.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)
    assert all(parameter.is_meta for parameter in component.parameters())


def test_names() -> None:
    with pytest.raises(
        UnknownNameError, match=r"no model 'vit_largee_patch14_clip_224'. Did you mean 'vit_large_patch14_clip_"
    ):
        build(TimmVitOptions(model="vit_largee_patch14_clip_224"), RANDOM)
    with pytest.raises(UnknownNameError, match=r"tag \(r160\).*Did you mean 'test_vit.r160_in1k'"):
        build(TimmVitOptions(model="test_vit.r160"), RANDOM)
    with pytest.raises(
        SpecError, match="'swin_tiny_patch4_window7_224' is a SwinTransformer, not a plain vision transformer"
    ):
        build(TimmVitOptions(model="swin_tiny_patch4_window7_224"), META)
    for download in ("hf-hub:timm/test_vit", "local-dir:x", "timm/test_vit", "a.b.c", ""):
        with pytest.raises(ValidationError, match="model"):
            TimmVitOptions(model=download)


def test_without_a_checkpoint_timms_repository_is_read(
    published: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pixels: torch.Tensor
) -> None:
    """Only the file in timm's own naming: repositories may hold the weights a second time."""
    save_file({"visual.proj": torch.zeros(1)}, tmp_path / "open_clip_model.safetensors")
    asked = []

    def snapshot_download(repo_id: str, allow_patterns: list[str], local_files_only: bool) -> str:
        asked.append((repo_id, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    component = build(TimmVitOptions(model="test_vit"), PRETRAINED)
    assert asked == [("timm/test_vit.r160_in1k", ["model.safetensors"])]
    torch.testing.assert_close(component(pixels), published.forward_features(pixels))


def test_a_model_without_weights_is_an_error() -> None:
    with pytest.raises(SpecError, match="timm names no weights for 'test_vit4'; set the option checkpoint"):
        build(TimmVitOptions(model="test_vit4"), PRETRAINED)


@pytest.mark.usefixtures("published")
def test_every_tensor_but_the_classifiers_is_accounted_for(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    options = TimmVitOptions(model="test_vit", checkpoint=str(file))
    save_file({key: tensor for key, tensor in whole.items() if not key.startswith("head.")}, file)
    build(options, PRETRAINED)
    save_file({key: tensor for key, tensor in whole.items() if key != "norm.weight"}, file)
    with pytest.raises(WeightsError, match=r"norm\.weight is missing"):
        build(options, PRETRAINED)
    save_file({**whole, "headless.weight": torch.zeros(1)}, file)
    with pytest.raises(WeightsError, match=r"headless\.weight is not part of the model"):
        build(options, PRETRAINED)


def test_its_width_reaches_the_query_transformer() -> None:
    """No option states it, so it is known, and compared, when the encoder is built."""
    registry = Registry.discover(timm_vit)
    (record,) = timm_vit.lyrics_components()
    assert not hasattr(record.options(), "feature_dim")
    slot = {"use": "lyrics.plugins.timm_vit/timm-vit", "options": {"model": "test_vit"}}
    with torch.device("meta"):
        model = build_model("lyrics-tiny", overrides={"image_encoder": slot}, weights="meta", registry=registry)
    assert model.encoder.feature_dim == 64
    wrong = {"image_encoder": slot, "query_transformer.options.image_dim": 48}
    with pytest.raises(WiringError, match="gives feature_dim 64, but query_transformer 'mqformer' is set to read 48"):
        build_model("lyrics-tiny", overrides=wrong, weights="meta", registry=registry)
