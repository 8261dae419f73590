"""The refiner in half precision: all three experts run, through the command too, and their answers stay near those in
float32.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.sam_hq.modeling_sam_hq import SamHQPositionalEmbedding
from typer.testing import CliRunner

from lyrics.cli import app
from lyrics.core import build
from lyrics.core.build import build_refiner
from lyrics.core.errors import UnknownNameError
from lyrics.core.geometry import Box
from lyrics.core.pictures.processor import Processor
from lyrics.core.refining.refiner import VisualRefiner
from lyrics.core.registry.registry import default_registry
from lyrics.core.spec import ModelSpec

EXPERTS = {"tagger": "ram-plus", "detector": "grounding-dino", "segmenter": "sam-hq"}
BOXES = [[Box(0.1, 0.1, 0.5, 0.5), Box(0.3, 0.2, 0.9, 0.8)], [Box(0.0, 0.0, 1.0, 1.0)]]
PHRASES = [["dog", "a man"], ["tree"]]


def spec() -> ModelSpec:
    """The paper's experts under their test options, with more layers in which rounding can add up."""
    registry = default_registry()
    deeper = {
        "detector": {
            "swin_depths": [2, 2, 2, 2],
            "encoder_layers": 2,
            "decoder_layers": 3,
            "shortest_side": 128,
            "longest_side": 192,
        },
        "segmenter": {"layers": 4, "global_layers": [1, 3], "decoder_layers": 2, "image_size": 128},
    }
    parts = {
        f"refiner.{kind}": {
            "use": name,
            "options": {**registry.component(kind, name).component.test_options, **deeper.get(kind, {})},
        }
        for kind, name in EXPERTS.items()
    }
    return registry.preset("lyrics-tiny").with_overrides({"objectives": {}, **parts})


def pictures() -> list[Image.Image]:
    """Smooth noise of two shapes."""
    made = []
    for seed, size in enumerate([(96, 64), (60, 90)]):
        coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        made.append(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
    return made


@pytest.fixture(scope="module")
def both() -> tuple[VisualRefiner, VisualRefiner]:
    """The same weights in float32, and in a refiner that was built in bfloat16."""
    torch.manual_seed(0)
    full = build_refiner(spec(), weights="random")
    with torch.no_grad():
        for name, parameter in full.named_parameters():
            # Fresh ones are zero or nearly so, and would hide what rounding does.
            if "bbox_embed" in name or name.endswith(("vision_param", "text_param")):
                torch.nn.init.normal_(parameter, std=0.02)
            elif "positional_embedding" in name:
                torch.nn.init.normal_(parameter)  # as published (PositionEmbeddingRandom in SAM's prompt_encoder.py)
            elif "mask_decoder" in name and parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    half = build_refiner(spec(), weights="random", dtype=torch.bfloat16)
    half.load_state_dict(full.state_dict())
    return full, half


def test_every_weight_is_half_and_the_answers_are_near(both: tuple[VisualRefiner, VisualRefiner]) -> None:
    full, half = both
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    processor = Processor({name: expert.preprocessing for name, expert in full.experts.items()})  # type: ignore[misc]
    images = processor.images(pictures())
    rounded = processor.images(pictures(), dtype=torch.bfloat16)
    with torch.no_grad():
        ours = half.tagger(rounded.by_expert["tagger"])
        for tags, expected in zip(ours, full.tagger(images.by_expert["tagger"]), strict=True):
            scores = {tag.name: tag.score for tag in expected}
            assert max(abs(tag.score - scores[tag.name]) for tag in tags) < 0.01

        found, expected = (r.detector(i.by_expert["detector"], PHRASES) for r, i in ((half, rounded), (full, images)))
        assert found.tokens_BMD.dtype == torch.bfloat16
        assert found.tokens_BMD.isfinite().all()
        overlaps, edges = [], []
        for theirs, mine in zip(expected.detections, found.detections, strict=True):
            assert mine
            for detection in theirs:
                same = [d.box_norm for d in mine if d.phrase == detection.phrase]
                nearest = max(same, key=detection.box_norm.iou)
                overlaps.append(detection.box_norm.iou(nearest))
                edges.append(np.abs(np.subtract(detection.box_norm.as_tuple(), nearest.as_tuple())).max())
        assert np.median(overlaps) > 0.8
        assert np.median(edges) < 0.01

        drawn, wanted = (r.segmenter(i.by_expert["segmenter"], BOXES) for r, i in ((half, rounded), (full, images)))
        assert drawn.tokens_BKD.dtype == torch.bfloat16
        iou = [
            (a.to_array() & b.to_array()).sum() / max(1, (a.to_array() | b.to_array()).sum())
            for masks, others in zip(drawn.masks, wanted.masks, strict=True)
            for a, b in zip(masks, others, strict=True)
        ]
        assert np.median(iou) > 0.9
        assert wanted.masks[0][0].area_px > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_all_three_run_one_after_the_other(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    refiner = build_refiner(spec(), weights="random", dtype=dtype)
    for found in refiner(pictures()):
        assert len(found.tags) > 1
        assert len(found.objects) > 1
        assert all(0 <= obj.score <= 1 and obj.mask is not None for obj in found.objects)


@torch.no_grad()
def test_places_are_encoded_in_float32(both: tuple[VisualRefiner, VisualRefiner]) -> None:
    """The codes of boxes, and of the cells of the picture: right to the last bit that bfloat16 has."""
    half = both[1].segmenter.network  # type: ignore[union-attr]
    original = SamHQPositionalEmbedding(half.config.vision_config)
    original.positional_embedding.copy_(half.shared_image_embedding.positional_embedding.float())
    boxes_px = torch.tensor([[[3.0, 50.3, 101.7, 127.9], [0.1, 0.2, 0.3, 0.4]]])
    corners = half.prompt_encoder.point_embed[2].weight, half.prompt_encoder.point_embed[3].weight
    found, _ = half.prompt_encoder(None, None, boxes_px, None)
    exact = original((boxes_px + 0.5).reshape(1, 2, 2, 2), (128, 128)) + torch.stack(corners)[:, 0].float()
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, rtol=2**-7, atol=2**-8)

    centers = (torch.arange(16) + 0.5) / 16
    grid = torch.stack(torch.meshgrid(centers, centers, indexing="xy"), dim=-1)
    wide = half.get_image_wide_positional_embeddings()
    torch.testing.assert_close(wide[0].permute(1, 2, 0).float(), original(grid), rtol=2**-8, atol=1e-6)


def test_the_command_takes_a_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[VisualRefiner] = []
    original = build.build_refiner

    def remember(*arguments: object, **keywords: object) -> VisualRefiner:
        built.append(original(*arguments, **keywords))  # type: ignore[arg-type]
        return built[-1]

    monkeypatch.setattr(build, "build_refiner", remember)
    pictures()[0].save(tmp_path / "a.png")
    arguments = ["refine", str(tmp_path / "a.png"), "--weights", "random", "--no-draw", "--json"]
    for number, (dtype, expected) in enumerate(
        {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}.items()
    ):
        done = CliRunner().invoke(app, [*arguments, "--dtype", dtype, "--out", str(tmp_path / str(number))])
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["refined"] == 1
        assert {parameter.dtype for parameter in built[-1].parameters()} == {expected}
    done = CliRunner().invoke(app, [*arguments, "--dtype", "int8", "--out", str(tmp_path / "no")])
    assert isinstance(done.exception, UnknownNameError)
    assert "--dtype int8: is one of float32 (or fp32), bfloat16 (or bf16), float16 (or fp16)" in str(done.exception)
