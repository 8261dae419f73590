"""What a question may not know is not shown as a detected object, over every data set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lyrics.core.data.collate import Collator
from lyrics.core.data.conversation import converse
from lyrics.core.data.known import known_objects
from lyrics.core.data.stream import Example
from lyrics.core.language.mentions import mentioned
from lyrics.core.pictures.processor import Processor
from lyrics.core.types import Preprocessing, Sample
from tests.plugins.datasets.conftest import REGISTRY, built
from tests.plugins.datasets.files import MAKERS

NAMES = [entry.component.name for entry in REGISTRY.entries]
#: What each set's objects belong to, with the options that give some. Sets that are not here have no objects.
OBJECTS = {
    ("coco", ""): "image",
    ("flickr30k", ""): "caption",
    ("refcoco", ""): "asked",
    ("refcoco-plus", ""): "asked",
    ("refcocog", ""): "asked",
    ("grit", "part=noun_chunks"): "caption",
    ("grit", "part=ref_exps"): "caption",
    ("vg", "part=regions"): "asked",
    ("vg", "part=objects"): "image",
    ("textvqa", ""): "image",
    ("ai2d", ""): "image",
    ("dvqa", ""): "question",
    ("svit", ""): "question",
    ("multiinstruct", ""): "question",
}
#: Objects shown in (stage 1, stage 2), of all that a sample has.
SHOWN = {"image": (True, True), "caption": (True, False), "asked": (False, False), "question": (False, False)}
CASES = [*OBJECTS, *((name, "") for name in NAMES if name not in {each for each, _ in OBJECTS})]


def samples(name: str, option: str, folder: Path) -> list[Sample]:
    if name == "orca":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra: data)")
    key, _, value = option.partition("=")
    data = built(name, **MAKERS[name](folder), **({key: value} if key else {}))
    return [data[number] for number in range(len(data))]


@pytest.mark.parametrize(("name", "option"), CASES)
def test_objects_are_shown_where_their_set_says(name: str, option: str, tmp_path: Path) -> None:
    found = samples(name, option, tmp_path)
    kind = OBJECTS.get((name, option))
    assert any(sample.objects for sample in found) == (kind is not None)
    for sample in found:
        # A sample about its first object keeps the others, in stage 1 of GRIT.
        wanted = sample.objects[1:] if sample.extra.get("task") in ("rec", "grounded-caption") else sample.objects
        for stage, shown in zip(("pretrain", "instruct"), SHOWN.get(kind or "image", ()), strict=True):
            assert known_objects(sample, stage) == (wanted if shown else ())


@pytest.mark.parametrize(("name", "option"), CASES)
def test_nothing_that_is_shown_is_an_answer(name: str, option: str, tmp_path: Path) -> None:
    """In words and in place, of what stage 2 trains: except words that are written in the picture."""
    for sample in samples(name, option, tmp_path):
        known = known_objects(sample, "instruct")
        for turn in converse(sample, seed=0, position=0):
            for box in (each.box for each in mentioned(turn.answer)):
                assert all(one.box_norm.iou(box) < 0.9 for one in known), (name, turn)
            if name not in ("textvqa", "ai2d"):
                said = turn.answer.lower()
                assert not any(one.tag.lower() in said for one in known), (name, turn, known)


def test_a_word_that_is_not_known_shows_nothing(tmp_path: Path) -> None:
    """A data set that says ``objects_of`` wrongly gives nothing away."""
    (sample, *_) = samples("coco", "", tmp_path)
    assert known_objects(sample, "instruct") == sample.objects != ()
    for word, shown in (("image", sample.objects), ("questions", ()), (None, ())):
        assert known_objects(replace(sample, extra={**sample.extra, "objects_of": word}), "pretrain") == shown


def test_letters_that_are_painted_over_words_stand_for_them(tmp_path: Path) -> None:
    """The picture of a question about letters does not show the words under them."""
    plain, lettered = samples("ai2d", "", tmp_path)
    assert [one.tag for one in plain.objects] == ["soil"]
    assert [one.tag for one in lettered.objects] == ["B"]
    assert lettered.objects[0].box_norm == plain.objects[0].box_norm


@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
def test_collation_keeps_the_rule(stage: str, tmp_path: Path) -> None:
    name, option = "grit", "part=noun_chunks"
    data = built(name, **MAKERS[name](tmp_path), part="noun_chunks")
    seen = Preprocessing("squash", 8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    batch = Collator(stage, Processor({"detector": seen}), seed=0)(
        [Example(0, name, 0, data[0], data.picture(data[0]))]
    )
    (shown,) = batch.images.by_expert["detector"].known_objects
    assert shown == (data[0].objects if SHOWN[OBJECTS[name, option]][stage == "instruct"] else ())
