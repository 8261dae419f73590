"""POPE's probe: which questions are asked, on pictures whose tags are known, and what answers are worth."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lyrics.core.errors import DatasetError, SpecError
from lyrics.core.evaluation.benchmark import PredictedObject, Prediction
from lyrics.core.evaluation.build import build_benchmark
from lyrics.core.evaluation.pope import (
    Frequencies,
    Negatives,
    PopeBenchmark,
    PopeBoxesBenchmark,
    Probe,
    absent_tags,
    tags_of,
    with_article,
)
from lyrics.core.evaluation.runner import evaluate
from lyrics.core.geometry import Box
from lyrics.core.types import DetectedObject, Sample
from lyrics.testing import check_component
from tests.core.evaluation.toys import box_answer
from tests.plugins.benchmarks.conftest import REGISTRY
from tests.plugins.datasets.files import MAKERS, coco_image, picture, write

BOX, OTHER = Box(0.0, 0.0, 0.5, 0.5), Box(0.5, 0.5, 1.0, 1.0)
# person 5, dog 4, cat 3, car 2, bus 2, owl 1
ROWS = (
    ("dog", "person"),
    ("dog", "person", "Person"),
    ("dog", "person", "cat"),
    ("cat", "person", "the dog"),
    ("cat", "car"),
    ("car", "bus"),
    ("bus", "person", "owl"),
)


class Known:
    """A data set of seven pictures."""

    def __init__(self, rows: tuple[tuple[str, ...], ...] = ROWS) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        objects = tuple(DetectedObject(tag, BOX, 1.0) for tag in self.rows[index])
        return Sample(f"{index}.png", objects=objects, extra={"image_id": index, "absent": "x", "answers": ("x",)})

    def picture(self, sample: Sample) -> Image.Image:
        return Image.new("RGB", (40, 20), "red")


PICTURES = [tags_of(Known()[row]) for row in range(len(ROWS))]
COUNTED = Frequencies.of(PICTURES)


def test_frequencies_by_hand() -> None:
    assert COUNTED.tags == Counter(person=5, dog=4, cat=3, car=2, bus=2, owl=1)
    assert COUNTED.by_tag == ("person", "dog", "cat", "bus", "car", "owl")
    assert COUNTED.pairs["dog"] == Counter(person=4, cat=2)
    assert COUNTED.pairs["cat"] == Counter(person=2, dog=2, car=1)
    assert tags_of(Known()[3]) == {"cat", "person", "dog"}


def test_popular_and_adversarial_by_hand() -> None:
    def absent(present: frozenset[str], negatives: Negatives) -> list[str]:
        return absent_tags(present, COUNTED, negatives, 2, 0, 0)

    assert absent(frozenset({"car", "bus"}), "popular") == ["person", "dog"]
    # With car or bus there were: cat 1, person 1, owl 1; dog never. Of equals the first by name.
    assert absent(frozenset({"car", "bus"}), "adversarial") == ["cat", "owl"]
    # With dog or person: cat 2 + 2, bus 1, owl 1.
    assert absent(frozenset({"dog", "person"}), "adversarial") == ["cat", "bus"]
    assert absent(frozenset({"dog", "person"}), "popular") == ["cat", "bus"]
    assert absent(frozenset(COUNTED.tags), "popular") == []


def test_random_is_a_function_of_seed_and_row() -> None:
    present = frozenset({"dog"})

    def absent(seed: int, row: int) -> tuple[str, ...]:
        return tuple(absent_tags(present, COUNTED, "random", 3, seed, row))

    assert absent(1, 2) == absent(1, 2)
    assert len({absent(0, row) for row in range(30)}) > 5
    assert len({absent(seed, 0) for seed in range(30)}) > 5
    every = Counter(tag for row in range(400) for tag in absent(0, row))
    assert set(every) == set(COUNTED.tags) - {"dog"}
    assert min(every.values()) > 180  # 240 of 400 each, were they exactly even


@pytest.mark.parametrize("negatives", ["random", "popular", "adversarial"])
def test_questions_are_balanced_and_true(negatives: Negatives) -> None:
    questions = list(Probe(Known(), negatives, per_picture=2).questions())
    assert [there for _, _, there in questions] == [True, False] * 14
    for sample, tag, there in questions:
        assert (tag in tags_of(sample)) is there
    assert len({(sample.image, tag) for sample, tag, _ in questions}) == len(questions)
    positives = [(sample.image, tag) for sample, tag, there in questions if there]
    popular = Probe(Known(), "popular", per_picture=2).questions()
    assert positives == [(sample.image, tag) for sample, tag, there in popular if there]


def test_which_pictures_are_asked_about() -> None:
    def images(probe: Probe) -> list[str | None]:
        return list(dict.fromkeys(sample.image for sample, _, _ in probe.questions()))

    assert images(Probe(Known(), "popular", per_picture=3)) == ["2.png", "3.png", "6.png"]
    assert images(Probe(Known(), "popular", pictures=2, per_picture=3)) == ["2.png", "3.png"]
    # Counted over the first three only person, dog and cat are known, so nothing is absent from the third.
    assert images(Probe(Known(), "popular", per_picture=1, counted=3)) == ["0.png", "1.png", "4.png", "5.png", "6.png"]
    with pytest.raises(DatasetError, match="no image of the data set has 4 differently named objects"):
        list(Probe(Known(), "popular", per_picture=4).questions())
    with pytest.raises(DatasetError, match="annotated objects"):
        list(Probe(Known(((), ())), "random").questions())


def test_yes_and_no() -> None:
    benchmark = PopeBenchmark(Probe(Known(), "popular", pictures=2, per_picture=1))
    samples = list(benchmark.samples())
    assert [sample.turns[0].answer for sample in samples] == ["yes", "no", "yes", "no"]
    tag = samples[0].extra["tag"]
    assert benchmark.prompt(samples[0]) == (
        f"Based on the image, respond to this question with a short answer: Is there a {tag} in the image? Answer:"
    )
    assert "absent" not in samples[0].extra
    scores = benchmark.score(["Yes, there is.", "yes", "no", "perhaps"], samples)
    assert scores == {
        "accuracy": 25.0,
        "precision": 50.0,
        "recall": 50.0,
        "F1": 50.0,
        "yes ratio": 50.0,
        "unparsed": 1,
    }
    assert benchmark.judge([Prediction(text, text) for text in ("Yes", "yes", "no", "?")], samples).marks == (
        1,
        0,
        0,
        0,
    )


def test_boxes() -> None:
    benchmark = PopeBoxesBenchmark(Probe(Known(), "popular", pictures=2, per_picture=1))
    samples = list(benchmark.samples())
    tag, absent = samples[0].extra["tag"], samples[1].extra["tag"]
    assert benchmark.prompt(samples[1]) == f"Search for {absent} in the image and give its coordinates if found."
    found = [
        Prediction("", "", (PredictedObject(tag, BOX, True, 0.9, 1.0, 0.9),)),
        Prediction("", "", (PredictedObject(absent, BOX, False, None, 0.4, 0.2),)),
        Prediction("", "", (PredictedObject(samples[2].extra["tag"], OTHER, True, 0.5, 0.8, 0.4),)),
        Prediction("Not found.", "Not found."),
    ]
    verdict = benchmark.judge(found, samples)
    assert verdict.marks == (1.0, 0.0, 0.0, 1.0)
    assert verdict.scores["found (IoU >= 0.5)"] == 50.0
    assert verdict.scores["boxes for what is not there"] == 50.0
    assert verdict.scores["evidence: boxes"] == 3
    assert verdict.scores["evidence: real"] == pytest.approx(100 / 3)
    assert verdict.scores["evidence: average precision"] == 100.0
    assert len(verdict.details["evidence"]["points"]) == 3


def test_articles() -> None:
    assert [with_article(tag) for tag in ("dog", "apple", "orange circle", "")] == [
        "a dog",
        "an apple",
        "an orange circle",
        "a ",
    ]


# --- as components
# -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pope", "pope-boxes"])
def test_they_keep_their_contract(name: str) -> None:
    report = check_component(next(e for e in REGISTRY.entries if e.component.name == name), REGISTRY)
    assert (report.failures, report.skipped) == ({}, "")


def test_over_scenes() -> None:
    options = {"pictures": 6, "counted": 40, "split": "adversarial"}
    samples = list(build_benchmark("pope", options, registry=REGISTRY).samples())
    assert len(samples) == 6 * 6
    for sample in samples:
        there = {thing["shape"] for thing in sample.extra["things"]}
        assert (sample.extra["tag"] in there) is sample.extra["there"]


def test_over_coco(tmp_path: Path) -> None:
    """One picture has a dog; its crowd and its box without a width are no objects."""
    root = MAKERS["coco"](tmp_path)["root"]
    options: dict[str, Any] = {"data": "coco", "root": root, "part": "val2017", "per_image": 1}
    with pytest.raises(DatasetError, match="no image"):
        list(build_benchmark("pope", options, registry=REGISTRY).samples())
    with pytest.raises(SpecError, match="'test'"):
        build_benchmark("pope", {"data": "coco", "root": root}, registry=REGISTRY)
    with pytest.raises(SpecError, match="root=FOLDER"):
        build_benchmark("pope", {"data": "coco", "part": "val2017"}, registry=REGISTRY)


def test_over_coco_with_things_to_tell_apart(tmp_path: Path) -> None:
    images = [coco_image(key) for key in (1, 2, 3)]
    boxes = [
        {"id": number, "image_id": key, "category_id": category, "bbox": [10, 5, 20, 25], "iscrowd": 0, "area": 1}
        for number, (key, category) in enumerate(((1, 1), (1, 2), (2, 2), (3, 1), (3, 1), (3, 3)))
    ]
    categories = [{"id": 1, "name": "person"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "apple"}]
    data = {"images": images, "annotations": boxes, "categories": categories}
    write(tmp_path / "annotations/instances_val2014.json", data)
    for image in images:
        picture(tmp_path / "val2014" / image["file_name"])
    options = {"data": "coco", "root": str(tmp_path), "part": "val2014", "per_image": 1, "split": "popular"}
    benchmark: Any = build_benchmark("pope", options, registry=REGISTRY)
    samples = list(benchmark.samples())
    # Of person 2, dog 2, apple 1: what is absent from each picture, the most frequent first, and of equals by name.
    assert [sample.turns[0].instruction for sample in samples[1::2]] == [
        "Is there an apple in the image?",
        "Is there a person in the image?",
        "Is there a dog in the image?",
    ]
    assert samples[2].extra["tag"] == "dog"
    assert benchmark.picture(samples[0]).mode == "RGB"


def test_the_curve_is_written_beside_the_scores(tmp_path: Path) -> None:
    class Pointer:
        def generate(self, pictures: Any, instructions: Any, *, max_new_tokens: int) -> list[Any]:
            answer = box_answer("there", BOX)  # a box without a name is held to its place alone
            return [replace(answer, objects=(replace(answer.objects[0], tag=""),)) for _ in instructions]

    benchmark = PopeBoxesBenchmark(Probe(Known(), "random", per_picture=2))
    (result,) = evaluate(Pointer(), {"pope-boxes-random": benchmark}, tmp_path)
    assert result.scores["boxes for what is not there"] == 100.0
    folder = tmp_path / "pope-boxes-random"
    assert {path.name for path in folder.iterdir()} >= {"evidence.svg", "worst.html", "scores.json"}
    assert result.scores["evidence: real"] == 100.0
    assert "pope-boxes-random" in (folder / "evidence.svg").read_text()
    assert json.loads((folder / "scores.json").read_text())["details"]["evidence"]["average_precision"] == 1.0
