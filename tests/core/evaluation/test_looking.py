"""Samples answered under conditions: one look where it will do, every condition resumable, few-shot prompts, models
without text.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lyrics.core.conditions import CLEAR, Condition
from lyrics.core.errors import LyricsError, SpecError
from lyrics.core.evaluation.benchmark import Prediction, Verdict
from lyrics.core.evaluation.looking import Asking
from lyrics.core.evaluation.runner import evaluate, evaluate_under
from lyrics.core.loading import build_model
from lyrics.core.model import LyricsModel
from lyrics.core.registry.registry import default_registry
from lyrics.core.resolve import Part
from lyrics.core.spec import validate
from lyrics.core.types import Sample, Turn
from lyrics.testing.small import SmallModel
from tests.core.evaluation.toys import Colors, Model
from tests.core.small import drawn, small

SOFT = tuple(Condition(soft=kind) for kind in ("shuffled", "zero", "noise"))  # type: ignore[arg-type]
DROP = Condition(drop_tokens=0.5)
NAME = "toy"


class Toy:
    """Drawn circles; a sample of text alone if asked for, and two images each if asked for."""

    max_new_tokens = 4
    colors = ("red", "green", "blue", "black", "orange")

    def __init__(self, text: bool = False, images: int = 1) -> None:
        self.text, self.images = text, images
        self.opened = 0

    def samples(self) -> Iterator[Sample]:
        for number, color in enumerate(self.colors):
            yield Sample(color, turns=(Turn("what?", color),), extra={"question_id": number, "group": "LG"[number % 2]})
        if self.text:
            yield Sample(None, turns=(Turn("what?", "nothing"),), extra={"question_id": 9})

    def prompt(self, sample: Sample) -> str:
        return "what color is it?"

    def picture(self, sample: Sample) -> Any:
        self.opened += 1
        picture = drawn(40, 40, str(sample.image))
        return picture if self.images == 1 else [picture] + [drawn(40, 40, "gray")] * (self.images - 1)

    def judge(self, said: Any, samples: Any) -> Verdict:
        marks = tuple(float(len(one.text) % 2) for one in said)
        return Verdict({"odd": 100 * sum(marks) / len(marks)}, marks)

    def score(self, said: Any, samples: Any) -> Any:
        return self.judge([Prediction.of_text(one) for one in said], samples).scores


@pytest.fixture(scope="module")
def model() -> LyricsModel:
    torch.manual_seed(0)
    return build_model(small(language_model__options__max_positions=512), weights="random").eval()


@pytest.fixture
def watched(model: LyricsModel, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """What the model looks at, and what it answers from."""
    seen: dict[str, list[Any]] = {"looks": [], "asked": []}
    look, answer = model.look, model.answer

    def looking(pictures: Any, instructions: Any, **named: Any) -> Any:
        seen["looks"] += [(named.get("condition", CLEAR), Image.Image.tobytes(picture)) for picture in pictures]
        return look(pictures, instructions, **named)

    def answering(dialogues: Any, encoded: Any, **named: Any) -> Any:
        seen["asked"].append((dialogues, encoded))
        return answer(dialogues, encoded, **named)

    monkeypatch.setattr(model, "look", looking)
    monkeypatch.setattr(model, "answer", answering)
    return seen


def lines(folder: Path) -> dict[str, str]:
    path = folder / "predictions.jsonl"
    return {line["id"]: line["text"] for line in map(json.loads, path.read_text().splitlines())}


def run(model: Any, out: Path, conditions: Any, benchmark: Any = None, **more: Any) -> Any:
    (result,) = evaluate(model, {NAME: benchmark or Toy()}, out, batch=2, conditions=conditions, **more)
    return result


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_an_image_is_looked_at_once_where_only_its_soft_tokens_change(
    model: LyricsModel, watched: dict[str, list[Any]], tmp_path: Path, batch: int
) -> None:
    evaluate(model, {NAME: Toy()}, tmp_path, batch=batch, conditions=[*SOFT, DROP])
    # The first of an exchange is the partner of the last, and may be looked at for it once more.
    assert len(watched["looks"]) == len(set(watched["looks"])) == len(Toy.colors)
    assert {condition for condition, _ in watched["looks"]} == {CLEAR}
    assert {encoded.tokens_per_picture for _, encoded in watched["asked"]} == {
        model.query_transformer.num_queries,
        model.query_transformer.num_queries - round(model.query_transformer.num_queries / 2),
    }


def test_blurred_images_are_looked_at_once_more_for_each_blur(
    model: LyricsModel, watched: dict[str, list[Any]], tmp_path: Path
) -> None:
    blurred = [Condition(blur_px=2), Condition(blur_px=4), Condition("zero", 4)]
    run(model, tmp_path, [*SOFT, *blurred])
    looks = [condition for condition, _ in watched["looks"]]
    assert {one: looks.count(one) for one in dict.fromkeys(looks)} == {
        one: len(Toy.colors) for one in (CLEAR, Condition(blur_px=2), Condition(blur_px=4))
    }


def test_without_a_condition_answers_are_as_they_were(model: LyricsModel, tmp_path: Path) -> None:
    run(model, tmp_path / "plain", [])
    result = run(model, tmp_path / "all", [*SOFT, DROP, Condition(blur_px=3)])
    assert lines(tmp_path / "all" / NAME) == lines(tmp_path / "plain" / NAME)
    assert [one["name"] for one in result.details["conditions"]] == [
        "own",
        "soft-shuffled",
        "soft-zero",
        "soft-noise",
        "drop-0.5",
        "blur-3",
    ]
    own = result.details["conditions"][0]["groups"]
    assert set(own) == {"all", "L", "G"}
    assert (own["all"]["samples"], own["L"]["samples"], own["all"]["same"], own["all"]["lost"]) == (5, 3, 100.0, 0.0)
    for name in ("conditions.json", "conditions.md", "conditions.html", "conditions.svg"):
        assert (tmp_path / "all" / NAME / name).is_file()


def test_the_soft_tokens_are_anothers_and_the_text_is_its_own(
    model: LyricsModel, watched: dict[str, list[Any]], tmp_path: Path
) -> None:
    own = {color: model.look([drawn(40, 40, color)], ["what color is it?"]) for color in Toy.colors}
    watched["asked"].clear()
    evaluate_under(SOFT[0], model, {NAME: Toy()}, tmp_path, batch=5)
    ((_, encoded),) = watched["asked"]
    texts = [own[color].spatial_texts[0] for color in Toy.colors]
    rows = [texts.index(text) for text in encoded.spatial_texts] if len(set(texts)) == 5 else None
    soft = torch.cat([own[color].soft_tokens_PQD for color in Toy.colors])
    given = [int((soft - one).abs().amax(dim=(1, 2)).argmin()) for one in encoded.soft_tokens_PQD]
    assert sorted(given) == list(range(5)), "every sample's are given once"
    if rows is not None:
        assert all(row != other for row, other in zip(rows, given, strict=True))


def test_every_condition_goes_on_where_it_was(
    model: LyricsModel, watched: dict[str, list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    run(model, whole, [*SOFT, DROP])
    watched["asked"].clear()
    answer = model.answer

    def interrupted(*arguments: Any, **named: Any) -> Any:
        if len(watched["asked"]) == 6:
            raise KeyboardInterrupt
        return answer(*arguments, **named)

    monkeypatch.setattr(model, "answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(model, tmp_path / "cut", [*SOFT, DROP])
    monkeypatch.setattr(model, "answer", answer)
    run(model, tmp_path / "cut", [*SOFT, DROP])
    folders = [".", *(f"conditions/{one.name}" for one in (*SOFT, DROP))]
    for folder in folders:
        assert lines(tmp_path / "cut" / NAME / folder) == lines(whole / NAME / folder)
    watched["looks"].clear()
    run(None, whole, [*SOFT, DROP])
    assert not watched["looks"]
    # One condition more answers that one alone.
    run(model, whole, [*SOFT, DROP, Condition(soft="noise", seed=1)])
    assert len(watched["looks"]) == len(Toy.colors)


def test_processes_share_the_samples(model: LyricsModel, tmp_path: Path) -> None:
    run(model, tmp_path / "one", SOFT)
    for index in range(2):
        assert evaluate(model, {NAME: Toy()}, tmp_path / "two", conditions=SOFT, shard=(index, 2)) == []
    run(None, tmp_path / "two", SOFT)
    for one in SOFT:
        folder = Path(NAME) / "conditions" / one.name
        assert lines(tmp_path / "two" / folder) == lines(tmp_path / "one" / folder)


def test_text_alone_and_several_images(model: LyricsModel, watched: dict[str, list[Any]], tmp_path: Path) -> None:
    run(model, tmp_path / "text", [*SOFT, DROP], Toy(text=True))
    texts = [lines(tmp_path / "text" / NAME / "conditions" / one.name)["5:9"] for one in (*SOFT, DROP)]
    assert set(texts) == {lines(tmp_path / "text" / NAME)["5:9"]}, "no image, nothing to change"
    watched["asked"].clear()
    run(model, tmp_path / "two", SOFT, Toy(images=2))
    assert (tmp_path / "two" / NAME / "worst.html").read_text().count("<img ") == 2 * len(Toy.colors)
    assert all(
        [exchange.images for (exchange,) in dialogues] == [(2 * n, 2 * n + 1) for n in range(len(dialogues))]
        for dialogues, _ in watched["asked"]
    )


def test_an_exchange_among_other_samples_is_another_condition(model: LyricsModel, tmp_path: Path) -> None:
    run(model, tmp_path, [SOFT[0], SOFT[1]], limit=4)
    with pytest.raises(
        LyricsError, match=r"of condition 'soft-shuffled, exchanged among 4 samples', not .* 5 samples'"
    ):
        run(model, tmp_path, [SOFT[0]])
    run(model, tmp_path, [SOFT[1]])
    with pytest.raises(LyricsError, match=r"is the only sample with 1 image, so there are no soft tokens of another"):
        run(model, tmp_path / "one", [SOFT[0]], limit=1)
    assert not (tmp_path / "one").exists()


def test_a_query_transformer_without_text(tmp_path: Path) -> None:
    entry = default_registry().component("language-model", "causal-lm")
    options = validate(dict(entry.component.test_options), entry.component.options)
    part = Part("language_model", entry, options)
    model = SmallModel.around(part).build()
    assert model.query_transformer.segments == ("V",)
    result = run(model, tmp_path, [*SOFT, DROP, Condition(blur_px=2)])
    assert len(result.details["conditions"]) == 6


def test_what_cannot_be_met_is_said(model: LyricsModel, tmp_path: Path) -> None:
    with pytest.raises(LyricsError, match="Model: conditions need a model that looks and answers apart"):
        evaluate(Model(), {NAME: Colors()}, tmp_path, conditions=SOFT)
    assert not list(tmp_path.iterdir())
    bare = build_model(small(refiner=None), weights="random")
    with pytest.raises(SpecError, match=r"blur_parts=experts: this model has no refiner.*blur the encoder"):
        Asking(bare).check([Condition(blur_px=1, blur_parts="experts")])
    Asking(bare).check([Condition(blur_px=1), Condition(blur_px=1, blur_parts="encoder")])
    cached = {"use": "cached", "options": {"missing": "empty"}}
    stored = build_model(small(refiner__detector=cached), weights="random")
    with pytest.warns(UserWarning, match=r"refiner\.detector: reads stored objects.*blur changes nothing for it"):
        Asking(stored).check([Condition(blur_px=1)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Asking(stored).check([Condition(blur_px=1, blur_parts="encoder"), *SOFT])
