"""The benchmark on plain scenes: a model that knows the truth has full marks, and each part sees its own
mistakes only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from lyrics.core.errors import SpecError
from lyrics.core.evaluation.benchmark import PredictedObject, Prediction
from lyrics.core.evaluation.build import build_benchmark
from lyrics.core.geometry import Box
from lyrics.core.types import Sample
from lyrics.plugins.benchmarks.scenes import TASKS, denies
from lyrics.testing import check_component
from tests.plugins.benchmarks.conftest import REGISTRY


@pytest.fixture(scope="module")
def benchmark_() -> Any:
    return build_benchmark("scenes", {"scenes": 40, "attributes": "plain"}, registry=REGISTRY)


@pytest.fixture(scope="module")
def samples(benchmark_: Any) -> list[Sample]:
    return list(benchmark_.samples())


def truth(sample: Sample) -> Prediction:
    if sample.extra.get("absent"):
        return Prediction("Not found.", "Not found.")
    task = sample.extra["task"]
    if task == "caption":
        said = " and ".join(f"{thing['colour']} {thing['shape']}s" for thing in sample.extra["things"])
        return Prediction(said, said)
    if task == "rec":
        there = sample.objects[0]
        return Prediction("there", "there", (PredictedObject(there.tag, there.box_norm),))
    said = sample.turns[0].answer
    if task == "multi-choice":
        said = f"({'abcd'[sample.extra['options'].index(said)]}) {said}"
    return Prediction(said, said)


def scores_of(benchmark_: Any, samples: Sequence[Sample], change: Callable[[Sample], Prediction | None]) -> Any:
    return benchmark_.judge([change(sample) or truth(sample) for sample in samples], samples)


def test_it_keeps_its_contract() -> None:
    report = check_component(next(e for e in REGISTRY.entries if e.component.name == "scenes"), REGISTRY)
    assert (report.failures, report.skipped) == ({}, "")


def test_tasks_take_turns_and_ids_differ(samples: list[Sample]) -> None:
    assert len(samples) == 40 * len(TASKS)
    assert tuple(sample.extra["task"] for sample in samples[:5]) == TASKS
    assert len({sample.extra["sample_id"] for sample in samples}) == len(samples)
    assert len({sample.image for sample in samples}) == 40


def test_the_truth_has_full_marks(benchmark_: Any, samples: list[Sample]) -> None:
    verdict = scores_of(benchmark_, samples, lambda sample: None)
    pointing = {name: value for name, value in verdict.scores.items() if name.startswith("pointing")}
    assert pointing.pop("pointing: boxes") > 10
    # Every box is real, and none is supported here (the predictions say so): all warnings are false, and there is
    # nothing to recall.
    assert pointing == {
        "pointing: boxes of nothing": 0.0,
        "pointing: not supported means nothing there, precision": 0.0,
    }
    # All have their right name, and no evidence: every one is real, none is supported.
    assert {name: value for name, value in verdict.scores.items() if name.startswith("evidence")} == {
        "evidence: boxes": verdict.scores["pointing: boxes"],
        "evidence: real": 100.0,
        "evidence: average precision": 100.0,
        "evidence: supported, recall": 0.0,
    }
    counts = {name: value for name, value in verdict.scores.items() if "unparsed" in name}
    shares = {
        name: value
        for name, value in verdict.scores.items()
        if name not in counts
        and not name.startswith(("pointing", "evidence"))
        and not any(score in name for score in ("CIDEr", "BLEU", "ROUGE", "METEOR"))
    }
    assert shares == dict.fromkeys(shares, 100.0)
    assert counts == dict.fromkeys(counts, 0)
    assert set(verdict.marks) == {1.0}
    for part in ("caption", "vqa", "text-vqa", "rec", "multi-choice", "not there"):
        assert any(name.startswith(f"{part}: ") for name in shares), part
    types = {name.partition(", ")[2] for name in shares if name.startswith("vqa: exact match, ")}
    assert types >= {"count", "color", "shape", "size", "existence", "position", "relation"}
    assert {name.partition(", ")[2] for name in shares if name.startswith("not there: said so, ")} == {
        "expressions",
        "questions",
    }


def test_silence_has_none(benchmark_: Any, samples: list[Sample]) -> None:
    verdict = scores_of(benchmark_, samples, lambda sample: Prediction("", ""))
    assert {value for name, value in verdict.scores.items() if "unparsed" not in name} <= {0.0}
    assert set(verdict.marks) == {0.0}
    rec = [sample for sample in samples if sample.extra["task"] == "rec" and not sample.extra.get("absent")]
    assert verdict.scores["rec: unparsed"] == len(rec)
    assert verdict.scores["multi-choice: unparsed"] == 40


@pytest.mark.parametrize("part", [*TASKS, "not there"])
def test_a_mistake_shows_in_its_own_part(benchmark_: Any, samples: list[Sample], part: str) -> None:
    def is_part(sample: Sample) -> bool:
        absent = bool(sample.extra.get("absent")) or "absent" in sample.extra["question_types"]
        return ("not there" if absent else sample.extra["task"]) == part

    right = scores_of(benchmark_, samples, lambda sample: None).scores
    wrong = scores_of(benchmark_, samples, lambda sample: Prediction("zzz", "zzz") if is_part(sample) else None).scores
    changed = {
        name for name in right if right[name] != wrong.get(name) and not name.startswith(("pointing", "evidence"))
    }
    assert changed
    assert all(name.startswith(f"{part}: ") for name in changed), changed


def test_captions_are_held_to_what_is_there(benchmark_: Any, samples: list[Sample]) -> None:
    sample = next(s for s in samples if s.extra["task"] == "caption" and len(s.extra["things"]) >= 2)
    tags = sorted({f"{thing['colour']} {thing['shape']}" for thing in sample.extra["things"]})
    invented = "gray heart" if "gray heart" not in tags else "red triangle"
    said = f"A {tags[0]} and two {invented}s."
    verdict = benchmark_.judge([Prediction(said, said)], [sample])
    assert verdict.scores["caption: named things that are there"] == 50.0
    assert verdict.scores["caption: things there that are named"] == pytest.approx(100 / len(tags))
    assert verdict.marks[0] == pytest.approx(2 / (2 + len(tags)))


def test_pointing_at_what_is_not_there_is_wrong(benchmark_: Any, samples: list[Sample]) -> None:
    sample = next(s for s in samples if s.extra.get("absent"))
    box = PredictedObject("x", sample.objects[0].box_norm)

    def said_so(said: str, *objects: PredictedObject) -> float:
        return float(benchmark_.judge([Prediction(said, said, objects)], [sample]).scores["not there: said so"])

    assert said_so("Not found.") == 100.0
    assert said_so("Not found.", box) == 0.0
    assert said_so("It is here.") == 0.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Not found.", True),
        ("There is no red ring.", True),
        ("It isn't there", True),
        ("None.", True),
        ("north", False),
        ("nothing", True),
        ("a note", False),
        ("", False),
    ],
)
def test_denials(text: str, expected: bool) -> None:
    assert denies(text) is expected


def test_expressions_that_are_there_and_not_are_asked_for_alike(benchmark_: Any, samples: list[Sample]) -> None:
    rec = [sample for sample in samples if sample.extra["task"] == "rec"]
    forms = {benchmark_.prompt(s).replace(str(s.extra.get("absent") or s.objects[0].tag), "X") for s in rec}
    assert forms == {"Search for X in the image and give its coordinates if found."}
    assert any(sample.extra.get("absent") for sample in rec)


def test_pictures_are_those_of_the_scene(benchmark_: Any, samples: list[Sample]) -> None:
    assert benchmark_.picture(samples[0]).tobytes() == benchmark_.picture(samples[4]).tobytes()
    assert benchmark_.picture(samples[0]).tobytes() != benchmark_.picture(samples[5]).tobytes()


def test_training_scenes_are_no_split() -> None:
    with pytest.raises(SpecError, match=r"scenes\.split.*'train'"):
        build_benchmark("scenes", {"split": "train"}, registry=REGISTRY)


def test_support_as_a_warning(benchmark_: Any, samples: list[Sample]) -> None:
    sample = next(s for s in samples if s.extra["task"] == "rec" and not s.extra.get("absent"))
    real, nothing = sample.objects[0].box_norm, Box(0.0, 0.0, 1.0, 0.01)
    found = (
        PredictedObject("", real, True, 0.9, 0.8),
        PredictedObject("", real, False, None, 0.4),  # real, and the refiner saw something else
        PredictedObject("", nothing, False, None, 0.0),
        PredictedObject("", nothing, False, None, 0.3),
        PredictedObject("", nothing, True, 0.5, 0.6),  # the refiner invents the same
    )
    verdict = benchmark_.judge([Prediction("", "", found)], [sample])
    assert verdict.scores["pointing: boxes"] == 5
    assert verdict.scores["pointing: boxes of nothing"] == pytest.approx(60.0)
    assert verdict.scores["pointing: not supported means nothing there, precision"] == pytest.approx(200 / 3)
    assert verdict.scores["pointing: not supported means nothing there, recall"] == pytest.approx(200 / 3)
    curve = {
        point["threshold"]: (point["warned"], point["precision"], point["recall"])
        for point in verdict.details["support"]
    }
    assert curve[0.1] == (1, 1.0, pytest.approx(1 / 3))
    assert curve[0.4] == (2, 1.0, pytest.approx(2 / 3))
    assert curve[0.7] == (4, 0.75, 1.0)
    assert curve[0.9] == (5, 0.6, 1.0)


def test_without_a_box_nothing_is_said_of_support(benchmark_: Any, samples: list[Sample]) -> None:
    verdict = benchmark_.judge([Prediction("x", "x")], [samples[0]])
    assert not [name for name in verdict.scores if name.startswith(("pointing", "evidence"))]
    assert verdict.details == {}


def test_a_real_box_needs_its_name(benchmark_: Any, samples: list[Sample]) -> None:
    sample = next(s for s in samples if s.extra["task"] == "rec" and not s.extra.get("absent"))
    target = sample.objects[0]
    thing = next(one for one in sample.extra["things"] if one["box_norm"] == target.box_norm.as_tuple())
    found = (
        PredictedObject(f"The {target.tag}.", target.box_norm, True, 0.9, 1.0, 0.9),  # the expression
        PredictedObject(f"{thing['colour']} {thing['shape']}", target.box_norm, True, 0.8, 1.0, 0.8),
        PredictedObject("elephant", target.box_norm, True, 0.7, 1.0, 0.7),
        PredictedObject("", Box(0.0, 0.0, 1.0, 0.01), False, None, 0.1, 0.05),
    )
    scores = benchmark_.judge([Prediction("", "", found)], [sample]).scores
    assert scores["evidence: boxes"] == 4
    assert scores["evidence: real"] == 50.0
    assert scores["evidence: average precision"] == 100.0
    assert scores["evidence: supported, precision"] == pytest.approx(200 / 3)
    assert scores["evidence: supported, recall"] == 100.0
