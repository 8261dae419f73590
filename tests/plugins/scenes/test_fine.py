"""Fine scenes: twins share all that tags and boxes say, and differ in everything else."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest

from lyrics.core.language.codecs import SpatialObject, format_objects
from lyrics.core.masks import Mask
from lyrics.plugins.scenes import ScenesOptions, SceneTextsOptions
from lyrics.plugins.scenes.dataset import Scenes
from lyrics.plugins.scenes.fine import CLEAR_OVERLAP
from lyrics.plugins.scenes.names import (
    COLOURS,
    FILLS,
    FINE_SIZES,
    GROUNDS,
    HELD_OUT,
    HELD_OUT_FILLS,
    LEANS,
    OUTLINES,
    SCENE_TASKS,
    SHAPES,
    SPLITS,
    TEXTURES,
)
from lyrics.plugins.scenes.texts import SceneTexts


def fine(**options: object) -> Scenes:
    return Scenes(ScenesOptions(attributes="fine", **options))


def spatial_text(scene) -> str:
    named = [(thing.tag, thing.box) for thing in scene.things] + [(word.tag, word.box) for word in scene.words]
    return format_objects([SpatialObject(tag, box) for tag, box in named])


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_twins_have_the_same_spatial_text_letter_for_letter(split: str) -> None:
    data = fine(split=split)
    for pair in range(2_000):
        one, other = data.scene(2 * pair), data.scene(2 * pair + 1)
        assert spatial_text(one) == spatial_text(other)
        assert (one.width, one.height) == (other.width, other.height)
        assert [thing.size for thing in one.things] == [thing.size for thing in other.things]


def test_samples_of_twins_have_the_same_objects_but_for_their_masks() -> None:
    data = fine(task="caption")
    for pair in range(300):
        one, other = data[2 * pair], data[2 * pair + 1]
        assert [(found.tag, found.box_norm, found.score) for found in one.objects] == [
            (found.tag, found.box_norm, found.score) for found in other.objects
        ]


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_twins_differ_in_every_attribute(split: str) -> None:
    data = fine(split=split)
    for pair in range(1_000):
        one, other = data.scene(2 * pair), data.scene(2 * pair + 1)
        for a, b in zip(one.things, other.things, strict=True):
            assert all(getattr(a, name) != getattr(b, name) for name in ("colour", "fill", "lean", "outline"))
        assert all(a.text != b.text for a, b in zip(one.words, other.words, strict=True))
        assert one.ground != other.ground
        assert one.texture != other.texture
        # Whoever lies on another lies under it in the twin, or does not clearly touch it there.
        assert not set(one.overlaps) & set(other.overlaps)


def test_every_value_is_about_as_frequent_in_either_twin() -> None:
    data = fine()
    for twin in (0, 1):
        scenes = [data.scene(2 * pair + twin) for pair in range(3_000)]
        things = [thing for scene in scenes for thing in scene.things]
        for values, seen in (
            (COLOURS, [thing.colour for thing in things]),
            (SHAPES, [thing.shape for thing in things]),
            (FILLS, [thing.fill for thing in things]),
            (LEANS, [thing.lean for thing in things]),
            (OUTLINES, [thing.outline for thing in things]),
            (GROUNDS, [scene.ground for scene in scenes]),
            (TEXTURES, [scene.texture for scene in scenes]),
        ):
            counts = Counter(seen)
            assert set(counts) == set(values)
            assert all(0.85 < counts[value] * len(values) / len(seen) < 1.15 for value in values), counts


def test_held_out_combinations_are_in_their_split_alone() -> None:
    assert len(HELD_OUT_FILLS) == len(COLOURS) == len({color for color, _ in HELD_OUT_FILLS})
    assert set(Counter(fill for _, fill in HELD_OUT_FILLS).values()) == {2}
    for split in SPLITS:
        data = fine(split=split)
        rare_colors, rare_fills = Counter(), Counter()
        for index in range(1_000):
            first, *others = [
                ((thing.colour, thing.shape) in HELD_OUT, (thing.colour, thing.fill) in HELD_OUT_FILLS)
                for thing in data.scene(index).things
            ]
            assert not any(map(any, others))
            assert sum(first) == (split == "held-out")
            rare_colors[index % 2] += first[0]
            rare_fills[index % 2] += first[1]
        if split == "held-out":
            assert rare_colors[0] + rare_fills[0] == rare_colors[1] + rare_fills[1] == 500
            assert all(200 < count < 300 for count in (*rare_colors.values(), *rare_fills.values()))


def test_things_are_where_and_what_they_are_said_to_be() -> None:
    data = fine()
    on_others = 0
    for index in range(600):
        scene, sample = data.scene(index), data[index]
        by_box = {found.box_norm: found for found in sample.objects}
        short = min(scene.width, scene.height)
        for number, thing in enumerate(scene.things):
            seen_HW = scene.owner_HW == number + 1
            found = by_box[thing.box]
            assert found.mask == Mask.from_array(seen_HW)
            assert found.tag == thing.tag == thing.shape
            assert seen_HW.sum() >= 0.4 * thing.pixels.sum()
            assert thing.partly_hidden == (seen_HW.sum() < thing.pixels.sum())
            assert not (seen_HW[thing.window] & ~thing.pixels).any()
            width, height = thing.canvas
            x1, y1, x2, y2 = (round(value) for value in thing.box.to_px((scene.width, scene.height)))
            assert (x2 - x1, y2 - y1) == (width, height) == thing.pixels.shape[::-1]
            assert FINE_SIZES[thing.size][0] * short - 1 <= height <= FINE_SIZES[thing.size][1] * short + 1
        whole = [thing.pixels.sum() for thing in scene.things]
        for upper, lower in scene.overlaps:
            on_others += 1
            hidden = whole[lower] - (scene.owner_HW == lower + 1).sum()
            assert hidden >= CLEAR_OVERLAP * min(whole[upper], whole[lower])
        plates = [word.box.to_px((scene.width, scene.height)) for word in scene.words]
        assert (scene.owner_HW == 255).sum() == sum(round(x2 - x1) * round(y2 - y1) for x1, y1, x2, y2 in plates)
    assert on_others > 100


def test_the_truth_has_the_attributes() -> None:
    sample = fine()[7]
    assert sample.extra["ground"] in GROUNDS
    assert sample.extra["texture"] in TEXTURES
    for thing in sample.extra["things"]:
        assert (thing["fill"] in FILLS, thing["lean"] in LEANS, thing["outline"] in OUTLINES) == (True, True, True)
    assert "ground" not in Scenes(ScenesOptions(attributes="plain"))[7].extra


def test_the_written_scene_says_word_and_not_which() -> None:
    data = SceneTexts(SceneTextsOptions(attributes="fine", scenes=200, told=0.0))
    for index in range(100):
        listed = data[index].turns[0].instruction.split("\n")[0]
        scene = data._scenes.scene(index)
        assert listed.count("<T>word</T>") == len(scene.words)
        assert not any(word.text in listed for word in scene.words)
        assert not any(color in listed for color in COLOURS)


def test_rows_are_the_same_everywhere() -> None:
    """A digest of pixels and annotations; a change here is another world and needs other weights."""
    digest = hashlib.sha256()
    for split in SPLITS:
        data = fine(split=split)
        for index in range(8):
            sample = data[index]
            digest.update(np.asarray(data.picture(sample)).tobytes())
            digest.update(repr(sample.extra["things"]).encode())
    assert digest.hexdigest() == "8277b29c664363486e75888158eae19b8ae39ccc394311862f5652c36530a796"


def test_larger_scenes_are_drawn_to_scale() -> None:
    data = fine(side=256)
    for index in range(20):
        scene = data.scene(index)
        assert data.picture(data[index]).size == (scene.width, scene.height)
        assert max(scene.width, scene.height) == 256


@pytest.mark.parametrize("task", SCENE_TASKS)
def test_every_task_has_samples(task: str) -> None:
    data = fine(task=task)
    for index in range(20):
        assert data[index].image == f"train/{index}"
