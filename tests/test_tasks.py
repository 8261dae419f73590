"""Training loops that are not this library's: transformers' Trainer, and a plain one, on the public face alone."""

from __future__ import annotations

import itertools
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

import lyrics
from tests.core.small import drawn

SCENES = {"scenes": {"split": "train", "scenes": 24}}


@pytest.fixture(scope="module")
def model() -> lyrics.LyricsModel:
    return lyrics.load_model("lyrics-tiny")


def tensors(model: lyrics.LyricsModel) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def moved(model: lyrics.LyricsModel, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
def test_ten_steps_of_transformers_trainer(model: lyrics.LyricsModel, stage: Any, tmp_path: Path) -> None:
    trained, before = model.trainable_parameters(stage), tensors(model)
    settings = TrainingArguments(
        str(tmp_path),
        max_steps=10,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        learning_rate=3e-4,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    held_out = {"scenes": {"split": "validation", "scenes": 4}}
    trainer = Trainer(
        model=model,
        args=settings,
        train_dataset=lyrics.training_data(SCENES, stage),
        eval_dataset=lyrics.training_data(held_out, stage),
        data_collator=lyrics.data_collator(model, stage),
    )
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(losses) == 10
    assert all(math.isfinite(loss) for loss in losses)
    if stage == "pretrain":  # its losses begin anew, as the weights of stage 2 have no heads for them
        assert sum(losses[-3:]) < sum(losses[:3])
    changed = moved(model, before)
    assert changed
    assert changed <= set(trained)
    if stage == "instruct":
        assert {name.partition(".")[0] for name in changed} == {"query_transformer", "projection", "language_model"}
    assert math.isfinite(trainer.evaluate()["eval_loss"])
    assert math.isfinite(trainer.predict(trainer.eval_dataset).metrics["test_loss"])  # type: ignore[arg-type]
    model.save_pretrained(tmp_path / "kept")
    again = lyrics.load_model(str(tmp_path / "kept"))
    after = tensors(model)
    assert not moved(again, after)
    question = (drawn(), "What is there?")
    assert again.generate(*question, max_new_tokens=4) == model.eval().generate(*question, max_new_tokens=4)


def test_a_plain_loop_with_workers_that_are_started_afresh(model: lyrics.LyricsModel) -> None:
    """Batches out of a loader, losses out of a call; the collation can be sent to another process."""
    trained, before = model.trainable_parameters("instruct"), tensors(model)
    collate = pickle.loads(pickle.dumps(lyrics.data_collator(model, "instruct")))
    loader = DataLoader(lyrics.training_data(SCENES, "instruct"), batch_size=3, collate_fn=collate)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-3)
    model.train()
    for inputs in itertools.islice(loader, 2):
        output = model(**inputs)
        assert isinstance(output, lyrics.TrainingOutput)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    changed = moved(model, before)
    assert changed
    assert changed <= set(trained)


def test_a_step_on_pictures_of_ones_own(model: lyrics.LyricsModel) -> None:
    """What the processor makes is learned, in both stages; the loss falls on what is seen again and again."""
    images, text, answers = [drawn(), drawn(40, 60, "blue")], ["What color?", "And this?"], ["red", "a blue one"]
    for stage, inputs in (
        ("instruct", model.processor(images=images, text=text, answers=answers, return_tensors="pt", padding=True)),
        ("pretrain", model.processor(images=images, captions=["a red picture", "a blue picture"])),
    ):
        optimizer = torch.optim.AdamW(model.trainable_parameters(stage).values(), lr=1e-3)
        losses = []
        for _ in range(4):
            output = model(**inputs)
            losses.append(float(output.loss.detach()))
            output.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert losses[-1] < losses[0]


def test_what_training_data_takes() -> None:
    by_name = lyrics.training_data("scenes", "instruct")
    built = lyrics.training_data({"scenes": lyrics.build_dataset("scenes")}, "instruct")
    assert len(by_name) == len(built)
    assert by_name[3].sample == built[3].sample
    both = lyrics.training_data(
        {"a": lyrics.build_dataset("scenes", {"scenes": 2}), "scenes": {"scenes": 3}}, "pretrain"
    )
    assert len(both) == 5
    assert {both[position].data_set for position in range(5)} == {"a", "scenes"}
    other = lyrics.training_data("scenes", "instruct", seed=1)
    assert [other[place].row for place in range(6)] != [by_name[place].row for place in range(6)]
    with pytest.raises(lyrics.SpecError, match="stage='finetune': there are pretrain and instruct"):
        lyrics.training_data("scenes", "finetune")  # type: ignore[arg-type]
    with pytest.raises(lyrics.SpecError, match="names no data set"):
        lyrics.training_data({}, "instruct")
    with pytest.raises(lyrics.SpecError, match=r"'scene'.*Did you mean 'scenes'"):
        lyrics.training_data("scene", "instruct")


def test_the_collator_refuses_a_stage_that_does_not_exist(model: lyrics.LyricsModel) -> None:
    with pytest.raises(lyrics.SpecError, match="stage='both'"):
        lyrics.data_collator(model, "both")  # type: ignore[arg-type]
