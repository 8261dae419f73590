"""The presets, built without memory, against the sizes of their public checkpoints."""

from __future__ import annotations

import pytest
import torch

from lyrics.core.build import build_refiner
from lyrics.core.loading import build_model
from lyrics.core.registry.registry import default_registry


@pytest.mark.parametrize(
    ("name", "detector", "megabytes", "tokens"),
    [
        # 41.5 MB in float32 on the hub, batch norms' statistics among them
        ("photo", "ustc-community/dfine-small-obj2coco", 41.5, 300),
        ("photo-open", "openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg_v3det", None, 900),
    ],
)
def test_refiners_for_photographs(name: str, detector: str, megabytes: float | None, tokens: int) -> None:
    refiner = build_refiner(name, weights="meta", dtype="float32")
    assert all(parameter.is_meta for parameter in refiner.parameters())
    spec = default_registry().preset(name)
    assert spec.refiner is not None
    assert spec.refiner.detector is not None
    assert spec.refiner.detector.options["checkpoint"] == detector
    expert = refiner.detector
    assert expert is not None
    assert expert.num_tokens == tokens
    assert expert.feature_dim == 260
    held = sum(t.numel() * t.element_size() for t in (*expert.parameters(), *expert.buffers())) / 1e6
    if megabytes is not None:
        assert held == pytest.approx(megabytes, rel=0.01)
    else:
        assert 600 < held < 750  # 0.2B parameters
    segmenter = refiner.segmenter
    assert segmenter is not None
    # of 39M parameters (156 MB) of the video model, those of its image part
    assert sum(parameter.numel() for parameter in segmenter.parameters()) == 31_440_721
    assert segmenter.preprocessing.size == 1024


def test_the_squares_that_they_read() -> None:
    photo = build_refiner("photo", weights="meta")
    assert photo.detector is not None
    assert (photo.detector.preprocessing.resize, photo.detector.preprocessing.size) == ("squash", 640)
    opened = build_refiner("photo-open", weights="meta")
    assert opened.detector is not None
    assert (opened.detector.preprocessing.size, opened.detector.preprocessing.max_size) == (800, 1333)
    assert torch.device("meta") == next(opened.parameters()).device


def test_a_model_of_todays_parts() -> None:
    model = build_model("modern", weights="meta", dtype="bfloat16")
    assert all(parameter.is_meta for parameter in model.parameters())
    # SigLIP 2 So400m without its pooling head; Qwen3-4B (4.02B parameters) and LoRA of rank 64 on its q and v
    assert sum(parameter.numel() for parameter in model.encoder.parameters()) == 412_987_248
    assert sum(parameter.numel() for parameter in model.language_model.parameters()) == 4_046_061_056
    assert model.encoder.num_tokens == 729  # type: ignore[attr-defined]
