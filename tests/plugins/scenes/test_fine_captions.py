"""Captions of fine scenes are true of their image and of no twin."""

from __future__ import annotations

import itertools
import re

import pytest

from lyrics.core.language.codecs import format_box
from lyrics.plugins.scenes import ScenesOptions
from lyrics.plugins.scenes.dataset import Scenes
from lyrics.plugins.scenes.fine_captions import MOST_LISTED, described, ground_phrase
from lyrics.plugins.scenes.language import RELATIONS, place_of, place_phrase, stands
from lyrics.plugins.scenes.layout import Scene, Thing

ATTRIBUTES = ("color", "fill", "lean", "outline")
SUBSETS = [chosen for size in range(1, 5) for chosen in itertools.combinations(ATTRIBUTES, size)]
FRAME = re.compile(r"^(a picture of |a drawing with |this picture shows )")


def phrases(thing: Thing) -> set[str]:
    return {described(thing, chosen) for chosen in SUBSETS}


def meant(scene: Scene, phrase: str) -> list[Thing]:
    return [thing for thing in scene.things if phrase in phrases(thing)]


def is_true(scene: Scene, caption: str) -> bool:
    """By a reader of its own: what is said is cut at its connecting words, and each piece looked up."""
    text = FRAME.sub("", caption)
    if word := re.match(r'the word "([A-Z]+)" (on a [a-z ]+ ground), (.*)$', text):
        things = word[3].split(" and ")
        written = word[1] in [one.text for one in scene.words]
        return written and word[2] == ground_phrase(scene) and all(meant(scene, one) for one in things)
    for relation in (*RELATIONS, "lying on", "under"):
        if f" {relation} a" not in text:
            continue
        first, second = text.split(f" {relation} ", 1)
        ones, others = meant(scene, first), meant(scene, second)
        if relation in RELATIONS:
            return any(stands(relation, a.box, b.box) for a in ones for b in others if a is not b)
        upper, lower = (ones, others) if relation == "lying on" else (others, ones)
        pairs = [(scene.things[above], scene.things[below]) for above, below in scene.overlaps]
        return any(a is above and b is below for a in upper for b in lower for above, below in pairs)
    *things, last = re.split(r", | and ", text)
    if len(things) == 1 and not last.endswith("ground"):
        return any(
            place_of(thing.box) and place_phrase(place_of(thing.box)) == last for thing in meant(scene, things[0])
        )
    return last == ground_phrase(scene) and all(meant(scene, one) for one in things)


def test_every_caption_is_true_of_its_image_and_false_of_the_twin() -> None:
    for split in ("train", "held-out"):
        data = Scenes(ScenesOptions(attributes="fine", split=split, scenes=400))
        kinds = set()
        for row in range(400):
            captions = data[row].captions
            assert len(captions) >= 2
            for caption in captions:
                assert is_true(data.scene(row), caption), (row, caption)
                assert not is_true(data.scene(row ^ 1), caption), (row, caption)
                kinds |= {word for word in ("lying on", "under", "left of", "word", "ground") if word in caption}
        assert kinds == {"lying on", "under", "left of", "word", "ground"}


def test_every_attribute_is_said_and_no_caption_is_long() -> None:
    data = Scenes(ScenesOptions(attributes="fine", scenes=300))
    captions = [caption for row in range(300) for caption in data[row].captions]
    for words in ("solid", "dotted", "striped across", "striped down", "leaning left", "leaning right", "upright"):
        assert sum(words in caption for caption in captions) > 30
    assert max(len(caption.split()) for caption in captions) < 48
    assert max(caption.count(" outline") for caption in captions) == MOST_LISTED
    assert [data[5].captions, data[6].captions] == [data[row].captions for row in (5, 6)], "by row alone"


def test_a_phrase_names_what_it_is_asked_to() -> None:
    data = Scenes(ScenesOptions(attributes="fine", scenes=50))
    thing = next(one for row in range(50) for one in data.scene(row).things if one.fill == "striped across")
    assert described(thing, ()) == f"a {thing.shape}"
    assert described(thing, ("fill",)) == f"a {thing.shape} striped across"
    assert described(thing, ("color",)).split()[-2:] == [thing.colour, thing.shape]


def test_dense_captions_tell_everything_and_nouns_before_looks() -> None:
    data = Scenes(ScenesOptions(attributes="fine", scenes=200, captions="dense"))
    for row in range(200):
        scene, captions = data.scene(row), data[row].captions
        ordered = sorted(scene.things, key=lambda thing: (thing.box.x1, thing.box.y1))
        told = []
        for thing in ordered:
            outline = "a dark outline" if thing.outline == "dark" else "no outline"
            lean = "upright" if thing.lean == "upright" else f"leaning {thing.lean}"
            told.append(f"a {thing.shape}, {thing.colour} {thing.fill} {lean} with {outline}")
        written = [f'the word "{word.text}"' for word in scene.words]
        assert captions[0] == f"{', '.join([*told, *written])}, {ground_phrase(scene)}"
        assert len(captions) == 2
        assert sorted(captions[1]) == sorted(captions[0])
        assert all(captions[1].count(one) >= told.count(one) for one in told)
        assert not {*captions} & {*data[row ^ 1].captions}
    assert any(data[row].captions[0] != data[row].captions[1] for row in range(200))
    assert data[5].captions == Scenes(ScenesOptions(attributes="fine", scenes=9, captions="dense"))[5].captions


def test_regions_tell_everything_of_the_thing_in_the_box() -> None:
    data = Scenes(ScenesOptions(attributes="fine", scenes=200, captions="regions"))
    for row in range(200):
        scene, (caption,) = data.scene(row), data[row].captions
        told = dict(re.findall(r"a (\w+ at <Bbox>\S+</Bbox>), ([^,]+)(?=, )", caption))
        assert len(told) == len(scene.things), caption
        for thing in scene.things:
            outline = "a dark outline" if thing.outline == "dark" else "no outline"
            lean = "upright" if thing.lean == "upright" else f"leaning {thing.lean}"
            looks = told[f"{thing.shape} at {format_box(thing.box)}"]
            assert looks == f"{thing.colour} {thing.fill} {lean} with {outline}"
        for word in scene.words:
            assert f', the word at {format_box(word.box)}, "{word.text}", ' in caption
        assert caption.endswith(f", {ground_phrase(scene)}")
        assert caption not in data[row ^ 1].captions


@pytest.mark.parametrize("captions", ["dense", "regions"])
def test_plain_scenes_have_varied_captions_alone(captions: str) -> None:
    with pytest.raises(ValueError, match=f"{captions} captions are of fine scenes: set attributes=fine"):
        ScenesOptions(attributes="plain", captions=captions)
