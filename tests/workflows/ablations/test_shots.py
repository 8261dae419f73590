"""Table 6: which exemplars are drawn, how they are asked and answered, what does not fit, and the way from a model to
rows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lyrics.core.answers import Answer
from lyrics.core.conditions import Condition
from lyrics.core.errors import LyricsError
from lyrics.core.evaluation.runner import evaluate
from lyrics.core.geometry import Box
from lyrics.core.language.prompts import Exchange
from lyrics.core.loading import build_model
from lyrics.core.model import LyricsModel
from lyrics.core.types import DetectedObject, Sample, Turn
from lyrics.workflows.ablations import shots
from lyrics.workflows.ablations.shots import (
    Dropped,
    Exemplar,
    FewShot,
    FewShotBenchmark,
    Pool,
    ShownWithExemplars,
    few_shot,
    reference,
    table_6,
)
from lyrics.workflows.ablations.tables import markdown
from tests.core.small import drawn, small
from tests.workflows.ablations.toys import evaluating, no_bars, scenes


def question(number: int, picture: int, task: str = "vqa") -> Sample:
    return Sample(
        f"{picture}.png",
        turns=(Turn(f"What is {number}?", f"answer {number}"),),
        source=f"toy:{number}",
        extra={"task": task, "question_id": number},
    )


# Pictures 0 to 9, two questions about each, and five captions' worth of another task on other pictures.
QUESTIONS = [question(number, number // 2) for number in range(20)]
POOL = Pool([*QUESTIONS, *(question(20 + number, 20 + number, "text") for number in range(5))])


# --- drawing ---


@pytest.mark.parametrize("count", [1, 4])
def test_exemplars_are_others_with_another_picture_and_of_the_same_task(count: int) -> None:
    for row, sample in enumerate(POOL.samples):
        for seed in range(5):
            found = POOL.draw(row, count, seed)
            assert len(found) == len(set(found)) == count
            assert row not in found
            assert all(POOL.samples[other].image != sample.image for other in found)
            assert all(POOL.samples[other].extra["task"] == sample.extra["task"] for other in found)


def test_draws_are_functions_of_seed_and_row() -> None:
    assert POOL.draw(3, 4, 1) == Pool(list(POOL.samples)).draw(3, 4, 1)
    # Of one sample under 50 seeds, and of 20 under one: as different as draws are.
    assert len({tuple(POOL.draw(3, 4, seed)) for seed in range(50)}) > 45
    assert len({tuple(POOL.draw(row, 2, 0)) for row in range(20)}) > 15
    assert POOL.draw(3, 4, 1)[:1] == POOL.draw(3, 1, 1)


def test_draws_are_even() -> None:
    counts = Counter(POOL.draw(0, 1, seed)[0] for seed in range(1800))
    # 18 others; 100 of each, within five standard deviations.
    assert set(counts) == set(range(2, 20))
    assert all(50 < count < 150 for count in counts.values())


def test_too_few_to_draw_from() -> None:
    few = Pool([question(number, number // 2) for number in range(6)])
    assert len(few.draw(0, 4, 0)) == 4
    with pytest.raises(
        LyricsError, match="toy:0: only 4 other samples of the task 'vqa' have another image, too few for 5"
    ):
        few.draw(0, 5, 0)


def test_samples_without_pictures_are_told_apart_by_their_rows() -> None:
    pool = Pool([replace(question(number, 0), image=None) for number in range(3)])
    assert sorted(pool.draw(1, 2, 0)) == [0, 2]


# --- references ---

THING, OTHER = (
    DetectedObject("red dog", Box(0.1, 0.2, 0.5, 0.6), 1.0),
    DetectedObject("cat", Box(0.6, 0.6, 0.9, 0.9), 1.0),
)


def test_references_are_in_the_form_of_training() -> None:
    assert reference(QUESTIONS[3], 3, 0, "lyrics", None) == "answer 3"
    choice = Sample(
        "a.png",
        turns=(Turn("Which?", "blue"),),
        extra={"task": "multi-choice", "options": ("red", "blue")},
    )
    assert reference(choice, 0, 0, "lyrics", None) == "(b) blue"
    caption = Sample("a.png", captions=("one", "two"), extra={"task": "caption"})
    assert {reference(caption, row, 0, "lyrics", None) for row in range(20)} == {"one", "two"}
    assert reference(caption, 7, 3, "lyrics", None) == reference(caption, 7, 3, "lyrics", None)
    absent = Sample("a.png", objects=(OTHER,), extra={"task": "rec", "absent": "a green star"})
    assert reference(absent, 0, 0, "lyrics", None) == "Not found."


def test_a_referring_expression_is_answered_by_its_box_and_never_by_yes() -> None:
    sample = Sample("a.png", objects=(THING, OTHER), extra={"task": "rec"})
    found = {reference(sample, row, 0, "lyrics", None) for row in range(40)}
    assert found == {"<br><T>red dog</T><Bbox>(100,200),(500,599)</Bbox></br>"}
    (in_pixels,) = {reference(sample, row, 0, "pixel", (200, 100)) for row in range(5)}
    assert "100" in in_pixels
    assert in_pixels not in found


def test_a_sample_without_an_answer_is_no_exemplar() -> None:
    sample = replace(QUESTIONS[0], turns=(Turn("What?", ""),))
    with pytest.raises(LyricsError, match="toy:0: has no reference answer here, so it cannot be an exemplar"):
        reference(sample, 0, 0, "lyrics", None)


# --- asking ---


class Toy:
    """Asks with its own words, shows a picture that says which it is."""

    max_new_tokens = 3

    def samples(self) -> list[Sample]:
        return list(POOL.samples)

    def prompt(self, sample: Sample) -> str:
        return f"Please: {sample.turns[0].instruction}"

    def picture(self, sample: Sample) -> Image.Image:
        return Image.new("RGB", (32, 32), (int(str(sample.image).removesuffix(".png")), 0, 0))

    def score(self, predictions: Sequence[str], samples: Sequence[Sample]) -> dict[str, float]:
        right = [said == sample.turns[0].answer for said, sample in zip(predictions, samples, strict=True)]
        return {"right": 100 * sum(right) / len(right)}


def model(max_positions: int = 512, **changes: Any) -> LyricsModel:
    torch.manual_seed(0)
    spec = small(refiner__max_objects=1, language_model__options__max_positions=max_positions, **changes)
    return build_model(spec, weights="random").eval()


def test_exemplars_stand_before_the_question_with_their_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering = model()
    seen: dict[str, Any] = {}

    def look(pictures: Any, instructions: Any) -> str:
        seen.update(pictures=[picture.getpixel((0, 0))[0] for picture in pictures], instructions=list(instructions))
        return "encoded"

    def answer(dialogues: Any, encoded: Any, *, max_new_tokens: int) -> list[Answer]:
        seen.update(dialogues=dialogues, encoded=encoded, tokens=max_new_tokens)
        return [Answer("said", plain_text="said") for _ in dialogues]

    monkeypatch.setattr(answering, "look", look)
    monkeypatch.setattr(answering, "answer", answer)
    monkeypatch.setattr(FewShot, "fitting", lambda self, dialogue, encoded, room: dialogue)

    asking = FewShotBenchmark(Toy(), POOL, 2, seed=1)
    samples = [sample for row, sample in enumerate(asking.samples()) if row in (3, 8)]
    few = FewShot(answering, 1, tmp_path / "drawn.jsonl")
    few.generate(
        [asking.picture(sample) for sample in samples], [asking.prompt(sample) for sample in samples], max_new_tokens=3
    )
    rows = [[*POOL.draw(row, 2, 1), row] for row in (3, 8)]
    flat = [row for each in rows for row in each]
    assert seen["pictures"] == [row // 2 for row in flat]
    assert seen["instructions"] == [f"Please: What is {row}?" for row in flat]
    assert seen["tokens"] == 3
    assert seen["dialogues"][1] == [
        Exchange(f"Please: What is {rows[1][0]}?", f"answer {rows[1][0]}", (3,)),
        Exchange(f"Please: What is {rows[1][1]}?", f"answer {rows[1][1]}", (4,)),
        Exchange("Please: What is 8?", None, (5,)),
    ]
    lines = [json.loads(line) for line in (tmp_path / "drawn.jsonl").read_text().splitlines()]
    assert lines == [{"row": row, "exemplars": rows[i][:2], "dropped": []} for i, row in enumerate((3, 8))]


def test_what_does_not_fit_is_left_out_from_the_front(tmp_path: Path) -> None:
    answering = model()
    few = FewShot(answering, 0, tmp_path / "drawn.jsonl")
    exchanges = [Exchange(f"Question {number}?", "yes" * 3, (number,)) for number in range(4)]
    dialogue = [*exchanges, Exchange("And this?", None, (4,))]
    encoded = answering.look([drawn()] * 5, ["?"] * 5)

    def length(kept: Sequence[Exchange]) -> int:
        from lyrics.core.language.prompting import fitted_prompt

        return len(fitted_prompt(kept, encoded, 10**9, answering.spec, answering.language_model))

    assert few.fitting(dialogue, encoded, length(dialogue)) == dialogue
    assert few.fitting(dialogue, encoded, length(dialogue) - 1) == dialogue[1:]
    assert few.fitting(dialogue, encoded, length(dialogue[3:])) == dialogue[3:]
    # The question itself stays: whether it fits is the model's affair.
    assert few.fitting(dialogue, encoded, 1) == dialogue[4:]


def test_dropped_exemplars_are_counted(tmp_path: Path) -> None:
    # Room for one exemplar beside the question, not for four.
    answering = model(max_positions=300)
    toy = replace(evaluating(), benchmarks={"toy": Toy()}, about={}, limit=3)
    rows, left_out = few_shot(lambda: answering, "small", toy, tmp_path, seeds=1)
    one, four = left_out
    assert (one.benchmark, one.shots, one.drawn) == ("toy", 1, 3)
    assert (four.shots, four.drawn) == (4, 12)
    assert one.dropped < four.dropped < 12
    lines = [json.loads(line) for line in (tmp_path / "4-shot/seed-0/toy/exemplars.jsonl").read_text().splitlines()]
    assert sum(len(line["dropped"]) for line in lines) == four.dropped
    assert all(line["dropped"] == line["exemplars"][: len(line["dropped"])] for line in lines)
    page = markdown(table_6(rows, left_out, {}, {}), "")
    assert f"toy, 4-shot: {four.dropped} of 12 exemplars did not fit into the context and were left out" in page

    (tmp_path / "4-shot/seed-0/toy/exemplars.jsonl").write_text(json.dumps(lines[0]) + "\n")
    with pytest.raises(
        LyricsError, match=r"exemplars\.jsonl: does not say which exemplars 2 answers had, the first of row 1"
    ):
        few_shot(lambda: answering, "small", toy, tmp_path, seeds=1)


# --- from a model to rows ---


def test_every_number_of_shots_and_every_seed(tmp_path: Path) -> None:
    benchmarks = {"scenes-test": scenes(5)}
    given = replace(evaluating(), benchmarks=benchmarks, limit=5)
    built: list[int] = []

    def load() -> LyricsModel:
        built.append(1)
        return model(2048)

    rows, left_out = few_shot(load, "small", given, tmp_path, seeds=2)
    assert built == [1]
    assert list(dict.fromkeys((row.variant, row.seed) for row in rows)) == [
        ("0-shot", None),
        ("1-shot", 0),
        ("1-shot", 1),
        ("4-shot", 0),
        ("4-shot", 1),
    ]
    assert {row.samples for row in rows} == {5}
    assert left_out == [Dropped("scenes-test", 1, 0, 10), Dropped("scenes-test", 4, 0, 40)]
    folder = tmp_path / "4-shot" / "seed-1"
    assert (folder / "scenes-test" / "worst.html").read_text().count("data:image/jpeg") == 5
    about = json.loads((folder / "scenes-test" / "run.json").read_text())
    assert about["model"] == "small, 4 exemplars, seed 1"
    assert (folder / "table.md").is_file()
    assert few_shot(load, "small", given, tmp_path, seeds=2) == (rows, left_out)
    assert built == [1]

    found = table_6(rows, left_out, {}, given.about)
    assert found.x == {"0-shot": 0.0, "1-shot": 1.0, "4-shot": 4.0}
    assert found.published["refcocog", "test", "1-shot"] == 91.39
    assert found.published["vqav2", "", "4-shot"] == 86.1


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = replace(evaluating(), benchmarks={"toy": Toy()}, about={}, limit=4, batch=2, bars=no_bars)
    generate = FewShot.generate
    answered: list[int] = []

    def interrupted(
        self: FewShot, pictures: Sequence[ShownWithExemplars], *arguments: Any, **named: Any
    ) -> list[Answer]:
        if len(answered) == 1:
            raise KeyboardInterrupt
        answered.append(len(pictures))
        return generate(self, pictures, *arguments, **named)

    monkeypatch.setattr(shots, "SHOTS", (1,))
    monkeypatch.setattr(FewShot, "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        few_shot(model, "small", given, tmp_path, seeds=1)
    answered.append(0)
    rows, _ = few_shot(model, "small", given, tmp_path, seeds=1)
    assert answered == [2, 0, 2]
    lines = [json.loads(line) for line in (tmp_path / "1-shot/seed-0/toy/exemplars.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == [0, 1, 2, 3]
    assert rows[0].samples == 4


def test_a_text_alone_is_asked_without_a_picture(tmp_path: Path) -> None:
    pool = Pool([replace(question(number, 0), image=None) for number in range(3)])
    asking = FewShotBenchmark(Toy(), pool, 1, seed=0)
    shown = asking.picture(next(iter(asking.samples())))
    assert shown.picture is None
    assert isinstance(shown.exemplars[0], Exemplar)
    assert shown.exemplars[0].picture is None
    answers = FewShot(model(), 0, tmp_path / "drawn.jsonl").generate([shown], ["What?"], max_new_tokens=2)
    assert len(answers) == 1


def test_several_images_in_a_prompt_under_conditions(tmp_path: Path) -> None:
    """All images of a prompt, the exemplars' too; which exemplars there were is written down once."""
    answering = model()
    asking = FewShotBenchmark(Toy(), POOL, 2, seed=1)
    few = FewShot(answering, 1, tmp_path / "drawn.jsonl")
    conditions = [Condition(soft="shuffled"), Condition(soft="zero"), Condition(drop_tokens=0.5)]
    looks: list[int] = []
    look = answering.look
    answering.look = lambda pictures, *a, **k: looks.append(len(pictures)) or look(pictures, *a, **k)  # type: ignore[method-assign,func-returns-value]
    (result,) = evaluate(few, {"toy": asking}, tmp_path, batch=4, limit=6, conditions=conditions)
    assert sum(looks) == 6 * 3, "each prompt's images are looked at once"
    assert [one["name"] for one in result.details["conditions"]] == ["own", *(one.name for one in conditions)]
    plain = FewShot(answering, 1, tmp_path / "plain" / "drawn.jsonl")
    evaluate(plain, {"toy": asking}, tmp_path / "plain", batch=4, limit=6)
    texts = [
        sorted((folder / "toy" / "predictions.jsonl").read_text().splitlines())
        for folder in (tmp_path, tmp_path / "plain")
    ]
    assert texts[0] == texts[1]
    rows = sorted(json.loads(line)["row"] for line in (tmp_path / "drawn.jsonl").read_text().splitlines())
    assert rows == list(range(6))
