"""``hf-zero-shot-detector`` against transformers' own models, on small checkpoints of each family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForZeroShotObjectDetection

from lyrics.core.contracts import BuildContext
from lyrics.core.errors import SpecError
from lyrics.core.language.phrase_prompts import stand_in_tokenizer as grounding_tokenizer
from lyrics.core.pictures.processor import prepare
from lyrics.core.types import ImageBatch
from lyrics.plugins.hf import HfZeroShotDetectorOptions
from lyrics.plugins.hf.clip_words import stand_in_tokenizer
from lyrics.plugins.hf.zero_shot import HfZeroShotDetector, build
from tests.plugins.hf.families import ZERO_SHOT, checkpoint

RANDOM, PRETRAINED = BuildContext("random"), BuildContext("pretrained")
SIDE = {"size": {"height": 64, "width": 64}}
PHRASES = ["dog", "Red car", "a tall tree"]


def written(model_type: str, folder: Path) -> Any:
    """A checkpoint with its tokenizer."""
    model = checkpoint(AutoModelForZeroShotObjectDetection, model_type, ZERO_SHOT[model_type], folder, **SIDE)
    if model_type != "mm-grounding-dino":
        stand_in_tokenizer(300).save_pretrained(folder)
    return model


def bert(word_pieces: Any, folder: Path) -> None:
    word_pieces(["dog", "red", "car", "a", "tall", "tree", "cat"]).save_pretrained(folder)


def read(folder: Path, **options: Any) -> HfZeroShotDetector:
    given = {"score_threshold": 0.0, "nms_iou": 1.0, **options}
    return build(HfZeroShotDetectorOptions(checkpoint=str(folder), **given), PRETRAINED)


def pictures(component: HfZeroShotDetector, *sizes: tuple[int, int]) -> ImageBatch:
    noise = [np.random.default_rng(w * 1000 + h).integers(0, 255, (h, w, 3), dtype=np.uint8) for w, h in sizes]
    return prepare([Image.fromarray(array) for array in noise], component.preprocessing)


def ids_of(texts: list[str], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokenizer = stand_in_tokenizer(300)
    rows = [[257, *tokenizer.encode(text)[: length - 2], 258] for text in texts]
    ids = torch.tensor([[*row, *[0] * (length - len(row))] for row in rows])
    return ids, (torch.arange(length) < torch.tensor([[len(row)] for row in rows])).long()


@pytest.mark.parametrize("model_type", ["owlvit", "owlv2"])
@torch.no_grad()
def test_owl_scores_and_boxes_are_those_of_transformers(model_type: str, tmp_path: Path) -> None:
    model = written(model_type, tmp_path)
    detector = read(tmp_path, max_tokens=6)
    assert detector.preprocessing.square == ("corner" if model_type == "owlv2" else None)
    images = pictures(detector, (80, 40))
    ids, mask = ids_of(["dog", "red car", "a tall tree"], 16)
    output = model(pixel_values=images.pixels_BCHW, input_ids=ids, attention_mask=mask)
    (answer,) = detector.family.answers(images.pixels_BCHW, PHRASES)
    torch.testing.assert_close(answer.scores_BQP, output.logits.sigmoid(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(answer.boxes_BQ4, output.pred_boxes, rtol=1e-5, atol=1e-5)
    found = detector(images, [PHRASES])
    assert found.tokens_BMD.shape == (1, 6, 20)
    rank = output.objectness_logits[0] if model_type == "owlv2" else output.logits[0].amax(-1)
    best = rank.topk(6).indices
    torch.testing.assert_close(found.tokens_BMD[0, :, :16], output.image_embeds[0].flatten(0, 1)[best])
    torch.testing.assert_close(found.tokens_BMD[0, :, 16:], output.pred_boxes[0, best])


@torch.no_grad()
def test_omdet_scores_and_boxes_are_those_of_transformers(tmp_path: Path) -> None:
    model = written("omdet-turbo", tmp_path)
    detector = read(tmp_path)
    images = pictures(detector, (80, 40))
    classes, class_mask = ids_of(["dog", "red car"], 40)
    task, task_mask = ids_of(["Detect dog, red car."], 40)
    output = model(
        pixel_values=images.pixels_BCHW,
        classes_input_ids=classes,
        classes_attention_mask=class_mask,
        tasks_input_ids=task,
        tasks_attention_mask=task_mask,
        classes_structure=torch.tensor([2]),
    )
    (answer,) = detector.family.answers(images.pixels_BCHW, PHRASES[:2])
    torch.testing.assert_close(answer.scores_BQP, output.decoder_class_logits.sigmoid(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(answer.boxes_BQ4, output.decoder_coord_logits, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_mm_grounding_dino_answers_as_transformers_does(tmp_path: Path, word_pieces: Any) -> None:
    model = written("mm-grounding-dino", tmp_path)
    bert(word_pieces, tmp_path)
    detector = read(tmp_path)
    images = pictures(detector, (80, 40))
    tokenizer = detector.family.tokenizer
    ids = torch.tensor([tokenizer.encode("dog . red car . a tall tree .")])
    output = model(pixel_values=images.pixels_BCHW, input_ids=ids, attention_mask=torch.ones_like(ids))
    (answer,) = detector.family.answers(images.pixels_BCHW, PHRASES)
    probabilities = output.logits.sigmoid()[0]
    # [CLS] dog . red car . a tall tree . [SEP]
    expected = torch.stack([probabilities[:, 1], probabilities[:, 3:5].amax(-1), probabilities[:, 6:9].amax(-1)], -1)
    torch.testing.assert_close(answer.scores_BQP[0], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(answer.boxes_BQ4, output.pred_boxes, rtol=1e-5, atol=1e-5)
    found = detector(images, [PHRASES])
    assert found.tokens_BMD.shape == (1, 20, 68)
    assert {d.phrase for d in found.detections[0]} == set(PHRASES)


@pytest.mark.parametrize("model_type", ZERO_SHOT)
@torch.no_grad()
def test_what_was_saved_is_rebuilt(model_type: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = {"score_threshold": 0.0, "preprocessor": SIDE}
    config = {"model_type": model_type, **ZERO_SHOT[model_type]}
    detector = build(HfZeroShotDetectorOptions(config=config, **options), RANDOM)
    detector.save_files(tmp_path)
    again = build(HfZeroShotDetectorOptions(checkpoint="owner/name", **options), BuildContext("random", files=tmp_path))
    again.load_state_dict(detector.state_dict())
    again.load_files(tmp_path)
    images = pictures(again, (80, 50))
    first, second = detector(images, [PHRASES]), again(images, [PHRASES])
    assert [d.phrase for d in first.detections[0]] == [d.phrase for d in second.detections[0]]
    torch.testing.assert_close(first.tokens_BMD, second.tokens_BMD, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model_type", ZERO_SHOT)
@torch.no_grad()
def test_images_do_not_depend_on_each_other(model_type: str) -> None:
    torch.manual_seed(0)
    config = {"model_type": model_type, **ZERO_SHOT[model_type]}
    options = HfZeroShotDetectorOptions(config=config, score_threshold=0.0, preprocessor=SIDE)
    detector = build(options, RANDOM)
    sizes, phrases = [(80, 50), (64, 64), (50, 80), (64, 64)], [PHRASES, PHRASES[:1], [], PHRASES]
    together = detector(pictures(detector, *sizes), phrases)
    for row, size in enumerate(sizes):
        alone = detector(pictures(detector, size), [phrases[row]])
        assert torch.equal(alone.mask_BM[0], together.mask_BM[row])
        torch.testing.assert_close(alone.tokens_BMD[0], together.tokens_BMD[row], rtol=1e-4, atol=1e-5)
        assert [d.phrase for d in alone.detections[0]] == [d.phrase for d in together.detections[row]]
    assert together.detections[2] == ()
    assert detector(pictures(detector), []).tokens_BMD.shape[0] == 0


@pytest.mark.parametrize("model_type", ["mm-grounding-dino", "omdet-turbo"])
@torch.no_grad()
def test_phrases_that_do_not_fit_are_asked_for_in_several_rounds(model_type: str) -> None:
    config = {"model_type": model_type, **ZERO_SHOT[model_type]}
    options = HfZeroShotDetectorOptions(config=config, score_threshold=0.0, nms_iou=1.0, preprocessor=SIDE)
    detector = build(options, RANDOM)
    many = [f"thing number {index}" for index in range(7)]
    images = pictures(detector, (64, 64))
    rounds = detector.family.answers(images.pixels_BCHW, many)
    assert len(rounds) > 1
    assert [number for one in rounds for number in one.phrases] == list(range(7))
    found = detector(images, [many])
    assert {d.phrase for d in found.detections[0]} == set(many)
    scores = [d.score for d in found.detections[0]]
    assert scores == sorted(scores, reverse=True)


@torch.no_grad()
def test_phrases_of_one_spelling_are_one() -> None:
    config = {"model_type": "owlv2", **ZERO_SHOT["owlv2"]}
    detector = build(HfZeroShotDetectorOptions(config=config, score_threshold=0.0), RANDOM)
    found = detector(pictures(detector, (64, 64)), [["Dog", " dog ", "", "<s>"]]).detections[0]
    assert {d.phrase for d in found} == {"Dog", "<s>"}
    ids = detector.family.words.tokens(["<s>"])  # type: ignore[attr-defined]
    assert 257 not in ids[0], "a phrase became a special token"


def test_thresholds_are_the_familys_own() -> None:
    for model_type, expected in (("owlv2", 0.1), ("omdet-turbo", 0.3), ("mm-grounding-dino", 0.25)):
        config = {"model_type": model_type, **ZERO_SHOT[model_type]}
        assert build(HfZeroShotDetectorOptions(config=config), RANDOM).threshold == expected
        options = HfZeroShotDetectorOptions(config=config, score_threshold=0.7)
        assert build(options, RANDOM).threshold == 0.7


@pytest.mark.parametrize("model_type", ["owlv2", "mm-grounding-dino"])
def test_a_vocabulary_that_the_stand_in_does_not_fit_in_is_refused(model_type: str) -> None:
    config = {"model_type": model_type, **ZERO_SHOT[model_type]}
    config["text_config"] = {**config["text_config"], "vocab_size": 200}  # type: ignore[dict-item]
    with pytest.raises(SpecError, match=r"vocab_size is 200, but .* built-in tokenizer stands in"):
        build(HfZeroShotDetectorOptions(config=config), RANDOM)
    assert len(grounding_tokenizer()) > 200
