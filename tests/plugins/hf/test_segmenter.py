"""``hf-segmenter`` against transformers' own models, on small checkpoints of each family."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModelForMaskGeneration, Sam2VideoConfig, Sam2VideoModel

from lyrics.core.contracts import BuildContext
from lyrics.core.errors import MissingRequirementError, WeightsError
from lyrics.core.geometry import Box
from lyrics.core.pictures.processor import prepare
from lyrics.core.types import ImageBatch
from lyrics.plugins.hf import HfSegmenterOptions
from lyrics.plugins.hf.segmenter import HfSegmenter, build
from tests.plugins.hf.families import SEGMENTERS, checkpoint

PRETRAINED = BuildContext("pretrained")
BOXES = [Box(0.1, 0.2, 0.6, 0.7), Box(0.0, 0.0, 1.0, 1.0), Box(0.5, 0.5, 0.9, 0.8)]


def read(folder: Path, **options: Any) -> HfSegmenter:
    return build(HfSegmenterOptions(checkpoint=str(folder), **options), PRETRAINED)


def pictures(component: HfSegmenter, *sizes: tuple[int, int]) -> ImageBatch:
    noise = [np.random.default_rng(w * 1000 + h).integers(0, 255, (h, w, 3), dtype=np.uint8) for w, h in sizes]
    return prepare([Image.fromarray(array) for array in noise], component.preprocessing)


@pytest.mark.parametrize("model_type", SEGMENTERS)
@torch.no_grad()
def test_masks_are_those_of_transformers(model_type: str, tmp_path: Path) -> None:
    model = checkpoint(AutoModelForMaskGeneration, model_type, SEGMENTERS[model_type], tmp_path)
    segmenter = read(tmp_path, boxes_per_pass=2)
    assert segmenter.preprocessing.resize == ("squash" if model_type == "sam2" else "longest")
    images = pictures(segmenter, (80, 40))
    width, height = images.frames[0].size
    boxes = torch.tensor([[[b.x1 * width, b.y1 * height, b.x2 * width, b.y2 * height] for b in BOXES]])
    output = model(pixel_values=images.pixels_BCHW, input_boxes=boxes, multimask_output=False)
    on_canvas = F.interpolate(output.pred_masks[0], (64, 64), mode="bilinear", align_corners=False)
    original = F.interpolate(on_canvas[..., :height, :width], (40, 80), mode="bilinear", align_corners=False)[:, 0]
    found = segmenter(images, [BOXES])
    assert found.tokens_BKD.shape == (1, 3, segmenter.feature_dim)
    sure = original.abs().numpy() > 1e-5
    for mask, expected, certain in zip(found.masks[0], original.numpy() > 0, sure, strict=True):
        assert (mask.to_array() == expected)[certain].all()
        assert certain.mean() > 0.99


@pytest.mark.parametrize("model_type", SEGMENTERS)
@torch.no_grad()
def test_what_was_saved_is_rebuilt(model_type: str, tmp_path: Path) -> None:
    checkpoint(AutoModelForMaskGeneration, model_type, SEGMENTERS[model_type], tmp_path)
    segmenter = read(tmp_path)
    files = tmp_path / "files"
    files.mkdir()
    segmenter.save_files(files)
    again = build(HfSegmenterOptions(checkpoint="owner/name"), BuildContext("random", files=files))
    again.load_state_dict(segmenter.state_dict())
    again.load_files(files)
    images = pictures(again, (80, 50))
    assert torch.equal(again(images, [BOXES]).tokens_BKD, segmenter(images, [BOXES]).tokens_BKD)


@torch.no_grad()
def test_the_image_part_of_a_video_checkpoint_is_read(tmp_path: Path) -> None:
    """That is what SAM 2.1's public checkpoints are."""
    torch.manual_seed(0)
    config = Sam2VideoConfig(
        **SEGMENTERS["sam2"],
        image_size=64,
        memory_attention_hidden_size=32,
        memory_attention_num_layers=1,
        memory_attention_num_attention_heads=1,
        memory_attention_downsample_rate=1,
        memory_attention_feed_forward_hidden_size=16,
        memory_attention_rope_feat_sizes=[4, 4],
        memory_encoder_hidden_size=32,
        memory_encoder_output_channels=16,
        mask_downsampler_embed_dim=32,
        memory_fuser_embed_dim=32,
        memory_fuser_intermediate_dim=32,
    )
    video = Sam2VideoModel(config)
    video.save_pretrained(tmp_path)
    segmenter = read(tmp_path)
    theirs = dict(video.named_parameters())
    for name, parameter in segmenter.network.named_parameters():
        assert torch.equal(parameter, theirs[name]), name
    assert segmenter(pictures(segmenter, (80, 50)), [BOXES]).mask_BK.all()


def test_random_masks_differ_from_image_to_image() -> None:
    """transformers' spread of SAM's random weights is so small that they would not."""
    torch.manual_seed(0)
    config = {"model_type": "sam", **SEGMENTERS["sam"]}
    config["vision_config"] = {**config["vision_config"], "initializer_range": 1e-10}  # type: ignore[dict-item]
    segmenter = build(HfSegmenterOptions(config=config), BuildContext("random"))
    with torch.no_grad():
        tokens = segmenter(pictures(segmenter, (64, 64), (64, 60)), [BOXES[:1], BOXES[:1]]).tokens_BKD
    assert (tokens[0] - tokens[1])[..., :-4].abs().max() > 1e-3


def test_what_is_no_segmenter_is_refused() -> None:
    with pytest.raises(WeightsError, match=r"'yolos', which is none of transformers' AutoModelForMaskGeneration"):
        build(HfSegmenterOptions(config={"model_type": "yolos"}), BuildContext("random"))


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is here; tests/experts runs EdgeTAM")
def test_a_backbone_of_timm_is_asked_for(tmp_path: Path) -> None:
    """Whether the configuration, a checkpoint's or a stated one, or the network needs it."""
    message = r"needs the package timm, which is not installed\. Run: pip install timm$"
    without = {"model_type": "timm_wrapper", "architecture": "repvit_m1.dist_in1k"}
    for backbone in (without, {**without, "label_names": ["a"], "num_classes": 1}):
        config = {"model_type": "edgetam", "vision_config": {"backbone_config": backbone}}
        with pytest.raises(MissingRequirementError, match=rf"^segmenter.*{message}"):
            build(HfSegmenterOptions(config=config), BuildContext("random"))
        (tmp_path / "config.json").write_text(json.dumps(config))
        save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
        with pytest.raises(MissingRequirementError, match=message):
            read(tmp_path)
