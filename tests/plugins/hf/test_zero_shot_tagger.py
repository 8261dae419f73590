"""``zero-shot-tagger`` against transformers' SigLIP, on a small checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel

from lyrics.core.contracts import BuildContext
from lyrics.core.errors import SpecError, WeightsError
from lyrics.core.language.tokenizers import byte_tokenizer
from lyrics.core.pictures.processor import prepare
from lyrics.plugins.hf import ZeroShotTaggerOptions, small
from lyrics.plugins.hf.zero_shot_tagger import ZeroShotTagger, build
from tests.plugins.hf.families import checkpoint

CONFIG = {name: value for name, value in small.SIGLIP_PAIR.items() if name != "model_type"}
WORDS = ("dog", "cat", "red car", "tree")


def read(folder: Path, **options: Any) -> ZeroShotTagger:
    given = {"threshold": 0.0, "words": WORDS, **options}
    return build(ZeroShotTaggerOptions(checkpoint=str(folder), **given), BuildContext("pretrained"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = checkpoint(AutoModel, "siglip", CONFIG, tmp_path)
    with torch.no_grad():
        model.logit_scale.fill_(1.5)
        model.logit_bias.fill_(-0.7)
    model.save_pretrained(tmp_path)
    byte_tokenizer(("<pad>",)).save_pretrained(tmp_path)
    return tmp_path


def noise(count: int) -> list[Image.Image]:
    return [
        Image.fromarray(np.random.default_rng(index).integers(0, 255, (40, 50, 3), dtype=np.uint8))
        for index in range(count)
    ]


@torch.no_grad()
def test_probabilities_are_those_of_transformers(folder: Path) -> None:
    tagger = read(folder)
    images = prepare(noise(2), tagger.preprocessing)
    tokenizer = byte_tokenizer(("<pad>",))
    texts = [f"This is a photo of {word}." for word in WORDS]
    ids = tokenizer(texts, padding="max_length", max_length=40, truncation=True, return_tensors="pt")["input_ids"]
    model = AutoModel.from_pretrained(folder).eval()
    expected = model(pixel_values=images.pixels_BCHW, input_ids=ids).logits_per_image.sigmoid()
    for tags, row in zip(tagger(images), expected, strict=True):
        assert [tag.name for tag in tags] == [WORDS[index] for index in row.argsort(descending=True)]
        assert [tag.score for tag in tags] == pytest.approx(sorted(row.tolist(), reverse=True), abs=1e-5)
    median = float(expected[0].sort().values[1:3].mean())  # between two of the four
    few = read(folder, threshold=median)
    assert [tag.score > median for tag in few(images)[0]] == [True] * int((expected[0] > median).sum())
    assert len(read(folder, max_tags=1)(images)[1]) == 1


@torch.no_grad()
def test_words_are_read_again_when_weights_change(folder: Path) -> None:
    tagger = read(folder)
    images = prepare(noise(1), tagger.preprocessing)
    before = tagger(images)
    for parameter in tagger.network.text_model.parameters():
        parameter.mul_(-0.5)
    assert tagger(images) != before
    low = tagger.to(torch.bfloat16)(images)
    assert {tag.name for tag in low[0]} == set(WORDS)


@torch.no_grad()
def test_what_was_saved_is_rebuilt(folder: Path) -> None:
    (folder / "list.txt").write_text("house\n\ndog\n", encoding="utf-8")
    tagger = read(folder, words_file=str(folder / "list.txt"))
    assert tagger.words == (*WORDS, "house")
    files = folder / "files"
    files.mkdir()
    tagger.save_files(files)
    options = ZeroShotTaggerOptions(words_file="gone.txt", threshold=0.0)
    again = build(options, BuildContext("random", files=files))
    again.load_state_dict(tagger.state_dict())
    again.load_files(files)
    images = prepare(noise(2), again.preprocessing)
    assert [[t.name for t in tags] for tags in again(images)] == [[t.name for t in tags] for tags in tagger(images)]


def test_bad_options_are_refused_in_a_sentence(folder: Path) -> None:
    with pytest.raises(SpecError, match=r"has no words; set words, or words_file"):
        read(folder, words=())
    with pytest.raises(WeightsError, match=r"of the model type 'clip', not of siglip"):
        build(ZeroShotTaggerOptions(config={"model_type": "clip"}, words=WORDS), BuildContext("random"))
    with pytest.raises(SpecError, match=r"no-such-file\.txt"):
        read(folder, words_file="no-such-file.txt")
