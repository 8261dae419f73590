"""A benchmark of colored squares and a model that answers from a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from PIL import Image

from lyrics.core.answers import Answer, AnswerObject
from lyrics.core.errors import ImageError
from lyrics.core.evaluation.benchmark import Prediction, Verdict
from lyrics.core.geometry import Box
from lyrics.core.types import DetectedObject, Sample, Turn

COLORS = ("red", "green", "blue", "gray", "black", "white", "pink")


class Colors:
    """What color is it? Marks are 1 for the right word."""

    max_new_tokens = 7

    def __init__(self, count: int = len(COLORS), broken: int = -1) -> None:
        self.count, self.broken = count, broken

    def samples(self) -> Iterator[Sample]:
        for number, color in enumerate(COLORS[: self.count]):
            yield Sample(
                f"{color}.png",
                turns=(Turn("What color is it?", color),),
                source=f"colors:{number}",
                extra={"question_id": 100 + number},
            )

    def picture(self, sample: Sample) -> Image.Image:
        if self.broken >= 0 and sample.image == f"{COLORS[self.broken]}.png":
            raise ImageError(f"{sample.image}: is corrupt.", "corrupt")
        return Image.new("RGB", (320, 160), str(sample.image).removesuffix(".png"))

    def prompt(self, sample: Sample) -> str:
        return sample.turns[0].instruction

    def judge(self, predictions: Sequence[Prediction], samples: Sequence[Sample]) -> Verdict:
        marks = tuple(
            float(one.answer == sample.turns[0].answer) for one, sample in zip(predictions, samples, strict=True)
        )
        return Verdict({"accuracy": 100 * sum(marks) / len(marks)}, marks, ("A note.",))

    def score(self, predictions: Sequence[str], samples: Sequence[Sample]) -> Mapping[str, float]:
        return self.judge([Prediction.of_text(text) for text in predictions], samples).scores


class Plain:
    """A stranger's benchmark: the contract and nothing more."""

    def samples(self) -> list[Sample]:
        return [Sample("a.jpg", source="plain:0"), Sample("b.jpg", source="plain:1")]

    def prompt(self, sample: Sample) -> str:
        return f"{sample.image}?"

    def score(self, predictions: Sequence[str], samples: Sequence[Sample]) -> dict[str, float]:
        return {"length": float(sum(map(len, predictions)))}


def box_answer(text: str, box: Box, supported: bool = True) -> Answer:
    size = (40, 20)
    seen = DetectedObject("thing", box, 0.75)
    found = AnswerObject("thing", box, box.to_px(size), seen if supported else None, 1.0 if supported else 0.0)
    return Answer(f"{text} <box>", (found,), (), text)


class Model:
    """Says the color of the picture's first pixel; writes down what it was asked."""

    names: ClassVar = {Image.new("RGB", (1, 1), name).getpixel((0, 0)): name for name in COLORS}

    def __init__(self, wrong: Sequence[str] = (), stop_after: int = 10**9) -> None:
        self.wrong, self.stop_after = wrong, stop_after
        self.batches: list[list[str]] = []
        self.tokens: set[int] = set()

    @property
    def answered(self) -> int:
        return sum(map(len, self.batches))

    def generate(self, pictures: Sequence[Any], instructions: Sequence[str], *, max_new_tokens: int) -> list[Answer]:
        if self.answered >= self.stop_after:
            raise KeyboardInterrupt
        self.batches.append(list(instructions))
        self.tokens.add(max_new_tokens)
        said = [self.names[picture.getpixel((0, 0))] for picture in pictures]
        return [box_answer("wrong" if name in self.wrong else name, Box(0.1, 0.2, 0.5, 0.9)) for name in said]
