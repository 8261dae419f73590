"""The periodic evaluation: what it counts, on which samples, and what is left to look at."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lyrics.core.answers import Answer
from lyrics.core.data.collate import Collator
from lyrics.core.errors import DatasetError, SampleError, SpecError
from lyrics.core.geometry import Box
from lyrics.core.language.codecs import SpatialObject, format_objects
from lyrics.core.refining.refinement import Refinement
from lyrics.core.training.assemble import build_datasets, run
from lyrics.core.training.held_out import HeldOut, same_words
from lyrics.core.types import DetectedObject, Sample, Turn
from tests.core.small import drawn
from tests.core.test_model_steps import collated, example, made
from tests.core.training.test_assemble import settings

SCENES = {
    "use": "scenes",
    "options": {"task": "caption", "split": "validation", "scenes": 40, "attributes": "plain"},
}
THING = Box(0.2, 0.2, 0.6, 0.6)


def held_out(tmp_path: Path, stage: str, datasets: Any, **changes: Any) -> tuple[HeldOut, Any]:
    config = settings(tmp_path, stage, **changes)
    model = made()
    return HeldOut(config, datasets, Collator(config.stage, model.processor, seed=0)), model


@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
def test_a_run_measures_itself_and_shows_examples(stage: str, tmp_path: Path) -> None:
    task = "caption" if stage == "pretrain" else "mixed"
    sets = {"scenes": {"use": "scenes", "options": SCENES["options"] | {"task": task}}}
    run(
        settings(
            tmp_path / "run",
            stage,
            evaluation__every_steps=4,
            evaluation__sets=sets,
            evaluation__samples=10,
            evaluation__batch=5,
            evaluation__max_new_tokens=4,
        )
    )
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    (found,) = [line["evaluation"] for line in lines if "evaluation" in line]
    wanted = {
        "pretrain": {
            *(f"{way} R@1{text}" for way in ("image to text", "text to image") for text in ("", ", captions alone")),
            "ITM accuracy",
            "caption token accuracy",
            *(f"masked {kind} accuracy" for kind in ("markup", "names", "coordinates")),
        },
        "instruct": {"answer accuracy", "REC"},
    }[stage]
    assert set(found) <= wanted
    assert found
    assert all(0 <= value <= 1 for value in found.values())
    shown = [json.loads(line) for line in (tmp_path / "run" / "examples" / "examples.jsonl").read_text().splitlines()]
    assert len(shown) == 6
    assert all(line["step"] == 4 and line["expected"] for line in shown)
    report = (tmp_path / "run" / "report.html").read_text()
    assert "What the model makes of held-out samples" in report
    assert report.count("data:image/jpeg") >= 6


class Data:
    def __init__(self, samples: list[Sample | None]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, row: int) -> Sample:
        if (sample := self.samples[row]) is None:
            raise SampleError(f"row {row} is bad", "record")
        return sample

    def picture(self, sample: Sample) -> Image.Image:
        return drawn()


def asked(question: str, answer: str) -> Sample:
    objects = (DetectedObject("thing", THING, 1.0),)
    return Sample("a.png", ("words",), objects, (Turn(question, answer),), extra={"task": "text"})


def boxed(box: Box) -> str:
    return format_objects([SpatialObject("thing", box)], "lyrics")


def test_answers_and_boxes_are_counted_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {
        "color?": "RED",
        "count?": "three",
        "where?": f"There: {boxed(Box(0.22, 0.2, 0.6, 0.6))}",
        "which?": boxed(Box(0.7, 0.7, 0.9, 0.9)),
        "place?": "no box at all",
    }
    rows = [
        asked("color?", "red."),
        None,
        asked("count?", "2"),
        asked("where?", boxed(THING)),
        asked("which?", boxed(THING)),
        asked("place?", boxed(THING)),
    ]
    evaluate, model = held_out(tmp_path, "instruct", {"toy": Data(rows)}, evaluation__batch=2)

    def answer(prompts: Any, encoded: Any, **_: Any) -> list[Answer]:
        from lyrics.core.answers import read_answer

        return [read_answer(said[prompt[0].instruction], "lyrics", Refinement((96, 64))) for prompt in prompts]

    monkeypatch.setattr(model, "answer", answer)
    found = evaluate(model, 1)
    assert found.numbers == {"answer accuracy": 1 / 2, "REC": 1 / 3}
    assert [one.question for one in found.shown] == ["color?", "count?", "where?", "which?", "place?"]
    assert found.shown[0].found == "RED"


def test_samples_are_spread_and_the_same_every_time(tmp_path: Path) -> None:
    evaluate, model = held_out(
        tmp_path,
        "pretrain",
        build_datasets({"scenes": settings(tmp_path, "pretrain").data.sets["scenes"]}, "x"),
        evaluation__samples=8,
        evaluation__batch=8,
    )
    first = evaluate(model.eval(), 1)
    assert [one.row for one in evaluate.examples["scenes"]] == [0, 8, 16, 24, 32, 40, 48, 56]
    assert evaluate(model, 2).numbers == first.numbers


def test_objectives_count_what_is_right() -> None:
    """With the right answers put into the weights' place: everything is right, and everything wrong is wrong."""
    import torch

    model = made()
    batch = collated(model, "pretrain", *(example(position) for position in range(4)))
    found = model.pretraining_accuracy(batch)
    assert found["image to text R@1"][1] == found["text to image R@1"][1] == 4
    assert found["ITM accuracy"][1] == 12
    losses = model.pretraining_step(batch, seed=0, step=0)
    assert found["caption token accuracy"][1] == losses["icg"].count
    found = model.pretraining_accuracy(batch, step=3)
    markup, names, coordinates = (found[f"masked {kind} accuracy"][1] for kind in ("markup", "names", "coordinates"))
    count = model.pretraining_step(batch, seed=0, step=3)["msp"].count
    assert count == markup + names + coordinates > 0 == coordinates % 4
    assert min(markup, names, coordinates) > 0
    alone = replace(batch, captions=("",) * 4)
    assert found["image to text R@1, captions alone"][1] == 4
    assert model.pretraining_accuracy(alone)["text to image R@1, captions alone"] == (1, 4), "texts that are all alike"
    with torch.no_grad():
        for bias, right in ((torch.tensor([9.0, -9.0]), 8), (torch.tensor([-9.0, 9.0]), 4)):
            model.objectives["itm"].classifier.bias.copy_(bias)  # type: ignore[union-attr, operator]
            assert model.pretraining_accuracy(batch)["ITM accuracy"] == (right, 12)


def test_sets_that_cannot_be_measured_on(tmp_path: Path) -> None:
    evaluate, model = held_out(tmp_path, "pretrain", {"toy": Data([None, None])})
    with pytest.raises(DatasetError, match=r"evaluation\.sets\.toy: has no sample that can be read"):
        evaluate(model, 1)
    with pytest.raises(SpecError, match=r"evaluation\.sets names no data set to measure on"):
        run(settings(tmp_path / "run", "pretrain", evaluation__every_steps=2))
    with pytest.raises(SpecError, match=r"evaluation\.sets\.val: "):
        run(settings(tmp_path / "run", "pretrain", evaluation__every_steps=2, evaluation__sets={"val": "scenez"}))


def test_words_are_compared_without_case_and_punctuation() -> None:
    assert same_words("  Red. ", "red")
    assert same_words("a (b) c!", "A b C")
    assert not same_words("red", "reddish")
    assert not same_words("", "red")
