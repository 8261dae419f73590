"""BERT's own vocabulary in the parts that were trained with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lyrics.core.build import build_model, build_part
from lyrics.core.contracts import BuildContext
from lyrics.core.registry import default_registry
from lyrics.core.resolve import Part
from lyrics.core.spec import validate
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
