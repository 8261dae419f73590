"""``hf-detector`` against transformers' own models, on small checkpoints of each family."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForObjectDetection

from lyrics.core.contracts import BuildContext, WithVocabulary
from lyrics.core.errors import SpecError, WeightsError
from lyrics.core.onednn import use_onednn
from lyrics.core.pictures.processor import prepare
from lyrics.core.types import ImageBatch
from lyrics.plugins.hf import HfDetectorOptions
from lyrics.plugins.hf.detector import HfDetector, build
from tests.plugins.hf.families import DETECTORS, checkpoint

PRETRAINED = BuildContext("pretrained")
SIDE = {"size": {"height": 64, "width": 64}}
NAMES = ["cat", "Traffic Light", "dog", "red car"]


def read(folder: Path, **options: Any) -> HfDetector:
    return build(HfDetectorOptions(checkpoint=str(folder), **{"score_threshold": 0.0, **options}), PRETRAINED)


def pictures(component: HfDetector, *sizes: tuple[int, int]) -> ImageBatch:
    noise = [np.random.default_rng(w * 1000 + h).integers(0, 255, (h, w, 3), dtype=np.uint8) for w, h in sizes]
    return prepare([Image.fromarray(array) for array in noise], component.preprocessing)


@pytest.mark.parametrize("model_type", DETECTORS)
@torch.no_grad()
def test_detections_are_those_of_transformers(model_type: str, tmp_path: Path) -> None:
    model = checkpoint(AutoModelForObjectDetection, model_type, DETECTORS[model_type], tmp_path, **SIDE)
    use_onednn(model)  # of queries that are as good as each other, rounding says which comes first
    detector = read(tmp_path)
    images = pictures(detector, (80, 50), (64, 64))
    output = model(pixel_values=images.pixels_BCHW)
    found = detector(images, [NAMES, ["dog"]])

    probabilities = output.logits.softmax(-1)[..., :-1] if output.logits.shape[-1] == 6 else output.logits.sigmoid()
    x, y, w, h = output.pred_boxes.unbind(-1)
    boxes = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=-1).clamp(0, 1)
    for row, classes in enumerate(([0, 1, 3, 4], [3])):
        expected = sorted(
            (
                (float(probabilities[row, query, index]), detector.config.id2label[index], boxes[row, query].tolist())
                for query in range(10)
                for index in classes
            ),
            reverse=True,
        )
        seen = [(d.score, d.phrase, list(d.box_norm.as_tuple())) for d in found.detections[row]]
        whole = [one for one in expected if one[2][0] < one[2][2] and one[2][1] < one[2][3]]
        assert len(seen) == len(whole) > 4
        for (score, phrase, box), (other_score, other_phrase, other_box) in zip(seen, whole, strict=True):
            assert phrase == other_phrase
            assert score == pytest.approx(other_score, abs=1e-5)
            assert box == pytest.approx(other_box, abs=1e-4)
    assert found.tokens_BMD.shape == (2, 10, 20)
    assert found.mask_BM.all()
    torch.testing.assert_close(found.tokens_BMD[..., 16:], output.pred_boxes, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.tokens_BMD[..., :16], output.last_hidden_state[:, -10:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model_type", DETECTORS)
@torch.no_grad()
def test_what_was_saved_is_rebuilt(model_type: str, tmp_path: Path) -> None:
    checkpoint(AutoModelForObjectDetection, model_type, DETECTORS[model_type], tmp_path, **SIDE)
    detector = read(tmp_path)
    files = tmp_path / "files"
    files.mkdir()
    detector.save_files(files)
    options = HfDetectorOptions(checkpoint="owner/name", score_threshold=0.0)
    again = build(options, BuildContext("random", files=files))
    again.load_state_dict(detector.state_dict())
    again.load_files(files)
    assert again.vocabulary == detector.vocabulary
    images = pictures(again, (80, 50))
    first, second = detector(images, [NAMES]), again(images, [NAMES])
    torch.testing.assert_close(first.tokens_BMD, second.tokens_BMD, rtol=1e-5, atol=1e-6)
    assert {d.phrase for d in first.detections[0]} == {d.phrase for d in second.detections[0]} == set(NAMES)


@pytest.mark.parametrize("model_type", DETECTORS)
def test_the_stated_configuration_is_built_without_memory(model_type: str) -> None:
    options = HfDetectorOptions(config={"model_type": model_type, **DETECTORS[model_type]})
    with torch.device("meta"):
        detector = build(options, BuildContext("meta"))
    assert all(parameter.is_meta for parameter in detector.parameters())
    assert options.feature_dim in (None, detector.feature_dim)


@pytest.fixture
def yolos(tmp_path: Path) -> HfDetector:
    checkpoint(AutoModelForObjectDetection, "yolos", DETECTORS["yolos"], tmp_path, **SIDE)
    return read(tmp_path)


@torch.no_grad()
def test_phrases_are_classes_by_their_spelling(yolos: HfDetector, caplog: pytest.LogCaptureFixture) -> None:
    images = pictures(yolos, (64, 64))
    with caplog.at_level(logging.WARNING):
        found = yolos(images, [["  traffic LIGHT", "Traffic Light", "unicorn", "n/a"]]).detections[0]
        yolos(images, [["unicorn"]])
    assert {d.phrase for d in found} == {"  traffic LIGHT"}
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "'unicorn' is none of the 4 classes of this detector; it is not looked for",
        "'n/a' is none of the 4 classes of this detector; it is not looked for",
    ]


@torch.no_grad()
def test_it_is_asked_for_its_vocabulary_without_a_tagger(yolos: HfDetector) -> None:
    from lyrics.core.refining.refiner import VisualRefiner

    assert isinstance(yolos, WithVocabulary)
    assert yolos.vocabulary == ("cat", "Traffic Light", "dog", "red car")
    refinement = VisualRefiner(detector=yolos)(Image.new("RGB", (50, 40), "red"))
    assert {obj.tag for obj in refinement.objects} == set(yolos.vocabulary)


@torch.no_grad()
def test_no_phrases_and_no_images_are_normal(yolos: HfDetector) -> None:
    found = yolos(pictures(yolos, (64, 64)), [[]])
    assert found.detections == ((),)
    assert found.mask_BM.all()
    assert yolos(pictures(yolos), []).tokens_BMD.shape == (0, 10, 20)
    with pytest.raises(ValueError, match="one list of phrases for each of the 1 images"):
        yolos(pictures(yolos, (64, 64)), ["dog"])  # type: ignore[list-item]


@torch.no_grad()
def test_only_the_best_are_kept(tmp_path: Path) -> None:
    checkpoint(AutoModelForObjectDetection, "yolos", DETECTORS["yolos"], tmp_path, **SIDE)
    everything, few, sure = read(tmp_path), read(tmp_path, max_detections=3), read(tmp_path, score_threshold=0.2)
    images = pictures(everything, (64, 64))
    found = everything(images, [NAMES]).detections[0]
    assert few(images, [NAMES]).detections[0] == found[:3]
    assert sure(images, [NAMES]).detections[0] == tuple(d for d in found if d.score > 0.2)


@torch.no_grad()
def test_images_of_many_shapes_do_not_depend_on_each_other(tmp_path: Path) -> None:
    entries = {"size": {"shortest_edge": 48, "longest_edge": 96}}
    checkpoint(AutoModelForObjectDetection, "detr", DETECTORS["detr"], tmp_path, **entries)
    detector = read(tmp_path)
    sizes = [(64, 48), (200, 20), (48, 64), (64, 48)]
    together = detector(pictures(detector, *sizes), [NAMES] * 4)
    for row, size in enumerate(sizes):
        alone = detector(pictures(detector, size), [NAMES])
        torch.testing.assert_close(together.tokens_BMD[row], alone.tokens_BMD[0], rtol=1e-4, atol=1e-5)


def test_what_is_no_detector_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"'owlv2', which is none of transformers' AutoModelForObjectDetection"):
        build(HfDetectorOptions(config={"model_type": "owlv2"}), BuildContext("random"))
    checkpoint(AutoModelForObjectDetection, "yolos", DETECTORS["yolos"], tmp_path, size={"height": 64, "width": 32})
    with pytest.raises(SpecError, match="only square canvases are made"):
        read(tmp_path)
