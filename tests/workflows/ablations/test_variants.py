"""A blank picture for one part: it sees nothing, and the others see what they saw."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from PIL import Image

from lyrics.core.errors import SpecError
from lyrics.core.geometry import Box
from lyrics.core.language.prompts import Exchange
from lyrics.core.loading import build_model
from lyrics.core.model import LyricsModel
from lyrics.core.pictures.processor import ModelImages
from lyrics.core.refining.refinement import Refinement
from lyrics.core.stage1.streams import Features
from lyrics.workflows.ablations.variants import BLANK, blank_tokens, check_looks, check_part, show_blank, show_text
from tests.core.small import drawn, small

EXPERTS = ("image_encoder", "tagger", "detector", "segmenter")


@pytest.fixture(scope="module")
def model() -> LyricsModel:
    torch.manual_seed(0)
    return build_model(small(), weights="random").eval()


def seen(
    model: LyricsModel, pictures: Sequence[Image.Image], blank: Sequence[str] = ()
) -> tuple[ModelImages, Features, tuple[Refinement, ...]]:
    images = show_blank(model, blank).processor.images(pictures, names=["a", "b"])
    features, refinements = model.features(images)
    return images, features, refinements


@pytest.mark.parametrize("expert", EXPERTS)
def test_one_part_sees_white_and_the_others_the_picture(model: LyricsModel, expert: str) -> None:
    # Of two shapes, so that one of them is padded.
    pictures = [drawn(96, 64), drawn(40, 80, "blue")]
    white = [Image.new("RGB", picture.size, (255, 255, 255)) for picture in pictures]
    images, features, refinements = seen(model, pictures, [expert])
    plain, as_it_was, as_they_were = seen(model, pictures)
    blank, _, of_blank = seen(model, white)
    for name in EXPERTS:
        wanted = blank if name == expert else plain
        assert images.by_expert[name].pixels_BCHW.equal(wanted.by_expert[name].pixels_BCHW), name
        assert images.by_expert[name].frames == plain.by_expert[name].frames
        assert images.by_expert[name].names == ("a", "b")
    assert not images.by_expert[expert].pixels_BCHW.equal(plain.by_expert[expert].pixels_BCHW)
    assert images.sizes_px == ((96, 64), (40, 80))
    assert list(images.by_expert) == list(plain.by_expert)

    # What does not depend on the part is the same to the bit.
    same_tokens = features.image_tokens_BND.equal(as_it_was.image_tokens_BND)
    assert same_tokens == (expert != "image_encoder")
    assert (scores(refinements) == scores(as_they_were)) == (expert != "tagger")
    if expert in ("image_encoder", "segmenter"):
        assert boxes(refinements) == boxes(as_they_were)
        assert features.local["detector"][0].equal(as_it_was.local["detector"][0])
    if expert == "image_encoder":
        assert features.local["segmenter"][0].equal(as_it_was.local["segmenter"][0])
    if expert == "segmenter":
        assert not features.local["segmenter"][0].equal(as_it_was.local["segmenter"][0])
    if expert == "detector":
        # Not its tokens alone: its boxes, too, are those of the blank picture.
        assert boxes(refinements) == boxes(of_blank) != boxes(as_they_were)


def scores(refinements: Sequence[Refinement]) -> list[list[tuple[str, float]]]:
    return [[(tag.name, tag.score) for tag in found.tags] for found in refinements]


def boxes(refinements: Sequence[Refinement]) -> list[set[Box]]:
    return [{one.box_norm for one in found.objects} for found in refinements]


def test_blank_is_white_in_the_picture_and_padding_stays_padding(model: LyricsModel) -> None:
    images = show_blank(model, ["detector"]).processor.images([drawn(96, 48)])
    batch, prepared = images.by_expert["detector"], model.processor.preprocessing["detector"]
    white = (torch.tensor(BLANK) / 255 - torch.tensor(prepared.mean)) / torch.tensor(prepared.std)
    mask = batch.pixel_mask_BHW[0]
    assert 0 < int(mask.sum()) < mask.numel()
    assert torch.allclose(batch.pixels_BCHW[0].permute(1, 2, 0)[mask], white.expand(int(mask.sum()), 3), atol=1e-6)
    assert not batch.pixels_BCHW[0].permute(1, 2, 0)[~mask].any()


def test_a_model_is_shown_other_blanks_in_turn(model: LyricsModel) -> None:
    picture = drawn()
    show_blank(model, ())
    plain = model.look([picture], ["What?"]).soft_tokens_PQD
    show_blank(model, EXPERTS)
    nothing = model.look([picture], ["What?"]).soft_tokens_PQD
    assert nothing.equal(model.look([drawn(color="blue")], ["What?"]).soft_tokens_PQD)
    assert not nothing.equal(plain)
    show_blank(model, ())
    assert model.look([picture], ["What?"]).soft_tokens_PQD.equal(plain)


def test_parts_that_are_not_there_or_do_not_look() -> None:
    spec = small(refiner__segmenter=None)
    check_part(spec, "w/o ODM", "refiner.detector")
    with pytest.raises(SpecError, match=r"w/o SSM: this model has no refiner\.segmenter"):
        check_part(spec, "w/o SSM", "refiner.segmenter")
    with pytest.raises(SpecError, match="w/o VR: this model has no refiner, so"):
        check_part(small(refiner=None), "w/o VR", "refiner")
    cached = small(refiner__detector={"use": "cached", "options": {"missing": "empty"}})
    check_looks(cached, "w/o ViT", ["image_encoder"])
    with pytest.raises(SpecError, match=r"w/o ODM: refiner\.detector is 'cached', which reads stored objects"):
        check_looks(cached, "w/o ODM", ["detector"])


@pytest.mark.parametrize("experts", [("detector",), ("segmenter",), ("image_encoder",), ("detector", "segmenter")])
def test_tokens_of_a_blank_picture_and_what_was_found_in_the_picture(
    model: LyricsModel, experts: tuple[str, ...]
) -> None:
    pictures = [drawn(80, 80), drawn(60, 90, "blue")]
    images = model.processor.images(pictures)
    features, refinements = model.features(images)
    assert any(one.objects for one in refinements)
    blank_tokens(model, experts)
    try:
        other, found = model.features(model.processor.images(pictures))
        assert found == refinements
        for source, (tokens, mask) in features.local.items():
            after, there = other.local[source]
            assert torch.equal(there, mask)
            assert torch.equal(after, tokens) == (source not in experts)
        assert torch.equal(other.image_tokens_BND, features.image_tokens_BND) == ("image_encoder" not in experts)
        # Whatever the picture holds, these tokens tell its size at most.
        again, _ = model.features(model.processor.images([drawn(80, 80, "green"), drawn(60, 90, "black")]))
        if "detector" in experts:
            assert torch.equal(again.local["detector"][0], other.local["detector"][0])
    finally:
        blank_tokens(model, ())
    back, _ = model.features(model.processor.images(pictures))
    assert all(torch.equal(back.local[name][0], features.local[name][0]) for name in features.local)
    assert torch.equal(back.image_tokens_BND, features.image_tokens_BND)


def test_a_part_with_blank_tokens_has_all_that_the_part_has(model: LyricsModel) -> None:
    assert model.refiner is not None
    before = model.refiner.detector
    blank_tokens(model, ["detector", "tagger"])
    try:
        now = model.refiner.detector
        assert now is not before
        assert (now.preprocessing, now.feature_dim) == (before.preprocessing, before.feature_dim)  # type: ignore[union-attr]
        with pytest.raises(AttributeError, match="nothing_of_the_kind"):
            now.nothing_of_the_kind  # type: ignore[union-attr] # noqa: B018
    finally:
        blank_tokens(model, ())
    assert model.refiner.detector is before


def test_a_prompt_without_the_text(model: LyricsModel) -> None:
    encoded = model.look([drawn()], ["What?"])
    dialogue = [Exchange("What?", None, (0,))]
    whole = len(model._prompt(dialogue, encoded, 10**6))
    show_text(model, False)
    assert len(model._prompt(dialogue, encoded, 10**6)) < whole
    show_text(model, True)
    assert len(model._prompt(dialogue, encoded, 10**6)) == whole
