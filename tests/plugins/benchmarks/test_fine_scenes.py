"""The benchmark ``scenes`` for fine scenes: truth is right, the same answer to both twins at chance, with no pair."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from lyrics.core.contracts import BuildContext, ShowsImages
from lyrics.core.evaluation.benchmark import Judges, Prediction
from lyrics.core.language.codecs import SpatialObject, format_objects
from lyrics.plugins.benchmarks import ScenesBenchmarkOptions
from lyrics.plugins.benchmarks.fine_scenes import PARTS, FineScenesBenchmark
from lyrics.plugins.benchmarks.scenes import scenes

LOOKS = ("L color and fill", "L lean and outline", "L other", "L word", "G", "LT", "REC by look")


def right(sample) -> str:
    task = sample.extra["task"]
    if task == "caption":
        return ", ".join(f"a {one['colour']} {one['shape']}" for one in sample.extra["things"])
    if task == "rec":
        if sample.extra.get("absent"):
            return "Not found."
        return format_objects([SpatialObject(sample.objects[0].tag, sample.objects[0].box_norm)])
    if task == "multi-choice":
        return f"({'abcd'[sample.extra['options'].index(sample.turns[0].answer)]})"
    return sample.turns[0].answer


@pytest.fixture(scope="module")
def fine() -> FineScenesBenchmark:
    found = scenes(ScenesBenchmarkOptions(attributes="fine", scenes=120), BuildContext(weights="random"))
    assert isinstance(found, FineScenesBenchmark)
    return found


@pytest.fixture(scope="module")
def samples(fine):
    return list(fine.samples())


def judged(fine, samples, answers):
    return fine.judge([Prediction.of_text(answer) for answer in answers], samples)


def test_it_keeps_the_contract_and_asks_every_scene_of_every_group(fine, samples) -> None:
    assert isinstance(fine, ShowsImages)
    assert isinstance(fine, Judges)
    assert len(samples) == 120 * len(PARTS)
    ids = [sample.extra["sample_id"] for sample in samples]
    assert len(set(ids)) == len(ids)
    groups = Counter(sample.extra["group"] for sample in samples)
    assert set(groups) == {part.group for part in PARTS}
    assert min(groups.values()) > 40


def test_twins_have_the_same_prompts(fine, samples) -> None:
    """And one picture each: nothing but the picture tells which of the two is asked about."""
    half = len(PARTS)
    for start in range(0, len(samples), 2 * half):
        for one, other in zip(samples[start : start + half], samples[start + half : start + 2 * half], strict=True):
            assert fine.prompt(one) == fine.prompt(other)
            assert one.image != other.image
            assert one.extra["pair"] == other.extra["pair"]


def test_who_knows_the_truth_is_right(fine, samples) -> None:
    scores = judged(fine, samples, map(right, samples)).scores
    assert {name: value for name, value in scores.items() if "right" in name and value < 100} == {}
    assert scores["caption: named things that are there"] == 100
    assert scores["caption: things there that are named"] == 100
    assert scores["twins: both right, G"] == 100


def test_who_knows_the_text_alone_has_no_pair_of_twins(fine, samples) -> None:
    """The same answer to both twins, here the one that is right of the first: of looks half are right, and no pair."""
    step, answers = len(PARTS), []
    for row in range(len(samples)):
        answers.append(right(samples[row - step if (row // step) % 2 else row]))
    verdict = judged(fine, samples, answers)
    for group in LOOKS:
        assert verdict.scores[f"{group}: right"] == 50, group
    for group in ("T", "absent", "REC by text"):
        assert verdict.scores[f"{group}: right"] == 100, group
    twins = {name: value for name, value in verdict.scores.items() if name.startswith("twins")}
    assert set(twins.values()) == {0.0}
    assert len(verdict.marks) == len(samples)


def test_a_box_a_denial_and_a_word_are_each_judged_as_what_they_are(fine, samples) -> None:
    there = next(
        sample for sample in samples if sample.extra["group"] == "REC by look" and not sample.extra.get("absent")
    )
    gone = next(sample for sample in samples if sample.extra["group"] == "REC by look" and sample.extra.get("absent"))
    absent = next(sample for sample in samples if sample.extra["group"] == "absent" and sample.turns)
    color = next(sample for sample in samples if sample.extra["question_types"] == ("color",))
    two_boxes = 2 * right(there)
    asked = [there, there, there, gone, gone, absent, absent, color, color]
    said = [right(there), "Not found.", two_boxes, "Not found.", right(there), "There is none.", right(there)]
    said += [color.turns[0].answer, f"It is {color.turns[0].answer}."]
    assert list(judged(fine, asked, said).marks) == [1, 0, 0, 1, 0, 1, 0, 1, 0]


@pytest.mark.parametrize(
    ("caption", "named", "true"),
    [
        ("a solid red star leaning left with no outline and an upright blue ring striped down", 100, 100),
        ("a solid red star leaning right and an upright blue ring", 50, 50),
        ("a star and a ring", 0, 0),
        ("a red star, a red star", 50, 50),
        ("a blue ring striped across with a dark outline", 0, 0),
        ("nothing", 0, 0),
    ],
)
def test_a_caption_names_a_thing_where_all_that_it_says_of_its_look_is_true(
    fine, samples, caption, named, true
) -> None:
    star = {"shape": "star", "colour": "red", "fill": "solid", "lean": "left", "outline": "none"}
    ring = {"shape": "ring", "colour": "blue", "fill": "striped down", "lean": "upright", "outline": "dark"}
    sample = next(sample for sample in samples if sample.extra["group"] == "caption")
    sample.extra["things"], kept = (star, ring), sample.extra["things"]
    try:
        scores = judged(fine, [sample], [caption]).scores
    finally:
        sample.extra["things"] = kept
    assert scores["caption: named things that are there"] == named
    assert scores["caption: things there that are named"] == true


def test_half_a_pair_is_no_pair(fine, samples) -> None:
    scores = judged(fine, samples[: len(PARTS)], map(right, samples[: len(PARTS)])).scores
    assert not any(name.startswith("twins") for name in scores)


def test_samples_are_plain_data(samples) -> None:
    for sample in samples[: len(PARTS)]:
        json.dumps(sample.extra)


def test_plain_scenes_are_as_they_were() -> None:
    plain = scenes(ScenesBenchmarkOptions(scenes=2, attributes="plain"), BuildContext(weights="random"))
    assert not isinstance(plain, FineScenesBenchmark)
    assert len(list(plain.samples())) == 10
