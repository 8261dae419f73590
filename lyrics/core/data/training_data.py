"""Batches for training loops that are not this library's: data sets as a loader reads them, and their collation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lyrics.core.contracts import Dataset, InShards
from lyrics.core.data.build import build_dataset
from lyrics.core.data.collate import Collator, InstructionExamples, PretrainExamples
from lyrics.core.data.fitting import Fitting
from lyrics.core.data.known import Stage
from lyrics.core.data.mixture import Mixture, Source
from lyrics.core.data.stream import Example, SampleStream
from lyrics.core.errors import PromptError, SpecError
from lyrics.core.language.prompts import Exchange
from lyrics.core.pictures.model_inputs import ModelImages, asked

TrainingBatch = PretrainExamples | InstructionExamples
STAGES = ("pretrain", "instruct")


def check_stage(stage: str) -> None:
    """Raise ``SpecError`` for a stage that does not exist."""
    if stage not in STAGES:
        raise SpecError(f"stage={stage!r}: there are {' and '.join(STAGES)}.")


def sample_stream(
    sets: str | Dataset | Mapping[str, Dataset | Mapping[str, Any]], stage: Stage, seed: int
) -> SampleStream:
    """See ``lyrics.training_data``."""
    check_stage(stage)
    if isinstance(sets, str):
        sets = {sets: {}}
    elif not isinstance(sets, Mapping):
        sets = {"data": sets}
    if not sets:
        raise SpecError("training_data: names no data set; give the name of one that 'lyrics list dataset' shows.")
    datasets: dict[str, Dataset] = {
        name: Fitting(build_dataset(name, given) if isinstance(given, Mapping) else given, stage)
        for name, given in sets.items()
    }
    sources = [
        Source(name, len(data), 1.0, data.shard_sizes if isinstance(data, InShards) else None)
        for name, data in datasets.items()
    ]
    return SampleStream(Mixture(sources, seed), datasets)


class BatchCollator:
    """A ``data_collator``: samples of ``lyrics.training_data`` -> keyword arguments of the model's forward pass."""

    def __init__(self, collator: Collator) -> None:
        self.collator = collator

    def __call__(self, examples: Sequence[Example]) -> dict[str, TrainingBatch]:
        return {"batch": self.collator(examples)}


def batch_of(
    batch: Any,
    *,
    images: Any,
    text: Sequence[str] | None,
    answers: Sequence[str] | None,
    captions: Sequence[str] | None,
    images_per_text: Sequence[int] | None,
) -> TrainingBatch:
    """Return the batch of a forward pass: a collated one as it is, or one of what ``model.processor`` returned.

    Raises:
        TypeError: ``batch`` is something else.
        PromptError: there is nothing to learn from, such as instructions without answers.
    """
    given = {"images": images, "text": text, "answers": answers, "captions": captions}
    if batch is not None:
        if not isinstance(batch, PretrainExamples | InstructionExamples):
            raise TypeError(
                f"a forward pass takes a collated training batch and gives its losses, not a {type(batch).__name__}; "
                "to ask about an image, call generate(image, question)"
            )
        if more := [name for name, value in given.items() if value is not None]:
            raise TypeError(f"batch holds all that is read; leave out {', '.join(more)}.")
        return batch
    if not isinstance(images, ModelImages):
        raise TypeError("a forward pass takes a collated batch, or what model.processor(...) returns: model(**inputs).")
    if captions is not None and text is None:
        if len(captions) != len(images):
            raise PromptError(f"captions: {len(images)} images need as many, not {len(captions)}.")
        # An image that is given twice by its path is one image: its captions are not each other's negatives.
        first: dict[str, int] = {}
        same = tuple(first.setdefault(name, row) if name else row for row, name in enumerate(images.names))
        return PretrainExamples(images, tuple(captions), tuple(range(len(images))), same)
    if text is None or answers is None or captions is not None:
        raise PromptError(
            "a forward pass gives losses: give model.processor captions (stage 1), or text and answers (stage 2); "
            "to ask about an image, call generate(**inputs)."
        )
    question = asked(images, text, images_per_text)
    if len(answers) != len(question.text):
        raise PromptError(f"answers: {len(question.text)} instructions need as many, not {len(answers)}.")
    dialogues = tuple(
        (Exchange(instruction, answer, shown),)
        for instruction, answer, shown in zip(question.text, answers, question.numbers, strict=True)
    )
    return InstructionExamples(images, dialogues, tuple(range(len(dialogues))))
