"""The estimate of memory against an account that it has no part in: what PyTorch's CPU allocator gave out, as the
profiler recorded it.

Real tensors, real kernels, from pixels to the gradients and from pixels to the last word of an answer; what kernels use
for themselves is in the profiler's account and not in the estimate's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from lyrics.core.data.collate import InstructionExamples
from lyrics.core.inspection import memory
from lyrics.core.language.prompts import Exchange
from lyrics.core.loading import build_model
from lyrics.core.model import LyricsModel
from lyrics.core.pictures.processor import ModelImages
from lyrics.core.stage1.batch import PretrainBatch, Spatial
from lyrics.core.stage1.negatives import Negatives
from lyrics.core.stage1.reduction import total_loss
from lyrics.core.stage1.step import pretrain_losses
from lyrics.core.stage1.streams import Text
from tests.core.small import drawn
from tests.core.test_model_true_parts import NO_DROPOUT

# Few objects, so that their text is short.
OVERRIDES = {**NO_DROPOUT, "refiner.detector.options.max_detections": 4}
QUESTION, ANSWER = "x" * 30, "y" * 31


def allocated(run: Callable[[], object], folder: Path) -> int:
    """The most bytes that the CPU allocator had given out at one moment of ``run`` and not got back."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    profiler.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    changes = [(event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]"]
    assert len(changes) > 100
    live = peak = 0
    for _, change in sorted(changes, key=lambda one: one[0]):
        live += change
        peak = max(peak, live)
    return peak


@pytest.fixture(scope="module")
def model() -> LyricsModel:
    torch.manual_seed(0)
    return build_model("lyrics-mini", overrides=OVERRIDES, weights="random").eval()


@pytest.fixture(scope="module")
def shapes() -> LyricsModel:
    return build_model("lyrics-mini", overrides=OVERRIDES, weights="meta")


@pytest.fixture(scope="module")
def images(model: LyricsModel) -> ModelImages:
    return model.processor.images([drawn(300, 300), drawn(200, 200)])


@pytest.fixture(scope="module")
def experts(shapes: LyricsModel) -> dict[int, int]:
    """What the estimate says of the frozen experts, by the number of pictures."""
    return {count: memory.experts_peak(shapes, count) for count in (1, 2)}


@pytest.fixture
def lengths(model: LyricsModel, images: ModelImages, monkeypatch: pytest.MonkeyPatch) -> int:
    """The estimate assumes texts as long as those of these pictures and of ``QUESTION``; the value is the length of an
    answered prompt.
    """
    encoded = model.encode_images(images, [QUESTION] * 2)
    units = model._objects(encoded.refinements).rows()
    prompts = {len(model._prompt((Exchange(QUESTION, ANSWER, (n,)),), encoded, 2048)) for n in range(2)}
    assert max(prompts) - min(prompts) < 10
    monkeypatch.setattr(memory, "SPATIAL_TOKENS", max(map(len, units)))
    monkeypatch.setattr(memory, "CAPTION_TOKENS", len(ANSWER) + 1)
    monkeypatch.setattr(memory, "PROMPT_TOKENS", max(prompts))
    return max(prompts)


def test_the_measure_itself(tmp_path: Path) -> None:
    def run() -> None:
        first = torch.empty(1_000_000)
        second = first + 1
        del first
        third = second.sum()
        del second, third
        for _ in range(200):
            torch.empty(10)

    assert allocated(run, tmp_path) == pytest.approx(8_000_000, rel=0.001)


def pretraining(model: LyricsModel, images: ModelImages) -> torch.Tensor:
    """The loss of stage 1, its texts as long as the estimate assumes."""
    features, _ = model.features(images)
    per_object = memory.SPATIAL_TOKENS // memory.OBJECTS
    spatial = Spatial.from_objects([[[[7]] * per_object] * memory.OBJECTS] * 2)
    captions = Text.from_lists([[7] * memory.CAPTION_TOKENS] * 2)
    texts = PretrainBatch(spatial, captions, torch.arange(2), model.query_transformer.special)
    others = torch.tensor([1, 0])
    objectives = dict(model.objectives.items())
    losses = pretrain_losses(model.query_transformer, objectives, features, texts, Negatives(others, others))
    return total_loss(losses)[0]


def instruction(model: LyricsModel, images: ModelImages) -> torch.Tensor:
    """The loss of stage 2."""
    dialogues = tuple((Exchange(QUESTION, ANSWER, (n,)),) for n in range(2))
    return total_loss(model.instruction_step(InstructionExamples(images, dialogues, (0, 1))))[0]


def adam_bytes(trained: Iterable[torch.nn.Parameter]) -> int:
    """What AdamW keeps after a step that changes nothing, beside its count of steps."""
    optimizer = torch.optim.AdamW(trained, lr=0.0)
    optimizer.step()
    state = [value for one in optimizer.state.values() for name, value in one.items() if name != "step"]
    return sum(value.nbytes for value in state)


@pytest.mark.parametrize(("stage", "step"), [("pretrain", pretraining), ("instruct", instruction)])
@pytest.mark.usefixtures("lengths")
def test_a_training_step(
    model: LyricsModel,
    shapes: LyricsModel,
    experts: dict[int, int],
    images: ModelImages,
    tmp_path: Path,
    stage: str,
    step: Any,
) -> None:
    """From pixels to gradients, two pictures."""
    estimate = memory.training_memory(shapes, stage, 2, experts[2])
    trained = model.trainable_parameters(stage)
    model.train()
    try:
        measured = allocated(lambda: step(model, images).backward(), tmp_path)
        made = sum(one.grad.numel() * 4 for one in trained.values() if one.grad is not None)
        state = adam_bytes(trained.values())
    finally:
        model.zero_grad(set_to_none=True)
        model.eval()
    assert estimate.working + estimate.gradients == pytest.approx(measured, rel=0.15)
    assert estimate.weights == sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    assert (made, state) == (estimate.gradients, estimate.optimizer)
    assert experts[2] < 0.8 * measured, "the step itself is to be the largest"


def test_an_answer(
    model: LyricsModel, shapes: LyricsModel, experts: dict[int, int], lengths: int, tmp_path: Path, monkeypatch: Any
) -> None:
    """From a picture to the last word, a long prompt: the language model needs the most."""
    monkeypatch.setattr(memory, "PROMPT_TOKENS", lengths + 700 - len(ANSWER))
    estimate = memory.inference_memory(shapes, 8, experts[1])

    def run() -> None:
        encoded = model.look([drawn(300, 300)], [QUESTION])
        model.answer([(Exchange(QUESTION + "x" * 700, None, (0,)),)], encoded, max_new_tokens=8)

    measured = allocated(run, tmp_path)
    assert estimate.working == pytest.approx(measured, rel=0.15)
    assert experts[1] < 0.8 * measured


def test_the_experts(model: LyricsModel, experts: dict[int, int], tmp_path: Path) -> None:
    """Their code looks at values, which the estimate does not have; it counts up to there."""
    pictures = [drawn(300, 300), drawn(200, 200)]
    measured = allocated(lambda: model.features(model.processor.images(pictures)), tmp_path)
    assert experts[2] == pytest.approx(measured, rel=0.15)
