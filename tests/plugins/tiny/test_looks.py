"""What things look like: taken from the truth of fine scenes, and learned by what reads it off the tokens."""

from __future__ import annotations

import pytest
import torch

from lyrics.core.pictures.processor import prepare
from lyrics.plugins.scenes import names
from lyrics.plugins.tiny import expert_vocabulary, looks, train_experts
from lyrics.plugins.tiny.expert_losses import fit
from lyrics.plugins.tiny.expert_vocabulary import COLOURS, NOUNS
from lyrics.plugins.tiny.looks import EncoderWithLooks, SegmenterWithLooks
from tests.plugins.tiny import builders

DATA = train_experts.scenes("train", 24, fine=True)


def test_values_are_those_of_fine_scenes():
    for name in ("COLOURS", "FILLS", "LEANS", "OUTLINES", "GROUNDS", "TEXTURES", "WORDS"):
        assert getattr(names, name) == getattr(expert_vocabulary, name)
    assert (*names.SHAPES, names.WORD_TAG) == NOUNS


def test_every_object_has_its_own_looks():
    for index in range(24):
        _, (seen,) = train_experts.drawn(DATA, [index])
        sample = DATA[index]
        things = {one["box_norm"]: one for one in sample.extra["things"]}
        words = {one["box_norm"]: one for one in sample.extra["words"]}
        over, under = (
            {sample.extra["things"][pair[place]]["box_norm"] for pair in sample.extra["overlaps"]} for place in (0, 1)
        )
        assert len(seen) == len(things) + len(words)
        for one in seen:
            assert (one.ground, one.texture) == (sample.extra["ground"], sample.extra["texture"])
            box = one.box_norm.as_tuple()
            if one.tag == "word":
                assert (one.text, one.shape, one.color, one.fill) == (words[box]["text"], "", "", "")
            else:
                told = things[box]
                assert (one.tag, one.shape, one.color) == (told["shape"], told["shape"], told["colour"])
                assert one.hidden == ("yes" if box in under else "no" if box in over else "")
                assert (one.fill, one.lean, one.outline, one.text) == (told["fill"], told["lean"], told["outline"], "")


def test_tokens_lie_on_what_their_centers_are_in():
    encoder = builders.vit(image_size=32, width=16, blocks=1, layers=1, heads=2)
    images, objects = train_experts.drawn(DATA, range(4))
    targets = looks.lying_targets(encoder, prepare(images, encoder.preprocessing), objects)
    assert targets.shape == (4, 16, len(COLOURS) + len(NOUNS))
    for row, seen in enumerate(objects):
        for token in range(16):
            x, y = (token % 4 + 0.5) / 4, (token // 4 + 0.5) / 4
            names_there = set()
            for one in seen:
                x1, y1, x2, y2 = one.box_norm.as_tuple()
                if x1 <= x < x2 and y1 <= y < y2:
                    names_there |= {one.tag, one.color} - {""}
            said = {name for name, on in zip((*COLOURS, *NOUNS), targets[row, token], strict=True) if on}
            assert said == names_there


VIT = {"image_size": 56, "width": 16, "blocks": 1, "layers": 1, "heads": 2}
SEGMENTER = {"image_size": 128, "width": 16, "roi_size": 8, "look_width": 12}


@pytest.mark.parametrize(
    ("module", "loss", "losses_before"),
    [
        (lambda: EncoderWithLooks(builders.vit(**VIT)), looks.encoder_looks_loss, 2),
        (lambda: SegmenterWithLooks(builders.segmenter(**SEGMENTER)), looks.segmenter_looks_loss, 10),
    ],
    ids=["encoder", "segmenter"],
)
def test_looks_are_learned(module, loss, losses_before):
    trained = module()
    images, objects = train_experts.drawn(DATA, range(8))
    batch = (prepare(images, train_experts.expert_of(trained).preprocessing), objects)
    history = fit(trained, [batch] * 20, loss, steps=20, learning_rate=5e-3)
    assert history[0] > losses_before
    assert history[-1] < 0.85 * history[0]
    assert all(parameter.grad is not None for name, parameter in trained.named_parameters() if "words.bias" not in name)


def test_scenes_without_words_have_a_loss_and_a_gradient():
    module = SegmenterWithLooks(builders.segmenter(image_size=64, width=16, roi_size=8, look_width=12))
    images, objects = train_experts.drawn(DATA, range(8))
    bare = [[one for one in seen if one.tag != "word"] for seen in objects]
    for shown in (bare, [[one for one in seen if one.tag == "word"] for seen in objects]):
        value = looks.segmenter_looks_loss(module, prepare(images, module.segmenter.preprocessing), shown)
        assert torch.isfinite(value)
        value.backward()
