"""What a stage trains, with a frozen image encoder and with a trained one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import lyrics
from lyrics.core.errors import SpecError
from lyrics.core.inspection.memory import training_memory
from lyrics.core.inspection.summary import summarize
from lyrics.core.loading import build_model
from lyrics.core.model import LyricsModel
from lyrics.core.resolve import resolve
from lyrics.core.runs.config import TrainConfig, load_config
from tests.core.small import drawn, small

OBJECTIVES = {"objectives": {"itc": "itc", "icg": "icg"}}


def built(**overrides: Any) -> LyricsModel:
    torch.manual_seed(0)
    return build_model(small(**overrides), weights="random")


def stepped(model: LyricsModel, stage: str) -> dict[str, torch.nn.Parameter]:
    """The trained parameters after one backward pass."""
    model.train()
    trained = model.trainable_parameters(stage)
    pictures = [drawn(), drawn(color="blue")]
    if stage == "pretrain":
        batch = model.processor(images=pictures, captions=["a red circle", "a blue one"])
    else:
        batch = model.processor(images=pictures, text=["color?", "color?"], answers=["red", "blue"])
    model(**batch).loss.backward()
    return trained


@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
def test_the_image_encoder_is_frozen_unless_it_is_to_be_trained(stage: str) -> None:
    frozen = built(**OBJECTIVES)
    assert not any(name.startswith("encoder.") for name in stepped(frozen, stage))
    assert not frozen.encoder.training  # type: ignore[attr-defined]
    assert not any(parameter.requires_grad for parameter in frozen.encoder.parameters())

    model = built(**OBJECTIVES, train_image_encoder=True)
    trained = stepped(model, stage)
    own = {f"encoder.{name}" for name, _ in model.encoder.named_parameters()}
    assert own <= trained.keys()
    assert all(trained[name].grad is not None for name in own)
    assert any(trained[name].grad.abs().max() > 0 for name in own)  # type: ignore[union-attr]
    assert model.encoder.training  # type: ignore[attr-defined]
    assert not any(parameter.requires_grad for parameter in model.refiner.parameters())  # type: ignore[union-attr]
    assert not model.eval().encoder.training  # type: ignore[attr-defined]


def test_a_folder_of_trained_parts_holds_a_trained_encoder(tmp_path: Path) -> None:
    for trains in (False, True):
        model = built(train_image_encoder=trains)
        with torch.no_grad():
            for parameter in model.encoder.parameters():
                parameter.add_(0.01)
        folder = tmp_path / str(trains)
        model.save_pretrained(folder, trainable_only=True)
        parts = json.loads((folder / "frozen.json").read_text())["parts"]
        assert ("image_encoder" in parts) is not trains
    model.save_pretrained(tmp_path / "whole")
    for source, options in (("whole", {}), ("True", {"base": tmp_path / "whole"})):
        again = lyrics.LyricsModel.from_pretrained(tmp_path / source, **options)
        assert again.spec.train_image_encoder
        for (name, one), (_, other) in zip(
            model.encoder.named_parameters(), again.encoder.named_parameters(), strict=True
        ):
            assert torch.equal(one, other), name


def test_counts_and_memory_say_that_it_is_trained() -> None:
    spec = small(**OBJECTIVES)
    counted = {}
    for trains in (False, True):
        resolved = resolve(spec, {"train_image_encoder": trains})
        model = build_model(resolved.spec, weights="meta")
        summary = summarize(model, resolved)
        counted[trains] = (summary, training_memory(model, "instruct", 2))
    own = sum(parameter.numel() for parameter in model.encoder.parameters())
    assert counted[True][0].stage2_breakdown["image encoder"] == own
    assert counted[True][0].stage1_trainable - counted[False][0].stage1_trainable == own
    assert counted[True][1].gradients - counted[False][1].gradients == 4 * own


def config(**overrides: Any) -> TrainConfig:
    return load_config(
        "tiny-stage2", {"out": "runs/x", **{path.replace("__", "."): value for path, value in overrides.items()}}
    )


def test_groups_are_of_parts_that_are_trained() -> None:
    rate = {"learning_rate": 1e-5}
    with pytest.raises(SpecError, match=r"groups\.image_encoder: it is frozen; set model\.spec\.train_image_encoder"):
        config(optimization__groups={"image_encoder": rate})
    with pytest.raises(SpecError, match=r"groups\.objectives: is not trained in stage instruct"):
        config(optimization__groups={"objectives": rate})
    with pytest.raises(SpecError, match="groups"):
        config(optimization__groups={"tagger": rate})
    found = config(optimization__groups={"image_encoder": rate}, model__spec__train_image_encoder=True)
    assert found.optimization.groups["image_encoder"].learning_rate == 1e-5
