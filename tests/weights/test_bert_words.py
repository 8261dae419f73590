"""BERT's own vocabulary in the parts that were trained with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lyrics.core.build import build_part
from lyrics.core.contracts import BuildContext
from lyrics.core.geometry import Box
from lyrics.core.language.spatial_tokens import spatial_units
from lyrics.core.loading import build_model
from lyrics.core.registry.registry import default_registry
from lyrics.core.resolve import Part
from lyrics.core.spec import validate
from lyrics.core.types import DetectedObject
from lyrics.plugins.mqformer import MQFormerOptions
from lyrics.plugins.mqformer.build import build_mqformer
from lyrics.testing.tools import batch
from tests.core.small import small

#: Ids of [CLS], [SEP], "." and "?" in bert-base-uncased, which public checkpoints of Grounding DINO take for granted.
DELIMITERS = (101, 102, 1012, 1029)


def test_mqformer_adds_its_tokens_behind_them(bert_words: Path) -> None:
    """[DEC] is 30522 in the checkpoints of BLIP-2 and of the released Lyrics."""
    spec = small(refiner=None, image_encoder="tiny-vit", language_model__options__checkpoint=None)
    words = {"query_transformer.options.tokenizer": str(bert_words), "query_transformer.options.vocab_size": 30525}
    with pytest.warns(UserWarning, match="random weights"):
        tokenizer = build_model(spec.with_overrides(words)).query_transformer.tokenizer
    assert tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]", "[DEC]", "[BOS]", "[MLM]"]) == [
        101,
        102,
        30522,
        30523,
        30524,
    ]
    assert tokenizer("a black dog").input_ids == [101, 1037, 2304, 3899, 102]


def test_grounding_dino_reads_phrases_of_whole_words(bert_words: Path, tmp_path: Path) -> None:
    entry = default_registry().component("detector", "grounding-dino")
    options = {**entry.component.test_options, "text_vocabulary": 30522}

    def built(weights: str, **more: object) -> object:
        given = validate({**options, **more}, entry.component.options)
        return build_part(Part("detector", entry, given), BuildContext(weights))  # type: ignore[arg-type]

    torch.manual_seed(0)
    network = built("random").network  # type: ignore[attr-defined]
    network.save_pretrained(tmp_path)
    detector: object = built("pretrained", checkpoint=str(tmp_path), tokenizer=str(bert_words))
    assert detector.writer.delimiters == DELIMITERS  # type: ignore[attr-defined]
    phrases = ["red fire hydrant", "dog"]
    with torch.no_grad():
        found = detector(batch(detector.preprocessing, 1), [phrases])  # type: ignore[attr-defined,operator]
    assert {one.phrase for one in found.detections[0]} <= set(phrases)
    assert found.detections[0]


def test_an_object_is_mostly_markup(bert_words: Path) -> None:
    """What docs/paper.md says of the paper's markup: pieces of an object, their shares, and how many objects fit."""
    options = MQFormerOptions(tokenizer=str(bert_words))
    context = BuildContext("pretrained", image_dim=8, local_dims={"detector": 8})
    with torch.device("meta"):
        tokenizer = build_mqformer(options, context).tokenizer
    random = np.random.default_rng(0)
    tags = ("dog", "person", "traffic light", "wine glass", "refrigerator", "baseball glove")
    objects = []
    for number in range(400):
        (x1, x2), (y1, y2) = np.sort(random.random((2, 2)), axis=1).tolist()
        objects.append(DetectedObject(tags[number % len(tags)], Box(x1, y1, x2, y2), float(random.random())))
    pieces: dict[str, list[list[str]]] = {
        codec: [
            tokenizer.convert_ids_to_tokens(
                [piece for unit in spatial_units([one], tokenizer, codec, (640, 480), 512)[0] for piece in unit]
            )
            for one in objects
        ]
        for codec in ("lyrics", "released")
    }
    written = [piece.removeprefix("##") for one in pieces["lyrics"] for piece in one]
    numbers = sum(piece.isdigit() for piece in written)
    names = sum(len(tokenizer.tokenize(one.tag)) for one in objects)
    assert round(len(written) / len(objects)) == 38
    assert [round(100 * count / len(written)) for count in (numbers, names)] == [16, 4]
    assert round(sum(map(len, pieces["released"])) / len(objects)) == 19
    longest = options.max_positions - 2
    assert len(spatial_units(objects, tokenizer, "lyrics", (640, 480), longest)) == 13
