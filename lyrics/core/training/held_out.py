"""The periodic evaluation of a run on samples that it does not train on.

It counts what the stage gets right, and keeps a few samples to look at.

Stage 1: retrieval R@1 in both directions among the samples of a batch, and what else the objectives count. Stage 2:
answers to first questions; where the reference points at something, the first box of the answer must overlap it by 0.5,
elsewhere the words must be the same but for case, punctuation and spaces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from PIL import Image

from lyrics.core.answers import Answer, objects_to_draw, read_answer
from lyrics.core.contracts import Dataset
from lyrics.core.data.collate import Collator, InstructionExamples, PretrainExamples
from lyrics.core.data.stream import Example
from lyrics.core.errors import DatasetError, GeometryError, ImageError, PromptError, SampleError
from lyrics.core.language.prompting import Encoded
from lyrics.core.language.prompts import Dialogue, Exchange
from lyrics.core.pictures.drawing import draw_objects
from lyrics.core.runs.config import TrainConfig
from lyrics.core.stage1.distributed import rank, summed, world_size

if TYPE_CHECKING:
    from lyrics.core.model import LyricsModel

#: Samples that are kept to be looked at.
SHOWN = 6
REC_IOU = 0.5


@dataclass(frozen=True)
class Shown:
    """A held-out sample and what the model made of it.

    ``picture`` has boxes drawn: the refiner's in stage 1, the answer's in stage 2.
    """

    picture: Image.Image | None
    question: str
    expected: str
    found: str


@dataclass(frozen=True)
class Evaluation:
    """Shares by name, over all ranks, and a few examples of this rank."""

    numbers: Mapping[str, float]
    shown: tuple[Shown, ...] = ()


class HeldOut:
    """Called as ``evaluate(model, step)`` by the loop. Raises ``DatasetError`` for a set without a readable sample."""

    def __init__(self, config: TrainConfig, datasets: Mapping[str, Dataset], collator: Collator) -> None:
        self.config, self.collator = config, collator
        self.datasets = datasets
        # Read at the first evaluation: only then is it known how many ranks there are.
        self.examples: dict[str, list[Example]] = {}
        self.shown: list[Shown] = []

    def __call__(self, model: LyricsModel, step: int) -> Evaluation:
        self.shown = []
        found: dict[str, float] = {}
        per_rank = max(1, self.config.evaluation.samples // world_size())
        measured = {}
        for name, data in self.datasets.items():
            if name not in self.examples:
                self.examples[name] = _spread(name, data, per_rank)
            measured[name] = self._measure(model, self.examples[name])
        if model.shards is not None:
            # Ranks share out the language model; one that is done with its samples helps the others with theirs.
            model.shards.catch_up()
        for name, counts in measured.items():
            prefix = f"{name}: " if len(self.datasets) > 1 else ""
            for key, (right, count) in _over_ranks(counts).items():
                if count:
                    found[f"{prefix}{key}"] = right / count
        return Evaluation(found, tuple(self.shown))

    def _measure(self, model: LyricsModel, examples: Sequence[Example]) -> dict[str, list[int]]:
        counts: dict[str, list[int]] = {}
        size = self.config.evaluation.batch
        for start in range(0, len(examples), size):
            part = list(examples[start : start + size])
            batch = self.collator(part)
            measured = (
                self._aligned(model, part, batch)
                if isinstance(batch, PretrainExamples)
                else self._answered(model, part, batch)
            )
            for name, (right, count) in measured.items():
                both = counts.setdefault(name, [0, 0])
                both[0] += right
                both[1] += count
        return counts

    def _aligned(
        self, model: LyricsModel, examples: Sequence[Example], batch: PretrainExamples
    ) -> dict[str, tuple[int, int]]:
        if len(self.shown) < SHOWN:
            _, refinements = model.features(batch.images.to(model.device, model.dtype))
            for example, caption, seen in zip(examples, batch.captions, refinements, strict=True):
                assert example.picture is not None
                words = ", ".join(found.tag for found in seen.objects) or "nothing"
                self._show(
                    Shown(draw_objects(example.picture, seen.objects), "(caption)", caption, f"refiner: {words}")
                )
        # Masks are drawn as for a step that never comes: the same at every evaluation.
        return dict(model.pretraining_accuracy(batch, seed=self.config.seed, step=0))

    def _answered(
        self, model: LyricsModel, examples: Sequence[Example], batch: InstructionExamples
    ) -> dict[str, tuple[int, int]]:
        instructions = [""] * len(batch.images)
        for dialogue in batch.dialogues:
            for exchange in dialogue[:1]:
                for picture in exchange.images:
                    instructions[picture] = exchange.instruction
        encoded = model.encode_images(batch.images.to(model.device, model.dtype), instructions)
        asked = [
            (example, dialogue[0]) for example, dialogue in zip(examples, batch.dialogues, strict=True) if dialogue
        ]
        prompts = [(Exchange(first.instruction, None, first.images),) for _, first in asked]
        answers = self._answers(model, prompts, encoded)
        counts = {"answer accuracy": [0, 0], "REC": [0, 0]}
        for (example, first), answer in zip(asked, answers, strict=True):
            seen = encoded.refinements[first.images[0]] if first.images else None
            wanted = read_answer(first.answer or "", model.spec.codec, seen)
            if wanted.objects:
                given = answer.objects[0].box_norm.iou(wanted.objects[0].box_norm) if answer.objects else 0.0
                name, right = "REC", given >= REC_IOU
            else:
                name, right = "answer accuracy", same_words(answer.text, wanted.text)
            counts[name][0] += right
            counts[name][1] += 1
            drawn = None if example.picture is None else draw_objects(example.picture, objects_to_draw(answer))
            self._show(Shown(drawn, first.instruction, first.answer or "", answer.text))
        return {name: (right, count) for name, (right, count) in counts.items()}

    def _answers(self, model: LyricsModel, prompts: Sequence[Dialogue], encoded: Encoded) -> list[Answer]:
        """Answer the questions that the language model has room for.

        The others get an empty answer, which is wrong.
        """
        most = self.config.evaluation.max_new_tokens
        try:
            return list(model.answer(prompts, encoded, max_new_tokens=most))
        except PromptError:
            if len(prompts) == 1:
                return [Answer("")]
            return [self._answers(model, [prompt], encoded)[0] for prompt in prompts]

    def _show(self, one: Shown) -> None:
        if len(self.shown) < SHOWN:
            self.shown.append(one)


def same_words(first: str, second: str) -> bool:
    """Equal but for case, punctuation and spaces."""
    return _words(first) == _words(second)


def _words(text: str) -> list[str]:
    return "".join(letter if letter.isalnum() else " " for letter in text.lower()).split()


def _spread(name: str, data: Dataset, count: int) -> list[Example]:
    """This rank's examples, every so many rows; what cannot be read is left out."""
    rows = len(data)
    stride = max(1, rows // (count * world_size()))
    found: list[Example] = []
    for row in range(rank() * stride, rows, stride * world_size()):
        if len(found) == count:
            break
        try:
            sample = data[row]
            picture = None if sample.image is None else data.picture(sample)
        except (SampleError, ImageError, GeometryError):
            continue
        found.append(Example(row, name, row, sample, picture))
    if not found:
        raise DatasetError(f"evaluation.sets.{name}: has no sample that can be read, for this rank.")
    return found


def _over_ranks(counts: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, int]]:
    names = sorted(counts)
    numbers = summed(torch.tensor([list(counts[name]) for name in names], dtype=torch.float64).reshape(-1, 2))
    return {name: (int(right), int(count)) for name, (right, count) in zip(names, numbers.tolist(), strict=True)}
