"""``sam3`` against transformers' own model, on a small checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Sam3Model

from lyrics.core.contracts import BuildContext
from lyrics.core.errors import WeightsError
from lyrics.core.pictures.processor import prepare
from lyrics.core.refining.refiner import VisualRefiner
from lyrics.core.types import ImageBatch
from lyrics.plugins.hf import Sam3Options, small
from lyrics.plugins.hf.clip_words import stand_in_tokenizer
from lyrics.plugins.hf.sam3 import Sam3, build
from tests.plugins.hf.families import checkpoint

CONFIG = {name: value for name, value in small.SAM3.items() if name != "model_type"}
PHRASES = ["dog", "Red car", "tree"]


def read(folder: Path, **options: Any) -> Sam3:
    given = {"score_threshold": 0.0, **options}
    return build(Sam3Options(checkpoint=str(folder), **given), BuildContext("pretrained"))


def pictures(component: Sam3, *sizes: tuple[int, int]) -> ImageBatch:
    noise = [np.random.default_rng(w * 1000 + h).integers(0, 255, (h, w, 3), dtype=np.uint8) for w, h in sizes]
    return prepare([Image.fromarray(array) for array in noise], component.preprocessing)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    checkpoint(Sam3Model, "sam3", CONFIG, tmp_path)
    stand_in_tokenizer(300).save_pretrained(tmp_path)
    return tmp_path


@torch.no_grad()
def test_boxes_scores_and_masks_are_those_of_transformers(folder: Path) -> None:
    model = Sam3Model.from_pretrained(folder).eval()
    detector = read(folder, phrases_per_pass=2)
    images = pictures(detector, (80, 40))
    assert images.pixels_BCHW.shape[-2:] == (56, 56)
    expected = []
    for phrase, text in zip(PHRASES, ("dog", "red car", "tree"), strict=True):
        ids = [257, *stand_in_tokenizer(300).encode(text), 258]
        row = torch.tensor([[*ids, *[0] * (32 - len(ids))]])
        output = model(
            pixel_values=images.pixels_BCHW, input_ids=row, attention_mask=(torch.arange(32) < len(ids))[None].long()
        )
        scores = output.pred_logits[0].sigmoid() * output.presence_logits[0].sigmoid()
        masks = F.interpolate(output.pred_masks, (40, 80), mode="bilinear", align_corners=False)[0]
        for score, box, mask in zip(scores.tolist(), output.pred_boxes[0].clamp(0, 1).tolist(), masks, strict=True):
            if box[0] < box[2] and box[1] < box[3]:
                expected.append((score, phrase, box, mask.numpy()))
    expected.sort(key=lambda one: -one[0])
    found = detector(images, [PHRASES])
    assert found.masks is not None
    assert len(found.detections[0]) == len(expected) > 6
    for detection, mask, (score, phrase, box, logits) in zip(
        found.detections[0], found.masks[0], expected, strict=True
    ):
        assert detection.phrase == phrase
        assert detection.score == pytest.approx(score, abs=1e-5)
        assert detection.box_norm.as_tuple() == pytest.approx(box, abs=1e-4)
        # enlarged in two steps, to the canvas and to the original; that moves borders by a pixel
        assert (mask.to_array() == (logits > 0)).mean() > 0.97
    assert found.tokens_BMD.shape == (1, len(expected), 36)
    assert found.mask_BM.all()


@torch.no_grad()
def test_objects_have_masks_without_a_segmenter(folder: Path) -> None:
    refiner = VisualRefiner(detector=read(folder), max_objects=3)
    (found,) = refiner([Image.effect_noise((60, 40), 80).convert("RGB")], [PHRASES])
    assert len(found.objects) == 3
    assert all(obj.mask is not None and (obj.mask.width, obj.mask.height) == (60, 40) for obj in found.objects)


@torch.no_grad()
def test_images_do_not_depend_on_each_other(folder: Path) -> None:
    detector = read(folder, max_detections=7)
    sizes, phrases = [(80, 40), (64, 64), (40, 80)], [PHRASES, [], ["dog", " DOG "]]
    together = detector(pictures(detector, *sizes), phrases)
    assert together.detections[1] == ()
    assert not together.mask_BM[1].any()
    assert {d.phrase for d in together.detections[2]} == {"dog"}
    assert len(together.detections[0]) == 7
    for row, size in enumerate(sizes):
        alone = detector(pictures(detector, size), [phrases[row]])
        tokens = together.tokens_BMD[row][together.mask_BM[row]]
        torch.testing.assert_close(tokens, alone.tokens_BMD[0], rtol=1e-4, atol=1e-5)
    assert detector(pictures(detector), []).tokens_BMD.shape == (0, 0, 36)


@torch.no_grad()
def test_the_image_part_of_a_video_checkpoint_is_read(folder: Path) -> None:
    """That is what the public checkpoint is."""
    images_alone = read(folder)
    tensors = {f"detector_model.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(
        {**tensors, "tracker_model.a.weight": torch.zeros(2), "tracker_neck.b.weight": torch.zeros(2)},
        folder / "model.safetensors",
    )
    config = {"model_type": "sam3_video", "detector_config": json.loads((folder / "config.json").read_text())}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    detector = read(folder)
    images = pictures(detector, (80, 40))
    assert torch.equal(detector(images, [PHRASES]).tokens_BMD, images_alone(images, [PHRASES]).tokens_BMD)
    files = folder / "files"
    files.mkdir()
    detector.save_files(files)
    again = build(Sam3Options(score_threshold=0.0), BuildContext("random", files=files))
    again.load_state_dict(detector.state_dict())
    again.load_files(files)
    torch.testing.assert_close(again(images, [PHRASES]).tokens_BMD, detector(images, [PHRASES]).tokens_BMD)


def test_another_model_is_refused() -> None:
    with pytest.raises(WeightsError, match=r"of the model type 'sam2', not of sam3"):
        build(Sam3Options(config={"model_type": "sam2"}), BuildContext("random"))
