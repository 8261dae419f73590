"""What a collated batch says of its pictures: stored refinements that are theirs, and whose text is left out."""

from __future__ import annotations

import pytest
from PIL import Image

from lyrics.core.data.collate import Collator, InstructionExamples
from lyrics.core.data.stream import Example
from lyrics.core.errors import DatasetError
from lyrics.core.geometry import Box
from lyrics.core.pictures.processor import Processor
from lyrics.core.refining.refinement import Refinement
from lyrics.core.types import DetectedObject, Preprocessing, Sample, Turn

FOUND = (DetectedObject("dog", Box(0.1, 0.1, 0.5, 0.5), 0.9),)
SEEN = Preprocessing("squash", 8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def shown(stored_px: tuple[int, int]) -> tuple[DetectedObject, ...] | None:
    refined = {"a.jpg": Refinement(stored_px, objects=FOUND, name="a.jpg")}
    collate = Collator("pretrain", Processor({"detector": SEEN}), seed=0, refined=refined)
    batch = collate([Example(0, "set", 3, Sample("a.jpg", ("a dog",)), Image.new("RGB", (64, 48)))])
    return batch.images.by_expert["detector"].known_objects[0]


def test_a_refinement_of_the_picture_at_any_scale_is_shown() -> None:
    for stored_px in ((64, 48), (640, 480)):
        (one,) = shown(stored_px) or ()
        assert one.tag == "dog"
        assert one.box_norm.iou(FOUND[0].box_norm) > 0.999


def test_which_texts_are_dropped_is_a_function_of_seed_and_position() -> None:
    """Whatever the batch; the two are drawn apart, and text alone counts as no picture."""
    picture = Image.new("RGB", (64, 48))
    turns = (Turn("What is it?", "a dog"),)
    examples = [
        Example(place, "set", place, Sample(f"{place}.jpg", turns=turns), picture)
        if place % 5
        else Example(place, "set", place, Sample(None, turns=turns), None)
        for place in range(400)
    ]

    def dropped(rows: slice, prompt: float, queries: float, seed: int = 0) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
        collate = Collator(
            "instruct", Processor({"detector": SEEN}), seed=seed, drop_text=prompt, drop_queries_text=queries
        )
        batch = collate(examples[rows])
        assert isinstance(batch, InstructionExamples)
        assert len(batch.dropped.prompt) in (0, len(batch.images))
        return batch.dropped.prompt, batch.dropped.queries

    everything = slice(0, 400)
    prompt, queries = dropped(everything, 0.3, 0.5)
    assert len(prompt) == len(queries) == 320
    assert 0.24 < sum(prompt) / 320 < 0.36
    assert 0.43 < sum(queries) / 320 < 0.57
    both = sum(a and b for a, b in zip(prompt, queries, strict=True)) / 320
    assert 0.1 < both < 0.2, "drawn apart"
    parts = [dropped(slice(start, start + 50), 0.3, 0.5) for start in range(0, 400, 50)]
    assert (sum((a for a, _ in parts), ()), sum((b for _, b in parts), ())) == (prompt, queries)
    assert dropped(everything, 0.3, 0.5, seed=1)[0] != prompt
    more, _ = dropped(everything, 0.6, 0.5)
    assert all(b for a, b in zip(prompt, more, strict=True) if a), "a larger share holds the smaller"
    assert dropped(everything, 0.0, 0.0) == ((), ())
    assert dropped(everything, 1.0, 1.0) == ((True,) * 320,) * 2


@pytest.mark.parametrize("stored_px", [(48, 64), (64, 64)])
def test_a_refinement_of_a_turned_or_cropped_picture_is_refused(stored_px: tuple[int, int]) -> None:
    with pytest.raises(
        DatasetError, match=r"a.jpg \(data set 'set', row 3\) has \(64, 48\) pixels, but .* another image"
    ):
        shown(stored_px)
