"""Experts that know everything, and experts that know half, get the figures they deserve."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lyrics.core.types import Detection, DetectorOutput, Preprocessing, SegmenterOutput
from lyrics.plugins.tiny import measure_experts, train_experts
from lyrics.plugins.tiny.expert_vocabulary import NOUNS, VOCABULARY, WORDS
from lyrics.plugins.tiny.looks import EncoderWithLooks, SegmenterWithLooks
from tests.plugins.tiny import builders

DATASET = train_experts.scenes("test", 40, fine=False)
_, TRUTH = train_experts.drawn(DATASET, range(40))
PREPROCESSING = Preprocessing(resize="longest", size=16, mean=(0.5,) * 3, std=(0.5,) * 3, pad_to=16)


class Knowing:
    """Answers batch after batch from the truth; ``says`` turns a picture's objects into those it knows of."""

    def __init__(self, says=lambda objects: objects):
        self.preprocessing, self.vocabulary, self.threshold = PREPROCESSING, VOCABULARY, 0.5
        self.says, self.place = says, 0

    def known(self, images):
        start = self.place % len(TRUTH)
        self.place += len(images)
        return [self.says(objects) for objects in TRUTH[start : start + len(images)]]

    def logits(self, images):
        known = [{obj.tag for obj in objects} for objects in self.known(images)]
        return torch.tensor([[9.0 if name in tags else -9.0 for name in VOCABULARY] for tags in known])

    def detect(self, images, phrases):
        found = tuple(
            tuple(Detection(obj.tag, obj.box_norm, 0.9) for obj in objects if obj.tag in asked)
            for objects, asked in zip(self.known(images), phrases, strict=True)
        )
        return DetectorOutput(found, torch.zeros(len(images), 0, 1), torch.zeros(len(images), 0, dtype=torch.bool))

    def segment(self, images, boxes):
        masks = tuple(
            tuple(next(obj.mask for obj in objects if obj.box_norm == box) for box in asked)
            for objects, asked in zip(self.known(images), boxes, strict=True)
        )
        return SegmenterOutput(masks, torch.zeros(0), torch.zeros(0))


class Detector(Knowing):
    __call__ = Knowing.detect


class Segmenter(Knowing):
    __call__ = Knowing.segment


def test_who_knows_everything_has_one_everywhere():
    figures = measure_experts.measure(Knowing(), Detector(), Segmenter(), DATASET)
    counts = {name: figures.pop(name) for name in ("scenes", "things", "words")}
    assert counts["scenes"] == 40
    assert counts["things"] + counts["words"] == sum(map(len, TRUTH))
    assert 10 < counts["words"] < 30
    assert figures == dict.fromkeys(figures, pytest.approx(1.0))
    assert len(figures) == 15


def test_who_sees_one_thing_of_each_picture_misses_the_others():
    def first(objects):
        return objects[:1]

    figures = measure_experts.measure(Knowing(), Detector(first), Segmenter(), DATASET)
    share = 40 / figures["things"]
    assert figures["boxes precision"] == 1
    assert figures["boxes recall"] == pytest.approx(40 / sum(map(len, TRUTH)))
    assert figures["AP50, true tags, words"] == 0
    assert 0 < figures["AP50, true tags, things"] < 0.6
    assert figures["mIoU, detected boxes"] == 1
    assert figures["mIoU, detected boxes, missed count 0"] == pytest.approx(share)
    figures = measure_experts.measure(Knowing(first), Detector(), Segmenter(), DATASET)
    assert figures["tags precision"] == 1
    assert figures["tags recall"] < 0.6
    assert figures["AP50, tagger's tags"] < 0.6
    assert figures["AP50, true tags"] == 1


def test_encoder_that_always_names_the_same():
    class Fixed(SimpleNamespace):
        def predict(self, images):
            logits = torch.zeros(len(images), 4, len(VOCABULARY))
            logits[..., 0] = 1
            return logits, torch.tensor([0.5, 0.5, 1.0, 1.0]).expand(len(images), 4, 4)

    from lyrics.plugins.tiny.phrases import PhraseHead

    module = Fixed(
        encoder=SimpleNamespace(preprocessing=Preprocessing(resize="squash", size=16, mean=(0.5,) * 3, std=(0.5,) * 3)),
        phrases=PhraseHead(4, VOCABULARY, 0.0),
    )
    module.encoder.positions_ND = torch.zeros(4, 4)
    figures = measure_experts.measure_encoder(module, DATASET)
    things = [obj for found in TRUTH for obj in found]
    assert figures["name right"] < 0.1
    assert 0 < figures["tokens"] <= 160
    # the whole picture overlaps a box by that box's share of it
    assert min(o.box_norm.area for o in things) < figures["box IoU"] < max(o.box_norm.area for o in things)


FINE = train_experts.scenes("test", 40)
_, FINE_TRUTH = train_experts.drawn(FINE, range(40))


def test_words_of_fine_scenes_are_no_things():
    detector = builders.detector(**builders.SMALL, vocabulary=NOUNS, queries=4)
    tagger = builders.tagger(**builders.SMALL, vocabulary=NOUNS)
    figures = measure_experts.measure(tagger, detector, builders.segmenter(**builders.SMALL), FINE)
    assert figures["words"] == sum(one.tag == "word" for found in FINE_TRUTH for one in found)
    assert figures["things"] == sum(one.tag != "word" for found in FINE_TRUTH for one in found)


def test_looks_are_counted_where_there_are_any():
    """Heads that always say their first value are right about those that have it."""
    encoder = EncoderWithLooks(builders.vit(image_size=32, width=16, blocks=1, layers=1, heads=2))
    segmenter = SegmenterWithLooks(builders.segmenter(image_size=64, width=16, roi_size=8, look_width=12))
    for head in (*encoder.whole.values(), *segmenter.things.values()):
        torch.nn.init.zeros_(head.weight)
        head.bias.data.copy_(torch.arange(len(head.bias), 0, -1))
    torch.nn.init.zeros_(segmenter.words.words.weight)
    figures = measure_experts.measure_looks(encoder, segmenter, FINE)
    things = [one for found in FINE_TRUTH for one in found if one.fill]
    lying = [one.hidden for one in things if one.hidden]
    words = [one.text for found in FINE_TRUTH for one in found if one.text]
    assert figures == {
        "scenes": 40,
        "ground": sum(found[0].ground == "pale" for found in FINE_TRUTH) / 40,
        "texture": sum(found[0].texture == "plain" for found in FINE_TRUTH) / 40,
        "shape": sum(one.tag == "circle" for one in things) / len(things),
        "color": sum(one.color == "red" for one in things) / len(things),
        "fill": sum(one.fill == "solid" for one in things) / len(things),
        "lean": sum(one.lean == "left" for one in things) / len(things),
        "outline": sum(one.outline == "dark" for one in things) / len(things),
        "hidden": lying.count("no") / len(lying),
        "word": words.count(WORDS[0]) / len(words),
    }
